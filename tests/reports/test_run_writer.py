import hashlib
import json
import math
import platform
import sys
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fl.errors import ConfigError
from fl.reports import plots, run_writer
from fl.reports.history import read_history
from fl.reports.run_writer import RunWriter, Totals, config_digest, installed, plain, versions
from fl.reports.target import Target

CONFIG = {"lr": 0.1, "strategy": {"name": "fedavg", "clients": 10}}
TOTALS = Totals(
    virtual_s=12.0,
    wall_s=1.5,
    bytes_down=500,
    bytes_up=100,
    compute_j=30.0,
    radio_j=5.0,
    idle_j=1.0,
    client_updates=2,
)
PNG = b"\x89PNG\r\n\x1a\n"


def summary_in(directory: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((directory / "summary.json").read_text(), parse_constant=refuse)


def test_a_finished_run_leaves_all_its_files(tmp_path, row, trace):
    writer = RunWriter(tmp_path / "run", CONFIG, 3, Target("accuracy", 0.5))
    writer.evaluation(row(0, 0.0, accuracy=0.1, loss=2.0))
    writer.evaluation(row(1, 10.0, accuracy=0.6, loss=1.0))
    writer.finish(TOTALS, trace=trace, model_sha256="abc")
    files = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*")}
    (events,) = {name for name in files if name.startswith("tb/")}
    assert files - {events} == {
        "metrics.csv",
        "summary.json",
        "trace.parquet",
        "timeline.json.gz",
        "tb",
        "plots",
        "plots/metrics.png",
        "plots/clients.png",
    }
    for name in ("metrics", "clients"):
        assert (tmp_path / "run" / "plots" / f"{name}.png").read_bytes().startswith(PNG)


def test_what_cannot_write_is_told_after_the_first_model_and_the_rest_is_written(
    tmp_path, row, trace, monkeypatch, caplog
):
    for module in ("pyarrow.parquet", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    writer = RunWriter(tmp_path, CONFIG, 3)
    writer.evaluation(row(0, 0.0, accuracy=0.1))
    assert not caplog.messages
    writer.evaluation(row(1, 10.0, accuracy=0.6))
    writer.evaluation(row(2, 20.0, accuracy=0.7))
    said = [message.partition(", which is there at ")[0] for message in caplog.messages]
    assert said == [
        "no trace.parquet will be written: it needs the package pyarrow",
        "no plots will be written: it needs the package matplotlib",
    ]
    writer.finish(TOTALS, trace=trace)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"metrics.csv", "summary.json", "timeline.json.gz", "tb"}
    assert len(caplog.messages) == 2


def test_the_summary_holds_what_the_run_was_and_cost(tmp_path, row, trace):
    writer = RunWriter(tmp_path, CONFIG, 3, Target("accuracy", 0.5), plots=False)
    writer.evaluation(row(0, 0.0, accuracy=0.1, loss=2.0))
    writer.evaluation(row(1, 6.0, accuracy=0.6, loss=math.nan))
    writer.evaluation(row(2, 10.0, accuracy=0.4, train_loss=1.0))
    extra = {"executor": "ray", "data": {"sha256": "d1"}}
    returned = writer.finish(TOTALS, trace=trace, model_sha256="abc", extra=extra)
    summary = summary_in(tmp_path)
    assert summary == returned
    versions_of_run = summary.pop("versions")
    assert versions_of_run["python"] == platform.python_version()
    assert versions_of_run["numpy"] == np.__version__
    assert {"fl", "flwr", "torch", "ray", "commit"} <= versions_of_run.keys()
    assert summary == {
        "status": "completed",
        "error": None,
        "config_digest": config_digest(CONFIG),
        "config": CONFIG,
        "seed": 3,
        "evaluations": 3,
        # The last number reported for each metric, whichever evaluation it was in.
        "final": {"accuracy": 0.4, "loss": "nan", "train_loss": 1.0},
        "final_of_round": {"loss": 1},
        "best": {
            "accuracy": {"value": 0.6, "round": 1, "time_s": 6.0, "mode": "max"},
            "loss": {"value": 2.0, "round": 0, "time_s": 0.0, "mode": "min"},
            "train_loss": {"value": 1.0, "round": 2, "time_s": 10.0, "mode": "min"},
        },
        "target": {
            "metric": "accuracy",
            "value": 0.5,
            "mode": "max",
            "reached": True,
            "round": 1,
            "time_s": 6.0,
            "wall_s": 1.0,
            "bytes_down": 1000,
            "bytes_up": 500,
            "bytes": 1500,
            "energy_j": 10.0,
            "reason": None,
        },
        "totals": {
            "rounds": 2,
            "virtual_s": 12.0,
            "wall_s": 1.5,
            "bytes_down": 500,
            "bytes_up": 100,
            "energy_j": {"total": 36.0, "compute": 30.0, "radio": 5.0, "idle": 1.0},
            "client_updates": 2,
            "utilisation": 0.0,
            "events": 32,
        },
        "staleness": None,
        "poll_gap": None,
        "participation": None,
        "faults": {"dropout": 1, "download_lost": 1, "slowdown": 1, "expired": 1, "timeout": 1},
        "trace_sha256": trace.sha256(),
        "model_sha256": "abc",
        "extra": extra,
    }


def test_the_parquet_file_is_the_trace(tmp_path, trace):
    RunWriter(tmp_path, CONFIG, 0, plots=False).finish(TOTALS, trace=trace)
    table = pq.read_table(tmp_path / "trace.parquet")
    expected = trace.table()
    assert table.column_names == expected.column_names
    for name in expected.column_names:
        assert table[name].to_pylist() == expected[name].to_pylist()
    assert table.schema.metadata[b"trace_sha256"] == trace.sha256().encode()


def test_equal_runs_have_equal_files(tmp_path, row, trace):
    for name in ("a", "b"):
        writer = RunWriter(tmp_path / name, CONFIG, 0)
        writer.evaluation(row(1, 1.0, accuracy=0.5))
        writer.finish(TOTALS, trace=trace)
    names = ["metrics.csv", "summary.json", "timeline.json.gz", "plots/metrics.png"]
    for name in (*names, "plots/clients.png", "trace.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_run_that_is_killed_leaves_its_evaluations(tmp_path, row):
    writer = RunWriter(tmp_path, CONFIG, 0)
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    writer.evaluation(row(2, 2.0, accuracy=0.6))
    # finish is never called
    assert read_history(tmp_path / "metrics.csv") == writer.history
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_stops_early_writes_what_it_has(tmp_path, row, trace, status):
    writer = RunWriter(tmp_path, CONFIG, 0, Target("accuracy", 0.9))
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    try:
        raise ZeroDivisionError("client 7 divided by zero")
    except ZeroDivisionError as error:
        writer.finish(TOTALS, status=status, trace=trace, error=error)
    summary = summary_in(tmp_path)
    assert summary["status"] == status
    assert summary["error"].startswith("Traceback (most recent call last):")
    assert summary["error"].endswith("ZeroDivisionError: client 7 divided by zero")
    assert summary["final"] == {"accuracy": 0.5}
    assert summary["target"]["reached"] is False
    assert summary["model_sha256"] is None
    for name in ("trace.parquet", "timeline.json.gz", "plots/metrics.png", "plots/clients.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_run_that_fails_before_anything_happens_still_has_a_summary(tmp_path):
    RunWriter(tmp_path, CONFIG, 0).finish(Totals(), status="failed", error="no data")
    summary = summary_in(tmp_path)
    assert summary["error"] == "no data"
    assert summary["trace_sha256"] is None
    assert summary["faults"] is None
    assert summary["totals"]["rounds"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"summary.json", "metrics.csv", "tb"}


def test_a_failure_while_drawing_costs_no_data(tmp_path, row, trace, monkeypatch):
    def broken(*_, **__):
        raise OSError("no fonts")

    writer = RunWriter(tmp_path, CONFIG, 0)
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    with monkeypatch.context() as patch:
        patch.setattr(plots, "metrics", broken)
        with pytest.raises(OSError, match="no fonts"):
            writer.finish(TOTALS, trace=trace)
    assert summary_in(tmp_path)["status"] == "completed"
    assert (tmp_path / "trace.parquet").exists()
    writer.finish(TOTALS, trace=trace, status="failed", error="no fonts")
    assert summary_in(tmp_path)["status"] == "failed"


def test_an_interrupted_write_keeps_the_old_summary(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path, CONFIG, 0)
    writer.finish(TOTALS)
    before = (tmp_path / "summary.json").read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_writer.json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.finish(TOTALS, status="interrupted")
    assert (tmp_path / "summary.json").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"summary.json", "metrics.csv", "tb"}


def test_a_second_run_in_a_directory_removes_the_results_of_the_first(tmp_path, row, trace):
    first = RunWriter(tmp_path, CONFIG, 0)
    first.evaluation(row(1, 1.0, accuracy=0.5))
    first.finish(TOTALS, trace=trace)
    (tmp_path / "notes.txt").write_text("mine")
    RunWriter(tmp_path, CONFIG, 1)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"metrics.csv", "notes.txt"}
    assert read_history(tmp_path / "metrics.csv") == []


def test_without_a_directory_there_is_a_history_and_a_summary(tmp_path, row, trace, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = RunWriter(None, CONFIG, 0, Target("accuracy", 0.5))
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    summary = writer.finish(TOTALS, trace=trace)
    assert writer.history == [row(1, 1.0, accuracy=0.5)]
    assert summary["target"]["reached"]
    assert summary["trace_sha256"] == trace.sha256()
    assert list(tmp_path.iterdir()) == []


def test_views_can_be_turned_off(tmp_path, row, trace):
    writer = RunWriter(tmp_path, CONFIG, 0, tensorboard=False, timeline=False, plots=False)
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    writer.finish(TOTALS, trace=trace)
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.csv", "summary.json", "trace.parquet"}


def test_an_unknown_status_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="status is 'done'"):
        RunWriter(tmp_path, CONFIG, 0).finish(TOTALS, status="done")


class Colour(Enum):
    RED = 1


def test_plain_values_are_what_json_knows():
    value = {
        "path": Path("a/b"),
        "colour": Colour.RED,
        "numbers": (np.int64(1), np.float32(0.5), True, None),
        3: math.inf,
        "low": -math.inf,
        "nan": math.nan,
    }
    assert plain(value) == {
        "path": "a/b",
        "colour": "RED",
        "numbers": [1, 0.5, True, None],
        "3": "inf",
        "low": "-inf",
        "nan": "nan",
    }
    with pytest.raises(ConfigError, match="is a function"):
        plain({"f": lambda: None})


def test_hydra_configurations_are_accepted(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": 2, "b": {"c": "${a}", "d": [1, "${a}"]}})
    assert RunWriter(None, config, 0).config == {"a": 2, "b": {"c": 2, "d": [1, 2]}}


def test_the_digest_is_that_of_canonical_json():
    canonical = b'{"lr":0.1,"strategy":{"clients":10,"name":"fedavg"}}'
    assert config_digest(CONFIG) == hashlib.sha256(canonical).hexdigest()
    shuffled = {"strategy": {"clients": 10, "name": "fedavg"}, "lr": 0.1}
    assert config_digest(shuffled) == config_digest(CONFIG)
    assert config_digest({"lr": 1}) != config_digest({"lr": 1.0})
    assert config_digest({"name": "ü"}) == hashlib.sha256(b'{"name":"\\u00fc"}').hexdigest()


def test_what_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise run_writer.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(run_writer.metadata, "version", missing)
        installed.cache_clear()
        assert {versions()[name] for name in ("fl", "flwr", "torch", "ray", "numpy")} == {None}
    installed.cache_clear()  # as others find it


def test_versions_are_looked_up_once_in_a_process(monkeypatch):
    known = versions()
    monkeypatch.setattr(run_writer.metadata, "version", None)
    monkeypatch.setattr(run_writer.subprocess, "run", None)
    assert versions() == known


def test_events_that_found_the_disk_full_follow_at_the_end(
    tmp_path, row, trace, monkeypatch, caplog
):
    from fl.reports.tensorboard_log import TensorBoardLog

    def files(directory: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted((directory / "tb").iterdir())]

    for name in ("whole", "full"):
        writer = RunWriter(tmp_path / name, CONFIG, 3, plots=False, timeline=False)
        writer.evaluation(row(0, 0.0, accuracy=0.1))
        with monkeypatch.context() as patch:
            if name == "full":

                def failing(log, *_):
                    log.path.write_bytes(b"half an event")
                    raise OSError(28, "No space left on device")

                patch.setattr(TensorBoardLog, "evaluation", failing)
            writer.evaluation(row(1, 10.0, accuracy=0.6))
        writer.evaluation(row(2, 20.0, accuracy=0.7))
        writer.finish(TOTALS, trace=trace)
    assert caplog.text.count("it follows when the run ends, without histograms") == 1
    assert files(tmp_path / "full") == files(tmp_path / "whole")
