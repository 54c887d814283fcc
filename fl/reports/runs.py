"""Finished runs, read back from their directories: for comparisons over methods and seeds."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.errors import ConfigError
from fl.extras import imported
from fl.reports.files import SUMMARY_BYTES, read_file
from fl.reports.history import Row, read_history
from fl.reports.run_writer import config_digest
from fl.reports.tensorboard_log import flattened

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

ENDED = ("completed", "diverged")
"""Statuses of runs that came to their end, whose results another run would repeat."""

_FOR_THE_HOST = (
    "callbacks",
    "checkpoint",
    "executor",
    "may_be_unread",
    "progress",
)  # change no result
_OF_A_RUN = ("summary.json", "metrics.csv")
_AGAIN = "run it again, or delete the folder"
_DEEPEST = 100  # levels of a configuration


@dataclass(frozen=True, repr=False)
class Run:
    """One run: where it lies (None: nowhere), its summary.json and the rows of its metrics.csv."""

    directory: Path | None
    summary: Mapping[str, Any]
    history: Sequence[Row]

    def frame(self) -> pandas.DataFrame:
        """Returns the evaluations as a table of pandas, a row each, as in metrics.csv.

        Raises:
            ConfigError: pandas is not installed.
        """
        table: pandas.DataFrame = imported("frame()", "pandas").DataFrame(list(self.history))
        return table

    def plot(self, *names: str) -> Figure:
        """Returns a picture of metrics against simulated time, bytes and rounds.

        Args:
            names: of metrics, a row of panels each; by default the target's metric, accuracies and
                losses.

        Raises:
            ConfigError: no evaluation has one of them.
        """
        from fl.reports import plots

        return plots.metrics(self.history, names=names or None)

    def __repr__(self) -> str:
        where = "" if self.directory is None else f", {self.directory}"
        final = ", ".join(f"{k} {v:.4g}" for k, v in list(self.summary["final"].items())[:2])
        rounds = self.summary["totals"].get("rounds", len(self.history))
        return f"<{type(self).__name__} {self.summary['status']}: {rounds} rounds, {final}{where}>"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the table that `fl` prints."""
        from rich.console import Console

        from fl.reports.table import print_results

        console = Console(record=True, width=100, file=io.StringIO())
        print_results(self.summary, self.directory, console)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def read_run(directory: Path | str) -> Run:
    """Returns the run in a directory.

    Raises:
        ConfigError: summary.json or metrics.csv is missing there, as in a run that was killed, or
            is damaged.
    """
    folder = Path(directory)
    path = folder / "summary.json"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no directory (here is {Path.cwd()}); give that of a run")
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist; give the directory of a run that has ended (one that was "
            f"killed has a metrics.csv only; fl resume {folder} goes on with it)"
        )
    return Run(folder, _summary(path), read_history(folder / "metrics.csv"))


def _summary(path: Path) -> dict[str, Any]:
    data = read_file(path, SUMMARY_BYTES)
    try:
        found = json.loads(data.decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a character cannot be shown
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; {_AGAIN}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}, no summary of a run; {_AGAIN}")
    wrong = [name for name, fits in _SUMMARY.items() if name not in found or not fits(found[name])]
    wrong += [name for name, fits in _OPTIONAL.items() if not fits(found.get(name))]
    if wrong:
        raise ConfigError(
            f"{path} is no summary of a run: it lacks a usable {', '.join(wrong)}; {_AGAIN}"
        )
    return found


# ---- what readers of a summary rely on -----------------------------------------------------------


def _is_metric(value: Any) -> bool:
    """Whether this is a number as `run_writer.plain` writes it, and one that fits into a float."""
    if isinstance(value, str):
        return value in ("inf", "-inf", "nan")
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_number(value: Any) -> bool:
    """Whether this is a number that can be added up and shown in another unit."""
    return _is_metric(value) and (isinstance(value, str) or abs(value) < 1e300)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, str) and _is_number(value)


def _are_numbers(value: Any, fits: Callable[[Any], bool] = _is_number) -> bool:
    return isinstance(value, Mapping) and all(map(fits, value.values()))


def _are_records(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(each, Mapping)
        and _is_metric(each.get("value"))
        and _is_number(each.get("round"))
        for each in value.values()
    )


