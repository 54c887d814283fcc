"""Time as a strategy sees it."""

from __future__ import annotations

import time

from stand_ins import Client, fleet_of, grid_of, message_to

from fl.flower.grid_view import GridView, WallClock
from fl.simulation.kernel.clock import VirtualClock


def test_a_grid_with_a_clock_of_its_own_is_asked_for_it() -> None:
    grid = grid_of(fleet_of([Client()]))
    assert GridView(grid).clock is grid.clock
    assert isinstance(grid.clock, VirtualClock)


def test_any_other_grid_runs_by_the_wall_clock() -> None:
    clock = GridView(object()).clock
    assert isinstance(clock, WallClock)
    before = time.monotonic()
    now = clock.now()
    clock.sleep(0.01)
    assert before <= now <= clock.now() - 0.01


def test_sleeping_runs_what_happens_meanwhile_and_ends_at_the_second_asked_for() -> None:
    grid = grid_of(fleet_of([Client()]), flops=2.0)
    (name,) = grid.push_messages([message_to(0)])
    grid.clock.sleep(2.5)
    assert grid.clock.now() == 2.5
    assert len(grid.pull_messages([name])) == 1
    grid.clock.sleep(0.0)
    grid.clock.sleep(-1.0)  # too late is now
    assert grid.clock.now() == 2.5
