"""Whoever types `fl init DIR` in an empty folder, and then what it says, gets what it says."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

import fl
from fl.cli import main
from fl.deployment import LocalDeployment
from fl.deployment.settings import Own, compose_experiment
from fl.errors import ConfigError
from fl.reports.runs import read_run
from fl.runs.project import LINES, make

ROOT = Path(fl.__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of a new project, entered."""
    monkeypatch.delenv("FL_DATA_DIR", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    make(tmp_path / "my first")
    monkeypatch.chdir(tmp_path / "my first")
    monkeypatch.syspath_prepend(str(tmp_path / "my first"))
    yield tmp_path / "my first"
    sys.modules.pop("mine", None)


def test_the_project_is_an_experiment_and_a_flower_app_of_the_same_parts(place):
    few = dict(executor="serial", fleet="uniform", num_rounds=3, progress=False)
    run = fl.run("+experiment=machines", config_dir="conf", **few)
    losses = run.frame()["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    config = compose_experiment(["+experiment=machines"], Own(place / "conf", ("mine",)))
    assert config.strategy.rule._target_ == "mine.HeavyBall"
    with pytest.raises(ConfigError, match=r"mine\.HeavyBall"):  # code that nobody has named
        compose_experiment(["+experiment=machines"], Own(place / "conf"))
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(place))) as bundle:
        names = {*bundle.namelist()}
    assert {"mine.py", "deployed.py", "conf/experiment/machines.yaml"} <= names
    assert "machines.csv" not in names  # what data there are stays where they are


def test_the_table_beside_it_goes_before_another_folders(place, monkeypatch, tmp_path):
    monkeypatch.setenv("FL_DATA_DIR", str(tmp_path))
    table = importlib.import_module("mine").TABLE
    assert table == place / "machines.csv"
    sys.modules.pop("mine")
    table = table.rename(tmp_path / "machines.csv")
    assert table == importlib.import_module("mine").TABLE


def test_the_command_makes_it_and_says_what_to_type(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay
    monkeypatch.setattr(sys, "argv", ["fl", "init", str(tmp_path / "new")])
    main()
    told = capsys.readouterr().out
    assert all(line in told for line, _ in LINES)
    assert all(line in (tmp_path / "new" / "README.md").read_text() for line, _ in LINES)
    with pytest.raises(SystemExit):  # not a second time
        main()
    assert str(tmp_path / "new") in capsys.readouterr().err


@pytest.mark.slow
def test_every_line_that_it_says_works_in_the_folder(place):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for line, _ in LINES:
        program, *words = shlex.split(line)
        start = ["-m", "fl"] if program == "fl" else []
        command = [sys.executable, *start, *words]
        subprocess.run(command, check=True, cwd=place, env={**os.environ, "PYTHONPATH": path})
    assert (place / "multirun" / "first" / "report.html").is_file()
    (run,) = place.glob("outputs/*/*")
    assert read_run(run).summary["target"]["reached"]


@pytest.mark.slow
def test_it_runs_on_a_deployment_as_it_is(place):
    nodes = [{"partition-id": i, "num-partitions": 2, "threads": 1} for i in range(2)]
    more = {"FL_DATA_DIR": str(place)}
    words = "+experiment=machines num_clients=2 num_rounds=2"
    with LocalDeployment(nodes, path=[ROOT], environment=more) as local:
        local.run(place, {"overrides": words, "directory": str(place / "run")})
    deployed = read_run(place / "run").summary
    few = dict(num_clients=2, num_rounds=2, fleet="uniform", executor="serial", progress=False)
    simulated = fl.run(
        "+experiment=machines", config_dir="conf", **{**few, "client.batching": "off"}
    )
    assert deployed["status"] == "completed"
    assert deployed["model_sha256"] == simulated.summary["model_sha256"]
