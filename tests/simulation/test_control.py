"""What a strategy tells the simulator: stop, and what became of an update."""

from __future__ import annotations

import math

import pytest
from stand_ins import Client, FixedWork, events, fleet_of, grid_of, message_to

from fl.flower.grid_view import GridView, NoControl
from fl.simulation.kernel.trace import Event

CLIENT = Client(flops=1.0, latency_s=0.5, up_bps=8.0, compute_w=2.0, radio_w=1.0)


def test_a_client_stops_when_the_word_reaches_it_and_brings_no_reply():
    grid = grid_of(fleet_of([CLIENT]), flops=10.0)
    (name,) = grid.push_messages([message_to(0)])
    grid.sleep(3.5)  # it computes since 0.5 s
    assert GridView(grid).control.cancel(name)
    grid.sleep(100.0)
    assert [e[0] for e in events(grid.trace) if e[1] is Event.CANCELLED] == [4.0]
    assert grid.engine.in_flight == 0
    assert grid.engine.energy_j["compute"] == pytest.approx(2.0 * 3.5)
    assert [reply.has_error() for reply in grid.pull_messages([name])] == [True]


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("at", [0.1, 5.0, 11.5, 14.0])
def test_a_client_can_be_stopped_at_any_stage_and_takes_the_next_task_at_once(at, prefetch):
    # Latency to 0.5 s, compute to 10.5, latency to 11, upload of 4 bytes at 1 byte/s to 15.
    fleet = fleet_of([CLIENT], prefetch=prefetch)
    grid = grid_of(fleet, flops={(0, 0): 10.0, (0, 1): 1.0}, reply={(0, 0): 4, (0, 1): 0})
    (name,) = grid.push_messages([message_to(0)])
    grid.sleep(at)
    grid.control.cancel(name)
    (second,) = grid.push_messages([message_to(0)])
    grid.wait(math.inf)
    (reply,) = grid.pull_messages([second])
    assert reply.has_content()
    # The word to stop takes 0.5 s, then the message down as long, if it did not come with the word;
    # 1 s of work; up 0.5.
    assert grid.clock.now() == pytest.approx(at + (2.0 if prefetch else 2.5))
    assert grid.engine.in_flight == 0


def test_a_message_that_is_still_at_the_server_is_withdrawn_at_once_and_costs_nothing():
    grid = grid_of(fleet_of([CLIENT]), flops=10.0)
    _, second = grid.push_messages([message_to(0), message_to(0, 1000)])
    grid.sleep(5.0)
    grid.control.cancel(second)
    assert grid.engine.in_flight == 1
    grid.sleep(100.0)
    assert [e[0] for e in events(grid.trace) if e[1] is Event.CANCELLED] == [5.0]
    assert grid.engine.bytes_down == 0  # the first has no bytes
    assert grid.engine.energy_j["compute"] == 2.0 * 10.0


def test_a_task_that_is_over_cannot_be_stopped_but_its_reply_is_gone():
    grid = grid_of(fleet_of([CLIENT]), flops=1.0)
    (name,) = grid.push_messages([message_to(0)])
    grid.wait(math.inf)
    grid.control.cancel(name)
    assert not [e for e in events(grid.trace) if e[1] is Event.CANCELLED]
    assert [reply.has_error() for reply in grid.pull_messages([name])] == [True]


def test_reports_are_events_with_the_staleness_as_value():
    seen = []
    grid = grid_of(fleet_of([CLIENT]), on_applied=lambda *update: seen.append(update))
    (name,) = grid.push_messages([message_to(0)])
    grid.control.applied(name, 3, {"train-loss": 1.0})
    grid.control.discarded(name, 7)
    rows = [e for e in events(grid.trace) if e[1] in (Event.APPLIED, Event.DISCARDED)]
    assert [(e[1], e[2], e[3], e[5]) for e in rows] == [
        (Event.APPLIED, 0, 0, 3.0),
        (Event.DISCARDED, 0, 0, 7.0),
    ]
    assert seen == [(3, {"train-loss": 1.0}, False)]


def test_the_gap_between_polls_is_another_event_than_staleness():
    grid = grid_of(fleet_of([CLIENT]))
    (name,) = grid.push_messages([message_to(0)])
    grid.control.applied(name, 5, {}, polled=True)
    assert grid.trace.staleness() is None
    assert grid.trace.poll_gap() == {"updates": 1, "mean": 5.0, "max": 5.0}


def test_waiting_ends_at_the_first_reply_or_at_the_time_given():
    grid = grid_of(fleet_of([CLIENT, CLIENT]), flops={(0, 0): 1.0, (1, 0): 5.0})
    grid.push_messages([message_to(0), message_to(1)])
    grid.clock.wait(1.0)
    assert grid.clock.now() == 1.0
    grid.clock.wait(math.inf)
    assert grid.clock.now() == 2.0


def test_an_app_that_waits_through_the_clock_is_not_moved_by_pulling_again():
    grid = grid_of(fleet_of([CLIENT]), flops=10.0)
    names = grid.push_messages([message_to(0)])
    grid.clock.wait(1.0)
    for _ in range(5):
        assert grid.pull_messages(names) == []
    assert grid.clock.now() == 1.0


def test_work_done_before_the_message_came_costs_energy_and_no_time():
    grid = grid_of(fleet_of([CLIENT]))
    grid._planner = lambda *_: FixedWork(0.0, past_flops=7.0)
    grid.push_messages([message_to(0)])
    grid.clock.wait(math.inf)
    assert grid.clock.now() == 1.0
    assert grid.engine.energy_j["compute"] == 2.0 * 7.0


def test_on_a_deployment_nobody_stops():
    control = GridView(object()).control
    assert isinstance(control, NoControl)
    assert not control.cancel("m")
