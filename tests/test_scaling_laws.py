"""The arithmetic of experiments/scaling_laws: exponents, their intervals, times to a loss."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "experiments" / "scaling_laws"
SPEC = importlib.util.spec_from_file_location("scaling_laws", PAGE / "run.py")
LAWS = importlib.util.module_from_spec(SPEC)
sys.modules["scaling_laws"] = LAWS
SPEC.loader.exec_module(LAWS)

SIZES = np.array([1e3, 2e3, 5e3, 2e4, 5e4])


def test_a_power_law_is_found_again():
    law = LAWS.fitted(SIZES, (8.8e13 / SIZES) ** 0.076)
    assert law.exponent == pytest.approx(0.076)
    assert law.n_c == pytest.approx(8.8e13, rel=1e-6)
    assert law.at(7e9) == pytest.approx((8.8e13 / 7e9) ** 0.076)


def test_exponents_of_many_tables_are_those_of_each():
    losses = np.random.default_rng(0).uniform(2, 3, size=(4, 2, 5))
    each = [[LAWS.fitted(SIZES, row).exponent for row in rows] for rows in losses]
    np.testing.assert_allclose(LAWS.exponents(SIZES, losses), each)


def test_drawing_again_spreads_an_exponent_as_its_standard_error():
    losses = 2.5 + 0.01 * np.random.default_rng(1).standard_normal((1, 5, 3))
    drawn = LAWS.exponents(SIZES, LAWS.drawn_again(losses, 20_000, seed=2))[:, 0]
    means, errors = losses[0].mean(axis=-1), losses[0].std(axis=-1, ddof=1) / math.sqrt(3)
    x = np.log(SIZES) - np.log(SIZES).mean()
    error = math.sqrt(sum((x / (x @ x) * errors / means) ** 2))  # of -x . log L / x . x
    assert drawn.std() == pytest.approx(error, rel=0.05)  # 18 % less if n were drawn of n


def test_methods_are_drawn_with_the_same_seeds():
    one = np.random.default_rng(1).uniform(2, 3, size=(5, 3))
    drawn = LAWS.drawn_again(np.stack([one, one + 1]), 50, seed=0)
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 1)


def test_a_loss_is_reached_on_the_line_between_two_evaluations():
    assert LAWS.crossing([0, 10, 20], [3.0, 2.5, 2.3], 2.4) == pytest.approx(15)
    assert LAWS.crossing([0, 10, 20], [3.0, 2.5, 2.3], 2.5) == 10
    assert LAWS.crossing([0, 10, 20], [3.0, 2.5, 2.3], 2.2) == math.inf


def test_at_the_level_bandwidth_both_take_as_long():
    gbps = LAWS.level_gbps((300.0, 5), (330.0, 25))
    seconds = [n * (0.1 + 32 / (h * gbps)) for n, h in ((300.0, 5), (330.0, 25))]
    assert seconds[0] == pytest.approx(seconds[1])
    assert LAWS.level_gbps((300.0, 5), (300.0, 25)) == math.inf


@pytest.mark.parametrize("best", [0, 1, 3, 5])
def test_the_ladder_is_climbed_until_the_best_rate_has_worse_neighbours(best, monkeypatch):
    tried = []

    def trained(runs, part, width, h, rate, seed):
        tried.append(LAWS.RATES.index(rate))
        return abs(tried[-1] - best)

    monkeypatch.setattr(LAWS, "trained", trained)
    monkeypatch.setattr(LAWS, "loss", float)
    assert LAWS.best_rate(None, 8, 5, 3) == best
    assert {best - 1, best, best + 1} & set(range(len(LAWS.RATES))) <= set(tried)
    assert len(tried) == len(set(tried))


def test_the_kept_times_are_those_of_a_step_and_an_all_reduce():
    measured = LAWS.Measured(LAWS.kept(PAGE))
    assert {h for h, _ in measured.seconds} == set(LAWS.EVERY)
    for (h, gbps), seconds in measured.seconds.items():
        assert seconds == pytest.approx(0.1 + 32 / (h * gbps), rel=0.01)
