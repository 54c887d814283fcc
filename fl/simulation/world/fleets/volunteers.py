"""Volunteers: private and free GPUs behind unequal links, that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl.checks import at_least, positive, within_unit
from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.world.availability import Availability
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import choices, client_ids, constant, look_up
from fl.simulation.world.volunteers import WeibullSessions


@dataclass(frozen=True)
class MachineClass:
    """A class of machines.

    Attributes:
        share: of the fleet, relative to the other classes.
        flops: training speed in FLOP/s.
        memory_bytes: for training.
        idle_w: power in W while it waits or communicates.
        compute_w: power in W while it trains.
    """

    share: float
    flops: float
    memory_bytes: float
    idle_w: float
    compute_w: float


FAULTS = Faults(detection_s=30.0)
"""The default: nothing but leaving, which is known as soon as DeDLOC's records of a peer expire."""

MACHINES = {
    "t4": MachineClass(0.5, 2.4e12, 16 * 2.0**30, 60.0, 150.0),
    "p100": MachineClass(0.2, 2.8e12, 16 * 2.0**30, 80.0, 255.0),
    "k80": MachineClass(0.1, 1.2e12, 12 * 2.0**30, 80.0, 250.0),
    "gaming": MachineClass(0.2, 3.9e12, 8 * 2.0**30, 70.0, 320.0),
}
"""The machines of the default fleet; see `volunteers` for their sources."""


def volunteers(
    num_clients: int,
    seed: int,
    *,
    machines: Mapping[str, MachineClass] = MACHINES,
    bps: Sequence[float] = (200e6, 100e6, 100e6, 50e6),
    down_over_up: float = 1.0,
    client_mode: float = 0.25,
    auxiliary: int = 0,
    auxiliary_bps: float = 500e6,
    jitter: float = 0.05,
    min_latency_s: float = 0.005,
    max_latency_s: float = 0.050,
    server_down_bps: float = 1e9,
    server_up_bps: float = 1e9,
    availability: Availability | None = None,
    faults: Faults | None = FAULTS,
    prefetch: bool = False,
) -> Fleet:
    """Returns a fleet of volunteers.

    Links are those of DeDLOC's controlled test bed (yandex-research/DeDLOC, albert/AWS_runner):
    4 at 200, 8 at 100 and 4 at 50 Mb/s, equal both ways, and auxiliary peers without GPUs at 500.
    Client i has bps[i mod their number].

    Speed is 30% of the single-precision peak of a GPU: those that free notebooks give (T4 8.1, P100
    9.3, half of a K80 4.1 TFLOP/s) and one for games (13 TFLOP/s); peaks are those of the data
    sheets, from memory. The power of the P100's machine is what the GPU was measured to draw
    (179 W, Zeus, NSDI 2023) over its share of a server's, 0.7 (Dodge et al. 2022). Their shares,
    the share that cannot be reached, the delays and the other powers are our assumptions, as are
    the lengths of sessions (`WeibullSessions`).

    Args:
        num_clients: n.
        seed: root seed of the run.
        machines: classes of machines by name.
        bps: bandwidth from a client in bit/s, of the clients in turn.
        down_over_up: bandwidth to a client over that from it.
        client_mode: share of the clients, of those that are not auxiliary, that others cannot
            reach; drawn for each.
        auxiliary: the last so many clients have `auxiliary_bps`, and can be reached.
        auxiliary_bps: their bandwidth in bit/s.
        jitter: sigma of the log-normal factor on each task's compute time.
        min_latency_s: smallest one-way delay of a client's link, in s; drawn uniformly.
        max_latency_s: largest one-way delay of a client's link, in s.
        server_down_bps: capacity for what a server receives, bit/s.
        server_up_bps: capacity for what it sends, bit/s.
        availability: who is online when; None means `WeibullSessions` with its defaults.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.

    Raises:
        ConfigError: an argument is out of range.
    """
    clients = client_ids(num_clients)
    at_least("auxiliary", auxiliary, 0)
    within_unit("client_mode", client_mode)
    positive("down_over_up", down_over_up)
    if not bps:
        raise ConfigError("bps is empty; it must have the bandwidth of one client at least")
    if not 0 <= min_latency_s <= max_latency_s < np.inf:
        raise ConfigError(
            f"min_latency_s is {min_latency_s} and max_latency_s is {max_latency_s}; it takes "
            "0 <= min_latency_s <= max_latency_s, both finite"
        )
    helps = clients >= num_clients - auxiliary
    kind = choices(seed, "device-class", clients, {name: m.share for name, m in machines.items()})
    classes = list(machines.values())
    up = np.where(helps, auxiliary_bps, np.resize(np.asarray(bps, np.float64), num_clients))
    delay = uniforms(seed, "link-latency", clients)
    idle_w = look_up(kind, [machine.idle_w for machine in classes])
    return Fleet(
        name="volunteers",
        seed=seed,
        devices=Devices(
            kind=kind,
            kinds=tuple(machines),
            flops=look_up(kind, [machine.flops for machine in classes]),
            memory_bytes=look_up(kind, [machine.memory_bytes for machine in classes]),
            idle_w=idle_w,
            compute_w=look_up(kind, [machine.compute_w for machine in classes]),
            radio_w=idle_w,
            jitter=jitter,
        ),
        links=Links(
            down_bps=np.where(helps, up, down_over_up * up),
            up_bps=up,
            latency_s=np.asarray(min_latency_s + (max_latency_s - min_latency_s) * delay),
            loss=constant(num_clients, 0.0),
            reachable=helps | (uniforms(seed, "client-mode", clients) >= client_mode),
        ),
        server=ServerLink(server_down_bps, server_up_bps),
        availability=WeibullSessions(num_clients, seed) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
    )
