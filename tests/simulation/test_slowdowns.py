"""Distributions of slowdowns: quantiles, streams, clients in order, bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fl.errors import ConfigError
from fl.simulation.world.durations import DrawnSeconds
from fl.simulation.world.fleets import uniform
from fl.simulation.world.slowdowns import (
    Classes,
    Constant,
    Exponential,
    HalfNormal,
    Linear,
    LogNormal,
    Normal,
    ShiftedExponential,
    Uniform,
)

N = 20_000
U = np.linspace(0.001, 0.999, 999)


@pytest.mark.parametrize(
    ("drawn", "reference"),
    [
        (Exponential(3.0, 1e-9), stats.expon(0, 3)),
        (ShiftedExponential(0.2, 0.8), stats.expon(0.2, 0.8)),
        (HalfNormal(0.5, 2.0), stats.halfnorm(0.5, 2.0)),
        (Normal(3.0, 0.1), stats.norm(3.0, 0.1)),
        (LogNormal(0.7), stats.lognorm(0.7, scale=math.exp(-(0.7**2) / 2))),
        (Uniform(0.25, 4.0), stats.uniform(0.25, 3.75)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_quantiles_are_those_of_the_distribution(drawn, reference):
    np.testing.assert_allclose(drawn.quantile(U), reference.ppf(U), rtol=1e-9)
    found = drawn.of_clients(1, "any", N)
    assert stats.kstest(found, reference.cdf).pvalue > 0.01


@pytest.mark.parametrize("drawn", [Normal(1.0, 2.0, 0.25), Exponential(1.0, 0.25)])
def test_slowdowns_are_raised_to_the_least(drawn):
    found = drawn.of_clients(0, "any", N)
    assert found.min() == 0.25
    assert (found > 0.25).any()


@pytest.mark.parametrize(
    "drawn", [ShiftedExponential(), LogNormal(), Normal(), Exponential(), Uniform()]
)
def test_the_first_number_of_a_stream_s_range_gives_a_positive_slowdown(drawn):
    assert 0 < drawn.quantile(np.zeros(1))[0] < math.inf


def test_distributions_whose_numbers_leave_the_range_of_floats_are_refused():
    class Endless(Constant):
        def quantile(self, u):
            return np.where(u > 0.9, math.nan, 1.0)

    for drawn in (LogNormal(1e9), ShiftedExponential(0, 1e308), Endless()):
        name = type(drawn).__name__
        with pytest.raises(ConfigError, match=name):
            drawn.of_clients(0, "any", 3)
        with pytest.raises(ConfigError, match=name):
            DrawnSeconds(0, 1.0, np.ones(3), drawn)


def test_drawn_classes_come_with_their_shares():
    found = Classes([1.3, 1.0, 0.7], [1, 2, 1]).of_clients(0, "any", N)
    for slowdown, share in ((1.3, 0.25), (1.0, 0.5), (0.7, 0.25)):
        assert np.mean(found == slowdown) == pytest.approx(share, abs=0.02)


def test_classes_in_order_have_their_shares_exactly():
    def found(slowdowns, shares, n):
        return Classes(slowdowns, shares, drawn=False).of_clients(0, "any", n).tolist()

    expected = [1.3] * 25 + [1.0] * 50 + [0.7] * 25
    assert found([1.3, 1.0, 0.7], [0.25, 0.5, 0.25], 100) == expected
    assert found([3.0, 1.0, 2.0], [0, 1, 0], 3) == [1.0] * 3
    assert found([1.0, 2.0], [1, 2], 3) == [1.0, 2.0, 2.0]


def test_linear_slowdowns_are_those_of_scenario_f_80():
    # arXiv:2206.10189, F-80 with 10 clients: from 1 down to 0.2 in steps of 0.8 / 9.
    expected = [1 - 0.8 * i / 9 for i in range(10)]
    np.testing.assert_allclose(Linear(0.8).of_clients(0, "any", 10), expected)
    assert Linear(0.8).of_clients(0, "any", 1).tolist() == [1.0]
    assert Linear(0.0).of_clients(0, "any", 3).tolist() == [1.0, 1.0, 1.0]


def test_a_task_of_a_linear_distribution_draws_from_the_range_of_the_clients():
    np.testing.assert_allclose(np.sort(Linear(0.8).quantile(U)), stats.uniform(0.2, 0.8).ppf(U))


def test_a_client_of_slowdown_s_takes_s_times_as_long():
    fleet = uniform(3, 0, flops=10.0, client_slowdown=Linear(0.5))
    seconds = [fleet.compute_seconds(client, 0, 40.0) for client in range(3)]
    assert seconds == pytest.approx([4.0, 3.0, 2.0])


@pytest.mark.parametrize("drawn", [Normal(), Exponential(), Classes(), Constant()])
def test_a_slowdown_depends_on_seed_purpose_and_client_only(drawn):
    found = drawn.of_clients(3, "any", 7).tolist()
    assert found == drawn.of_clients(3, "any", 1000)[:7].tolist()
    if not isinstance(drawn, Constant):
        assert found != drawn.of_clients(4, "any", 7).tolist()
        assert found != drawn.of_clients(3, "other", 7).tolist()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Normal(mean=0.0), "mean is 0.0"),
        (lambda: Normal(sigma=-1.0), "sigma is -1.0"),
        (lambda: Normal(least=0.0), "least is 0.0"),
        (lambda: Exponential(least=0.0), "least is 0.0"),
        (lambda: ShiftedExponential(-1.0), "shift is -1"),
        (lambda: ShiftedExponential(0.0, 0.0), "shift is 0 and mean is 0"),
        (lambda: HalfNormal(sigma=0.0), "sigma is 0"),
        (lambda: LogNormal(math.nan), "sigma is nan"),
        (lambda: Uniform(2.0, 1.0), "high is 1.0.* 2.0"),
        (lambda: Classes([1.0], [1, 2]), "slowdowns has 1 entries and shares 2"),
        (lambda: Classes([], []), "slowdowns has 0 entries"),
        (lambda: Classes([1.0, -2.0], [1, 2]), "slowdowns is -2.0"),
        (lambda: Classes([1.0, 2.0], [1, -2]), "shares is -2"),
        (lambda: Classes([1.0, 2.0], [0, 0]), r"shares is \[0, 0\]"),
        (lambda: Linear(1.0), "spread is 1.0"),
    ],
)
def test_impossible_slowdowns_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
