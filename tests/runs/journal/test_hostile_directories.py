"""Somebody else's directory is data: resuming it runs no code that the user has not named."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import RUNS, journal_of
from omegaconf import OmegaConf

from fl.cli import main
from fl.deployment.settings import compose_experiment
from fl.errors import ConfigError
from fl.runs.journal.claim import FOLDER
from fl.runs.journal.command import COMMAND
from fl.runs.journal.journal import Journal
from fl.runs.trust import check_targets, foreign_targets

QUICK = [*RUNS["aggregate"], "num_rounds=2"]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder of somebody whose code leaves a trace when it runs."""
    folder = tmp_path / "evil"
    folder.mkdir()
    trace = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (folder / "evilmodule.py").write_text(trace + "class Rule: pass\n")
    module = f"app_{tmp_path.name}"  # its own name, for modules stay imported
    (folder / f"{module}.py").write_text(trace)
    (folder / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\n"
        f'serverapp = "{module}:app"\nclientapp = "{module}:app"\n'
        "[tool.flwr.app.config]\n"
    )
    (folder / "config.yaml").write_text(
        f"hydra:\n  callbacks:\n    x:\n      _target_: builtins.open\n      file: {tmp_path}/ran\n"
        "      mode: w\n"
    )
    return folder


@pytest.fixture
def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Resumes the directory, which must be refused in one line before anything of it has run."""

    def resume(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fl", "resume", str(tmp_path / "run"), *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1, told.err
        assert not (tmp_path / "ran").exists()
        return told.err

    return resume


def directory_of(tmp_path: Path, *overrides: str, early: bool = False, **command: Any) -> Path:
    """Makes a directory whose command is what somebody likes; `early` is before the journal."""
    directory = tmp_path / "run"
    whole: dict[str, Any] = {
        "overrides": [*QUICK, *overrides],
        "searchpath": [],
        "config_dirs": [],
        "config_name": "config",
        "cwd": str(tmp_path),
        **command,
    }
    (directory / FOLDER).mkdir(parents=True)
    if early:
        (directory / FOLDER / COMMAND).write_text(json.dumps(whole))
    else:
        head = {"command": whole, "facts": {"seed": 0}, "code": {}}
        Journal(journal_of(directory), head).close()
    return directory


TARGETS = {
    "a part": ["strategy._target_=os.system", "+strategy.command=touch ran"],
    "below a part": ["client.rule._target_=evilmodule.Rule"],
    "in a list": ["+model.layers=[[{_target_: evilmodule.Rule}]]"],
    "what a module of ours has imported": ["client.rule._target_=fl.data.images.os.remove"],
    "another part of fl": ["client.rule._target_=fl.runs.apps.read_app"],
    "by interpolation": ["+train_config.x=os.system", "model._target_=${train_config.x}"],
    "a class of Python's": ["client.rule._target_=fl.strategies.FedBuff.__class__"],
    "an address": ["executor=ray", "executor.address=10.0.0.1:6379"],
}


@pytest.mark.parametrize("case", TARGETS)
def test_what_is_called_must_be_a_part_of_fl(
    refusal: Callable[..., str],
    evil: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.syspath_prepend(evil)
    directory_of(tmp_path, *TARGETS[case])
    told = refusal()
    assert f"{tmp_path / 'run'} was started with " in told
    assert f"Only if you trust that: fl resume {tmp_path / 'run'} --allow " in told


def test_command_that_was_noted_before_the_journal_is_trusted_no_more(
    refusal: Callable[..., str], evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(evil)
    directory_of(tmp_path, "client.rule._target_=evilmodule.Rule", early=True)
    assert "client.rule._target_=evilmodule.Rule, which may run code" in refusal()
    (tmp_path / "run" / FOLDER / COMMAND).write_text(
        json.dumps({"overrides": ["+hydra.callbacks.x._target_=evilmodule.Rule"]})
    )
    assert "the command in" in refusal()


@pytest.mark.parametrize("early", [False, True])
def test_app_runs_only_if_its_folder_is_named(
    refusal: Callable[..., str],
    evil: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    early: bool,
) -> None:
    app = ["app=evil", "executor=serial", "progress=false"]
    directory = directory_of(tmp_path, early=early, overrides=app)
    assert f"was started with app={evil}, which may run code" in refusal()
    told = refusal("--allow", "json", "--allow", str(tmp_path))
    assert told.endswith(f"--allow {evil}\n")
    monkeypatch.chdir(evil)
    monkeypatch.setattr(sys, "argv", ["fl", "resume", str(directory), "--allow", "."])
    with pytest.raises(SystemExit):  # it is no app, which is seen when it has been imported
        main()
    assert (tmp_path / "ran").exists()


HYDRA = {
    "callbacks": {"overrides": ["+hydra.callbacks.x._target_=evilmodule.Rule"]},
    "a group of ours as its callback": {"overrides": ["+client@hydra.callbacks.x=sgd"]},
    "its launcher": {"overrides": ["hydra/launcher=joblib"]},
    "environment": {"overrides": ["+hydra.job.env_set.PYTHONPATH=evil"]},
    "a flag": {"overrides": ["--config-dir=evil"]},
    "a flag as a name": {"config_name": "--multirun"},
    "a folder of configurations": {"config_dirs": ["evil"]},
    "a search path": {"searchpath": ["file://evil"]},
    "a package to search": {"searchpath": ["pkg://evilmodule"]},
    "no list": {"overrides": "seed=3"},
    "no texts": {"overrides": [["seed=3"]]},
    "no folder": {"cwd": None},
    "nothing": {"overrides": None},
    "no override": {"overrides": ["seed=[1"]},
    "orders to the terminal": {"overrides": ["strategy=\x1b[2J"]},
}


@pytest.mark.parametrize("case", HYDRA)
def test_command_does_not_configure_hydra(
    refusal: Callable[..., str],
    evil: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.syspath_prepend(evil)
    directory_of(tmp_path, **HYDRA[case])
    told = refusal()
    assert ("the command in" in told) or ("--allow" in told)


def test_modules_are_those_of_the_user_and_not_of_the_folder_where_the_run_was_started(
    refusal: Callable[..., str], evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "."]))
    directory_of(tmp_path, "client.rule._target_=evilmodule.Rule", cwd=str(evil))
    here = os.getcwd()
    told = refusal("--allow", "evilmodule")
    assert "--allow names evilmodule" in told
    assert not (tmp_path / "ran").exists()
    assert os.environ["PYTHONPATH"] == os.pathsep.join([here, here])


LINKS = ["fl.log", "metrics.csv", "checkpoint/lock", "checkpoint/journal", "tb", "plots/x.png"]


@pytest.mark.parametrize("name", LINKS)
def test_link_is_refused_and_what_it_leads_to_stays(
    refusal: Callable[..., str], tmp_path: Path, name: str
) -> None:
    directory = directory_of(tmp_path)
    (tmp_path / "victim").write_text("dear")
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "victim")
    assert f"{path} is a link" in refusal()
    assert (tmp_path / "victim").read_text() == "dear"


def test_pipe_is_refused_instead_of_waited_for(refusal: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(directory_of(tmp_path) / "summary.json")
    assert "summary.json is a link, or no plain file" in refusal()


@pytest.mark.parametrize("text", ["{" * 100_000, "[" * 100_000, "null", '{"status": {}}'])
def test_summary_that_is_none_is_refused(
    refusal: Callable[..., str], tmp_path: Path, text: str
) -> None:
    directory = directory_of(tmp_path, early=True)
    (directory / "summary.json").write_text(text)
    assert "summary.json cannot be read" in refusal() or "without a journal" in refusal()


def test_text_from_a_journal_does_not_steer_the_terminal(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    directory = directory_of(tmp_path)
    Journal(journal_of(directory), {"obstacle": "a\x1b]0;owned\x07b\r"}).close()
    told = refusal()
    assert r"cannot be resumed: a\x1b]0;owned\x07b\r" in told
    assert told.rstrip("\n").isprintable()


def test_every_part_that_the_configuration_names_is_allowed() -> None:
    folder = Path(__file__).parents[3] / "fl" / "conf"
    found = 0
    for path in folder.rglob("*.yaml"):
        if path.parent != folder:  # whose targets are Hydra's callbacks, and the cost model
            config = OmegaConf.load(path)
            plain = OmegaConf.to_container(config, resolve=False)
            text = json.dumps(plain)
            found += text.count("_target_")
            assert foreign_targets(OmegaConf.create(text.replace("${", "$ {"))) == {}, path
    assert found > 150


def test_allowing_a_module_does_not_allow_what_it_has_imported() -> None:
    config = OmegaConf.create({"a": {"_target_": "killing.os.kill"}})
    key = {"a._target_": "killing.os.kill"}
    assert foreign_targets(config, ["killing"]) == key
    assert foreign_targets(config, ["killin", "os", "kill"]) == key
    assert foreign_targets(config, ["killing.os.kill"]) == {}
    run = OmegaConf.create({"a": {"_target_": "killing.Run"}})
    assert foreign_targets(run, ["killing"]) == foreign_targets(run, ["killing.Run"]) == {}


def test_deployment_calls_parts_of_fl_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for override in ("strategy._target_=os.system", "+client.x.y._target_=evilmodule.Rule"):
        with pytest.raises(ConfigError, match="what is called must be a part of fl"):
            compose_experiment([override])
    check_targets(compose_experiment(["strategy=fedbuff"]))


def test_directory_of_ones_own_parts_needs_nothing_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = directory_of(tmp_path, early=True)
    monkeypatch.setattr(sys, "argv", ["fl", "resume", str(directory)])
    main()
    assert "Run completed" in capsys.readouterr().out
    assert not (directory / FOLDER).exists()
