"""Properties of the Ray executor that the results of runs alone do not show."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from client_apps import RUN, make_behaving, make_in_process_only, payload, requests
from flwr.common.constant import ErrorCode

from fl.errors import ConfigError, SimulationError
from fl.execution import RayExecutor, SerialExecutor, cluster, on_ray
from fl.execution.speech import hearing
from fl.execution.virtual_time import virtual_time


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One Ray for the tests of this file, with more CPUs than there may be: executors attach."""
    import ray

    cluster._start(4)
    yield
    assert ray.is_initialized()  # no executor has shut down a Ray that it did not start
    cluster.disconnect()


def test_misbehaving_processes_cost_their_own_clients_only(
    shared_ray: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "_ATTEMPTS", 2)  # each costs the start of an actor
    executor = RayExecutor(num_actors=1)
    wave = requests(payload("1:kill 4:connection 5:sleep 6:many 7:nothing"), range(9))
    try:
        with caplog.at_level(logging.WARNING, logger="fl"):
            executor.start(make_behaving, RUN)
            executor.submit(wave)
            executor.discard(wave[8])
            results = [executor.result(request) for request in wave[:8]]
            # Only one that hangs is worked on while there is a limit: a busy machine may make
            # anybody late.
            executor.task_timeout_s = 1.0
            (hanging,) = requests(payload("3:hang"), range(3, 4), dispatch=1)
            executor.submit([hanging])
            hung = executor.result(hanging).error
            executor.task_timeout_s = None
            # The same clients on the next wave: the actors are as good as new.
            again = requests(payload(), range(1, 4, 2), dispatch=2)
            executor.submit(again)
            assert [executor.result(request).error for request in again] == [None, None]
    finally:
        executor.close()
    failed = {i: result.error for i, result in enumerate(results) if result.error is not None}
    assert set(failed) == {1, 4, 7}
    assert hung is not None
    assert failed[1][0] == hung[0] == ErrorCode.CLIENT_APP_CRASHED
    assert "holds Connection under 'socket'" in failed[4][1]
    assert "NoneType" in failed[7][1]
    assert results[5].slept_s == 50.0  # virtual ones
    assert len(results[6].content["metrics"]["history"]) == 100_000
    assert caplog.text.count("running client 1, died") == 2  # then the client is blamed
    assert caplog.text.count("running client 3, has been running for more than 1 s") == 1
    assert executor.report()["actor_deaths"] >= 3


def test_a_client_sees_the_same_clocks_and_says_the_same_as_in_this_process(
    shared_ray: None,
) -> None:
    ray, serial = RayExecutor(num_actors=2), SerialExecutor()
    wave = requests(payload("0:say 1:clock 2:clock 3:say"), range(4))
    results = []
    for executor in (ray, serial):
        with virtual_time(), hearing():
            try:
                executor.start(make_behaving, RUN)
                executor.submit(wave)
                results.append([executor.result(request) for request in wave])
            finally:
                executor.close()
    for here, there in zip(*results, strict=True):
        assert (here.error, here.slept_s, here.content) == (None, there.slept_s, there.content)
        assert list(here.said) == list(there.said)
    assert results[0][1].slept_s > 0.0
    assert [(line.who, line.error, line.text) for line in results[0][0].said] == [
        ("client 0", False, "loading"),
        ("client 0", True, "INFO :      by Flower's logger"),
        ("client 0", True, "late"),
        ("client 0", False, "100 %"),
    ]


def test_app_that_starts_here_but_not_in_an_actor_stops_the_run(
    shared_ray: None,
) -> None:
    executor = RayExecutor(num_actors=1)
    executor.start(partial(make_in_process_only, os.getpid()), RUN)
    with pytest.raises(SimulationError, match="Ray actor: RuntimeError: no licence"):
        executor.submit([])
    executor.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_actors": 5}, r"num_actors is 5 with 1 CPUs each, but Ray has 4.*lower num_actors"),
        ({"num_actors": 1, "gpus_per_actor": 1}, r"1 GPUs each, but Ray has 0.*gpus_per_actor"),
        ({"address": "10.0.0.1:6379"}, r"address is 10\.0\.0\.1:6379, but .* connected to Ray at"),
    ],
)
def test_demand_that_ray_cannot_meet_is_an_error_before_any_actor_starts(
    shared_ray: None, arguments: dict[str, Any], says: str
) -> None:
    executor = RayExecutor(**arguments)
    with pytest.raises(ConfigError, match=says):
        executor.start(make_behaving, RUN)
    executor.close()
    assert executor.actor_pids() == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_actors": 0},
        {"num_actors": 1.5},
        {"cpus_per_actor": 0},
        {"cpus_per_actor": float("nan")},
        {"gpus_per_actor": -1},
        {"max_batch": 0},
        {"threads": 0},
        {"task_timeout_s": 0.0},
        {"task_timeout_s": float("nan")},
    ],
)
def test_arguments_out_of_range_are_refused_by_name_and_value(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ConfigError, match=rf"{name} is {value}; it must be"):
        RayExecutor(**arguments)


def test_closing_an_executor_that_never_started_is_allowed() -> None:
    executor = RayExecutor()
    executor.close()
    assert executor.report()["actors"] == 0
