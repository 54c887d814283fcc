"""What anybody reports, as columns of a run's record: under names of their own, as numbers.

Metrics come from a server's evaluation and from clients, with any name and any value. In a row of
the record they must not be taken for what the simulator measures, nor for each other.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl.reports.history import OWN
from fl.vectors.rows import added

log = logging.getLogger("fl")

Source = Literal["server", "train", "client", "query"]
"""Who reports: the server's evaluation; clients that train, evaluate, or answer a query."""

Number = int | float

_LONGEST_NAME = 200  # characters
_LONGEST_LIST = 64  # numbers, each of which is a column
_MOST_COLUMNS = 20_000
_MOST_TOLD = 3  # names about which the user is told at once
_MOST_LISTED = 100  # names in the summary
_LARGEST_INT = 2**63 - 1


class Unkept(str):
    """Why a metric has no value that a row could hold."""


class Columns:
    """Gives each metric a column, and each of its values a place there.

    A client's metric `x` is `train_x`, `client_x` or `query_x`, with underscores for hyphens; the
    server's keeps its name. A name that the record has itself (`time_s`), or that another metric
    has already, gets its source in front: `server_time_s`; and a number if that is taken too.
    Characters that no terminal shows are written as escapes, and what is longer than 200 characters
    is cut.

    Numbers are kept, integers as such, and truth values as 0 and 1. A list of up to 64 numbers is
    one metric for each: `x[0]`, `x[1]`. Anything else is refused: the user is told, and `report`
    says so.
    """

    lasting = ("_columns", "_taken", "_numbered", "_renamed", "_refused", "_unmeasured")

    def __init__(self) -> None:
        self._columns: dict[tuple[Source, str, int | None], str] = {}
        self._taken = set(OWN)
        self._numbered: Counter[str] = Counter()
        self._renamed: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._unmeasured: set[tuple[Source, str]] = set()

    def leave_out(self, source: Source, name: str) -> None:
        """Gives a metric no column, as what is reported under its name was not measured."""
        self._unmeasured.add((source, name))

    def row(self, source: Source, metrics: Mapping[Any, Any]) -> dict[str, Number]:
        """Returns metrics as columns of a row.

        Args:
            source: who reports them.
            metrics: any names and values.
        """
        row: dict[str, Number] = {}
        for name, value in metrics.items():
            if (source, str(name)) in self._unmeasured:
                continue
            for place, number in self._numbers(source, str(name), value):
                column = self._column(source, str(name), place)
                if column is not None:
                    row[column] = number
        return row

    def means(self, source: Source, means: Means) -> dict[str, Number]:
        """Returns means as columns of a row, and notes what is not in them."""
        for name, problem in means.left_out().items():
            self._refuse(source, name, problem)
        return self.row(source, means.of_all())

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary: metrics with other names, and those left out."""
        facts = {"renamed": self._renamed, "refused": self._refused}
        listed = {
            kind: dict(list(names.items())[:_MOST_LISTED]) for kind, names in facts.items() if names
        }
        more = {
            f"more_{kind}": len(names) - _MOST_LISTED
            for kind, names in facts.items()
            if len(names) > _MOST_LISTED
        }
        return {"metrics": {**listed, **more}} if listed else {}

    def _numbers(
        self, source: Source, name: str, value: Any
    ) -> Iterator[tuple[int | None, Number]]:
        """Yields numbers with their places in a list."""
        value = _unwrapped(value)
        if isinstance(value, list | tuple):
            numbers = [as_number(_unwrapped(item)) for item in value]
            wrong = next((item for item in numbers if isinstance(item, Unkept)), None)
            if wrong is not None:
                self._refuse(source, name, f"a list with an entry {wrong}")
            elif not 0 < len(numbers) <= _LONGEST_LIST:
                self._refuse(source, name, f"a list of {len(numbers):,}")
            else:
                yield from enumerate(numbers)
            return
        number = as_number(value)
        if isinstance(number, Unkept):
            self._refuse(source, name, number)
        else:
            yield None, number

    def _column(self, source: Source, name: str, place: int | None) -> str | None:
        known = self._columns.get((source, name, place))
        if known is not None:
            return known
        if len(self._taken) >= _MOST_COLUMNS:
            self._refuse(source, name, f"a run's record has {_MOST_COLUMNS:,} columns at most")
            return None
        label = printable(name, _LONGEST_NAME) or "unnamed"
        if source != "server":
            label = label.replace("-", "_")
            label = label if label.startswith(f"{source}_") else f"{source}_{label}"
        own = name if source == "server" else label
        if place is not None:
            label, own = f"{label}[{place}]", f"{own}[{place}]"
        if label in self._taken:
            label = f"{source}_{label}"
        if label in self._taken:
            base = label
            while label in self._taken:
                self._numbered[base] += 1
                label = f"{base}~{self._numbered[base]}"
        if label != own:
            self._rename(source, name, label)
        self._taken.add(label)
        self._columns[source, name, place] = label
        return label

    def _rename(self, source: Source, name: str, label: str) -> None:
        shown = _known_as(source, name)
        self._renamed.setdefault(shown, label)
        if len(self._renamed) <= _MOST_TOLD:
            log.warning("the metric %s is recorded as %s", shown, label)

    def _refuse(self, source: Source, name: str, reason: str) -> None:
        shown = _known_as(source, name)
        if shown in self._refused:
            return
        self._refused[shown] = reason
        if len(self._refused) <= _MOST_TOLD:
            log.warning(
                "the metric %s is not recorded: it is %s (numbers are, and lists of up to %d)",
                shown,
                reason,
                _LONGEST_LIST,
            )


class Means:
    """Means of what several clients report, weighted by their examples.

    A metric's mean is over those that report it, of lists entry by entry. If some report lists and
    others numbers, or lists of other lengths, those count who are most.

    Args:
        weight_key: the metric that weighs, and has no mean; a client without it weighs 1.
    """

    def __init__(self, weight_key: str = "num-examples") -> None:
        self._weight_key = weight_key
        self._means: dict[str, _Mean] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds what a client reports; nothing if its number of examples cannot be one."""
        weight = as_number(metrics.get(self._weight_key, 1))
        if isinstance(weight, Unkept) or not 0 <= weight <= sys.float_info.max:
            return
        for name, value in metrics.items():
            if name == self._weight_key:
                continue
            mean = self._means.get(name)
            if mean is None:
                mean = self._means[name] = _Mean()
            mean.add(float(weight), value)

    def add_all(self, metrics: Sequence[Mapping[str, Any]], which: NDArray[np.int64]) -> None:
        """Adds what many clients report, of whom there are few different reports.

        Sums and their order are those of `add`, to the last bit.

        Args:
            metrics: the reports.
            which: of them each client's, in order, shape (n,).
        """
        names = list(metrics[0]) if metrics else []
        weights = [each.get(self._weight_key, 1) for each in metrics]
        plain = all(
            type(x) is float or (type(x) is int and abs(x) <= _LARGEST_INT)
            for each in (*(each.values() for each in metrics), weights)
            for x in each
        )
        if not (
            plain
            and all(0 <= weight <= _LARGEST_INT for weight in weights)
            and all(list(each) == names for each in metrics)
        ):
            for i in which.tolist():
                self.add(metrics[i])
            return
        w = np.array(weights, dtype=np.float64)[which]
        for name in names if len(which) else ():
            if name != self._weight_key:
                numbers = [float(each[name]) for each in metrics]
                mean = self._means.setdefault(name, _Mean())
                mean.add_all(w, np.array(numbers, dtype=np.float64)[which])

    def of_all(self) -> dict[str, float | list[float] | Unkept]:
        """Returns each metric's mean, or why there is none; in order of first appearance."""
        return {name: mean.value() for name, mean in self._means.items()}

    def left_out(self) -> dict[str, Unkept]:
        """Returns why something that was reported is not in a mean, by metric."""
        return {name: mean.problem for name, mean in self._means.items() if mean.problem}


