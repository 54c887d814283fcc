"""What is built where clients hold parts of the model that fit their devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from fl.clients import PartialApp, TrainingApp
from fl.clients.pruning import Pruning
from fl.errors import ConfigError
from fl.models.batch_statistics import without_statistics
from fl.models.sparse_activations import with_sparse_activations
from fl.randomness import generator
from fl.runs.experiment import Learning
from fl.simulation.world.fleet import Fleet
from fl.strategies import Exchange
from fl.submodels import (
    ByMemory,
    SparseMask,
    SubModel,
    SubModels,
    Units,
    Whole,
    classes_of,
)
from fl.vectors.layout import Layout


def partly(
    sub_models: SubModels | SparseMask,
    learning: Learning,
    make_app: Callable[..., TrainingApp],
    ends: tuple[Any, Any],
    fleet: Fleet,
    exchange: Exchange,
) -> tuple[PartialApp, Exchange]:
    """Returns what clients run, and the exchange with the units and levels.

    Args:
        sub_models: which parts there are.
        learning: of the whole model.
        make_app: makes the app of a model.
        ends: the clients' ends of compressed links.
        fleet: says what devices there are.
        exchange: of the run.

    Raises:
        ConfigError: the model has no units, or a client's part does not fit its device.
    """
    app, module = learning.app, learning.model()
    make = partial(make_app, data=app.data, uplink=ends[0], downlink=ends[1])
    if isinstance(sub_models, SubModels) and sub_models.static_batch_norm:
        app = make(model=without_statistics(module))
    if isinstance(sub_models, SparseMask):
        own = sparsely(sub_models, app, make, module)
        fleet.check_memory(np.full(len(fleet), float(own.memory_bytes())))
        return own, exchange
    tokens = app.data.task == "next-token"
    units = sub_models.extraction.units(module, app.layout, app.data.input_shape, tokens=tokens)
    if not units:
        raise ConfigError(
            f"sub_models is set, and {type(module).__name__} has no hidden units that are found: "
            "use another model, such as mlp, leaf_cnn, resnet8 or char_gpt, or declare the model's "
            "units (docs/own_parts.md)"
        )
    parts = {
        level: _example(sub_models, level, app.layout, units)
        for level in dict.fromkeys(sub_models.capacity.levels)
    }
    classes = None
    if sub_models.masked_loss:
        if app.data.task != "classification":
            raise ConfigError(
                f"masked_loss is true, and {app.data.name!r} is for {app.data.task}: set it to "
                "false, or choose other data"
            )
        classes = classes_of(module, app.layout, app.data.num_classes)
    sizes = {
        level: part.size if sub_models.extraction.slices else _size(app.layout)
        for level, part in parts.items()
    }
    smallest = min(parts, key=lambda level: len(parts[level].positions))
    own = PartialApp(app, make, module, sizes[smallest], scaled=sub_models.scaled)
    needs = {level: float(own.memory_of(size)) for level, size in sizes.items()}
    memory, capacity = fleet.devices.memory_bytes, sub_models.capacity
    fleet.check_memory(capacity.needed(needs, memory))
    levels = capacity.fitting(needs, memory) if isinstance(capacity, ByMemory) else ()
    return own, replace(exchange, units=units, classes=classes, levels=levels)


def sparsely(
    sub_models: SparseMask,
    app: TrainingApp,
    make: Callable[..., TrainingApp],
    module: nn.Module,
) -> PartialApp:
    """Returns what clients of a sparse model run.

    Args:
        sub_models: its density, and what they keep of activations.
        app: of the whole model.
        make: as of `PartialApp`.
        module: the model.

    Raises:
        ConfigError: the model has too few numbers for the density.
    """
    names = {layer.name for layer in sub_models.layers(app.layout)}
    ends = np.cumsum([entry.size for entry in app.home.whole.trainable]).tolist()
    layers = tuple(
        (end - entry.size, end)
        for entry, end in zip(app.home.whole.trainable, ends, strict=True)
        if entry.name in names
    )
    training = module
    if sub_models.gamma:
        training = with_sparse_activations(module, sub_models.gamma)
    return PartialApp(
        app,
        make,
        module,
        _size(app.layout),
        masking=partial(Pruning, layers=layers),
        masked_structure=training,
    )


def _example(
    sub_models: SubModels, level: float, layout: Layout, units: tuple[Units, ...]
) -> SubModel:
    """Returns a part of a level: all have its shapes."""
    whole = Whole(layout, units, np.zeros(layout.size, np.float32))
    rng = generator(0, "an example")
    return sub_models.extraction.extract(whole, level, 0, lambda name: rng)


def _size(layout: Layout) -> tuple[tuple[int, ...], ...]:
    return tuple(entry.shape for entry in layout.entries)
