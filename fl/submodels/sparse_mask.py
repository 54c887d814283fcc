"""One mask for all clients: the numbers that the server's model has, and that clients train.

Where a mask comes from, and how it changes, is up to a rule (`fl.strategies.sparse`); this says how
many numbers each tensor has. Densities of layers: Erdos-Renyi-Kernel, Evci, Gale, Menick, Castro,
Elsen, "Rigging the Lottery", arXiv:1911.11134 (ICML 2020), Section 3 and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import fraction, share
from fl.errors import ConfigError
from fl.submodels.submodel import SubModel, masked
from fl.vectors.layout import Entry, Layout
from fl.vectors.rows import Row

Mask = NDArray[np.bool_]


class Layer(NamedTuple):
    """A tensor of which single numbers are left out.

    Attributes:
        name: of its entry.
        place: in the row.
        held: how many of its numbers the model has.
    """

    name: str
    place: slice
    held: int


@dataclass(frozen=True)
class SparseMask:
    """All clients hold the same numbers of the model, those of a mask that the server keeps.

    Weights of linear layers, convolutions and embeddings lack numbers: every trained tensor with
    two dimensions or more. Biases and normalisation are whole, and count.

    A model that lacks single numbers travels as the others and a bit for each of its weights. It
    saves bytes; training is that of the whole model with zeros.

    Attributes:
        density: numbers that the model has, over those of the whole model, in (0, 1].
        distribution: "erk": a tensor of shape (n_1, ..., n_k) has a share of its numbers that is
            proportional to (n_1 + ... + n_k) / (n_1 ... n_k), at most 1. "uniform": all have one.
        gamma: share of what a linear layer or convolution takes, the smallest, that clients do not
            keep for the backward pass (`fl.models.sparse_activations`), in [0, 1).

    Raises:
        ConfigError: an argument is out of its range.
    """

    density: float = 0.1
    distribution: Literal["erk", "uniform"] = "erk"
    gamma: float = 0.0

    stays: ClassVar[bool] = False
    slices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        fraction("density", self.density)
        if self.distribution not in ("erk", "uniform"):
            raise ConfigError(
                f"distribution is {self.distribution!r}; it must be 'erk' or 'uniform'"
            )
        share("gamma", self.gamma)

    def layers(self, layout: Layout) -> tuple[Layer, ...]:
        """Returns the tensors that lack numbers; together with the others they have the density.

        Raises:
            ConfigError: biases and normalisation alone are more than that, or nothing can be left
                out.
        """
        entries = sparse_entries(layout)
        total = sum(entry.size for entry in layout.trainable)
        whole = total - sum(entry.size for entry in entries)
        budget = math.floor(self.density * total + 1e-9) - whole
        if not entries:
            raise ConfigError("sub_models is a SparseMask, and the model has no matrix to prune")
        if budget < len(entries):
            raise ConfigError(
                f"density is {self.density}, and of {total} numbers {whole} are in biases and "
                f"normalisation, which are whole, and each of {len(entries)} tensors keeps one: it "
                f"must be at least {(whole + len(entries)) / total:.4g}"
            )
        sizes = [entry.size for entry in entries]
        score = np.array(sizes, dtype=np.float64)
        if self.distribution == "erk":
            score = np.array([float(sum(entry.shape)) for entry in entries])
        counts = shared_out(score, sizes, budget)
        return tuple(
            Layer(entry.name, slice(entry.offset, entry.offset + entry.size), count)
            for entry, count in zip(entries, counts, strict=True)
        )


def sparse_entries(layout: Layout) -> list[Entry]:
    """Returns the entries that may lack numbers, in the order of the layout."""
    return [entry for entry in layout.trainable if len(entry.shape) > 1]


def shared_out(score: NDArray[np.floating], sizes: Sequence[int], budget: int) -> list[int]:
    """Returns how many numbers each tensor has, `budget` together and at least one each.

    Args:
        score: what their shares are proportional to, as long as none is more than its tensor has.
        sizes: of the tensors.
        budget: from their number on, at most their sum.
    """
    most = np.array(sizes, dtype=np.float64)
    full = np.zeros(len(most), dtype=bool)  # tensors that lack nothing
    while True:
        left = (budget - most[full].sum()) / max(score[~full].sum(), 1e-300)
        wanted = np.where(full, most, score * left)
        if not (over := ~full & (wanted > most)).any():
            break
        full |= over
    wanted = np.maximum(wanted, 1.0)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    # What rounding has left goes to those that it has taken most of; a tensor that was given its
    # one number beyond its share is paid for by the largest.
    order = np.argsort(counts - wanted, kind="stable")
    while counts.sum() < budget:
        for i in order:
            if counts[i] < most[i] and counts.sum() < budget:
                counts[i] += 1
    while counts.sum() > budget:
        counts[counts.argmax()] -= 1
    return [int(count) for count in counts]


def largest(values: NDArray[np.floating], k: int) -> Mask:
    """Returns which of n numbers are the k largest, shape (n,); of equal ones the first."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:k]] = True
    return chosen


def by_magnitude(layers: Sequence[Layer], w: Row) -> Mask:
    """Returns the mask that has the largest numbers of each layer, and all others, shape (d,)."""
    mask = np.ones(len(w), dtype=bool)
    for layer in layers:
        mask[layer.place] = largest(np.abs(w[layer.place]), layer.held)
    return mask


def part_of(layout: Layout, layers: Sequence[Layer], mask: Mask) -> SubModel:
    """Returns the part of a model that a mask has; tensors that are one lack the same numbers."""
    masks: dict[str, Mask] = {layer.name: mask[layer.place] for layer in layers}
    tied: Mapping[str, Mask] = {
        entry.name: masks[entry.tied_to] for entry in layout.tied if entry.tied_to in masks
    }
    return masked(layout, {**masks, **tied})
