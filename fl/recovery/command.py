"""`fl resume DIR`: the command line of the run in DIR once more."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fl.errors import ConfigError
from fl.recovery.claim import FOLDER
from fl.recovery.journal import FILE, read_head

USAGE = """usage: fl resume DIR

Continues the run in DIR, whose process was killed, interrupted or failed, to the result that it
would have had. What its clients had answered is in DIR/checkpoint and is not trained again. A run
that has completed is left as it is. See docs/recovery.md."""


def command_of_job() -> dict[str, Any]:
    """Returns what it takes to start this Hydra job again; nothing where Hydra does not run."""
    if not HydraConfig.initialized():
        return {}
    job = HydraConfig.get()
    return {
        "overrides": list(job.overrides.task),
        "searchpath": [o for o in job.overrides.hydra if o.startswith("hydra.searchpath=")],
        "config_dirs": [
            source.path
            for source in job.runtime.config_sources
            if source.provider == "command-line"
        ],
        "config_name": job.job.config_name,
        "cwd": job.runtime.cwd,
    }


def resumed(arguments: list[str]) -> tuple[list[str], bool] | None:
    """Returns the arguments that start a run again, after moving to the folder it was started in.

    Args:
        arguments: of `fl resume`.

    Returns:
        The arguments, and whether there is a journal to go on with; a run that was killed before it
        had one has lost nothing, and simply begins. None if there is nothing to do, and the user
        was told so.

    Raises:
        ConfigError: the run cannot be resumed.
    """
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return None
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError(f"give one directory of a run: fl resume DIR, not {arguments}")
    directory = Path(arguments[0]).expanduser().resolve()
    if not directory.is_dir():
        raise ConfigError(f"{directory} does not exist; give the directory of a run")
    journal = directory / FOLDER / FILE
    status = _status(directory)
    if journal.is_file():
        head = read_head(journal)
        if head.get("obstacle") is not None:
            if status == "completed":
                _tell_completed(directory)
                return None
            raise ConfigError(f"{directory} cannot be resumed: {head['obstacle']}")
        command = head.get("command")
    elif status == "completed":
        _tell_completed(directory)
        return None
    elif status is not None:
        raise ConfigError(f"{directory} holds a run ({status}) without a journal: start it again")
    else:
        command = _before_it_began(directory)
    if not isinstance(command, Mapping) or "overrides" not in command:
        raise ConfigError(
            f"{directory} holds no run that `fl key=value ...` has started: resume it by the "
            "program that did"
        )
    try:
        os.chdir(command["cwd"])
    except OSError as error:
        raise ConfigError(
            f"{command['cwd']}, where the run was started, cannot be entered: {error.strerror}"
        ) from error
    found = [*command["overrides"], *command["searchpath"], f"hydra.run.dir={_quoted(directory)}"]
    for folder in command["config_dirs"]:
        found += ["--config-dir", folder]
    return [*found, "--config-name", command["config_name"]], journal.is_file()


def _tell_completed(directory: Path) -> None:
    print(f"{directory} has completed: there is nothing to resume", file=sys.stderr)


def _status(directory: Path) -> str | None:
    try:
        return str(json.loads((directory / "summary.json").read_text("utf-8"))["status"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{directory / 'summary.json'} cannot be read: {error}") from error


def _before_it_began(directory: Path) -> dict[str, Any]:
    """Returns the command of a run that was killed before it had a journal, as Hydra notes it."""
    path = directory / ".hydra" / "hydra.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} holds no run; give the directory of one")
    try:
        noted: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        job = noted["hydra"]
        return {
            "overrides": list(job["overrides"]["task"]),
            "searchpath": [],
            "config_dirs": [
                source["path"]
                for source in job["runtime"]["config_sources"]
                if source["provider"] == "command-line"
            ],
            "config_name": job["job"]["config_name"],
            "cwd": job["runtime"]["cwd"],
        }
    except Exception as error:  # YAML's own errors, and whatever a half-written file lacks
        raise ConfigError(f"{path} cannot be used: {error}; start the run again") from error


def _quoted(path: Path) -> str:
    """Returns a path as Hydra's grammar reads it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
