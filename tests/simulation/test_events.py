"""The event queue: order, ties, and the refusal to go back in time."""

from __future__ import annotations

import math
import random
from heapq import heappop, heappush
from itertools import islice
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.errors import SimulationError
from fl.simulation.kernel import events
from fl.simulation.kernel.events import EventQueue, Priority


def drain(queue: EventQueue) -> None:
    while len(queue):
        queue.run_instant()


def test_events_run_in_order_of_time_priority_and_scheduling() -> None:
    queue, seen = EventQueue(), []
    entries = [
        (time, priority, number)
        for number, (time, priority) in enumerate(
            (t, p) for t in (2.0, 1.0, 1.0, 3.0) for p in reversed(Priority)
        )
    ]
    for time, priority, number in entries:
        queue.schedule(time, priority, seen.append, (time, priority, number))
    drain(queue)
    assert seen == sorted(entries)


def test_ties_resolve_in_schedule_order() -> None:
    queue, seen = EventQueue(), []
    for number in range(100):
        queue.schedule(1.0, Priority.PROGRESS, seen.append, number)
    drain(queue)
    assert seen == list(range(100))


def test_what_an_event_schedules_for_the_same_instant_runs_in_that_instant() -> None:
    queue, seen = EventQueue(), []
    queue.schedule(1.0, Priority.TIMER, seen.append, "timer")

    def arrive(what: str) -> None:
        seen.append(what)
        queue.schedule(1.0, Priority.PROGRESS, seen.append, "second")

    queue.schedule(1.0, Priority.PROGRESS, arrive, "first")
    queue.run_instant()
    assert seen == ["first", "second", "timer"]
    assert queue.processed == 3


def test_advancing_stops_at_the_limit_and_moves_time_there() -> None:
    queue, seen = EventQueue(), []
    queue.schedule(5.0, Priority.PROGRESS, seen.append, 5)
    assert not queue.advance(4.0)
    assert queue.now == 4.0
    assert queue.advance(5.0)
    assert (queue.now, seen) == (5.0, [5])
    assert not queue.advance(float("inf"))
    assert queue.now == 5.0


@pytest.mark.parametrize("time", [0.5, float("nan"), float("-inf")])
def test_an_event_in_the_past_is_a_bug_and_says_so(time: float) -> None:
    queue = EventQueue()
    queue.schedule(1.0, Priority.PROGRESS, print, "event")
    queue.run_instant()
    with pytest.raises(SimulationError, match=r"already 1\.0 s"):
        queue.schedule(time, Priority.PROGRESS, print, "event")


class Model:
    """The same by definition: what is pending is sorted whenever the next event is wanted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.scheduled = 0
        self.pending: list[tuple[float, int, int, Any]] = []

    def __len__(self) -> int:
        return len(self.pending)

    def schedule(self, time: float, priority: int, action: Any, argument: Any) -> None:
        self.scheduled += 1
        self.pending.append((time, priority, self.scheduled, lambda: action(argument)))

    def next_time(self) -> float:
        return min(self.pending)[0] if self.pending else math.inf

    def advance(self, until: float) -> bool:
        time = self.next_time()
        if not self.pending or time > until:
            self.now = max(self.now, until) if math.isfinite(until) else self.now
            return False
        self.now = time
        while self.next_time() == time and self.pending:
            first = min(self.pending)
            self.pending.remove(first)
            first[3]()
        return True


DELAYS = st.sampled_from([0.0, 0.0, 1e-9, 1.0, 1.0, 2.0, 2.5, 7.0, 1e6, 1e300, math.inf])


@settings(max_examples=150)
@given(
    bursts=st.lists(
        st.tuples(st.lists(st.tuples(DELAYS, st.sampled_from(Priority)), max_size=40), DELAYS),
        max_size=8,
    ),
    children=st.lists(st.tuples(DELAYS, st.sampled_from(Priority)), max_size=60),
)
def test_a_queue_with_buckets_does_what_a_sorted_list_does(
    bursts: list[Any], children: list[Any]
) -> None:
    with mock.patch.multiple(events, _MOST=6, _BUCKET=4, _SAMPLED=2):
        logs = []
        for queue in (EventQueue(), Model()):
            log: list[Any] = []
            more = iter(children)

            def act(name: Any, queue: Any = queue, log: Any = log, more: Any = more) -> None:
                log.append((queue.now, name, len(queue)))
                for number, (delay, priority) in enumerate(islice(more, 2)):
                    queue.schedule(queue.now + delay, priority, act, (name, number))

            for number, (burst, pause) in enumerate(bursts):
                for index, (delay, priority) in enumerate(burst):
                    queue.schedule(queue.now + delay, priority, act, (number, index))
                log.append((queue.next_time(), len(queue)))
                until = queue.now + pause
                while queue.advance(until):
                    log.append((queue.now, queue.next_time(), len(queue)))
            logs.append(log)
    assert logs[0] == logs[1]


LAWS = {
    "uniform": lambda rng: rng.random(),
    "of a long tail": lambda rng: rng.paretovariate(0.2),
    "of two kinds": lambda rng: 0.01 * rng.random() if rng.random() < 0.9 else 100.0,
    "of five values": lambda rng: float(rng.randrange(5)),
    "zero": lambda rng: 0.0,
}


@pytest.mark.parametrize("law", LAWS)
def test_thousands_of_events_run_in_the_order_of_a_heap(law: str) -> None:
    rng, queue, heap = random.Random(0), EventQueue(), []
    seen, expected = [], []
    delays = [LAWS[law](rng) for _ in range(30_000)]

    def act(number: int) -> None:
        seen.append((queue.now, number))
        if len(seen) <= 20_000:
            delay = delays[10_000 + len(seen) - 1]
            queue.schedule(queue.now + delay, Priority.PROGRESS, act, 10_000 + len(seen))

    for number, delay in enumerate(delays[:10_000]):
        queue.schedule(delay, Priority.PROGRESS, act, number)
        heappush(heap, (delay, number))
    drain(queue)
    while heap:
        now, number = heappop(heap)
        expected.append((now, number))
        if len(expected) <= 20_000:
            heappush(heap, (now + delays[10_000 + len(expected) - 1], 10_000 + len(expected)))
    assert seen == expected
