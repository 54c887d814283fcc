"""From columns of a table to what models are given: numbers, standardised, and categories.

What is learnt of the columns (means, deviations, categories) is of training rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a model can be given."""

_MOST_CATEGORIES = 100
_NAMED = 12

Values = NDArray[Any]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers: (x - mean) / std.

    Attributes:
        name: of the column.
        mean: of training rows; 0 if the numbers are used as they are.
        std: likewise, above 0; 1 for a column that is constant there.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0

    width = 1

    def encoded(self, values: Values) -> NDArray[np.float32]:
        """Returns the numbers of n rows, shape (n, 1)."""
        z = (values.astype(np.float64) - self.mean) / self.std
        return z.astype(np.float32)[:, None]


@dataclass(frozen=True)
class Categories:
    """A column of text: for each category a column with 1 where it is, and 0.

    A category that no training row has is 0 everywhere.

    Attributes:
        name: of the column.
        values: the categories, ascending.
    """

    name: str
    values: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many columns it becomes."""
        return len(self.values)

    def encoded(self, values: Values) -> NDArray[np.float32]:
        """Returns the columns of n rows, shape (n, width)."""
        return np.asarray(values[:, None] == np.array(self.values, object), np.float32)


def values_of(table: pa.Table, name: str, key: str, remedy: str = "") -> Values:
    """Returns a column as numbers, truth values or text, without a gap.

    Args:
        table: rows.
        name: of the column.
        key: of the configuration that names it, for messages.
        remedy: what else there is to do about a value that is missing.

    Raises:
        ConfigError: there is no such column, it is of another kind, or a value is missing or not
            finite as float32.
    """
    import pyarrow as pa

    if name not in table.column_names:
        there = table.column_names
        more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
        raise ConfigError(
            f"{key} names the column {name!r}, and there is none; there are: "
            f"{', '.join(map(repr, there[:_NAMED]))}{more}"
        )
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_null(kind) or _is_number(column.type)):
        raise ConfigError(
            f"column {name!r} has type {kind}; {key} needs numbers, truth values or text: turn it "
            "into such" + (", or leave it out of data.features" if key == "data.features" else "")
        )
    missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
    found: Values = np.empty(0)
    if not len(missing):
        found = column.to_numpy(zero_copy_only=False)
        if found.dtype.kind == "f":
            missing = np.flatnonzero(~(np.abs(found) <= LARGEST))
    if len(missing):
        what = "no value" if not len(found) else f"{found[missing[0]]}"
        raise ConfigError(
            f"column {name!r} has {what} in row {missing[0] + 1} (the first below the header is "
            f"1), one of {len(missing)} where there is no value or none that float32 holds: fill "
            f"in, scale or remove them{remedy}"
        )
    return found.astype(object) if text else found


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def fitted(
    table: pa.Table, names: Sequence[str], train: NDArray[np.bool_], *, standardise: bool
) -> tuple[tuple[Numbers | Categories, ...], NDArray[np.float32]]:
    """Returns how columns become inputs, and the inputs, shape (n, p).

    Args:
        table: n rows.
        names: of the columns, in the order of the inputs.
        train: which rows means, deviations and categories are taken of, shape (n,).
        standardise: bring numbers to mean 0 and deviation 1.

    Raises:
        ConfigError: a column cannot be used.
    """
    columns: list[Numbers | Categories] = []
    parts = []
    for name in names:
        values = values_of(table, name, "data.features", ", or name other columns in data.features")
        column = _fitted(name, values[train], standardise=standardise)
        columns.append(column)
        parts.append(column.encoded(values))
    return tuple(columns), np.concatenate(parts, axis=1)


def _fitted(name: str, values: Values, *, standardise: bool) -> Numbers | Categories:
    if values.dtype != object:
        return standardised(name, values) if standardise else Numbers(name)
    categories = tuple(sorted(set(values.tolist())))
    if len(categories) > _MOST_CATEGORIES:
        raise ConfigError(
            f"column {name!r} has {len(categories)} categories; at most {_MOST_CATEGORIES} become "
            "inputs: name the columns that are to be used in data.features, or merge categories"
        )
    return Categories(name, categories)


def standardised(name: str, values: Values) -> Numbers:
    """Returns the column of numbers whose mean and deviation are those of some values."""
    of = values.astype(np.float64)
    std = float(of.std())
    # A constant's deviation may be a rounding error.
    constant = not std > 1e-12 * max(1.0, float(np.abs(of).max(initial=0.0)))
    return Numbers(name, float(of.mean()), 1.0 if constant else std)


def classes_of(values: Values, name: str) -> tuple[tuple[Any, ...], NDArray[np.int64]]:
    """Returns the classes of a column, ascending, and the number of each row's, shape (n,).

    Raises:
        ConfigError: it has fewer than two, or is of numbers that are no classes.
    """
    remedy = f"column {name!r} is to have classes; if it has numbers to predict, set data.task="
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        odd = values[values != np.floor(values)][0]
        raise ConfigError(f"data.task is classification, and {remedy}regression: it has {odd}")
    classes, y = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(
            f"column {name!r} has {len(classes)} class, {classes.tolist()}; it must have 2 at least"
        )
    if len(classes) > max(2, len(values) // 2):
        raise ConfigError(
            f"data.task is classification, and {remedy}regression: it has {len(classes)} different "
            f"values in {len(values)} rows"
        )
    return tuple(classes.tolist()), y.astype(np.int64)


def numbers_of(values: Values, name: str) -> NDArray[np.float64]:
    """Returns a target of regression.

    Raises:
        ConfigError: it is text.
    """
    if values.dtype == object:
        raise ConfigError(
            f"data.task is regression, and column {name!r} has text, as {values[0]!r}; it must "
            "have numbers, or set data.task=classification"
        )
    found: NDArray[np.float64] = values.astype(np.float64)
    return found


def labels_of(values: Values, name: str) -> NDArray[np.float32]:
    """Returns which rows have a label, 0 or 1, shape (n,).

    Raises:
        ConfigError: its column says something else.
    """
    if values.dtype == object or not np.isin(values, (0, 1)).all():
        odd = values[0] if values.dtype == object else values[~np.isin(values, (0, 1))][0]
        raise ConfigError(
            f"data.task is multi-label, and column {name!r} has {str(odd)!r}; it must "
            "say by 0 or 1 whether a row has the label"
        )
    return values.astype(np.float32)


def check_apart(names: Mapping[str, str | None]) -> None:
    """Checks that no column has two roles.

    Args:
        names: by the key that names it; None where there is none.

    Raises:
        ConfigError: one has.
    """
    seen: dict[str, str] = {}
    for key, name in names.items():
        if name is None:
            continue
        if name in seen:
            raise ConfigError(f"{key} is {name!r}, and so is {seen[name]}; they must differ")
        seen[name] = key
