"""Fleets, clients and availabilities whose every number is given by the test."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fl.execution.contract import Request, Result
from fl.execution.executor import Executor
from fl.flower.identity import node_id
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.links import Links, PeerLinks, ServerLink
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.availability import Always, Availability
from fl.simulation.world.battery import Battery
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults, TaskFaults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.power import Power
from fl.strategies import (
    Events,
    FedAST,
    Polling,
    PollingRule,
    SimultaneousEvents,
    SimultaneousRounds,
    SyncST,
)

NEVER = float("inf")
KEY = "b"  # every message and reply has one entry of this name, whose length counts as well


@dataclass(frozen=True)
class Client:
    """One row of a fleet. A rate of infinity and a latency of 0 make a link that takes no time."""

    flops: float = 1.0
    down_bps: float = NEVER
    up_bps: float = NEVER
    latency_s: float = 0.0
    idle_w: float = 0.0
    compute_w: float = 0.0
    radio_w: float = 0.0


@dataclass(frozen=True)
class ScriptedFaults(Faults):
    """Faults of single tasks, by (client, dispatch); all others go well."""

    script: Mapping[tuple[int, int], TaskFaults] = field(default_factory=dict)

    def draw(self, seed: int, client: int, dispatch: int) -> TaskFaults:
        return self.script.get((client, dispatch), TaskFaults())


class Scripted:
    """An availability that changes state at the given times; clients not named are online."""

    def __init__(self, num_clients: int, changes: Mapping[int, Sequence[float]], offline=()):
        self.num_clients = num_clients
        self.changes = changes
        self.offline = set(offline)  # at time 0, or rather before

    def is_online(self, client: int, t: float) -> bool:
        passed = bisect_right(self.changes.get(client, ()), t)
        return (client not in self.offline) ^ bool(passed % 2)

    def online(self, t: float):
        return np.array([self.is_online(client, t) for client in range(self.num_clients)])

    def next_change(self, client: int, t: float) -> float:
        return next((time for time in self.changes.get(client, ()) if time > t), NEVER)


def fleet_of(
    clients: Sequence[Client],
    server: ServerLink | None = None,
    availability: Availability | None = None,
    faults: Faults | None = None,
    seed: int = 0,
    prefetch: bool = False,
    edges: PeerLinks | None = None,
    power: Power | None = None,
    battery: Battery | None = None,
) -> Fleet:
    def column(name: str):
        return np.array([getattr(client, name) for client in clients], dtype=np.float64)

    n = len(clients)
    return Fleet(
        name="by hand",
        seed=seed,
        devices=Devices(
            kind=np.zeros(n, dtype=np.int16),
            kinds=("client",),
            flops=column("flops"),
            memory_bytes=np.full(n, 1e9),
            idle_w=column("idle_w"),
            compute_w=column("compute_w"),
            radio_w=column("radio_w"),
        ),
        links=Links(column("down_bps"), column("up_bps"), column("latency_s"), np.zeros(n)),
        server=ServerLink() if server is None else server,
        availability=Always(n) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
        edges=edges,
        power=power,
        battery=battery,
    )


def content_of(size: int) -> RecordDict:
    """Returns content that weighs `size` bytes: 0, or at least the length of the key."""
    entries = {KEY: b"x" * (size - len(KEY))} if size else {}
    return RecordDict({"content": ConfigRecord(entries)})


def message_to(client: int, size: int = 0, **kwargs: Any) -> Message:
    return Message(content_of(size), node_id(client), "train", **kwargs)


@dataclass(frozen=True)
class FixedWork:
    """A plan: so many FLOPs, whatever the device has time for."""

    flops: float
    work: dict[str, int] | None = None
    past_flops: float = 0.0
    reply_bytes: int | None = None
    flops_of: None = None
    local_steps: int = 0


class FakeExecutor(Executor):
    """Answers from a function instead of running anything; remembers what it was asked.

    Args:
        answer: from a request to its result; default: an empty reply.
    """

    def __init__(self, answer: Callable[[Request], Result] | None = None) -> None:
        self.answer = answer or (lambda _: Result(content=RecordDict()))
        self.waves: list[list[Request]] = []
        self.submitted: dict[Request, None] = {}
        self.discarded: list[Request] = []

    def start(self, app: Any, run: Any) -> None:
        pass

    def submit(self, wave: Sequence[Request]) -> None:
        clients = [request.client for request in wave]
        assert len(set(clients)) == len(clients), "no two of one client in a wave"
        assert not any(request in self.submitted for request in wave)
        self.waves.append(list(wave))
        self.submitted.update(dict.fromkeys(wave))

    def result(self, request: Request) -> Result:
        del self.submitted[request]  # a KeyError if it was not submitted, or asked for twice
        return self.answer(request)

    def discard(self, request: Request) -> None:
        del self.submitted[request]
        self.discarded.append(request)

    def close(self) -> None:
        pass


def grid_of(
    fleet: Fleet,
    *,
    flops: float | Mapping[tuple[int, int], float] | None = 0.0,
    reply: int | Mapping[tuple[int, int], int] = 0,
    answer: Callable[[Request], Result] | None = None,
    size_known: bool = False,
    **kwargs: Any,
) -> SimGrid:
    """Returns a grid on which tasks (client, dispatch) have given work and given sizes of replies.

    Args:
        fleet: the clients.
        flops: of each task; None gives no plan, as a foreign app.
        reply: bytes of each task's reply.
        answer: result of each request, instead of a reply of that size.
        size_known: the plan says how large the reply will be.
        **kwargs: for `SimGrid`.
    """

    def work(request: Request, _: float) -> FixedWork:
        of = flops if isinstance(flops, float) else flops[request.client, request.dispatch]
        return FixedWork(of, reply_bytes=size_of(request) if size_known else None)

    def size_of(request: Request) -> int:
        return reply if isinstance(reply, int) else reply[request.client, request.dispatch]

    def sized(request: Request) -> Result:
        return Result(content=content_of(size_of(request)))

    planner = None if flops is None else work
    return SimGrid(fleet, FakeExecutor(answer or sized), planner=planner, **kwargs)


def counting(request: Request) -> Result:
    """A client that counts its tasks in its state and reports the count."""
    state = request.state
    seen = 0 if state is None else int(state["memory"]["tasks"])
    reply = RecordDict({"metrics": MetricRecord({"tasks": seen + 1})})
    return Result(content=reply, state=RecordDict({"memory": MetricRecord({"tasks": seen + 1})}))


def events(trace: Trace) -> list[tuple[float, Event, int, int, int, float]]:
    """Returns the trace's rows as (time, kind, client, dispatch, bytes, value)."""
    kinds = [Event(kind) for kind in trace.kind]
    columns = (trace.time, kinds, trace.client, trace.dispatch, trace.bytes, trace.value)
    return list(zip(*columns, strict=True))


def times(trace: Trace, kind: Event) -> dict[tuple[int, int], float]:
    """Returns when events of one kind happened, by (client, dispatch)."""
    return {(row[2], row[3]): row[0] for row in events(trace) if row[1] is kind}


def driven(kind, *rule, **given):
    """Returns a rule without rounds in its driver; each gets the arguments that are its own."""
    own = {name: given.pop(name) for name in [f.name for f in fields(kind)] if name in given}
    drivers = {PollingRule: Polling, FedAST: SimultaneousEvents, SyncST: SimultaneousRounds}
    driver = next((made for base, made in drivers.items() if issubclass(kind, base)), Events)
    return driver(kind(*rule, **own), **given)
