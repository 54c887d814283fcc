"""Properties of the Ray executor that its results alone do not show."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_apps import RUN, assignments, make_behaving, payload
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl.errors import ConfigError, SimulationError
from fl.execution import RayExecutor


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One Ray for the tests of this file, with more CPUs than there are: executors attach to it."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def test_misbehaving_processes_cost_their_own_clients_only(
    shared_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    executor = RayExecutor(num_actors=1, task_timeout_s=5.0)
    wave = assignments(payload("1:kill 3:hang 4:connection 5:sleep 6:many 7:nothing"), range(9))
    try:
        with caplog.at_level(logging.WARNING, logger="fl"):
            executor.start(make_behaving, RUN)
            executor.submit(wave)
            outcomes = [executor.result(assignment) for assignment in wave]
    finally:
        executor.close()
    failed = {i: outcome.error for i, outcome in enumerate(outcomes) if outcome.error is not None}
    assert set(failed) == {1, 3, 4, 7}
    assert failed[1][0] == failed[3][0] == ErrorCode.CLIENT_APP_CRASHED
    assert failed[4][0] == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "holds Connection under 'socket'" in failed[4][1]
    assert "NoneType" in failed[7][1]
    assert outcomes[5].slept_s == 50.0
    assert len(outcomes[6].content["metrics"]["history"]) == 100_000
    # Killed three times before the client is blamed, and once for hanging.
    assert executor.report()["actor_deaths"] == 4
    assert "running client 1, died" in caplog.text
    assert "running client 3, has been running for more than 5 s, is killed" in caplog.text
    assert ray.is_initialized()  # an executor leaves a Ray running that it did not start
