"""Why two runs differ: in their configuration, in what they reached, and where they first part."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl.errors import ConfigError
from fl.extras import check_importable
from fl.reports.files import opened, printable
from fl.reports.runs import Run, bears_on_results, read_run
from fl.reports.tensorboard_log import flattened

if TYPE_CHECKING:
    import pyarrow as pa

TRACE = "trace.parquet"
TRACE_BYTES = 4 * 10**9
"""Most that a trace.parquet may have to be compared."""

_EVENTS = 65_536  # that are compared at once
_GROUP_BYTES, _NAMES_BYTES = 2**28, 2**14  # more than any trace that was written here
_HOST = ("wall_s",)  # columns of metrics.csv that say nothing of the run
_HASHES = {"model_sha256": "model", "trace_sha256": "trace"}
_HEX = 24  # digits of a hash that are compared and shown
_ABSENT = "-"

Line = tuple[str, Any, Any]
"""What is compared, and what it is in both runs."""


def configurations(a: Run, b: Run) -> list[Line]:
    """Returns the keys in which two runs were told different things, and versions that differ.

    Keys of where a run ran, on which no result depends, are left out.
    """
    lines = _unequal(*(_told(run) for run in (a, b)))
    return [line for line in lines if bears_on_results(line[0])]


def results(a: Run, b: Run) -> list[Line]:
    """Returns in what two runs ended differently; none, if they are the same to the last bit."""
    return _unequal(*(_reached(run) for run in (a, b)))


def first_row(a: Run, b: Run) -> tuple[int, list[Line]] | None:
    """Returns the first row of metrics.csv, from 0, that differs, and in what; None if none does.

    Host times are not compared. Of two lengths, the first row that only one has.
    """
    for number in range(max(len(a.history), len(b.history))):
        rows = (
            {key: value for key, value in run.history[number].items() if key not in _HOST}
            if number < len(run.history)
            else {}
            for run in (a, b)
        )
        if lines := _unequal(*rows):
            return number, lines
    return None


def first_event(a: Path, b: Path) -> tuple[int, list[Line]] | None:
    """Returns the first event, from 0, in which two traces differ, and in what; None if none does.

    Args:
        a: a trace.parquet.
        b: another.

    Raises:
        ConfigError: one is missing, too large, or no trace.
    """
    seen = 0
    for one, other in _side_by_side(_batches(a), _batches(b)):
        if not one.equals(other):
            pairs: Any = zip_longest(one.to_pylist(), other.to_pylist(), fillvalue={})
            for i, (x, y) in enumerate(pairs):
                if _unequal(x, y):
                    return seen + i, [(k, x.get(k, _ABSENT), y.get(k, _ABSENT)) for k in {**x, **y}]
        seen += len(one)
    return None


def main(arguments: Sequence[str]) -> bool:
    """Runs `fl compare`; returns whether both runs have the same results.

    Raises:
        ConfigError: a directory has no run that has ended, or pyarrow is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="fl compare",
        description="Says why two runs differ: in which keys, in what they reached, in which "
        "evaluation and in which event they first part. Exits with 0 if their results are the same "
        "to the last bit, and with 1 if not.",
    )
    parser.add_argument("a", metavar="A", type=Path, help="directory of a run")
    parser.add_argument("b", metavar="B", type=Path, help="of another")
    given = parser.parse_args(arguments)
    check_importable("fl compare", "pyarrow")
    a, b = read_run(given.a), read_run(given.b)
    console = Console()
    for name, path in (("A", given.a), ("B", given.b)):
        console.print(Text(printable(f"{name}: {path}")), soft_wrap=True)
    told, reached = configurations(a, b), results(a, b)
    _show(console, "Configuration", told)
    _show(console, "Results", reached)
    if not reached:
        return True
    if row := first_row(a, b):
        number, lines = row
        _show(console, f"First evaluation that differs: row {number + 1} of metrics.csv", lines)
    traces = [run.directory / TRACE for run in (a, b) if run.directory is not None]
    if a.summary.get("trace_sha256") == b.summary.get("trace_sha256"):
        console.print("Events: the same, so that only what was computed differs")
    elif all(path.exists() for path in traces):
        if event := first_event(*traces):
            number, lines = event
            differing = ", ".join(key for key, x, y in lines if repr(x) != repr(y))
            title = f"First event that differs: number {number + 1} of the trace, in {differing}"
            _show(console, title, lines)
    else:
        console.print(f"Events: not compared, as there are no two {TRACE}")
    if not told:
        console.print("Nothing that was told differs: the computers or their libraries do")
    return False


