"""The executor that a run has if none is chosen: when it moves to Ray, and that nobody notices."""

import logging
import pickle
import sys
from functools import partial

import cloudpickle
import pytest
from client_apps import RUN, app_of, make_behaving, payload, reply, requests
from test_executor import model, ours, same

from fl.errors import ConfigError
from fl.execution import RayExecutor, SerialExecutor, auto
from fl.execution.moving import MovingExecutor


class There(SerialExecutor):
    """In the place of Ray: it notes what it is asked."""

    error: Exception | None = None

    def __init__(self) -> None:
        super().__init__(max_batch=2)
        self.calls: list[str] = []

    def start(self, app, run):
        self.calls.append("start")
        super().start(app, run)

    def await_actors(self):
        self.calls.append("await")
        if self.error:
            raise self.error

    def submit(self, wave):
        self.calls.append(f"submit {len(wave)}")
        super().submit(wave)

    def shared_by(self, runs):
        self.calls.append(f"shared by {runs}")
        return self

    def close(self):
        self.calls.append("close")
        super().close()

    def report(self):
        return {**super().report(), "executor": "ray", "actors": 2}


def moving(after_s: float, there: There) -> MovingExecutor:
    made = MovingExecutor(SerialExecutor(max_batch=2), there, after_s)  # type: ignore[arg-type]
    made.start(app_of(lambda message, context: reply(message, client=3)), RUN)
    return made


def two_waves(executor) -> list[float]:
    """Results of two waves; of the first, one is asked for after the second was submitted."""
    first = requests(payload(), range(4))
    executor.submit(first)
    found = [executor.result(request) for request in first[:2]]
    second = requests(payload(), range(4, 7), dispatch=1)
    executor.submit(second)
    executor.discard(second[2])
    executor.discard(second[2])
    found += [executor.result(request) for request in (first[3], *second[:2])]
    assert set(executor.ready()) <= {first[2]}
    return [result.content["metrics"]["client"] for result in found]


def test_what_was_submitted_before_stays_and_the_rest_goes_to_ray(caplog):
    there = There()
    executor = moving(0.0, there)
    assert not there.calls  # nothing is started before training has begun
    with caplog.at_level(logging.INFO, logger="fl.execution"):
        executor._spent_s = -1e9
        executor.submit(wave := requests(payload(), range(2), dispatch=9))
        executor._spent_s = 0.0
        assert two_waves(executor) == [3] * 5
    assert there.calls == ["start", "await", "submit 4", "submit 3"]
    assert "from here on Ray does it" in caplog.text
    assert len([executor.result(request) for request in wave]) == 2
    assert executor.report() == {
        "executor": "ray", "actors": 2, "batches": 7, "max_batch": 2, "moved": True
    }  # fmt: skip
    executor.close()
    assert there.calls[-1] == "close"


def test_a_short_run_stays_in_this_process():
    there = There()
    executor = moving(1e9, there)
    assert two_waves(executor) == [3] * 5
    assert executor.report() == {"executor": "serial", "batches": 5, "max_batch": 2}
    executor.close()
    assert not there.calls


@pytest.mark.parametrize("error", [ConfigError("Ray does not start"), TypeError("no pickle")])
def test_where_ray_cannot_go_on_this_process_does_and_says_so(error, caplog):
    there = There()
    there.error = error
    executor = moving(0.0, there)
    with caplog.at_level(logging.WARNING, logger="fl.execution"):
        assert two_waves(executor) == [3] * 5
    assert there.calls == ["start", "await", "close"]  # and it is tried once
    assert f"training goes on in this process, as Ray cannot take it: {error}" in caplog.text
    assert executor.report()["executor"] == "serial"


def test_runs_side_by_side_with_a_core_each_stay_in_their_processes(monkeypatch):
    monkeypatch.setattr("fl.execution.moving.cores", lambda: 4)
    for runs, moves in ((2, True), (3, False), (4, False)):
        there = There()
        executor = moving(0.0, there).shared_by(runs)
        executor.start(app_of(lambda message, context: reply(message, client=3)), RUN)
        two_waves(executor)
        assert (executor.report()["executor"] == "ray") == moves
        assert there.calls[0] == f"shared by {runs}"


def test_ray_is_used_from_the_start_where_it_is_asked_for_or_there(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("fl.execution.moving._is_connected", lambda: False)
    monkeypatch.setattr("fl.execution.moving.cores", lambda: 2)
    assert isinstance(auto(), MovingExecutor)
    for key, value in {"num_actors": 1, "address": "auto", "gpus_per_actor": 0.5}.items():
        made = auto(**{key: value})
        assert isinstance(made, RayExecutor)
        assert getattr(made, key) == value
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert isinstance(auto(), RayExecutor)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("fl.execution.moving.cores", lambda: 1)
    assert isinstance(auto(), SerialExecutor)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert isinstance(auto(), SerialExecutor)
    with pytest.raises(ConfigError, match="after_s is -1"):
        auto(after_s=-1)


def test_an_app_that_has_trained_here_can_still_be_sent_to_other_processes():
    app = ours()
    executor = SerialExecutor()
    executor.start(app, RUN)
    for dispatch in range(2):
        wave = requests(model(), range(3), dispatch=dispatch)
        executor.submit(wave)
        results = [executor.result(request) for request in wave]
    sent = pickle.loads(cloudpickle.dumps(app))
    executor = SerialExecutor()
    executor.start(sent, RUN)
    executor.submit(wave)
    assert all(same(executor.result(r), result) for r, result in zip(wave, results, strict=True))


@pytest.mark.slow
def test_a_run_that_moves_to_ray_ends_as_one_that_does_not():
    found = {}
    for after_s in (0.0, 1e9):
        executor = MovingExecutor(SerialExecutor(), RayExecutor(num_actors=2), after_s)
        executor.start(partial(make_behaving), RUN)
        wave = requests(payload(), range(6))
        try:
            executor.submit(wave)
            found[after_s] = [executor.result(request) for request in wave]
            assert executor.report()["executor"] == ("serial" if after_s else "ray")
        finally:
            executor.close()
    contents = [[result.content for result in results] for results in found.values()]
    assert contents[0] == contents[1]
