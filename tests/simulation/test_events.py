"""The event queue: order, ties, and the refusal to go back in time."""

from __future__ import annotations

import random

import pytest

from fl.errors import SimulationError
from fl.simulation.events import EventQueue, Priority


def drain(queue: EventQueue) -> None:
    while len(queue):
        queue.run_instant()


def test_events_run_in_order_of_time_priority_and_scheduling() -> None:
    queue, seen = EventQueue(), []
    events = [
        (time, priority, number)
        for number, (time, priority) in enumerate(
            (t, p) for t in (2.0, 1.0, 1.0, 3.0) for p in reversed(Priority)
        )
    ]
    for time, priority, number in events:
        queue.schedule(time, priority, seen.append, (time, priority, number))
    drain(queue)
    assert seen == sorted(events)


def test_ties_resolve_in_schedule_order() -> None:
    queue, seen = EventQueue(), []
    for number in range(100):
        queue.schedule(1.0, Priority.PROGRESS, seen.append, number)
    drain(queue)
    assert seen == list(range(100))


def test_what_an_event_schedules_for_the_same_instant_runs_in_that_instant() -> None:
    queue, seen = EventQueue(), []
    queue.schedule(1.0, Priority.TIMER, seen.append, "timer")

    def arrive() -> None:
        seen.append("first")
        queue.schedule(1.0, Priority.PROGRESS, seen.append, "second")

    queue.schedule(1.0, Priority.PROGRESS, arrive)
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
    queue.schedule(1.0, Priority.PROGRESS, print)
    queue.run_instant()
    with pytest.raises(SimulationError, match=r"already 1\.0 s"):
        queue.schedule(time, Priority.PROGRESS, print)


def test_ten_thousand_random_events_come_out_sorted() -> None:
    rng, queue, seen = random.Random(0), EventQueue(), []
    for _ in range(10_000):
        time = float(rng.randrange(100))
        queue.schedule(time, Priority(rng.randrange(4)), lambda: seen.append(queue.now))
    drain(queue)
    assert seen == sorted(seen)
    assert len(seen) == 10_000