def _told(run: Run) -> dict[str, Any]:
    versions = {f"versions.{k}": v for k, v in (run.summary.get("versions") or {}).items()}
    data = (run.summary.get("extra") or {}).get("data_sha256")
    return {
        **flattened(run.summary["config"]),
        **versions,
        "digest of the data": data and data[:_HEX],
    }


def _reached(run: Run) -> dict[str, Any]:
    summary = run.summary
    totals = {k: v for k, v in summary["totals"].items() if k not in (*_HOST, "energy_j")}
    energy = {"energy_j": summary["totals"]["energy_j"]["total"]}
    hashes = {name: _digits(summary.get(key)) for key, name in _HASHES.items()}
    faults = {f"faults.{name}": count for name, count in (summary.get("faults") or {}).items()}
    status = {"status": summary["status"]}
    return {**status, **summary["final"], **totals, **energy, **faults, **hashes}


def _digits(digest: object) -> str:
    return _ABSENT if digest is None else str(digest)[:_HEX]


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Line]:
    """Returns the keys whose values differ, NaN being equal to NaN."""
    return [
        (key, a.get(key, _ABSENT), b.get(key, _ABSENT))
        for key in dict.fromkeys((*a, *b))
        if repr(a.get(key, _ABSENT)) != repr(b.get(key, _ABSENT))
    ]


def _show(console: Console, title: str, lines: Sequence[Line]) -> None:
    """Prints a table of what differs."""
    if not lines:
        console.print(f"{title}: the same")
        return
    console.print(title)
    table = Table()
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(str(value))) for value in line))
    console.print(table)


# ---- traces --------------------------------------------------------------------------------------


def _batches(path: Path) -> Iterator[pa.Table]:
    """Yields the events of a trace, some at a time.

    Raises:
        ConfigError: the file is missing, too large, or no trace.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path, TRACE_BYTES) as data:
        try:
            with pq.ParquetFile(data) as file:
                groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
                if any(group.total_byte_size > _GROUP_BYTES for group in groups):
                    raise ValueError(f"more than {_GROUP_BYTES} bytes belong together")
                for batch in file.iter_batches(_EVENTS):
                    yield pa.table([*map(_plain, batch.columns)], names=batch.schema.names)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"{path} is no trace: {str(error).splitlines()[0]}") from error


def _plain(column: pa.Array) -> pa.Array:
    """Returns a column whose equal values are equal, however they were written."""
    if not hasattr(column, "dictionary"):
        return column
    if column.dictionary.nbytes > _NAMES_BYTES:
        raise ValueError("the names of its events are too long")
    return column.dictionary_decode()


def _side_by_side(
    a: Iterator[pa.Table], b: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yields what two traces have at the same places, however each is cut into pieces."""
    one, other = next(a, None), next(b, None)
    while one is not None and other is not None:
        n = min(len(one), len(other))
        yield one.slice(0, n), other.slice(0, n)
        one = one.slice(n) if len(one) > n else next(a, None)
        other = other.slice(n) if len(other) > n else next(b, None)
    if one is not None or other is not None:
        rest = one if other is None else other
        assert rest is not None
        nothing = rest.slice(0, 0)
        yield (rest, nothing) if other is None else (nothing, rest)
