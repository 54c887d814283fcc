"""Finished runs, read back from their directories: for comparisons over methods and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.errors import ConfigError
from fl.metrics.history import Row, read_history
from fl.metrics.tensorboard_log import flattened

_OF_A_RUN = ("summary.json", "metrics.csv")
_SUMMARY: Mapping[str, Any] = {  # what readers rely on
    "status": str,
    "config": Mapping,
    "final": Mapping,
    "best": Mapping,
    "target": Mapping | None,
    "totals": Mapping,
}
_AGAIN = "run it again, or delete the folder"


@dataclass(frozen=True)
class Run:
    """One run: where it lies (None: nowhere), its summary.json and the rows of its metrics.csv."""

    directory: Path | None
    summary: Mapping[str, Any]
    history: Sequence[Row]


def read_run(directory: Path | str) -> Run:
    """Returns the run in a directory.

    Raises:
        ConfigError: summary.json or metrics.csv is missing there, as in a run that was killed, or
            is damaged.
    """
    folder = Path(directory)
    path = folder / "summary.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; give the directory of a run that has ended (one that was "
            "killed has a metrics.csv only)"
        )
    return Run(folder, _summary(path), read_history(folder / "metrics.csv"))


def _summary(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; {_AGAIN}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, no summary of a run; {_AGAIN}")
    lacking = [name for name in _SUMMARY if not isinstance(found.get(name, ...), _SUMMARY[name])]
    if lacking:
        raise ConfigError(f"{path} is no summary of a run: it lacks {', '.join(lacking)}; {_AGAIN}")
    return found


def load_runs(roots: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """Returns all runs at or below directories, and what is wrong with those that cannot be read.

    Args:
        roots: directories of runs or sweeps. A run that is below two of them is read once.

    Returns:
        The runs, in order of directories and paths; and for each run that was killed before its
        end, or whose files are damaged, a message that names it.

    Raises:
        ConfigError: a directory does not exist.
    """
    runs: list[Run] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for root in map(Path, roots):
        if not root.is_dir():
            raise ConfigError(f"{root} is no directory; give the directory of a run or sweep")
        found = {path.parent for name in _OF_A_RUN for path in root.rglob(name)}
        for folder in sorted(found):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                runs.append(read_run(folder))
            except ConfigError as error:
                problems.append(str(error))
    return runs, problems


def find_runs(root: Path | str) -> list[Run]:
    """Returns all ended runs at or below a directory (of a sweep, say), in order of their paths.

    Raises:
        ConfigError: there are none.
    """
    folders = sorted(path.parent for path in Path(root).rglob("summary.json"))
    if not folders:
        raise ConfigError(
            f"no summary.json at or below {root}; give the directory of a run or sweep"
        )
    return [read_run(folder) for folder in folders]


def group_runs(runs: Iterable[Run], by: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Returns runs that differ only in their seed under one label, in order of first appearance.

    Args:
        runs: any runs.
        by: dotted configuration keys whose values tell the groups apart, such as
            `["strategy._target_", "lr"]`; None takes every key in which the runs differ, but
            `seed`.

    Returns:
        Label to runs. A label lists the group's values of those keys; of an import path, its last
        part. If no key differs it is "all runs".
    """
    all_runs = list(runs)
    flat = [flattened(run.summary["config"]) for run in all_runs]
    if by is None:
        keys = list(dict.fromkeys(key for config in flat for key in config))
        by = [
            key
            for key in keys
            if key.rpartition(".")[2] != "seed" and len({repr(c.get(key)) for c in flat}) > 1
        ]
    groups: dict[str, list[Run]] = {}
    for run, config in zip(all_runs, flat, strict=True):
        parts = [_part(key, config[key]) for key in by if key in config]
        groups.setdefault(", ".join(parts) or "all runs", []).append(run)
    return groups


def _part(key: str, value: bool | float | str) -> str:
    name = key.rpartition(".")[2]
    if name == "_target_":
        return str(value).rpartition(".")[2]
    return value if isinstance(value, str) and name == "name" else f"{name}={value}"