@dataclass(slots=True)
class _Sum:
    """Of values of one form: a number, or a list of some length."""

    weight: float
    values: list[float]
    reports: int = 0


class _Mean:
    __slots__ = ("_sums", "problem")

    def __init__(self) -> None:
        self.problem: Unkept | None = None
        self._sums: dict[int, _Sum] = {}  # by length of the lists; -1 of single numbers

    def add(self, weight: float, value: Any) -> None:
        form = len(value) if isinstance(value, list) else -1
        numbers = []
        for item in value if isinstance(value, list) else [value]:
            number = as_number(item)
            if isinstance(number, Unkept):
                self.problem = Unkept(f"{number} from some")
                return
            numbers.append(number)
        of_form = self._sums.setdefault(form, _Sum(0.0, [0.0] * len(numbers)))
        of_form.reports += 1
        of_form.weight += weight
        of_form.values = [s + weight * x for s, x in zip(of_form.values, numbers, strict=True)]
        if len(self._sums) > 1:
            self.problem = Unkept("of another form from some")

    def add_all(self, weights: NDArray[np.float64], numbers: NDArray[np.float64]) -> None:
        of_form = self._sums.setdefault(-1, _Sum(0.0, [0.0]))
        of_form.reports += len(weights)
        with np.errstate(over="ignore", invalid="ignore"):  # they are as plain numbers' would be
            of_form.weight = added(of_form.weight, weights)
            of_form.values = [added(of_form.values[0], weights * numbers)]
        if len(self._sums) > 1:
            self.problem = Unkept("of another form from some")

    def value(self) -> float | list[float] | Unkept:
        if not self._sums:
            return self.problem or Unkept("reported by nobody")
        form, most = max(self._sums.items(), key=lambda item: item[1].reports)
        if not most.weight > 0:
            return Unkept("reported by clients without examples only")
        means = [total / most.weight for total in most.values]
        return means[0] if form == -1 else means


def as_number(value: Any) -> Number | Unkept:
    """Returns a value as a plain int or float, or why it is none."""
    if isinstance(value, Unkept):
        return value
    if isinstance(value, Integral):
        whole = int(value)
        if abs(whole) <= _LARGEST_INT:
            return whole
        # The nearest float says what such a number is; digits beyond it nobody reads back.
        return float(whole) if whole.bit_length() <= 1023 else Unkept("too large for a float")
    if isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:
            return Unkept("too large for a float")
    return Unkept(f"of type {type(value).__name__}")


def printable(name: str, longest: int) -> str:
    """Returns a name with escapes for what is not printable, cut to a length."""
    shown = name[:longest]
    if not shown.isprintable():
        escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
        shown = "".join(escaped)
    return shown if max(len(name), len(shown)) <= longest else f"{shown[: longest - 1]}…"


def _unwrapped(value: Any) -> Any:
    """Returns what an array or tensor of no or one dimension holds; anything else as it is."""
    dimensions = getattr(value, "ndim", None)
    if isinstance(value, Real) or not isinstance(dimensions, int) or dimensions > 1:
        return value
    listed = getattr(value, "tolist", None)
    return value if listed is None else listed()


def _known_as(source: Source, name: str) -> str:
    of = "" if source == "server" else f" of clients that {_DO[source]}"
    return f"{printable(name, 60)!r}{of}"


_DO = {"train": "train", "client": "evaluate", "query": "answer queries"}
