"""The evaluations of a run: rows in memory, and metrics.csv that is complete at any moment."""

from __future__ import annotations

import csv
import errno
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.reports.atomic import replacing
from fl.reports.files import read_file

log = logging.getLogger("fl")

HISTORY_BYTES = 256 * 10**6
"""Most that a metrics.csv may have to be read back."""

Row = dict[str, int | float]
Whole = NDArray[np.int64]

COLUMNS = ("round", "time_s", "wall_s", "bytes_down", "bytes_up", "energy_j")
"""What every row starts with. All but `round` are totals since the start of the run.

round: server rounds, or server model versions if there are no rounds; time_s: virtual time, s;
wall_s: host time, s; bytes_down: sent by the server; bytes_up: by the clients; energy_j: all
devices together, J. Everything after these is a metric.
"""


OWN = (*COLUMNS, "staleness", "poll_gap", "unchanged_rounds")
"""Columns that the simulator fills itself; no metric is called so."""


class History:
    """Rows of evaluations, each also written to a CSV file as soon as it is known.

    A row is one `write` call on an unbuffered file, so a process that is killed leaves a file with
    every evaluation it has made. A metric that appears for the first time adds a column: the file
    is then replaced as a whole, earlier rows having an empty cell there. A row that cannot be
    written, because the disk is full, is kept in memory, and written with the next that can be.

    Args:
        path: where the CSV goes; None keeps the rows in memory only.
    """

    lasting = ("table",)

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._metrics: dict[str, None] = {}  # in order of first appearance
        self._behind = False
        self._rewrite()

    @property
    def metrics(self) -> list[str]:
        """All metrics so far, in order of their first appearance."""
        return list(self._metrics)

    @property
    def table(self) -> tuple[list[list[str]], Whole, Whole, Whole]:
        """All rows as arrays.

        The different lists of names, which of them each row has, shape (n,), and the rows' values
        one after the other, shape (m,): whole numbers, and the bits of floats; and which are whole.
        """
        forms: dict[tuple[str, ...], int] = {}
        form = [forms.setdefault((*row,), len(forms)) for row in self.rows]
        values = [value for row in self.rows for value in row.values()]
        whole = np.array([type(value) is int for value in values], np.int64)
        bits = np.array([0 if type(value) is int else value for value in values], np.float64)
        numbers = [value if type(value) is int else 0 for value in values]
        stored = np.where(whole, np.array(numbers, np.int64), bits.view(np.int64))
        return [list(names) for names in forms], np.array(form, np.int64), stored, whole

    @table.setter
    def table(self, table: tuple[list[list[str]], Whole, Whole, Whole]) -> None:
        forms, form, stored, whole = table
        numbers = iter(stored.tolist())
        floats = iter(stored.view(np.float64).tolist())
        kinds = iter(whole.tolist())
        values = (n if kind else x for n, x, kind in zip(numbers, floats, kinds, strict=True))
        self.rows[:] = [{name: next(values) for name in forms[i]} for i in form.tolist()]
        self._metrics = dict.fromkeys(
            name for names in forms for name in names if name not in COLUMNS
        )
        self._rewrite()

    def append(self, row: Mapping[str, float]) -> Row:
        """Adds one evaluation.

        Args:
            row: a number for each name in `COLUMNS`, and for each metric.

        Returns:
            The row as kept: plain ints and floats, `COLUMNS` first.

        Raises:
            ConfigError: a column is missing, or a value is not a number.
        """
        known = len(self._metrics)
        clean = self._add(row)
        try:
            self._write(clean, whole=self._behind or len(self._metrics) > known)
            self._behind = False
        except OSError as error:
            if not self._behind:
                log.warning(
                    "%s cannot be written (%s): its rows are kept, and written as soon as that is "
                    "possible",
                    self.path,
                    error.strerror,
                )
            self._behind = True
        return clean

    def complete(self) -> None:
        """Writes what could not be written before.

        Raises:
            OSError: it still cannot.
        """
        if self._behind:
            self._rewrite()
            self._behind = False

    def _write(self, row: Row, *, whole: bool) -> None:
        if whole:
            self._rewrite()
        elif self.path is not None:
            # One system call: a kill before or after it leaves whole lines.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                line = self._encode([row])
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)

    def _add(self, row: Mapping[str, float]) -> Row:
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise ConfigError(
                f"an evaluation lacks {missing}; every row needs {list(COLUMNS)}, then its metrics"
            )
        metrics = [name for name in row if name not in COLUMNS]
        clean = {name: _number(name, row[name]) for name in (*COLUMNS, *metrics)}
        self._metrics.update(dict.fromkeys(metrics))
        self.rows.append(clean)
        return clean

    def _rewrite(self) -> None:
        if self.path is None:
            return
        with replacing(self.path) as temporary:
            header = ",".join(_quoted([*COLUMNS, *self._metrics])).encode() + b"\n"
            temporary.write_bytes(header + self._encode(self.rows))

    def _encode(self, rows: list[Row]) -> bytes:
        names = [*COLUMNS, *self._metrics]
        lines = (",".join(repr(row[n]) if n in row else "" for n in names) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()


def read_history(path: Path) -> list[Row]:
    """Returns the rows of a metrics.csv, as they were given to `History.append`.

    A last line without its line end (a disk that ran full) is left out. Empty cells are metrics
    which that evaluation did not report; they are absent from the row.

    Raises:
        ConfigError: the file is missing, or is not a metrics.csv.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give the directory of a run")
    data = read_file(path, HISTORY_BYTES)
    try:
        text = data[: data.rfind(b"\n") + 1].decode()
        reader = csv.reader(io.StringIO(text, newline=""))
        names = next(reader, [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no metrics.csv: {error}") from error
    if tuple(names[: len(COLUMNS)]) != COLUMNS:
        raise ConfigError(f"{path} starts with columns {names}; a metrics.csv has {list(COLUMNS)}")
    try:
        rows = [
            {name: _parsed(cell) for name, cell in zip(names, cells, strict=True) if cell}
            for cells in reader
        ]
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path}, line {reader.line_num}: {error}; delete the line") from error
    for number, row in enumerate(rows, start=2):
        if not row.keys() >= set(COLUMNS):
            raise ConfigError(f"{path}, line {number}: a cell is empty that no row lacks")
        if not all(abs(row[name]) < 1e300 for name in COLUMNS):
            raise ConfigError(
                f"{path}, line {number}: {', '.join(COLUMNS)} are finite in every row"
            )
    return rows


def _number(name: str, value: object) -> int | float:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise ConfigError(
        f"{name!r} of an evaluation is {value!r}, a {type(value).__name__}; a row holds numbers "
        "only: convert tensors with .item(), and give each element of a list its own name"
    )


def _parsed(cell: str) -> int | float:
    # A whole number that is longer has no place in an axis either.
    return int(cell) if cell.lstrip("-").isdigit() and len(cell) < 19 else float(cell)


def _quoted(names: list[str]) -> list[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")  # what has one of these is quoted
    quoted = []
    for name in names:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow([name])
        quoted.append(buffer.getvalue().removesuffix("\r\n"))
    return quoted


def changes(rows: Sequence[Row], name: str) -> bool:
    """Returns whether rows have two different values of a metric; what is not finite is none."""
    return len({row[name] for row in rows if math.isfinite(row.get(name, math.nan))}) > 1
