"""Who is told what a run measures: the points, failures, and the two adapters with stand-ins."""

from __future__ import annotations

import importlib.machinery
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

import fl
from fl.errors import ConfigError
from fl.reports import Callback, MLflow, RunWriter, Totals, WandB

ROW = dict(round=1, time_s=2.5, wall_s=0.1, bytes_down=3, bytes_up=4, energy_j=5.0, accuracy=0.5)
CONFIG = {"client": {"lr": 0.1}, "metrics": ["f1"]}
SMALL = dict(executor="serial", num_clients=4, num_rounds=3, progress=False, views=False)


class Heard(Callback):
    """Notes what it is told."""

    def __init__(self):
        self.said = []

    def begin(self, directory, config, seed):
        self.said.append(("begin", directory, config["num_rounds"], seed))

    def evaluation(self, row):
        self.said.append(("evaluation", row["round"], row["accuracy"]))

    def clients(self, server_round, time_s, rows):
        self.said.append(("clients", server_round, len(rows)))

    def end(self, summary):
        self.said.append(("end", summary["status"]))


class Breaks(Heard):
    def evaluation(self, row):
        super().evaluation(row)
        row["accuracy"] = 2.0  # its own copy
        raise OSError("the service is down")


def test_a_callback_is_told_in_order_of_all_that_is_measured():
    heard = Heard()
    run = fl.run(**SMALL, seed=7, callbacks=[heard], **{"personal.every": 3, "goal": "personal"})
    rows = run.frame()
    assert heard.said[0] == ("begin", None, 3, 7)
    assert heard.said[-1] == ("end", "completed")
    told = [each for each in heard.said if each[0] == "evaluation"]
    assert told == [("evaluation", *row) for row in zip(rows["round"], rows.accuracy, strict=True)]
    assert ("clients", 3, 4) in heard.said


def test_one_that_breaks_is_told_nothing_more_and_changes_nothing(caplog):
    breaks, heard = Breaks(), Heard()
    with caplog.at_level(logging.WARNING, "fl"):
        run = fl.run(**SMALL, callbacks=[breaks, heard])
    assert [kind for kind, *_ in breaks.said] == ["begin", "evaluation"]
    assert len(heard.said) == 2 + len(run.frame())
    assert run.frame().accuracy.max() <= 1
    assert sum("the service is down" in each.message for each in caplog.records) == 1
    assert run.summary["model_sha256"] == fl.run(**SMALL).summary["model_sha256"]


def test_the_configuration_makes_them_and_results_do_not_depend_on_them(tmp_path, monkeypatch):
    (tmp_path / "listening.py").write_text(
        "from fl.reports import Callback\n"
        "class Mine(Callback):\n"
        "    def __init__(self, path): self.path = path\n"
        "    def end(self, summary): open(self.path, 'w').write(summary['status'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = str(tmp_path / "said")
    run = fl.run(f"callbacks=[{{_target_: listening.Mine, path: '{said}'}}]", **SMALL)
    assert (tmp_path / "said").read_text() == "completed"
    from fl.reports.runs import result_digest

    plain = fl.run(**SMALL)
    assert result_digest(run.summary["config"]) == result_digest(plain.summary["config"])
    sys.modules.pop("listening", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("callbacks=mine", "callbacks is 'mine'"),
        ("callbacks=[mine]", r"callbacks\[0\] is 'mine', without _target_"),
        ("callbacks=[{_target_: builtins.dict}]", r"callbacks\[0\]\._target_ is builtins.dict"),
        ("callbacks=[{_target_: fl.reports.Nobody}]", "Nobody"),
        ("callbacks=[{_target_: nowhere.Mine}]", r"callbacks\[0\]\._target_ is nowhere\.Mine"),
        ("callbacks=[{_target_: fl.reports.WandB, project: a, mode: loud}]", "mode is 'loud'"),
    ],
)
def test_what_makes_no_callback_is_refused_before_anything_starts(given, said, monkeypatch):
    stand_in(monkeypatch, "wandb")
    with pytest.raises(ConfigError, match=said):
        fl.run(given, **SMALL)


def test_one_that_breaks_before_anything_starts_is_named():
    class Breaks(Callback):
        def begin(self, directory, config, seed):
            raise OSError("no network")

    with pytest.raises(OSError, match="no network") as raised:
        fl.run(**SMALL, callbacks=[Breaks()])
    assert raised.value.__notes__ == ["raised by the callback Breaks, in begin"]


def test_an_object_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"callbacks is 3; it must be a fl\.reports\.Callback"):
        fl.run(**SMALL, callbacks=[3])


# ---- services ------------------------------------------------------------------------------------


def stand_in(monkeypatch, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def told(callback: Callback, tmp_path, status="completed") -> None:
    """What a run tells."""
    writer = RunWriter(tmp_path / "mine", CONFIG, 0, tensorboard=False, callbacks=[callback])
    writer.evaluation(ROW)
    writer.finish(Totals(virtual_s=2.5), status=status, error=None if status[0] == "c" else "no")


@pytest.mark.parametrize(("name", "make"), [("wandb", WandB), ("mlflow", MLflow)])
def test_without_its_package_it_says_what_to_install(name, make, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'fl-simulator\[{name}\]'"):
        make("project")


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
def test_wandb_gets_rows_configuration_and_totals(monkeypatch, tmp_path, status, code):
    calls, module = [], stand_in(monkeypatch, "wandb")
    service = SimpleNamespace(
        define_metric=lambda *a, **k: calls.append(("define", a, k)),
        log=lambda row: calls.append(("log", row)),
        summary={},
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )
    module.init = lambda **given: calls.append(("init", given)) or service
    told(WandB("mine"), tmp_path, status)
    (_, given), (_, *_), (_, row), (_, ended) = calls
    assert given["config"] == {"client.lr": 0.1, "metrics": '["f1"]'}
    assert (given["project"], given["name"], given["mode"]) == ("mine", "mine", "offline")
    assert given["dir"] == str(tmp_path / "mine")
    assert row == ROW
    assert service.summary["totals.virtual_s"] == 2.5
    assert ended == code


@pytest.mark.parametrize(
    ("status", "theirs"),
    [("completed", "FINISHED"), ("interrupted", "KILLED"), ("diverged", "FAILED")],
)
def test_mlflow_gets_rows_with_virtual_timestamps(monkeypatch, tmp_path, status, theirs):
    calls, module = [], stand_in(monkeypatch, "mlflow")
    entities = stand_in(monkeypatch, "mlflow.entities")
    entities.Param = lambda key, value: (key, value)
    entities.Metric = lambda key, value, at, step: (key, value, at, step)

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            calls.append(("experiment", name))
            return "7"

        def create_run(self, number, run_name):
            calls.append(("run", number, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def log_batch(self, run_id, metrics=(), params=()):
            calls.append(("batch", run_id, list(metrics), list(params)))

        def set_terminated(self, run_id, status):
            calls.append(("ended", run_id, status))

    module.MlflowClient = Client
    told(MLflow("mine", uri="http://127.0.0.1:1"), tmp_path, status)
    assert calls[:3] == [
        ("uri", "http://127.0.0.1:1"),
        ("experiment", "mine"),
        ("run", "7", "mine"),
    ]
    assert ("client.lr", "0.1") in calls[3][3]
    assert ("accuracy", 0.5, 2500, 1) in calls[4][2]
    assert calls[5] == ("ended", "r", theirs)
