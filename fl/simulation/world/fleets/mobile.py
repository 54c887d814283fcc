"""Phones of three classes on Wi-Fi, 4G and 5G, that come and go with the time of day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.checks import is_a
from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.world.availability import Availability, Diurnal
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import choices, client_ids, log_normals, look_up
from fl.simulation.world.radio import Radio, Radios


@dataclass(frozen=True)
class PhoneClass:
    """A class of phones.

    Attributes:
        share: relative frequency in the fleet.
        flops: median training speed in FLOP/s.
        memory_bytes: memory that training may use, in bytes.
        idle_w: power of the phone in W while it waits.
        compute_w: power of the phone in W while it trains.
    """

    share: float
    flops: float
    memory_bytes: float
    idle_w: float
    compute_w: float


@dataclass(frozen=True)
class NetworkClass:
    """A kind of access network.

    Attributes:
        share: relative frequency in the fleet.
        down_bps: median bandwidth towards the phone, bit/s.
        up_bps: median bandwidth from the phone, bit/s.
        latency_s: one-way delay in s: half of a reported round trip.
        radio_w: power of the phone in W while it sends or receives.
        loss: packet loss probability. 0 where the bandwidths are what TCP reached.
    """

    share: float
    down_bps: float
    up_bps: float
    latency_s: float
    radio_w: float
    loss: float = 0.0


_GIB = 2.0**30

PHONES: Mapping[str, PhoneClass] = {
    "low-end": PhoneClass(0.3, 0.621e9, 1.5 * _GIB, 0.3, 2.0),
    "mid-range": PhoneClass(0.5, 1.735e9, 2 * _GIB, 0.3, 3.0),
    "high-end": PhoneClass(0.2, 5.699e9, 4 * _GIB, 0.3, 5.0),
}
NETWORKS: Mapping[str, NetworkClass] = {
    "wifi": NetworkClass(0.6, 34.5e6, 26.3e6, 0.005, 1.0),
    "4g": NetworkClass(0.3, 36.0e6, 11.2e6, 0.020, 1.6),
    "5g": NetworkClass(0.1, 166.1e6, 21.1e6, 0.014, 2.0),
}

FAULTS = Faults(dropout=0.05, crash=0.005, message_loss=0.005, detection_s=60.0)


def mobile(
    num_clients: int,
    seed: int,
    *,
    phones: Mapping[str, PhoneClass] = PHONES,
    networks: Mapping[str, NetworkClass] = NETWORKS,
    speed_sigma: float = 0.2,
    jitter: float = 0.05,
    link_sigma: float = 0.5,
    transfer_variation: float = 0.37,
    server_down_bps: float = 1e9,
    server_up_bps: float = 1e9,
    server_latency_s: float = 0.0,
    availability: Availability | None = None,
    faults: Faults | None = FAULTS,
    prefetch: bool = False,
    radio: Mapping[str, Radio] | None = None,
) -> Fleet:
    """Returns a fleet of phones.

    Training speed. FLASH (Yang et al., WWW 2021; repo PKU-Chengxu/FLASH, `device_util.py`) gives
    measured times of one training step of the FEMNIST CNN with batch size 10 on three phones:
    1642, 588 and 179 ms. That CNN (conv 5x5 of 32, pool, conv 5x5 of 64, pool, dense 2048, dense
    62, on 28 x 28) takes per example, in multiply-adds,

        conv 1    28 * 28 * 32 * 25        =    627,200
        conv 2    14 * 14 * 64 * 25 * 32   = 10,035,200
        dense 1   3136 * 2048              =  6,422,528
        dense 2   2048 * 62                =    126,976
        forward                            = 17,211,904

    Backward takes twice that, less one conv 1, whose input needs no gradient: 33,796,608. Together
    51,008,512 multiply-adds = 102.0 MFLOP an example, 1.0202 GFLOP a batch of 10
    (`torch.utils.flop_counter` counts 1,020,170,240). Hence 0.621, 1.735 and 5.699 GFLOP/s.

    Links. Wi-Fi: medians over FLASH's 19 users, 4318 kB/s down and 3286 kB/s up; also from there
    the spread between users (standard deviation of the logarithm: 0.48 down, 0.70 up) and the
    variation from transfer to transfer (median of sigma over mean: 0.37 down, 0.40 up). 4G: means
    of all mobile tests of Ookla's Speedtest Global Index of September 2020, when few were 5G,
    35.96 Mb/s down, 11.22 Mb/s up. 5G: Ookla's worldwide medians of the third quarter of 2021,
    166.13 and 21.08 Mb/s. Round trips, from Ookla: 40 ms mobile in September 2020, for 4G; 28 ms
    mobile and 10 ms fixed in November 2022, for 5G and for Wi-Fi.

    Power. Wi-Fi: 0.71 W of the radio when it is busy (PowerTutor's model, Zhang et al. 2010), 4G:
    1.29 W (base power of LTE, Huang et al., MobiSys 2012; from memory, not checked again), both
    plus the idle power. Idle 0.3 W, training 2, 3 and 5 W and 5G 2.0 W are our assumptions.

    Also assumptions: the shares of phones and networks (FLASH maps phones that it does not know to
    its three with weights 0.532, 0.464, 0.004), half of a typical phone's memory for training
    (3, 4 and 8 GiB), the spread of speeds within a class, the jitter, one factor for both
    directions of a link, and the server's 1 Gb/s.

    Faults. Bonawitz et al. (MLSys 2019, arXiv:1902.01046) report that 6% to 10% of the devices drop
    out of a round (from memory, not checked again). Part of that comes from `availability` here, so
    the default draws 5% on top. Crashes and lost messages, 0.5% each, are assumptions. The server
    learns of a lost phone after 60 s: Flower's heartbeat interval, 30 s, times its patience, 2.

    Args:
        num_clients: n.
        seed: root seed of the run.
        phones: classes of phones by name.
        networks: kinds of access network by name.
        speed_sigma: log-normal spread of training speed within a class.
        jitter: sigma of the log-normal factor on each task's compute time.
        link_sigma: log-normal spread of bandwidth within a kind of network.
        transfer_variation: standard deviation of a transfer's bandwidth over the link's mean.
        server_down_bps: capacity for what the server receives, bit/s.
        server_up_bps: capacity for what the server sends, bit/s.
        server_latency_s: one-way delay of the server's link, in s.
        availability: who is online when; None means `Diurnal` with its defaults, 5% to 25%.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.
        radio: by kind of network, in place of its `radio_w`; see `Radio`. None is that power alone.

    Raises:
        ConfigError: an argument is out of range, or a network has no radio while others have.
    """
    clients = client_ids(num_clients)
    kind = choices(seed, "device-class", clients, {k: p.share for k, p in phones.items()})
    network = choices(seed, "network-class", clients, {k: w.share for k, w in networks.items()})
    models, nets = list(phones.values()), list(networks.values())
    speed = log_normals(seed, "device-speed", clients, speed_sigma)
    quality = log_normals(seed, "link-quality", clients, link_sigma)
    down = look_up(network, [net.down_bps for net in nets]) * quality
    up = look_up(network, [net.up_bps for net in nets]) * quality
    varies = transfer_variation != 0
    return Fleet(
        name="mobile",
        seed=seed,
        devices=Devices(
            kind=kind,
            kinds=tuple(phones),
            flops=look_up(kind, [model.flops for model in models]) * speed,
            memory_bytes=look_up(kind, [model.memory_bytes for model in models]),
            idle_w=look_up(kind, [model.idle_w for model in models]),
            compute_w=look_up(kind, [model.compute_w for model in models]),
            radio_w=look_up(network, [net.radio_w for net in nets]),
            jitter=jitter,
        ),
        links=Links(
            down_bps=down,
            up_bps=up,
            latency_s=look_up(network, [net.latency_s for net in nets]),
            loss=look_up(network, [net.loss for net in nets]),
            down_sigma_bps=transfer_variation * down if varies else None,
            up_sigma_bps=transfer_variation * up if varies else None,
        ),
        server=ServerLink(server_down_bps, server_up_bps, server_latency_s),
        availability=Diurnal(num_clients, seed) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
        radios=None if radio is None else _radios(radio, network, list(networks)),
    )


def _radios(radio: Mapping[str, Radio], network: NDArray[np.int16], names: Sequence[str]) -> Radios:
    """Returns the radios of clients, each on one of the networks that are named."""
    for name in radio:
        if name not in names:
            raise ConfigError(
                f"radio has {name!r}, which is no network of the fleet: they are {', '.join(names)}"
            )
    for name in names:
        if name not in radio:
            raise ConfigError(
                f"radio has none for {name!r}: give one for each network, {', '.join(names)}, or "
                "leave radio out"
            )
        is_a(f"radio.{name}", radio[name], Radio, "_target_: fl.simulation.world.radio.Radio")
    return Radios(network, [radio[name] for name in names])
