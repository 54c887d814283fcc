"""Zeus: cost and power limit in closed form, pruning by hand, beliefs, and regret on a bandit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.runs.tuning.zeus import RecurringJob, Zeus, best_limit, cost, recur

SIZES = (8, 16, 32, 64, 128)


def explored(zeus: Zeus, costs: dict[int, float], fails: set[int] = frozenset()) -> list[int]:
    """Returns the batch sizes that are run until pruning is over."""
    state, runs = zeus.init(), []
    while zeus.explores(state):
        b = zeus.batch_size(state, np.random.default_rng(0))
        runs.append(b)
        state = zeus.observe(state, b, costs[b], reached=b not in fails)
    return runs


def test_cost_is_the_weighted_sum_of_energy_and_of_time_at_the_highest_power() -> None:
    assert cost(0.5, 100.0, 3.0, 250.0) == 0.5 * 100 + 0.5 * 750
    assert cost(1.0, 100.0, 3.0, 250.0) == 100
    assert cost(0.0, 100.0, 3.0, 250.0) == 750


def test_limit_is_the_most_frugal_for_energy_and_the_fastest_for_time() -> None:
    # The V100 on ResNet-50: s of an epoch over that at 250 W, and W.
    speeds = {100: 0.52, 125: 0.69, 150: 0.85, 175: 0.91, 200: 0.95, 225: 0.98, 250: 1.0}
    watts = {100: 98, 125: 122, 150: 145, 175: 166, 200: 185, 225: 205, 250: 220}
    profile = {float(w): (1 / speeds[w], float(watts[w])) for w in speeds}
    assert best_limit(profile, 1.0, 250.0) == 150
    assert best_limit(profile, 0.0, 250.0) == 250
    # By hand: (145 + 250) / 0.85 = 464.7, (166 + 250) / 0.91 = 457.1, (185 + 250) / 0.95 = 457.9.
    assert best_limit(profile, 0.5, 250.0) == 175


def test_pruning_goes_down_then_up_and_again_from_the_cheapest() -> None:
    costs = {8: 5.0, 16: 4.0, 32: 3.0, 64: 1.0, 128: 2.0}
    runs = explored(Zeus(SIZES, 32), costs)
    assert runs == [32, 16, 8, 64, 128, 64, 32, 16, 8, 128]


def test_failure_ends_a_direction_and_is_not_visited_again() -> None:
    costs = dict.fromkeys(SIZES, 1.0) | {64: 0.5}
    runs = explored(Zeus(SIZES, 32), costs, fails={16, 128})
    assert runs == [32, 16, 64, 128, 64, 32]


def test_belief_is_the_posterior_of_a_gaussian_of_known_variance() -> None:
    zeus = Zeus(SIZES, 32, pruning_rounds=0)
    state = zeus.init()
    for c in (10.0, 14.0):
        state = zeus.observe(state, 8, c, reached=True)
    assert zeus.belief(state, 8) == (-12.0, 2.0)
    windowed = Zeus(SIZES, 32, pruning_rounds=0, window=2)
    state = windowed.observe(state, 8, 18.0, reached=True)
    assert windowed.belief(state, 8) == (-16.0, 2.0)
    assert zeus.belief(state, 8) == pytest.approx((-14.0, 32 / 3 / 3))


def test_equal_costs_leave_a_belief_that_can_be_drawn_from() -> None:
    zeus = Zeus((8, 16), 8, pruning_rounds=0)
    state = zeus.init()
    for b in (8, 8, 16, 16):
        state = zeus.observe(state, b, 10.0 + b, reached=True)
    assert 0 < zeus.belief(state, 8).variance < 1e-9
    assert zeus.batch_size(state, np.random.default_rng(0)) == 8


def test_limit_on_costs_is_beta_times_the_cheapest_recurrence_with_its_failures() -> None:
    zeus = Zeus(SIZES, 32)
    state = zeus.init()
    assert zeus.limit(state) == math.inf
    state = zeus.observe(state, 32, 7.0, reached=False)
    state = zeus.observe(state, 64, 5.0, reached=True)
    assert zeus.limit(state) == 2 * 12
    state = zeus.observe(state, 64, 4.0, reached=True)
    assert zeus.limit(state) == 2 * 4
    assert zeus.too_dear(state, 128).least_cost == 4


def test_regret_per_run_on_a_gaussian_bandit_goes_to_zero() -> None:
    # Means 10, 11, 13, 20 with deviation 1: drawn at random, a run would cost 3.5 more than the
    # best.
    means = {8: 13.0, 16: 10.0, 32: 20.0, 64: 11.0}
    regrets = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        zeus = Zeus(sorted(means), 64, beta=math.inf)
        state, regret = zeus.init(), []
        for _ in range(120):
            b = zeus.batch_size(state, rng)
            regret.append(means[b] - 10)
            state = zeus.observe(state, b, rng.normal(means[b], 1.0), reached=True)
        regrets.append(regret)
    mean = np.mean(regrets, axis=0)
    assert mean[:8].mean() == pytest.approx(3.5)  # pruning runs each twice
    assert mean[8:40].mean() < 1.0
    assert mean[-40:].mean() < 0.35


def job_of(epochs: dict[int, list[int | None]], max_epochs: int = 50) -> RecurringJob:
    profile = {b: {100.0: (2.0, 80.0), 200.0: (1.0, 200.0)} for b in epochs}
    return RecurringJob(epochs, profile, max_epochs)


def test_recurring_job_settles_on_the_cheapest_batch_size_and_limit() -> None:
    job = job_of({8: [30], 16: [10, 12], 32: [20]})
    runs = recur(Zeus((8, 16, 32), 32), job, 30, np.random.default_rng(0), eta=1.0)
    assert all(run.limit_w == 100 for run in runs)  # 160 J an epoch against 200
    assert {run.batch_size for run in runs[-15:]} == {16}
    first, last = runs[0], runs[-1]
    # The first epoch of the first run has half of each limit: 180 J and 1.5 s, not 160 J and 2 s.
    assert (first.energy_j, first.time_s) == (19 * 160 + 180, 19 * 2 + 1.5)
    assert last.energy_j in (10 * 160, 12 * 160)


def test_run_that_would_cost_too_much_is_stopped_and_the_job_is_run_again() -> None:
    job = job_of({16: [5], 32: [40]})
    runs = recur(Zeus((16, 32), 16), job, 3, np.random.default_rng(0), eta=1.0)
    # 16 costs 5 epochs, of which one is profiled: 820 J; 32 is stopped within 1,640 J: 10 epochs.
    stopped = runs[1]
    assert (stopped.batch_size, stopped.reached, stopped.recurrence) == (32, False, 1)
    assert stopped.energy_j == 9 * 160 + 180
    assert [run.batch_size for run in runs[2:]] == [16, 16]


def test_target_out_of_reach_is_told() -> None:
    with pytest.raises(ConfigError, match="no batch size of"):
        recur(Zeus((8,), 8), job_of({8: [None]}), 1, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="default is 9; it must be one of"):
        Zeus((8,), 9)
    with pytest.raises(ConfigError, match="beta is 1"):
        Zeus((8,), 8, beta=1.0)
