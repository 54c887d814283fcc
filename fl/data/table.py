"""A table of the user's own: a CSV or Parquet file with a row per example."""

from __future__ import annotations

import os
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl.checks import boolean
from fl.data.columns import (
    Categories,
    Numbers,
    check_apart,
    classes_of,
    fitted,
    labels_of,
    numbers_of,
    standardised,
    values_of,
)
from fl.data.federated import Examples, Source
from fl.data.held_out import drawn, natural, said
from fl.errors import ConfigError
from fl.extras import check_importable

if TYPE_CHECKING:
    import pyarrow as pa

_WHOLE_BYTES = 2**31 - 1  # that Arrow's reader takes at a time, to find out a column's type


@dataclass(frozen=True)
class Encoding:
    """How the rows of a table become what a model is given, and what it returns a prediction.

    Attributes:
        columns: of the inputs, in their order.
        classes: of the target, by number; of several labels the columns; empty for regression.
        target: of regression, whose model predicts (target - mean) / std; None for classes.
    """

    columns: tuple[Numbers | Categories, ...]
    classes: tuple[Any, ...] = ()
    target: Numbers | None = None

    def inputs(self, path: str | PathLike[str]) -> NDArray[np.float32]:
        """Returns the inputs of another file's rows, shape (n, p); it needs no target.

        Raises:
            ConfigError: it cannot be read, or lacks a column or a value.
        """
        table = read_table(os.fspath(path))
        parts = []
        for column in self.columns:
            values = values_of(table, column.name, "data.features")
            if (values.dtype == object) != isinstance(column, Categories):
                raise ConfigError(
                    f"column {column.name!r} of {path} has other values than that which the model "
                    "was trained on: one is text, the other numbers"
                )
            parts.append(column.encoded(values))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are for; attributes are those of `load_table`.

    Raises:
        ConfigError: one is not of its kind.
    """

    target: str | Sequence[str]
    features: Sequence[str] | None = None
    task: Literal["classification", "multi-label", "regression"] = "classification"
    client: str | None = None
    split: str | None = None
    test_fraction: float = 0.2
    standardise: bool = True

    def __post_init__(self) -> None:
        if self.task not in ("classification", "multi-label", "regression"):
            raise ConfigError(
                f"task is {self.task!r}; it must be classification, multi-label or regression"
            )
        if self.task == "multi-label":
            if not _are_names(self.target) or not self.target:
                raise ConfigError(
                    f"target is {self.target!r}; for task=multi-label it must be the columns of "
                    "the labels, as data.target=[red,round]"
                )
        elif not isinstance(self.target, str) or not self.target:
            raise ConfigError(
                f"target is {self.target!r}; set it to the name of a column, as data.target=label"
            )
        names = self.features
        if names is not None and not _are_names(names):
            raise ConfigError(f"features is {names!r}; it must be a list of columns, as [age,sex]")
        boolean("standardise", self.standardise)

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to predict."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    def features_of(self, table: pa.Table) -> list[str]:
        """Returns the columns that are learnt from.

        Raises:
            ConfigError: there are none, or a column has two roles.
        """
        taken = {
            **dict(zip(self._target_keys(), self.targets, strict=True)),
            "data.client": self.client,
            "data.split": self.split,
        }
        others = [name for name in table.column_names if name not in taken.values()]
        names = others if self.features is None else [*self.features]
        check_apart({**taken, **{f"data.features[{i}]": c for i, c in enumerate(names)}})
        if not names:
            raise ConfigError(
                f"the table has the columns {', '.join(table.column_names)}: need one to learn "
                "from, beside those of data.target, data.client and data.split"
            )
        return names

    def _target_keys(self) -> list[str]:
        if isinstance(self.target, str):
            return ["data.target"]
        return [f"data.target[{i}]" for i in range(len(self.target))]


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(name, str) for name in value)
    )


def load_table(
    path: str,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    task: Literal["classification", "multi-label", "regression"] = "classification",
    client: str | None = None,
    split: str | None = None,
    test_fraction: float = 0.2,
    standardise: bool = True,
) -> Source:
    """Loads a table: inputs float32, shape (n, p), and a class or a number for each row.

    Numbers are brought to mean 0 and standard deviation 1, and so is a target of regression; truth
    values are numbers; of text each category becomes a column with 1 where it is. What is needed
    for that is taken from the training rows alone.

    Args:
        path: of a .csv file (or .csv.gz, ...) with a header, or a .parquet file.
        target: column to predict; of task "multi-label" those of the labels, each 0 or 1.
        features: columns to predict it from; None: all others.
        task: the target is one of several classes, any number of labels, or a number.
        client: column that says whose a row is: each of its values is a natural client.
        split: column that says "train" or "test"; None: rows are held out at random, of each
            client if there is a column for it.
        test_fraction: share that is held out, without `split`.
        standardise: of inputs; False leaves numbers as they are.

    Raises:
        ConfigError: the file cannot be read, a column is missing or cannot be used, or a value is
            missing.
    """
    roles = Roles(target, features, task, client, split, test_fraction, standardise)
    return encoded(read_table(path), _stem(path), roles)[1]


def table_encoding(
    path: str | PathLike[str], target: str | Sequence[str], **arguments: Any
) -> Encoding:
    """Returns how `load_table` with the same arguments makes inputs of rows."""
    place = os.fspath(path)
    return encoded(read_table(place), _stem(place), Roles(target, **arguments))[0]


def encoded(
    table: pa.Table, name: str, roles: Roles, held_out: NDArray[np.bool_] | None = None
) -> tuple[Encoding, Source]:
    """Returns the encoding and the source of a table's rows.

    Args:
        table: n rows.
        name: of the data set.
        roles: of its columns.
        held_out: which rows are, shape (n,); None: those that the roles say.

    Raises:
        ConfigError: a column is missing or cannot be used, or a value is missing.
    """
    if len(table) < 2:
        raise ConfigError(f"{name} has {len(table)} rows: need at least 2")
    names = roles.features_of(table)
    targets = {name: values_of(table, name, "data.target") for name in roles.targets}
    first, target = next(iter(targets.items()))
    client = None if roles.client is None else values_of(table, roles.client, "data.client")
    if held_out is not None:
        test = held_out
    elif roles.split is not None:
        test = said(values_of(table, roles.split, "data.split"), roles.split)
    else:
        test = drawn(len(table), roles.test_fraction, client)
    columns, x = fitted(table, names, ~test, standardise=roles.standardise)
    y: NDArray[Any]
    if roles.task == "classification":
        classes, y = classes_of(target, first)
        encoding, unit, outputs = Encoding(columns, classes), 1.0, len(classes)
    elif roles.task == "multi-label":
        y = np.stack([labels_of(values, name) for name, values in targets.items()], axis=1)
        encoding, unit, outputs = Encoding(columns, roles.targets), 1.0, y.shape[1]
    else:
        numbers = numbers_of(target, first)
        column = standardised(first, numbers[~test])
        y, unit, outputs = column.encoded(numbers)[:, 0], column.std, 1
        encoding = Encoding(columns, target=column)
    own, theirs = (None, None) if client is None else natural(client[~test], client[test])
    source = Source(
        name=name,
        train=Examples(x[~test], y[~test]),
        test=Examples(x[test], y[test]),
        num_classes=outputs,
        input_shape=(x.shape[1],),
        task=roles.task,
        unit=unit,
        natural=own,
        natural_test=theirs,
    )
    return encoding, source


def _stem(path: str) -> str:
    return Path(path).name.partition(".")[0]


def read_table(path: str) -> pa.Table:
    """Reads a CSV or Parquet file.

    Raises:
        ConfigError: there is none, it is of another kind or damaged, or two columns have one name.
    """
    check_importable("data=table", "pyarrow")
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not isinstance(path, str) or not path:
        raise ConfigError(f"path is {path!r}; set it to a file, as data.path=cells.csv")
    place = Path(path).expanduser()
    if place.is_dir():
        raise ConfigError(
            f"path is {path!r}, a folder: name one of its files, or use data=image_folder if "
            "it has a folder of images for each class"
        )
    kinds = [suffix.lower() for suffix in place.suffixes]
    if not {".csv", ".parquet"} & {*kinds}:
        raise ConfigError(f"path is {path!r}; it must be a .csv or a .parquet file")
    if not place.is_file():
        raise ConfigError(f"path is {path!r}, and there is no such file (here is {Path.cwd()})")
    try:
        if ".parquet" in kinds:
            table = pyarrow.parquet.read_table(place)
        else:
            # In one piece: a column's type is that of all its rows, and not of the first megabyte.
            whole = min(max(4 * place.stat().st_size, 2**20), _WHOLE_BYTES)
            table = pyarrow.csv.read_csv(
                place,
                read_options=pyarrow.csv.ReadOptions(block_size=whole),
                convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True),
            )
        names = table.column_names
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        remedy = "" if ".parquet" in kinds or _is_utf8(place) else "; it is not UTF-8: save it so"
        raise ConfigError(f"path is {path!r}, which cannot be read: {why:.300}{remedy}") from error
    for field in table.schema:
        if ".parquet" not in kinds and pa.types.is_binary(field.type):
            raise ConfigError(
                f"path is {path!r}, whose column {field.name!r} is not in UTF-8: save the file so"
            )
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"path is {path!r}, which has two columns {min(twice)!r}: rename one")
    return table


def _is_utf8(path: Path) -> bool:
    """Returns whether the first megabyte of a file, compressed or not, could be in UTF-8."""
    import pyarrow as pa

    try:
        with pa.input_stream(path) as file:
            getincrementaldecoder("utf-8")().decode(file.read(2**20))
    except (UnicodeDecodeError, OSError) as error:
        return isinstance(error, OSError)
    return True
