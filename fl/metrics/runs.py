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


@dataclass(frozen=True)
class Run:
    """One run: where it lies (None: nowhere), its summary.json and the rows of its metrics.csv."""

    directory: Path | None
    summary: Mapping[str, Any]
    history: Sequence[Row]


def read_run(directory: Path | str) -> Run:
    """Returns the run in a directory.

    Raises:
        ConfigError: summary.json or metrics.csv is missing there, as in a run that was killed.
    """
    folder = Path(directory)
    path = folder / "summary.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; give the directory of a run that has ended (one that was "
            "killed has a metrics.csv only)"
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
    return Run(folder, summary, read_history(folder / "metrics.csv"))


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
