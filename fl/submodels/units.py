"""Units of a model: which dimensions of its tensors shrink together.

A hidden unit (a neuron, a channel, a number of the residual stream) is a row of the weight that
makes it, a column of every weight that reads it, and numbers of the normalisation between. A
`Units` is a layer's units with all these places; leaving out a unit leaves out all of them. Inputs
and outputs of the model are no units: a sub-model takes all features and knows all classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl.errors import ConfigError
from fl.submodels.tracing import Traced, trace
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

Kept = Mapping[str, NDArray[np.int64]]
"""Units that a sub-model has of each layer, in ascending order, by the layer's name."""


@runtime_checkable
class HasUnits(Protocol):
    """A model that says itself what its units are, as attention and recurrent layers have to."""

    def units(self) -> Mapping[str, tuple[int, Sequence[tuple[str, int, int]]]]:
        """Returns the units of layers, by name: their number K, and the dimensions that have them.

        A dimension is (entry of the state dict, its dimension, blocks). It has blocks K times some
        numbers: its blocks follow each other, a block has its K units in order, and each of these
        as many numbers. So a flattened image of K channels has 1 block, and a weight that makes
        queries, keys and values has 3.
        """


@dataclass(frozen=True)
class Place:
    """Where units are in a tensor.

    Attributes:
        entry: name of the tensor in the state dict.
        dim: its dimension.
        unit: of each index along it, shape (size,), int64; -1 where there is none of the layer's.
    """

    entry: str
    dim: int
    unit: NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """The units of a layer.

    Attributes:
        name: of what makes them.
        width: K, their number.
        places: where they are.
    """

    name: str
    width: int
    places: tuple[Place, ...]


def units_of(
    model: nn.Module, layout: Layout, input_shape: tuple[int, ...], *, tokens: bool
) -> tuple[Units, ...]:
    """Returns the units of a model: those that it declares (`HasUnits`), or those that are traced.

    Args:
        model: any; not changed.
        layout: of the model.
        input_shape: shape of one input.
        tokens: the model takes tokens.

    Raises:
        ConfigError: it declares what it does not have; or it declares nothing, and has parameters
            that are read otherwise than by layers that are known; or some of what belongs to a unit
            is frozen.
    """
    if isinstance(model, HasUnits):
        shapes = {entry.name: entry.shape for entry in layout.floats}
        made = [
            Units(name, width, tuple(_place(shapes, name, width, *place) for place in places))
            for name, (width, places) in model.units().items()
        ]
    else:
        made = [_group(name, traced) for name, traced in trace(model, input_shape, tokens).items()]
    absent = {place.entry for layer in made for place in layer.places} - layout.names
    if absent:
        raise ConfigError(
            f"{min(absent)!r} of {type(model).__name__} is frozen and does not travel, and parts "
            "are cut out of all of a model: train it as well, or use a strategy whose clients have "
            "the whole model, such as fedavg"
        )
    return tuple(layer for layer in made if layer.width > 1)


def classes_of(model: nn.Module, layout: Layout, num_classes: int) -> Units:
    """Returns the classes as what the last layer has a row of, and a number of its bias, for each.

    Args:
        model: any.
        layout: of the model.
        num_classes: C.

    Raises:
        ConfigError: its last layer, in the order in which they are registered, is none of that.
    """
    numbers = [name for name, _ in model.named_parameters()]
    layer = numbers[-1].rpartition(".")[0] if numbers else ""
    entries = [entry for entry in layout.floats if entry.name.rpartition(".")[0] == layer]
    shapes = {entry.name: entry.shape for entry in entries}
    if not entries or any(shape[:1] != (num_classes,) for shape in shapes.values()):
        raise ConfigError(
            f"masked_loss is true, and the last layer of {type(model).__name__} has {shapes}, not "
            f"a row for each of {num_classes} classes: set it to false, or register the layer that "
            "makes the logits last"
        )
    each = np.arange(num_classes)
    return Units("classes", num_classes, tuple(Place(entry.name, 0, each) for entry in entries))


def _place(
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    width: int,
    entry: str,
    dim: int,
    blocks: int,
) -> Place:
    shape = shapes.get(entry)
    if shape is None or not 0 <= dim < len(shape) or shape[dim] % (blocks * width):
        there = "no such entry of floats" if shape is None else f"shape {shape}"
        raise ConfigError(
            f"the model's units {name!r} say that dimension {dim} of {entry!r} has {blocks} blocks "
            f"of {width} units, and there is {there}: correct its units()"
        )
    each = shape[dim] // (blocks * width)
    unit = np.tile(np.repeat(np.arange(width), each), blocks)
    return Place(entry, dim, unit)


def _group(name: str, traced: Traced) -> Units:
    places = tuple(Place(entry, dim, unit) for entry, dim, unit in traced.places)
    return Units(name, traced.width, places)


def positions_of(layout: Layout, layer: Units, some: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns where in a model's row the numbers of some units are, shape (m,).

    Args:
        layout: of the model.
        layer: the units.
        some: which of them, shape (K,).
    """
    entries = {entry.name: entry for entry in layout.floats}
    found = []
    for place in layer.places:
        entry = entries[place.entry]
        numbers = entry.offset + np.arange(entry.size).reshape(entry.shape)
        of = (place.unit >= 0) & some[place.unit]
        found.append(numbers.compress(of, axis=place.dim).reshape(-1))
    return np.concatenate(found)


def importance(layout: Layout, layer: Units, w: Row) -> NDArray[np.float64]:
    """Returns the norm of all numbers of a model that belong to each unit, shape (K,).

    Args:
        layout: of the model.
        layer: the units.
        w: the model, shape (d,).
    """
    entries = {entry.name: entry for entry in layout.floats}
    squares = np.zeros(layer.width)
    for place in layer.places:
        entry = entries[place.entry]
        values = w[entry.offset : entry.offset + entry.size].reshape(entry.shape)
        others = tuple(d for d in range(values.ndim) if d != place.dim)
        sums = np.square(values, dtype=np.float64).sum(axis=others)
        there = place.unit >= 0
        squares += np.bincount(place.unit[there], sums[there], minlength=layer.width)
    return np.asarray(np.sqrt(squares), dtype=np.float64)
