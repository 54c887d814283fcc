"""Cloud functions whose task times are measured, stragglers included."""

from __future__ import annotations

import math

import numpy as np

from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.world.availability import Always, Availability
from fl.simulation.world.devices import Devices, MeasuredSeconds
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import client_ids, constant
from fl.simulation.world.measurements import read_worker_seconds


def serverless(
    num_clients: int,
    seed: int,
    *,
    path: str,
    load: float = 0.5,
    wrap: bool = False,
    memory_bytes: float = 3008 * 2.0**20,
    power_w: float = 10.0,
    down_bps: float = math.inf,
    up_bps: float = math.inf,
    latency_s: float = 0.0,
    server_down_bps: float = math.inf,
    server_up_bps: float = math.inf,
    availability: Availability | None = None,
    faults: Faults | None = None,
    prefetch: bool = False,
) -> Fleet:
    """Returns a fleet of cloud functions: task k of client w takes what worker w took in round k.

    The file is that of 256 AWS Lambda workers over 30 rounds at five loads (repo
    mamaj/Sequential-Gradient-Coding-2, region Canada; medians from 0.64 to 1.79 s, slowest 38.5 s).
    The measured seconds are those of the whole call, so by default links take no time. They do not
    depend on the work, so a deadline cannot be turned into a number of steps on this fleet.

    Memory (a common Lambda size) and power (a share of a server, the same in all states) are our
    assumptions.

    Args:
        num_clients: n; at most the number of workers measured, unless `wrap`.
        seed: root seed of the run.
        path: NPZ file, see `fl.simulation.world.measurements.read_worker_seconds`.
        load: normalised load of the measurement to use.
        wrap: whether to use workers and rounds again, from the first, when there are too few.
        memory_bytes: memory of a function.
        power_w: power in W, computing or not.
        down_bps: bandwidth to each function, bit/s.
        up_bps: bandwidth from each function, bit/s.
        latency_s: one-way delay of each function's link, in s.
        server_down_bps: capacity for what the server receives, bit/s.
        server_up_bps: capacity for what the server sends, bit/s.
        availability: who is online when; None means always.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.

    Raises:
        ConfigError: the file cannot be read, has no such load or too few workers, or an argument
            is out of range. Too few rounds are found out when a client starts a task too many.
    """
    client_ids(num_clients)
    seconds = read_worker_seconds(path, load)
    measured = MeasuredSeconds(seconds, wrap, f"{path} at load {load}")
    power = constant(num_clients, power_w)
    return Fleet(
        name="serverless",
        seed=seed,
        devices=Devices(
            kind=np.broadcast_to(np.int16(0), (num_clients,)),
            kinds=("function",),
            flops=constant(num_clients, 1.0),  # not used: times are measured
            memory_bytes=constant(num_clients, memory_bytes),
            idle_w=power,
            compute_w=power,
            radio_w=power,
            mains=True,
        ),
        links=Links(
            down_bps=constant(num_clients, down_bps),
            up_bps=constant(num_clients, up_bps),
            latency_s=constant(num_clients, latency_s),
            loss=constant(num_clients, 0.0),
        ),
        server=ServerLink(server_down_bps, server_up_bps),
        availability=Always(num_clients) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
        task_seconds=measured,
    )
