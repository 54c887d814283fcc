"""Models as files: safetensors, which holds named arrays and nothing that runs when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.reports.atomic import replacing

FROZEN = "frozen_sha256"
"""Fact of a model's file: hash of the parameters beside its arrays, which no message has."""


def write_model(
    path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str] | None = None
) -> None:
    """Writes a model's arrays; `path` is replaced whole or not at all.

    `safetensors.torch.load_file(path)` returns what `load_state_dict` takes.

    Args:
        path: of the file.
        arrays: by name, of floats, integers or booleans.
        facts: text to keep in the file beside them.
    """
    from safetensors.numpy import save_file

    plain = {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in arrays.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, {"format": "pt", **(facts or {})})
        _sort_facts(temporary)


def _sort_facts(path: Path) -> None:
    """Gives a file's facts the order of their names: safetensors draws another for every file."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the arrays begin behind it"
        file.seek(8)
        file.write(text.ljust(size))


def read_facts(path: Path | str) -> dict[str, str]:
    """Returns the text that is kept in a model's file beside its arrays; see `read_model`."""
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _check_file(path: Path | str) -> None:
    if not Path(path).is_file():
        what = "it is no file" if Path(path).exists() else "there is no such file"
        raise ConfigError(f"{path} cannot be read: {what}")


def read_model(path: Path | str) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a model, by name, in the order of the file.

    Raises:
        ConfigError: there is no such file, or it is not of this format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _check_file(path)
    try:
        arrays: dict[str, NDArray[Any]] = load_file(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path} is no safetensors file of numbers that NumPy has ({error}): write one with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    return arrays
