"""Devices and measured times."""

import math

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.simulation.world.devices import MeasuredSeconds
from fl.simulation.world.fleets import mobile


def test_a_client_knows_its_kind_by_name():
    devices = mobile(50, 0).devices
    for client in range(50):
        assert devices.kind_name(client) == devices.kinds[devices.kind[client]]


SECONDS = np.arange(1.0, 13.0).reshape(3, 4)  # 3 rounds, 4 workers


def test_task_k_of_client_w_takes_what_worker_w_took_in_round_k():
    measured = MeasuredSeconds(SECONDS)
    assert [[measured.of(w, k) for w in range(4)] for k in range(3)] == SECONDS.tolist()


def test_more_clients_than_workers_is_an_error_that_names_both():
    MeasuredSeconds(SECONDS).check_clients(4)
    with pytest.raises(ConfigError, match=r"num_clients is 5, but .* has 4 workers"):
        MeasuredSeconds(SECONDS).check_clients(5)


def test_more_tasks_than_rounds_is_an_error_that_names_both():
    with pytest.raises(ConfigError, match=r"task number 4, but .* has 3 rounds"):
        MeasuredSeconds(SECONDS).of(0, 3)


def test_wrapping_uses_workers_and_rounds_again():
    measured = MeasuredSeconds(SECONDS, wrap=True)
    measured.check_clients(1000)
    assert measured.of(5, 7) == SECONDS[7 % 3, 5 % 4]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_measured_time_that_cannot_be_is_refused_with_its_place(value):
    seconds = SECONDS.copy()
    seconds[2, 1] = value
    with pytest.raises(ConfigError, match="round 2 of worker 1"):
        MeasuredSeconds(seconds)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 2)])
def test_measured_times_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match="rounds, workers"):
        MeasuredSeconds(np.ones(shape))
