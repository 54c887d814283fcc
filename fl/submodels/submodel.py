"""A part of a model: what of the whole it holds, and the form in which it travels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl.errors import ConfigError
from fl.submodels.units import Kept, Units
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

Size = tuple[tuple[int, ...], ...]
"""Shapes of a model's entries, in the order of its layout."""

MASKS_KEY = "masks"
"""Record of a message that says which numbers of tensors its part has: `SubModel.bitmaps`."""

MASK_NUMBER_KEY = "mask-number"
"""Key of a message's configuration: which of a run's masks its part is of. Clients keep the last,
and a message to one that has it has no `MASKS_KEY`."""

OWN_CLASSES_KEY = "own-classes"
"""Key of a message's configuration: the loss is to be over the classes that the client has, which
the reply says in `CLASSES_KEY`."""

CLASSES_KEY = "classes"
"""Record of a reply, and its array: a bit for each class, as in `SubModel.bitmaps`."""


@dataclass(frozen=True, eq=False)
class SubModel:
    """What a client holds of a model.

    Attributes:
        layout: of the record with the part: the whole's names, and smaller shapes. A tensor of
            which single numbers are left out is a vector of those that are held.
        positions: in the whole's row, of each number of the part's row, shape (d_i,), int64,
            ascending.
        bitmaps: of tensors of which single numbers are left out, which are held: a bit for each
            number in C order, first bit highest, uint8, shape (ceil(size / 8),).
    """

    layout: Layout
    positions: NDArray[np.int64]
    bitmaps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        """Shapes of the part's entries."""
        return tuple(entry.shape for entry in self.layout.entries)

    def of(self, w: Row) -> Row:
        """Returns the part of a row, shape (d_i,), of shape (d,)."""
        return w[self.positions]

    def without(self, positions: NDArray[np.int64]) -> SubModel:
        """Returns the same without some numbers of the whole's row, though the record has them."""
        return replace(self, positions=np.setdiff1d(self.positions, positions, assume_unique=True))

    def put(self, w: Row, part: Row) -> Row:
        """Returns a row whose held numbers are the part's, and all others those of `w`, (d,)."""
        whole = w.copy()
        whole[self.positions] = part
        return whole


def slice_of(layout: Layout, units: Sequence[Units], kept: Kept) -> SubModel:
    """Returns the sub-model with some units of each layer, and all that belongs to no unit.

    Args:
        layout: of the whole model.
        units: its units.
        kept: which of them are left, at least one of each layer.
    """
    axes = {e.name: [np.ones(n, dtype=bool) for n in e.shape] for e in layout.entries}
    for layer in units:
        held = np.zeros(layer.width, dtype=bool)
        held[kept[layer.name]] = True
        for place in layer.places:
            axes[place.entry][place.dim] &= (place.unit < 0) | held[place.unit]
    indices = {name: [np.flatnonzero(axis) for axis in dims] for name, dims in axes.items()}
    shapes = {name: tuple(len(index) for index in dims) for name, dims in indices.items()}
    positions = [
        entry.offset + np.arange(entry.size).reshape(entry.shape)[np.ix_(*indices[entry.name])]
        if entry.shape
        else np.array([entry.offset])
        for entry in layout.floats
    ]
    return SubModel(layout.resized(shapes), np.concatenate([p.reshape(-1) for p in positions]))


def masked(layout: Layout, masks: Mapping[str, NDArray[np.bool_]]) -> SubModel:
    """Returns the sub-model that lacks single numbers.

    Args:
        layout: of the whole model.
        masks: which numbers of a tensor are held, in C order, shape (size,); all of others.
    """
    shapes = {e.name: e.shape for e in layout.entries}
    shapes.update((name, (int(mask.sum()),)) for name, mask in masks.items())
    positions = [
        entry.offset + np.flatnonzero(masks.get(entry.name, np.ones(entry.size, dtype=bool)))
        for entry in layout.floats
    ]
    bitmaps = {name: np.packbits(mask) for name, mask in masks.items()}
    return SubModel(layout.resized(shapes), np.concatenate(positions), bitmaps)


# ---- the module of a part ------------------------------------------------------------------------

_SIZES: Sequence[tuple[type[nn.Module], Mapping[str, int]]] = (  # attribute: dimension of weight
    (nn.Linear, {"out_features": 0, "in_features": 1}),
    (nn.modules.conv._ConvNd, {"out_channels": 0, "in_channels": 1}),
    (nn.Embedding, {"num_embeddings": 0, "embedding_dim": 1}),
    (nn.modules.batchnorm._NormBase, {"num_features": 0}),
    (nn.GroupNorm, {"num_channels": 0}),
)


class _Scaled:
    """Divides what a layer returns in training by the share of its units that are there."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output / self.share if module.training else output


def resized(model: nn.Module, layout: Layout, size: Size, *, scaled: bool = False) -> nn.Module:
    """Returns a module of the same code with smaller tensors, all zeros.

    Args:
        model: the whole, or its structure; not changed.
        layout: of the whole.
        size: shapes of the smaller one's entries.
        scaled: divide what each linear layer and convolution that has lost outputs returns in
            training by the share of them that is left, HeteroFL's "scaler".

    Raises:
        ConfigError: a shape is larger than the whole's or has other dimensions, or tensors that are
            one get two shapes.
    """
    small = copy.deepcopy(model)
    made: dict[int, tuple[str, nn.Parameter]] = {}
    parameters = dict(small.named_parameters(remove_duplicate=False))
    for entry, shape in zip(layout.entries, size, strict=True):
        if len(shape) != len(entry.shape) or any(
            not 0 < n <= most for n, most in zip(shape, entry.shape, strict=True)
        ):
            raise ConfigError(
                f"the part's entry {entry.name!r:.80} has shape {shape!r:.80}; the whole model has "
                f"{entry.shape}, and a part's is at most that in each dimension"
            )
        path, _, name = entry.name.rpartition(".")
        owner = small.get_submodule(path)
        old = parameters.get(entry.name)
        if old is None:
            if shape != entry.shape:
                setattr(owner, name, torch.zeros(shape, dtype=getattr(owner, name).dtype))
            continue
        first, parameter = made.setdefault(
            id(old),
            (entry.name, nn.Parameter(torch.zeros(shape, dtype=old.dtype), old.requires_grad)),
        )
        if parameter.shape != shape:
            raise ConfigError(
                f"the part's entries {first!r} and {entry.name!r} have shapes "
                f"{tuple(parameter.shape)} and {shape}, and are one tensor in the model: declare "
                "the model's units, see docs/own_parts.md"
            )
        owner.register_parameter(name, parameter)
    for module in small.modules():
        _fit(module, scaled=scaled)
    return small


def _fit(module: nn.Module, *, scaled: bool) -> None:
    """Gives a module the sizes of its tensors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    for kind, sizes in _SIZES:
        if isinstance(module, kind):
            outputs = next(iter(sizes))
            share = weight.shape[0] / getattr(module, outputs)
            if scaled and share < 1 and outputs.startswith("out"):
                module.register_forward_hook(_Scaled(share))
            for name, dim in sizes.items():
                setattr(module, name, weight.shape[dim])
