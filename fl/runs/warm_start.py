"""A run that begins with a model from a file instead of fresh values."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fl.errors import ConfigError
from fl.reports.model_file import FROZEN, read_facts, read_model
from fl.runs.experiment import Experiment

_MOST_NAMED = 3
_OF_ADAPTERS = (".A", ".B", ".D")  # ends of their entries' names
_WRITTEN_BY = "choose the model, with its sizes, that the file was written by"


def warm_experiment(experiment: Experiment, path: object) -> ArrayRecord:
    """Returns the model of a file, as a run of an experiment begins with it.

    Args:
        experiment: what is to run.
        path: of a safetensors file. Layers that stay with the clients may be in it, and are not
            used.

    Raises:
        ConfigError: the file cannot be read, or holds another model, or one that was trained
            beside other frozen parameters.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise ConfigError(
            f"initial_model is {path!r}; it must be null, or the path of a safetensors file"
        )
    learnt = (experiment.tasks or {"": experiment}).items()
    at_home = {
        f"{task}/{entry.name}" if task else entry.name
        for task, learning in learnt
        for entry in learning.app.home.kept.layout.entries
    }
    made = warm_start(experiment.initial(), path, at_home)
    theirs = read_facts(path).get(FROZEN)
    if theirs is not None and theirs != frozen_sha256(experiment):
        raise ConfigError(
            f"initial_model is {path}, which was trained beside other frozen parameters than those "
            "that this model is made with: they come from its seed and its adapter.base, so use "
            "the file's own, or make it plain by fl.models.merged"
        )
    return made


def frozen_sha256(experiment: Experiment) -> str | None:
    """Returns the hash of the parameters that all clients make alike; None if there are none."""
    learnt = (experiment.tasks or {"": experiment}).items()
    return _frozen(tuple((task, one.model) for task, one in learnt if one.app.home.frozen))


@lru_cache(maxsize=1)  # a run asks when it checks `initial_model`, and for its summary
def _frozen(models: tuple[tuple[str, partial[nn.Module]], ...]) -> str | None:
    digest, found = hashlib.sha256(), False
    for task, model in models:
        for name, parameter in model().named_parameters():
            if not parameter.requires_grad:
                found = True
                values = parameter.detach().cpu().contiguous().reshape(-1)
                digest.update(f"{task}/{name}|{values.dtype}|{tuple(parameter.shape)}|".encode())
                digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if found else None


def warm_start(fresh: ArrayRecord, path: Path | str, at_home: Collection[str] = ()) -> ArrayRecord:
    """Returns the model of a file, as a run begins with it.

    Args:
        fresh: the initial model that there would be otherwise: its names, their order, shapes and
            types are those of the result.
        path: of a safetensors file; types are converted between floats.
        at_home: names of entries that the file may have besides.

    Raises:
        ConfigError: the file cannot be read, or holds another model.
    """
    begins = f"initial_model is {path}, which"
    try:
        found = read_model(path)
    except ConfigError as error:
        raise ConfigError(f"initial_model: {error}") from error
    missing = [name for name in fresh if name not in found]
    unknown = [name for name in found if name not in fresh and name not in at_home]
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"lacks {_named(missing)}")
        if unknown:
            parts.append(f"has {_named(unknown)} besides")
        raise ConfigError(f"{begins} {' and '.join(parts)}: {_remedy(missing, unknown, path)}")
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


def _remedy(missing: list[str], unknown: list[str], path: Path | str) -> str:
    if any(name.endswith(_OF_ADAPTERS) for name in unknown):
        return "it was written with an adapter: set the same, as adapter=lora"
    if any(name.endswith(_OF_ADAPTERS) for name in missing):
        return f"a file of the model that is adapted is adapter.base={path}"
    if missing and not unknown:
        return f"{_WRITTEN_BY}; of a run with local layers, it has what the server had"
    return _WRITTEN_BY


def _named(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_MOST_NAMED]))
    more = len(names) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
