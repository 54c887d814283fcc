"""Task times drawn from distributions: streams, clients' slowdowns, configuration."""

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
from fl.simulation.world.durations import DrawnSeconds
from fl.simulation.world.fleets import durations
from fl.simulation.world.slowdowns import Classes, Constant, LogNormal, ShiftedExponential, Uniform

FOLDER = Path(fl.__file__).parent / "conf" / "fleet" / "slowdown"


def test_times_of_tasks_follow_the_distribution_and_are_independent():
    fleet = durations(200, 3, seconds=2.0, task_slowdown=ShiftedExponential(0.2, 0.8))
    times = np.array([[fleet.compute_seconds(c, k, 1.0) for k in range(20)] for c in range(200)])
    assert stats.kstest(times.ravel(), stats.expon(0.4, 1.6).cdf).pvalue > 0.01
    assert abs(np.corrcoef(times[:, 0], times[:, 1])[0, 1]) < 0.2  # 1 / sqrt(200) is 0.07
    assert abs(np.corrcoef(times[0], times[1])[0, 1]) < 0.8
    again = durations(200, 3, seconds=2.0, task_slowdown=ShiftedExponential(0.2, 0.8))
    other = durations(200, 4, seconds=2.0, task_slowdown=ShiftedExponential(0.2, 0.8))
    assert again.compute_seconds(7, 5, 1.0) == times[7, 5] != other.compute_seconds(7, 5, 1.0)


@pytest.mark.parametrize("distribution", [LogNormal(1.0), Classes(drawn=False)])
def test_a_client_has_its_slowdown_in_all_its_tasks(distribution):
    fleet = durations(5, 1, seconds=3.0, client_slowdown=distribution)
    for client, f in enumerate(distribution.of_clients(1, "client-duration", 5)):
        assert {fleet.compute_seconds(client, k, 9.0) for k in range(3)} == {3.0 * f}


def test_a_task_takes_its_time_whatever_its_work_and_none_without_work():
    fleet = durations(2, 0, seconds=4.0)
    assert [fleet.compute_seconds(0, 0, flops) for flops in (0.0, 1.0, 1e12)] == [0.0, 4.0, 4.0]
    assert math.isnan(fleet.seconds_per_flop(0, 0))


def test_with_task_flops_other_work_takes_time_in_proportion():
    fleet = durations(2, 0, seconds=4.0, task_slowdown=Uniform(), task_flops=1e9)
    whole = fleet.compute_seconds(1, 3, 1e9)
    assert 2.0 <= whole <= 6.0
    assert fleet.compute_seconds(1, 3, 2.5e8) == pytest.approx(whole / 4)
    assert fleet.seconds_per_flop(1, 3) == pytest.approx(whole / 1e9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: durations(2, 0, seconds=0.0), "seconds is 0"),
        (lambda: durations(2, 0, task_flops=-1.0), "task_flops is -1"),
        (
            lambda: DrawnSeconds(0, 1.0, np.ones(2), Constant()).check_clients(3),
            "slowdowns has 2 .* 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_equal_clients_and_constant_tasks_are_the_default():
    fleet = durations(3, 0, task_slowdown=Constant(), client_slowdown=Constant())
    assert {fleet.compute_seconds(c, k, 1.0) for c in range(3) for k in range(3)} == {1.0}


@pytest.mark.parametrize("key", ["task_slowdown", "client_slowdown"])
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_distribution_sets_apart_tasks_or_clients(key, name):
    with initialize_config_module("fl.conf", version_base=None):
        chosen = f"fleet/slowdown@fleet.{key}={name}"
        config = compose("config", ["fleet=durations", "num_clients=20", chosen])
    fleet = instantiate(config.fleet)
    of_tasks = {fleet.compute_seconds(0, k, 1.0) for k in range(20)}
    of_clients = {fleet.compute_seconds(c, 0, 1.0) for c in range(20)}
    assert all(0 < seconds < math.inf for seconds in of_tasks | of_clients)
    constant = name == "constant"
    assert (len(of_tasks) == 1) == (constant or key == "client_slowdown")
    assert (len(of_clients) == 1) == constant
