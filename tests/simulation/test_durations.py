"""Task times drawn from laws: quantiles, streams, clients' factors, configuration."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from scipy import stats

import fl
from fl.errors import ConfigError
from fl.simulation.world.durations import (
    Constant,
    Drawn,
    DrawnSeconds,
    Equal,
    Groups,
    HalfNormal,
    Linear,
    LogNormal,
    Normal,
    ShiftedExponential,
    Uniform,
)
from fl.simulation.world.fleets import durations

FOLDER = Path(fl.__file__).parent / "conf" / "fleet"
U = np.linspace(0.001, 0.999, 999)


@pytest.mark.parametrize(
    ("law", "reference"),
    [
        (ShiftedExponential(0.2, 0.8), stats.expon(0.2, 0.8)),
        (HalfNormal(0.5, 2.0), stats.halfnorm(0.5, 2.0)),
        (LogNormal(0.7), stats.lognorm(0.7, scale=math.exp(-(0.7**2) / 2))),
        (Uniform(0.25, 4.0), stats.uniform(0.25, 3.75)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_quantiles_are_those_of_the_law(law, reference):
    np.testing.assert_allclose(law.quantile(U), reference.ppf(U), rtol=1e-9)


def test_a_normal_law_is_cut_off_below():
    drawn = Normal(1.0, 0.5, 0.1).quantile(U)
    np.testing.assert_allclose(drawn, np.maximum(stats.norm(1.0, 0.5).ppf(U), 0.1), rtol=1e-9)
    assert drawn.min() == 0.1


def test_times_of_tasks_follow_the_law_and_are_independent():
    fleet = durations(200, 3, seconds=2.0, task_factor=ShiftedExponential(0.2, 0.8))
    times = np.array([[fleet.compute_seconds(c, k, 1.0) for k in range(20)] for c in range(200)])
    assert stats.kstest(times.ravel(), stats.expon(0.4, 1.6).cdf).pvalue > 0.01
    assert abs(np.corrcoef(times[:, 0], times[:, 1])[0, 1]) < 0.2  # 1 / sqrt(200) is 0.07
    assert abs(np.corrcoef(times[0], times[1])[0, 1]) < 0.8
    again = durations(200, 3, seconds=2.0, task_factor=ShiftedExponential(0.2, 0.8))
    other = durations(200, 4, seconds=2.0, task_factor=ShiftedExponential(0.2, 0.8))
    assert again.compute_seconds(7, 5, 1.0) == times[7, 5] != other.compute_seconds(7, 5, 1.0)


def test_the_linear_spread_is_fedfix_f_80():
    # arXiv:2206.10189, F-80 with 10 clients: from 1 down to 0.2 in steps of 0.8 / 9.
    np.testing.assert_allclose(Linear(80).factors(0, 10), [1 - 0.8 * i / 9 for i in range(10)])
    assert Linear(80).factors(0, 1).tolist() == [1.0]
    assert Linear(0).factors(0, 3).tolist() == [1.0, 1.0, 1.0]


def test_groups_have_their_shares_exactly():
    factors = Groups().factors(0, 100)
    assert factors.tolist() == [1.3] * 25 + [1.0] * 50 + [0.7] * 25
    assert Groups([0, 1, 0], [3.0, 1.0, 2.0]).factors(0, 3).tolist() == [1.0] * 3
    assert Groups([1, 2], [1.0, 2.0]).factors(0, 3).tolist() == [1.0, 2.0, 2.0]


def test_a_client_draws_its_factor_once_and_alone():
    spread = Drawn(LogNormal(1.0))
    assert spread.factors(1, 5).tolist() == spread.factors(1, 50)[:5].tolist()
    assert spread.factors(1, 5).tolist() != spread.factors(2, 5).tolist()
    assert stats.kstest(spread.factors(1, 2000), LOG_NORMAL.cdf).pvalue > 0.01
    fleet = durations(5, 1, seconds=3.0, client_factor=spread)
    for client, factor in enumerate(spread.factors(1, 5)):
        assert {fleet.compute_seconds(client, k, 9.0) for k in range(3)} == {3.0 * factor}


LOG_NORMAL = stats.lognorm(1.0, scale=math.exp(-0.5))


def test_a_task_takes_its_time_whatever_its_work_and_none_without_work():
    fleet = durations(2, 0, seconds=4.0)
    assert [fleet.compute_seconds(0, 0, flops) for flops in (0.0, 1.0, 1e12)] == [0.0, 4.0, 4.0]
    assert math.isnan(fleet.seconds_per_flop(0, 0))


def test_with_task_flops_other_work_takes_time_in_proportion():
    fleet = durations(2, 0, seconds=4.0, task_factor=Uniform(), task_flops=1e9)
    whole = fleet.compute_seconds(1, 3, 1e9)
    assert 2.0 <= whole <= 6.0
    assert fleet.compute_seconds(1, 3, 2.5e8) == pytest.approx(whole / 4)
    assert fleet.seconds_per_flop(1, 3) == pytest.approx(whole / 1e9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ShiftedExponential(-1.0), "shift is -1"),
        (lambda: ShiftedExponential(0.0, 0.0), "shift 0 and mean 0"),
        (lambda: HalfNormal(sigma=0.0), "sigma is 0"),
        (lambda: Normal(least=0.0), "least is 0"),
        (lambda: LogNormal(math.nan), "sigma is nan"),
        (lambda: Uniform(2.0, 1.0), "high is 1.0; it must be finite and at least 2"),
        (lambda: Linear(100.0), "percent is 100"),
        (lambda: Groups([1.0], [1.0, 2.0]), "1 shares and 2 values"),
        (lambda: Groups([0.0], [1.0]), "shares of all groups are 0"),
        (lambda: Groups([1.0], [0.0]), "values is 0"),
        (lambda: durations(2, 0, seconds=0.0), "seconds is 0"),
        (lambda: durations(2, 0, task_flops=-1.0), "task_flops is -1"),
        (lambda: DrawnSeconds(0, 1.0, np.ones(2), Constant()).check_clients(3), "2 clients' fac"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_equal_clients_and_constant_tasks_are_the_default():
    fleet = durations(3, 0, task_factor=Constant(), client_factor=Equal())
    assert {fleet.compute_seconds(c, k, 1.0) for c in range(3) for k in range(3)} == {1.0}


@pytest.mark.parametrize("group", ["task", "client"])
def test_every_law_and_spread_is_chosen_from_the_command_line(group):
    for path in sorted((FOLDER / group).glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert f"fl fleet=durations fleet/{group}={path.stem}" in lines[0]
        with initialize_config_module("fl.conf", version_base=None):
            config = compose("config", ["fleet=durations", f"fleet/{group}={path.stem}"])
        fleet = instantiate(config.fleet)
        assert 0 < fleet.compute_seconds(len(fleet) - 1, 2, 1.0) < math.inf