def _is_target(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping) or not isinstance(value.get("reached"), bool):
        return False
    costs = ("time_s", "bytes", "energy_j", "round") if value["reached"] else ()
    return (
        isinstance(value.get("metric"), str)
        and value.get("mode") in ("max", "min")
        and all(_is_finite(value.get(name)) for name in ("value", *costs))
    )


def _are_totals(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("energy_j"), Mapping):
        return False
    plain = {**value, **value["energy_j"], "events": value.get("events") or 0}
    del plain["energy_j"]
    needed = ("virtual_s", "bytes_down", "bytes_up", "total")
    return all(map(_is_finite, plain.values())) and all(name in plain for name in needed)


def _is_staleness(value: Any) -> bool:
    return not value or (isinstance(value, Mapping) and _is_number(value.get("mean")))


def _is_nested(value: Any, depth: int = _DEEPEST) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if type(value) is list else ()
    return depth > 0 and all(_is_nested(each, depth - 1) for each in items)


def _or_none(kind: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, kind)


_SUMMARY: Mapping[str, Callable[[Any], bool]] = {
    "status": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, Mapping) and _is_nested(value),
    "final": lambda value: _are_numbers(value, _is_metric),
    "best": _are_records,
    "target": _is_target,
    "totals": _are_totals,
}
_OPTIONAL: Mapping[str, Callable[[Any], bool]] = {
    "error": _or_none(str),
    "faults": lambda value: value is None or _are_numbers(value, _is_finite),
    "staleness": _is_staleness,
    "poll_gap": _is_staleness,
    "versions": _or_none(Mapping),
    "extra": lambda value: (
        value is None
        or (
            isinstance(value, Mapping)
            and _is_nested(value)
            and _are_numbers(value.get("central") or {}, _is_metric)
        )
    ),
}


# ---- many runs -----------------------------------------------------------------------------------


def load_runs(roots: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """Returns all runs at or below directories, and what is wrong with those that cannot be read.

    Args:
        roots: directories of runs or sweeps. A run that is below two of them is read once, and so
            is one that was run again: equal in configuration, seed, trace and model.

    Returns:
        The runs, in order of directories and paths; and for each run that was killed before its
        end, whose files are damaged, or that repeats another, a message that names it.

    Raises:
        ConfigError: a directory does not exist.
    """
    runs: list[Run] = []
    problems: list[str] = []
    seen: set[Path] = set()
    first: dict[str, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise ConfigError(f"{root} is no directory; give the directory of a run or sweep")
        found = {path.parent for name in _OF_A_RUN for path in root.rglob(name)}
        for folder in sorted(found):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                run = read_run(folder)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if first.setdefault(_identity(run), folder) == folder:
                runs.append(run)
            else:
                problems.append(f"{folder} repeats {first[_identity(run)]}, which counts once")
    return runs, problems


def ended(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Returns the runs that came to their end, and of each other one a message that names it.

    What those have reached is no result, and does not go into a mean with results.
    """
    all_runs = list(runs)
    others = [run for run in all_runs if run.summary["status"] not in ENDED]
    told = [f"{run.directory} was {run.summary['status']}" for run in others]
    return [run for run in all_runs if run.summary["status"] in ENDED], told


def bears_on_results(key: str) -> bool:
    """Returns whether a run's results depend on a key of its configuration, a dotted name."""
    return key.lstrip("+~").replace("/", ".").partition(".")[0] not in _FOR_THE_HOST


def result_digest(config: Mapping[str, Any]) -> str:
    """Returns the digest of what a run's results depend on in its configuration."""
    return config_digest({key: config[key] for key in config if bears_on_results(key)})


def _identity(run: Run) -> str:
    """Returns what two directories have in common if they hold one run that was run twice.

    That is a run's own path where nothing is repeated: on a deployment, or without a trace.
    """
    results = [run.summary.get(name) for name in ("seed", "trace_sha256", "model_sha256")]
    if None in results:
        return str(run.directory)
    return json.dumps([result_digest(run.summary["config"]), *results])


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
            `seed` and those of where they ran.

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
            if key.rpartition(".")[2] != "seed"
            and bears_on_results(key)
            and len({repr(c.get(key)) for c in flat}) > 1
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
