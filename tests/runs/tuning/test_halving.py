"""Asynchronous successive halving: what is promoted, against its definition and full runs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.runs.tuning import Halving


def finished(losses, rungs, eta):
    """Runs all points one after another; a point's loss is the same at every rung."""
    halving, ran, new = Halving(rungs, eta), [], iter(range(len(losses)))
    while True:
        job = halving.promoted()
        if job is None:
            point = next(new, None)
            job = halving.unfinished() if point is None else (point, 0)
        if job is None:
            return halving, ran
        halving.tell(*job, losses[job[0]])
        ran.append(job)


def test_the_order_is_that_of_algorithm_2():
    # eta = 2, losses 3 1 2 0: by hand. 1 is the best of two; then 0 of four, and both of rung 1.
    _, ran = finished([3.0, 1.0, 2.0, 0.0], rungs=3, eta=2)
    assert ran == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (3, 2)]


@given(
    st.lists(st.integers(0, 50).map(float) | st.just(math.inf), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(2, 4),
)
def test_rungs_shrink_nothing_runs_twice_and_the_best_runs_in_full(losses, rungs, eta):
    halving, ran = finished(losses, rungs, eta)
    assert len({*ran}) == len(ran)
    assert [p for p, k in ran if k == 0] == [*range(len(losses))]
    for point, rung in ran:
        assert rung == 0 or (point, rung - 1) in ran
    best = halving.winner()
    if all(map(math.isinf, losses)):
        assert best is None
        return
    point, rung = best
    assert losses[point] == min(losses)
    assert rung == rungs - 1
    assert all(math.isfinite(losses[p]) for p, k in ran if k > 0)


@pytest.mark.parametrize("n", [9, 27, 81])
def test_a_third_is_promoted_if_the_best_come_first_and_nearly_all_if_they_come_last(n):
    _, first = finished([float(i) for i in range(n)], 2, 3)
    assert sum(k == 1 for _, k in first) == n // 3
    _, last = finished([float(-i) for i in range(n)], 2, 3)  # each is the best so far
    assert sum(k == 1 for _, k in last) == n - 2


def test_a_tie_goes_to_the_first():
    halving, _ = finished([1.0, 1.0, 1.0], 2, 3)
    assert halving.winner() == (0, 1)


def test_where_the_winner_comes_to_nothing_as_it_runs_on_the_next_takes_its_place():
    halving, ran = Halving(2, 6), []
    for point, loss in enumerate([2.0, 1.0, 3.0]):
        halving.tell(point, 0, loss)
    while (job := halving.promoted() or halving.unfinished()) is not None:
        ran.append(job)
        halving.tell(*job, math.inf if job[0] == 1 else 5.0)
    assert ran == [(1, 1), (0, 1)]
    assert halving.winner() == (0, 1)


def test_if_all_come_to_nothing_the_search_ends():
    halving, ran = Halving(3, 3), []
    for point in range(4):
        halving.tell(point, 0, float(point))
    while (job := halving.promoted() or halving.unfinished()) is not None:
        ran.append(job)
        halving.tell(*job, math.inf)
    assert [point for point, _ in ran] == [0, 1, 2, 3]
    assert halving.winner() is None
