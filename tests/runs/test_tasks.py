"""Experiments on several learning tasks, from the configuration to the rows of metrics."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hydra import compose, initialize_config_module

import fl
from fl import simulate
from fl.clients import TaskApp
from fl.execution import RayExecutor
from fl.execution.contract import Payload
from fl.flower.private import trusted_record
from fl.runs.build import build
from fl.runs.evaluation import central_evaluation, task_evaluation
from fl.runs.experiment import initial_of
from fl.runs.run import run_experiment

MEMBERS = sorted(
    path.stem for path in (Path(fl.__file__).parent / "conf" / "tasks").glob("[!_]*.yaml")
)
QUICK = [
    "strategy=fedast",
    "fleet=uniform",
    "executor=serial",
    "progress=false",
    "num_clients=12",
    "num_rounds=6",
    "target=null",
]


def config_of(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*QUICK, *overrides])


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_builds(name, request):
    if not name.endswith("digits_and_synthetic"):
        request.getfixturevalue("data_dir")
    coded = name.startswith("coded_")
    experiment = build(config_of(*["strategy=sr_sgc"] * coded, f"tasks={name}"))
    name = name.removeprefix("coded_")
    assert list(experiment.tasks) == name.replace("_and_", "_").split("_")
    assert experiment.data is next(iter(experiment.tasks.values())).data


def rows_of(directory):
    with (directory / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def simulated(experiment, tmp_path, executor="serial", rounds=12):
    def server(grid, context, recorder):
        every_model = task_evaluation(experiment)

        def some(version, arrays):
            return None if version % 4 and version != rounds else every_model(version, arrays)

        evaluate = recorder.recording(some)
        result = experiment.strategy.start(
            grid, initial_of(experiment.tasks), num_rounds=rounds, timeout=1e4, evaluate_fn=evaluate
        )
        recorder.final(result.arrays)

    app = TaskApp({name: task.app for name, task in experiment.tasks.items()})
    return simulate(
        server, app, experiment.fleet, executor=executor, directory=tmp_path, progress=False
    )


def test_metrics_of_a_task_are_those_of_its_model_and_the_plain_name_is_the_mean(tmp_path):
    experiment = build(config_of("strategy.rule.eta=0.5"))
    run = simulated(experiment, tmp_path)
    last = rows_of(tmp_path)[-1]
    for task, learning in experiment.tasks.items():
        start = f"{task}/"
        own = {k.removeprefix(start): a for k, a in run.arrays.items() if k.startswith(start)}
        expected = central_evaluation(learning)(1, ArrayRecord(own))
        for name in ("accuracy", "loss"):
            assert last[f"{name}/{task}"] == pytest.approx(expected[name])
    for name in ("accuracy", "loss"):
        values = [last[f"{name}/{task}"] for task in experiment.tasks]
        assert last[name] == pytest.approx(np.mean(values))


def test_a_model_that_has_not_changed_is_not_evaluated_again(monkeypatch):
    calls = []
    experiment = build(config_of())
    measured = {"loss": 0.0, "accuracy": 0.0}
    monkeypatch.setattr(
        "fl.models.metrics.Measures.__call__", lambda *_: (calls.append(1), measured)[1]
    )
    evaluate = task_evaluation(experiment)
    initial = initial_of(experiment.tasks)
    evaluate(0, initial)
    assert len(calls) == 2
    other = initial_of(experiment.tasks)
    changed = {k: other[k] if k.startswith("digits/") else array for k, array in initial.items()}
    evaluate(1, trusted_record(ArrayRecord, changed))
    assert len(calls) == 3


def test_tasks_cost_what_their_models_cost(tmp_path):
    experiment = build(config_of("num_clients=4", "fleet.down_bps=inf", "fleet.up_bps=inf"))
    trace = simulated(experiment, tmp_path, rounds=8).trace
    seconds = {round(v, 12) for k, v in zip(trace.kind, trace.value, strict=True) if k == 3}
    expected = set()
    for learning in experiment.tasks.values():
        sent = Payload(RecordDict({"arrays": learning.initial(), "config": ConfigRecord({})}))
        for client in range(4):
            expected.add(round(learning.app.plan(sent, "train", client, 1e-9).flops * 1e-9, 12))
    assert seconds <= expected
    assert len(seconds) > 2


def test_a_client_that_keeps_its_momentum_may_learn_another_task_beside_one_that_does_not(tmp_path):
    config = config_of("tasks=digits_and_synthetic", "client@tasks.digits.client=momentum")
    run = simulated(build(config), tmp_path, rounds=4)
    assert run.summary["status"] == "completed"


@pytest.mark.slow
def test_ray_gives_the_model_and_the_trace_of_one_process(tmp_path):
    def hashes(executor, folder):
        run = simulated(build(config_of()), tmp_path / folder, executor)
        return run.summary["model_sha256"], run.summary["trace_sha256"]

    assert hashes("serial", "a") == hashes(RayExecutor(num_actors=2), "b")


def test_central_training_is_done_for_every_task():
    config = config_of("central_epochs=1", "num_rounds=1")
    assert run_experiment(config) is None
