"""A data set of the Hugging Face hub, or one that `save_to_disk` has written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl.data.columns import classes_of, values_of
from fl.data.federated import Source
from fl.data.held_out import drawn, natural
from fl.data.image_folder import UNEQUAL, Color, checked, of_pixels
from fl.data.pixels import pixels_of
from fl.data.table import Roles, encoded
from fl.data.text import ASCII_VOCABULARY, corpus
from fl.errors import ConfigError
from fl.extras import check_importable

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("fl.data")

_SAVED = ("dataset_dict.json", "state.json")


def load_huggingface(
    path: str,
    target: str | Sequence[str] | None = None,
    inputs: Sequence[str] | str | None = None,
    name: str | None = None,
    task: Literal["classification", "multi-label", "regression", "next-token"] = "classification",
    client: str | None = None,
    train: str = "train",
    test: str | None = None,
    test_fraction: float = 0.2,
    size: int | Sequence[int] | None = None,
    color: Color = "rgb",
    window: int = 80,
) -> Source:
    """Loads a data set through the package `datasets`: images, columns of a table, or text.

    What is learnt from depends on the kind of the columns `inputs`: one of images is treated as by
    `load_image_folder`; numbers and categories as by `load_table`; with task "next-token" one of
    text, whose characters are predicted: texts of a client are joined, and cut as by `load_stdlib`.

    Args:
        path: repository on the hub, or a folder that `save_to_disk` has written or that
            `datasets.load_dataset` reads.
        target: column to predict, or columns as of `load_table`; None with "next-token".
        inputs: column, or columns, to predict it from; None: all others of a table.
        name: of the data set's configuration, where it has several.
        task: what the target is.
        client: column that says whose a row is: each of its values is a natural client.
        train: split to train on.
        test: split that is held out; None: rows of the training split, at random. Texts always hold
            out the end of each client's.
        test_fraction: share that is held out, without `test`.
        size: of images, as of `load_image_folder`.
        color: likewise.
        window: characters of one example of text.

    Raises:
        ConfigError: it cannot be read, has no such split or column, or columns of another kind.
    """
    check_importable("data=huggingface", "datasets")
    if inputs is not None and not isinstance(inputs, str | Sequence):
        raise ConfigError(f"inputs is {inputs!r}; it must be a column, several, or null for all")
    names = [inputs] if isinstance(inputs, str) else None if inputs is None else [*inputs]
    if task == "next-token":
        if names is None or len(names) != 1 or target is not None or test is not None:
            raise ConfigError(
                f"task is next-token, with inputs {names}, target {target!r} and test {test!r}; it "
                "needs one column of text as inputs, and null for the others"
            )
        return _text(_split(path, name, train), _last(path), names[0], client, window)
    if target is None:
        raise ConfigError(f"target is {target!r}; set it to a column, as data.target=label")
    splits = [_split(path, name, each) for each in (train, test) if each is not None]
    sizes = [len(rows) for rows in splits]
    held_out = None if test is None else np.arange(sum(sizes)) >= sizes[0]
    if names is not None and len(names) == 1 and _is_image(splits[0], names[0]):
        if task != "classification" or not isinstance(target, str):
            raise ConfigError(
                f"task is {task} and target {target!r}; images can be classified alone, by one "
                "column (data=arrays takes labels of images)"
            )
        return _images(splits, _last(path), names[0], target, client, held_out, test_fraction,
                       size, color)  # fmt: skip
    roles = Roles(target, names, task, client, test_fraction=test_fraction)
    others = (*roles.targets, *(() if client is None else (client,)))
    table = _table(splits, None if names is None else [*names, *others])
    return encoded(table, _last(path), roles, held_out)[1]


def _images(
    splits: Sequence[Any],
    name: str,
    column: str,
    target: str,
    client: str | None,
    held_out: NDArray[np.bool_] | None,
    test_fraction: float,
    size: int | Sequence[int] | None,
    color: str,
) -> Source:
    import datasets

    channels, wanted = checked(size, color)
    labels = _table(splits, [target, *([] if client is None else [client])])
    classes, y = classes_of(values_of(labels, target, "data.target"), target)
    owners = None if client is None else values_of(labels, client, "data.client")
    test = drawn(len(y), test_fraction, owners) if held_out is None else held_out
    found: list[bytes] = []
    for rows in splits:
        undecoded = rows.cast_column(column, datasets.Image(decode=False))
        for row in undecoded.select_columns([column]):
            found.append(_bytes(row[column], column, len(found)))
    pixels = pixels_of(
        "huggingface",
        found,
        lambda i: f"the image in row {i + 1} of {name}",
        channels=channels,
        size=wanted,
        resize=wanted is not None,
        remedy=UNEQUAL,
    )
    own, theirs = (None, None) if owners is None else natural(owners[~test], owners[test])
    return of_pixels(name, pixels, y, test, len(classes), natural=own, natural_test=theirs)


def _bytes(image: Any, column: str, row: int) -> bytes:
    found = None if image is None else image.get("bytes")
    if found is None and image is not None and image.get("path"):
        place = Path(image["path"])
        found = place.read_bytes() if place.is_file() else None
    if found is None:
        raise ConfigError(f"column {column!r} has no image in row {row + 1}: remove the row")
    return bytes(found)


def _text(rows: Any, name: str, column: str, client: str | None, window: int) -> Source:
    table = _table([rows], [column, *([] if client is None else [client])])
    texts = values_of(table, column, "data.inputs")
    if texts.dtype != object:
        raise ConfigError(f"inputs is {column!r}, which has numbers; next-token needs text")
    owners = None if client is None else values_of(table, client, "data.client")
    said: dict[Any, list[str]] = {}
    for i, text in enumerate(texts.tolist()):
        said.setdefault(i if owners is None else owners[i], []).append(text)
    joined = {str(who): "\n".join(of) for who, of in said.items()}
    return corpus(name, joined, ASCII_VOCABULARY, window)


def _is_image(rows: Any, column: str) -> bool:
    import datasets

    return isinstance(rows.features.get(column), datasets.Image)


def _table(splits: Sequence[Any], columns: Sequence[str] | None) -> pa.Table:
    """Returns the rows of all splits, with the columns that are asked for and there."""
    import pyarrow as pa

    tables = []
    for rows in splits:
        there = [c for c in columns or rows.column_names if c in rows.column_names]
        tables.append(rows.select_columns(there).with_format("arrow")[:])
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"the splits have other columns than each other: {why:.300}") from error


def _split(path: str, name: str | None, split: str) -> Any:
    import datasets

    if not isinstance(path, str) or not path:
        raise ConfigError(
            f"path is {path!r}; set it to a repository on the hub, as data.path=ylecun/mnist, or "
            "to a folder"
        )
    folder = Path(path).expanduser()
    try:
        if any((folder / file).is_file() for file in _SAVED):
            found = datasets.load_from_disk(str(folder))
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise ConfigError(
                        f"path is {path!r}, which has no split {split!r}; there are: "
                        f"{', '.join(found)}"
                    )
                return found[split]
            if split != "train":
                raise ConfigError(f"path is {path!r}, which has no splits: leave {split!r} out")
            return found
        if not folder.is_dir():
            if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
                raise ConfigError(f"path is {path!r}, and there is no such folder")
            log.info("%s is looked for on the Hugging Face hub, which may take a while", path)
        return datasets.load_dataset(str(folder) if folder.is_dir() else path, name, split=split)
    except ConfigError:
        raise
    except Exception as error:  # of many packages: of the network, of formats, of its own
        why = " ".join(str(error).split())
        raise ConfigError(
            f"path is {path!r}, which datasets cannot read ({type(error).__name__}: {why:.300})"
        ) from error


def _last(path: str) -> str:
    return Path(path).name
