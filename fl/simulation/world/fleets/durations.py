"""Clients whose tasks take times drawn from a distribution, as papers on stragglers say it."""

from __future__ import annotations

import math

import numpy as np

from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.world.availability import Always, Availability
from fl.simulation.world.devices import Devices
from fl.simulation.world.durations import DrawnSeconds
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import client_ids, constant
from fl.simulation.world.slowdowns import Constant, Distribution


def durations(
    num_clients: int,
    seed: int,
    *,
    seconds: float = 1.0,
    task_slowdown: Distribution | None = None,
    client_slowdown: Distribution | None = None,
    task_flops: float | None = None,
    memory_bytes: float = 4 * 2.0**30,
    idle_w: float = 0.5,
    compute_w: float = 5.0,
    radio_w: float = 1.0,
    down_bps: float = math.inf,
    up_bps: float = math.inf,
    latency_s: float = 0.0,
    server_down_bps: float = math.inf,
    server_up_bps: float = math.inf,
    availability: Availability | None = None,
    faults: Faults | None = None,
    prefetch: bool = False,
) -> Fleet:
    """Returns a fleet whose task times are drawn: seconds f_i X_ik for task k of client i.

    X_ik is drawn for each task, f_i belongs to the client. A task takes this long whatever its
    work; so with links that take no time (the default) this is the whole round trip, and a deadline
    cannot be turned into a number of steps. With `task_flops`, this is the time of so many FLOPs,
    other work takes time in proportion, and deadlines and interruptions work.

    Memory and power are round numbers of our own choice, those of `uniform`.

    Args:
        num_clients: n.
        seed: root seed of the run.
        seconds: of a task whose slowdowns are 1.
        task_slowdown: distribution of X; None is 1.
        client_slowdown: distribution of f; None is 1.
        task_flops: work that takes these seconds; None: every task does.
        memory_bytes: memory for training.
        idle_w: power in W while waiting.
        compute_w: power in W while training.
        radio_w: power in W while sending or receiving.
        down_bps: bandwidth to each client, bit/s; may be infinite.
        up_bps: bandwidth from each client, bit/s; may be infinite.
        latency_s: one-way delay of each client's link, in s.
        server_down_bps: capacity for what the server receives, bit/s.
        server_up_bps: capacity for what the server sends, bit/s.
        availability: who is online when; None means always.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.

    Raises:
        ConfigError: an argument is out of range.
    """
    client_ids(num_clients)
    f = (client_slowdown or Constant()).of_clients(seed, "client-duration", num_clients)
    return Fleet(
        name="durations",
        seed=seed,
        devices=Devices(
            kind=np.broadcast_to(np.int16(0), (num_clients,)),
            kinds=("client",),
            flops=constant(num_clients, 1.0),  # not used: times are drawn
            memory_bytes=constant(num_clients, memory_bytes),
            idle_w=constant(num_clients, idle_w),
            compute_w=constant(num_clients, compute_w),
            radio_w=constant(num_clients, radio_w),
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
        task_seconds=DrawnSeconds(seed, seconds, f, task_slowdown or Constant(), task_flops),
    )
