"""Servers and workstations of institutions, always on, behind ordinary business links."""

from __future__ import annotations

import math

import numpy as np

from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.world.availability import Always, Availability
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import choices, client_ids, constant, look_up


def cross_silo(
    num_clients: int,
    seed: int,
    *,
    server_share: float = 0.5,
    workstation_flops: float = 2.4e12,
    server_flops: float = 4.7e12,
    workstation_memory_bytes: float = 16 * 2.0**30,
    server_memory_bytes: float = 32 * 2.0**30,
    workstation_idle_w: float = 60.0,
    server_idle_w: float = 150.0,
    workstation_compute_w: float = 150.0,
    server_compute_w: float = 315.0,
    jitter: float = 0.02,
    slowest_bps: float = 100e6,
    fastest_bps: float = 1e9,
    min_latency_s: float = 0.002,
    max_latency_s: float = 0.020,
    loss: float = 0.0,
    server_down_bps: float = 1e9,
    server_up_bps: float = 1e9,
    server_latency_s: float = 0.0,
    availability: Availability | None = None,
    faults: Faults | None = None,
    prefetch: bool = False,
) -> Fleet:
    """Returns a fleet of machines of hospitals, banks or laboratories.

    Speed is 30% of the single-precision peak of a GPU: NVIDIA T4 (8.1 TFLOP/s, 16 GB, 70 W) in a
    workstation, V100 PCIe (14 to 15.7 TFLOP/s, 32 GB, 250 to 300 W) in a server; peaks are those of
    the data sheets, from memory. A server that trains draws what a V100 was measured to draw, 220 W
    (Zeus, NSDI 2023, ResNet-50), over its share of a server's power, 0.7 (Dodge et al. 2022). The
    30%, the other powers of whole machines, the links (100 Mb/s to 1 Gb/s, log-uniform, equal in
    both directions) and the latencies are our assumptions: silos differ too much for one published
    figure.

    Args:
        num_clients: n.
        seed: root seed of the run.
        server_share: fraction of the clients that are servers, the others are workstations.
        workstation_flops: training speed of a workstation in FLOP/s.
        server_flops: training speed of a server in FLOP/s.
        workstation_memory_bytes: memory for training of a workstation.
        server_memory_bytes: memory for training of a server.
        workstation_idle_w: power in W of a workstation while it waits or communicates.
        server_idle_w: the same of a server.
        workstation_compute_w: power in W of a workstation while it trains.
        server_compute_w: the same of a server.
        jitter: sigma of the log-normal factor on each task's compute time.
        slowest_bps: smallest bandwidth of a client's link, bit/s.
        fastest_bps: largest bandwidth of a client's link, bit/s.
        min_latency_s: smallest one-way delay of a client's link, in s; drawn uniformly.
        max_latency_s: largest one-way delay of a client's link, in s.
        loss: packet loss probability of each client's link.
        server_down_bps: capacity for what the coordinating server receives, bit/s.
        server_up_bps: capacity for what it sends, bit/s.
        server_latency_s: one-way delay of its link, in s.
        availability: who is online when; None means always.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.

    Raises:
        ConfigError: an argument is out of range.
    """
    clients = client_ids(num_clients)
    if not 0 <= server_share <= 1:
        raise ConfigError(f"server_share is {server_share}; a fraction must be between 0 and 1.")
    if not (0 < slowest_bps <= fastest_bps and math.isfinite(fastest_bps)):
        raise ConfigError(
            f"slowest_bps is {slowest_bps} and fastest_bps is {fastest_bps}; it takes "
            "0 < slowest_bps <= fastest_bps, both finite."
        )
    if not (0 <= min_latency_s <= max_latency_s and math.isfinite(max_latency_s)):
        raise ConfigError(
            f"min_latency_s is {min_latency_s} and max_latency_s is {max_latency_s}; it takes "
            "0 <= min_latency_s <= max_latency_s, both finite."
        )
    shares = {"workstation": 1 - server_share, "server": server_share}
    kind = choices(seed, "device-class", clients, shares)
    idle_w = look_up(kind, (workstation_idle_w, server_idle_w))
    bps = slowest_bps * (fastest_bps / slowest_bps) ** uniforms(seed, "link-quality", clients)
    delay = uniforms(seed, "link-latency", clients)
    return Fleet(
        name="cross_silo",
        seed=seed,
        devices=Devices(
            kind=kind,
            kinds=tuple(shares),
            flops=look_up(kind, (workstation_flops, server_flops)),
            memory_bytes=look_up(kind, (workstation_memory_bytes, server_memory_bytes)),
            idle_w=idle_w,
            compute_w=look_up(kind, (workstation_compute_w, server_compute_w)),
            radio_w=idle_w,
            jitter=jitter,
            mains=True,
        ),
        links=Links(
            down_bps=bps,
            up_bps=bps,
            latency_s=np.asarray(min_latency_s + (max_latency_s - min_latency_s) * delay),
            loss=constant(num_clients, loss),
        ),
        server=ServerLink(server_down_bps, server_up_bps, server_latency_s),
        availability=Always(num_clients) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
    )
