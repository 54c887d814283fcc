"""Equal clients: the fleet whose times can be worked out by hand."""

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
from fl.simulation.world.fleets.columns import client_ids, constant
from fl.simulation.world.slowdowns import Constant, Distribution


def uniform(
    num_clients: int,
    seed: int,
    *,
    flops: float = 1e9,
    speed_spread: float = 1.0,
    jitter: float = 0.0,
    memory_bytes: float = 4 * 2.0**30,
    idle_w: float = 0.5,
    compute_w: float = 5.0,
    radio_w: float = 1.0,
    down_bps: float = 10e6,
    up_bps: float = 10e6,
    latency_s: float = 0.0,
    loss: float = 0.0,
    server_down_bps: float = math.inf,
    server_up_bps: float = math.inf,
    server_latency_s: float = 0.0,
    client_slowdown: Distribution | None = None,
    availability: Availability | None = None,
    faults: Faults | None = None,
    prefetch: bool = False,
) -> Fleet:
    """Returns a fleet of equal clients, apart from `speed_spread` and `client_slowdown`.

    A task takes

        latency + down_bits / down_bps + flops / speed + latency + up_bits / up_bps

    seconds, exactly, as long as the server's link is infinite (the default).

    All defaults are round numbers of our own choice.

    Args:
        num_clients: n.
        seed: root seed of the run.
        flops: training speed in FLOP/s; with a spread, that of the fastest client possible.
        speed_spread: s >= 1. Client i runs at flops * s**(-u_i), u_i uniform in [0, 1): speeds are
            log-uniform between flops / s and flops, so fastest to slowest is s : 1.
        jitter: sigma of the log-normal factor on each task's compute time.
        memory_bytes: memory for training.
        idle_w: power in W while waiting.
        compute_w: power in W while training.
        radio_w: power in W while sending or receiving.
        down_bps: bandwidth to each client, bit/s; may be infinite.
        up_bps: bandwidth from each client, bit/s; may be infinite.
        latency_s: one-way delay of each client's link, in s.
        loss: packet loss probability of each client's link.
        server_down_bps: capacity for what the server receives, bit/s.
        server_up_bps: capacity for what the server sends, bit/s.
        server_latency_s: one-way delay of the server's link, in s.
        client_slowdown: of how many times as long client i takes for its work; None is 1.
        availability: who is online when; None means always.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.

    Raises:
        ConfigError: an argument is out of range.
    """
    clients = client_ids(num_clients)
    if not (math.isfinite(speed_spread) and speed_spread >= 1):
        raise ConfigError(
            f"speed_spread is {speed_spread}; it is the speed of the fastest client over that of "
            "the slowest, finite and at least 1."
        )
    speeds = constant(num_clients, flops)
    if speed_spread > 1:
        speeds = flops * speed_spread ** -uniforms(seed, "device-speed", clients)
    slowdowns = (client_slowdown or Constant()).of_clients(seed, "pace", num_clients)
    if (slowdowns != 1).any():  # equal speeds stay a column that takes no memory
        speeds = speeds / slowdowns
    return Fleet(
        name="uniform",
        seed=seed,
        devices=Devices(
            kind=np.broadcast_to(np.int16(0), (num_clients,)),
            kinds=("client",),
            flops=speeds,
            memory_bytes=constant(num_clients, memory_bytes),
            idle_w=constant(num_clients, idle_w),
            compute_w=constant(num_clients, compute_w),
            radio_w=constant(num_clients, radio_w),
            jitter=jitter,
        ),
        links=Links(
            down_bps=constant(num_clients, down_bps),
            up_bps=constant(num_clients, up_bps),
            latency_s=constant(num_clients, latency_s),
            loss=constant(num_clients, loss),
        ),
        server=ServerLink(server_down_bps, server_up_bps, server_latency_s),
        availability=Always(num_clients) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
    )
