"""A run that begins with a model from a file instead of fresh values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.errors import ConfigError
from fl.reports.model_file import read_model

_MOST_NAMED = 3


def warm_start(fresh: ArrayRecord, path: Path | str) -> ArrayRecord:
    """Returns the model of a file, as a run begins with it.

    Args:
        fresh: the initial model that there would be otherwise: its names, their order, shapes and
            types are those of the result.
        path: of a safetensors file; types are converted between floats.

    Raises:
        ConfigError: the file cannot be read, or holds another model.
    """
    begins = f"initial_model is {path}, which"
    try:
        found = read_model(path)
    except ConfigError as error:
        raise ConfigError(f"initial_model: {error}") from error
    missing = [name for name in fresh if name not in found]
    unknown = [name for name in found if name not in fresh]
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"lacks {_named(missing)}")
        if unknown:
            parts.append(f"has {_named(unknown)} besides")
        raise ConfigError(
            f"{begins} {' and '.join(parts)}: choose the model, with its "
            "sizes, that the file was written by"
        )
    arrays = {}
    for name, array in fresh.items():
        value, dtype = found[name], np.dtype(array.dtype)
        if value.shape != tuple(array.shape):
            raise ConfigError(
                f"{begins} has {name!r} of shape {value.shape}, and the model has "
                f"{tuple(array.shape)}: choose the model that the file was written by"
            )
        if (value.dtype.kind == "f") != (dtype.kind == "f"):
            raise ConfigError(
                f"{begins} has {name!r} of type {value.dtype}, and the model has {dtype}: choose "
                "the model that the file was written by"
            )
        if not np.isfinite(value).all():
            raise ConfigError(f"{begins} has numbers in {name!r} that are not finite")
        arrays[name] = Array(value.astype(dtype))
    return ArrayRecord(arrays)


def _named(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_MOST_NAMED]))
    more = len(names) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
