"""Arrays of the user's own: a NumPy .npz file."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl.data.columns import LARGEST, classes_of, numbers_of, standardised
from fl.data.federated import Examples, Scaling, Source, Task
from fl.data.held_out import drawn, natural
from fl.errors import ConfigError

_ARRAYS = ("x", "y", "x_test", "y_test", "client", "client_test")


def load_arrays(
    path: str,
    task: Literal["classification", "regression", "next-token"] = "classification",
    test_fraction: float = 0.2,
    standardise: bool = True,
) -> Source:
    """Loads the arrays of a file that `numpy.savez` has written.

    "x", shape (n, ...), are inputs: numbers, or for texts tokens, whole numbers of shape (n, T).
    "y" are targets: classes or numbers, shape (n,), or the next token at each position, (n, T).
    "x_test" and "y_test" are held out, if they are there; "client", shape (n,), says whose an
    example is, and "client_test" likewise.

    Args:
        path: of the .npz file. Arrays of Python objects, which would have to be unpickled, are
            refused.
        task: what the targets are.
        test_fraction: share that is held out, of each client if it is known, without "x_test".
        standardise: bring inputs to mean 0 and deviation 1 over the training examples: each number
            of a vector (n, p) by itself, all of others together, tokens not at all.

    Raises:
        ConfigError: the file cannot be read, or the arrays do not fit each other or the task.
    """
    if not isinstance(path, str) or not Path(path).expanduser().is_file():
        raise ConfigError(f"path is {path!r}; it must be a .npz file (here is {Path.cwd()})")
    if task not in ("classification", "multi-label", "regression", "next-token"):
        raise ConfigError(
            f"task is {task!r}; it must be classification, multi-label, regression or next-token"
        )
    arrays = _read(path)
    x, y, client = arrays["x"], arrays["y"], arrays.get("client")
    if "x_test" in arrays:
        x, y = (_joined(arrays, name) for name in ("x", "y"))
        test = np.arange(len(x)) >= len(arrays["x"])
        of_test = arrays.get("client_test")
    else:
        test = drawn(len(x), test_fraction, client)
        if client is not None:
            client, of_test = client[~test], client[test]
    source = _source(Path(path).stem, x, y, test, task, standardise=standardise)
    if client is None:
        return source
    own, theirs = natural(client, of_test)
    return replace(source, natural=own, natural_test=theirs)


def _source(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    test: NDArray[np.bool_],
    task: Task,
    *,
    standardise: bool,
) -> Source:
    kinds: dict[str, Any] = {}
    targets: NDArray[Any]
    if task == "next-token":
        if (
            x.dtype.kind not in "iu"
            or x.ndim != 2
            or x.shape != y.shape
            or y.dtype.kind not in "iu"
        ):
            raise ConfigError(
                f"x is {x.dtype} of shape {x.shape} and y {y.dtype} of shape {y.shape}: for "
                "task=next-token both must be whole numbers of shape (n, T)"
            )
        if min(x.min(), y.min()) < 0:
            raise ConfigError("x or y has a token below 0: tokens count from 0")
        targets, outputs = y.astype(np.int64), int(max(x.max(), y.max())) + 1
    else:
        expected = 2 if task == "multi-label" else 1
        if y.ndim != expected:
            shape = "(n, C), a column for each label" if expected == 2 else "(n,)"
            raise ConfigError(f"y has shape {y.shape}; for task={task} it must be {shape}")
        if task == "classification":
            classes, targets = classes_of(y, "y")
            outputs = len(classes)
        elif task == "multi-label":
            if y.dtype.kind == "U" or not np.isin(y, (0, 1)).all():
                raise ConfigError("y has other values than 0 and 1, for task=multi-label")
            targets, outputs = y.astype(np.float32), y.shape[1]
        else:
            column = standardised("y", numbers_of(y, "y")[~test])
            targets, outputs = column.encoded(y)[:, 0], 1
            kinds["unit"] = column.std
        if standardise:
            kinds["scaling"] = _scaling(x[~test])
        elif x.dtype.kind != "u" or x.dtype.itemsize > 1:
            x = x.astype(np.float32)
    return Source(
        name=name,
        train=Examples(x[~test], targets[~test]),
        test=Examples(x[test], targets[test]),
        num_classes=outputs,
        input_shape=x.shape[1:],
        task=task,
        **kinds,
    )


def _scaling(train: NDArray[Any]) -> Scaling:
    axis = 0 if train.ndim == 2 else None
    mean = np.asarray(train.mean(axis=axis, dtype=np.float64))
    std = np.asarray(train.std(axis=axis, dtype=np.float64))
    std = np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return Scaling(1.0, mean.astype(np.float32), std.astype(np.float32))


def _joined(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    first, second = arrays[name], arrays[f"{name}_test"]
    if first.shape[1:] != second.shape[1:]:
        raise ConfigError(
            f"{name} has examples of shape {first.shape[1:]}, and {name}_test of "
            f"{second.shape[1:]}: they must be the same"
        )
    return np.concatenate([first, second])


def _read(path: str) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(Path(path).expanduser()):
        raise ConfigError(
            f"path is {path!r}, which is no .npz file: write one with numpy.savez(path, x=x, y=y) "
            "(data=table reads .csv and .parquet)"
        )
    arrays = {}
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
    except ValueError as error:
        raise ConfigError(
            f"path is {path!r}, whose {file.files[len(arrays)]} is of Python objects or damaged: "
            "write arrays of numbers with numpy.savez"
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise ConfigError(f"path is {path!r}, which cannot be read: {error}") from error
    unknown = [name for name in arrays if name not in _ARRAYS]
    missing = [name for name in ("x", "y") if name not in arrays]
    if ("x_test" in arrays) != ("y_test" in arrays):
        missing.append("x_test or y_test")
    if unknown or missing:
        raise ConfigError(
            f"path is {path!r}, which "
            + (f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)} besides")
            + f"; its arrays must be {', '.join(_ARRAYS)}, of which x and y must be there"
        )
    scalars = [name for name, array in arrays.items() if array.ndim == 0]
    if scalars:
        raise ConfigError(
            f"path is {path!r}, where {scalars[0]} is a number; its first axis must be of examples"
        )
    for of, name in (("x", "y"), ("x_test", "y_test"), ("x", "client"), ("x_test", "client_test")):
        if name in arrays and (of not in arrays or len(arrays[of]) != len(arrays[name])):
            raise ConfigError(
                f"path is {path!r}, which has {len(arrays[name])} of {name} and "
                f"{len(arrays.get(of, ()))} of {of}: need one for each"
            )
    for name, array in arrays.items():
        if not array.size:
            raise ConfigError(
                f"path is {path!r}, whose {name} is empty, of shape {array.shape}: need examples "
                "that have numbers"
            )
        if name.startswith("x") and array.ndim < 2:
            raise ConfigError(
                f"path is {path!r}, whose {name} has shape {array.shape}; it must be (n, ...): one "
                f"number an example is {name}[:, None]"
            )
        allowed = "biuf" if name.startswith(("x", "y")) else "biuU"
        if array.dtype.kind not in (allowed + "U" if name.startswith("y") else allowed):
            raise ConfigError(f"path is {path!r}, whose {name} is of type {array.dtype}")
        if array.dtype.kind == "f":
            wrong = np.argwhere(~(np.abs(array) <= LARGEST))
            if len(wrong):
                raise ConfigError(
                    f"path is {path!r}, whose {name} has {array[tuple(wrong[0])]} at "
                    f"{wrong[0].tolist()}, which float32 does not hold: fill it in, scale {name} "
                    "or remove the example"
                )
    return arrays
