"""Which models are evaluated, and what ends a run before its last round."""

from __future__ import annotations

import math

import pytest
from every_strategy import configured, ran

from fl import simulate
from fl.runs import run as running
from fl.runs.beside import Beside
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.journal import Recovery, RunStart

PLAIN = ("views=false", "target.value=2.0")


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "dpsgd", "diloco"])
def test_a_run_that_ends_at_its_target_is_the_beginning_of_one_that_goes_on(strategy):
    _, whole = ran(strategy, *PLAIN)
    loss = min(row["loss"] for row in whole.history[1:3])
    target = ["target.metric=loss", "target.mode=min", f"target.value={loss!r}", "target.stop=true"]
    _, ended = ran(strategy, *PLAIN, *target)
    assert ended.summary["status"] == "completed"
    assert 2 <= len(ended.history) < len(whole.history)
    for one, other in zip(ended.history, whole.history, strict=False):
        assert {**one, "wall_s": 0} == {**other, "wall_s": 0}
    assert ended.summary["target"]["reached"]
    assert ended.summary["totals"]["virtual_s"] == ended.history[-1]["time_s"]


def test_no_run_ends_before_it_has_trained():
    _, run = ran("fedavg", *PLAIN, "target.value=0.0", "target.stop=true")
    assert len(run.history) == 2
    assert run.summary["target"]["round"] == 0


def test_a_run_ends_when_nothing_has_become_better():
    more = ["target.metric=loss", "target.mode=max", "target.value=99"]  # and it falls
    _, run = ran("fedavg", "views=false", *more, "target.patience=2")
    assert len(run.history) == 3
    assert not run.summary["target"]["reached"]


# ---- beside the next round -----------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch):
    """The rounds whose models have been evaluated beside the next, however small they are."""
    rounds, begin = [], Beside.begin

    def noted(self, server_round, arrays):
        rounds.append(server_round)
        begin(self, server_round, arrays)

    monkeypatch.setattr(running, "_WORTH_FLOPS", 0.0)
    monkeypatch.setattr(Beside, "begin", noted)
    return rounds


def rows(history):
    return [{**row, "wall_s": 0} for row in history]


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "dpsgd", "diloco"])
def test_evaluations_beside_the_next_round_are_those_of_a_run_that_waits(
    strategy, begun, monkeypatch
):
    _, beside = ran(strategy, *PLAIN, "evaluate_every=2", "num_rounds=6")
    assert begun == [2, 4]
    monkeypatch.setattr(running, "_WORTH_FLOPS", math.inf)
    _, waiting = ran(strategy, *PLAIN, "evaluate_every=2", "num_rounds=6")
    assert begun == [2, 4]
    assert rows(beside.history) == rows(waiting.history)
    assert beside.summary["trace_sha256"] == waiting.summary["trace_sha256"]


@pytest.mark.parametrize(
    "waits", ["target.stop=true", "target.patience=3", "lawa.k=2", "evaluate_train=true"]
)
def test_nothing_is_evaluated_beside_the_next_round_that_may_end_or_change_it(waits, begun):
    ran("fedavg", *PLAIN, waits)
    assert begun == []


@pytest.mark.parametrize("runtime", ["ideal", "flower"])
def test_a_run_that_stopped_after_an_evaluation_goes_on_to_the_same_rows(
    runtime, begun, tmp_path, monkeypatch
):
    config = configured("fedavg", *PLAIN, "num_rounds=6", f"runtime={runtime}")
    beside = [1, 2, 3, 4, 5] if runtime == "ideal" else []  # where evaluating takes virtual time

    def run(directory, *, resume, stop_at=None, keep=False):
        experiment = build(config)

        def server(grid, context, recorder):
            told = grid._on_sent

            waves = []

            def on_sent(*args, **kwargs):
                waves.append(args)
                if len(waves) == stop_at:  # the wave of that round
                    raise KeyboardInterrupt
                told(*args, **kwargs)

            grid._on_sent = on_sent
            running.serve(experiment, config, grid, recorder)

        return simulate(
            server,
            app_of(experiment),
            experiment.fleet,
            executor="serial",
            progress=False,
            views=False,
            directory=directory,
            runtime=experiment.runtime,
            recovery=Recovery(keep=keep, start=RunStart(resume=resume)),
        )

    # Rounds with messages, which can be stopped where one is sent.
    monkeypatch.setattr("fl.strategies.drivers.rounds.rounds.has_foreseen", lambda *_: False)
    whole = run(tmp_path / "whole", resume=False)
    assert begun == beside
    for stop_at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop_at), resume=False, stop_at=stop_at)
        resumed = run(tmp_path / str(stop_at), resume=True)
        assert rows(resumed.history) == rows(whole.history)
        assert resumed.summary["trace_sha256"] == whole.summary["trace_sha256"]
    begun.clear()
    run(tmp_path / "kept", resume=False, keep=True)  # a longer run may go on from it
    assert begun == []
