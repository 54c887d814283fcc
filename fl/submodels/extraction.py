"""Which part of the model a client gets: the contract, and what all rules share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.checks import fraction
from fl.errors import ConfigError
from fl.submodels.submodel import SubModel, slice_of
from fl.submodels.units import Units, importance
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

Indices = NDArray[np.int64]

RngOf = Callable[[str], np.random.Generator]


@dataclass(frozen=True)
class Whole:
    """The model that parts are taken of.

    Attributes:
        layout: of the model.
        units: its units.
        w: the model, shape (d,).
    """

    layout: Layout
    units: Sequence[Units]
    w: Row


class Extraction(ABC):
    """Says which units of each layer a client trains in a round.

    Attributes:
        by_client: whether clients of one level get different parts in a round.
        stays: whether a client of one level gets the same part in every round.
        ranks: whether it looks at the model's weights.
    """

    by_client: ClassVar[bool] = False
    stays: ClassVar[bool] = False
    ranks: ClassVar[bool] = False

    @property
    def slices(self) -> bool:
        """Whether parts are smaller tensors.

        Otherwise single numbers are left out, which saves bytes, and neither work nor memory.
        """
        return True

    def check_level(self, level: float) -> None:
        """Checks what says how much a client can hold: here the share of each layer's units.

        Raises:
            ConfigError: it is no share in (0, 1].
        """
        fraction("level", level)

    @abstractmethod
    def index_set(
        self,
        width: int,
        level: float,
        server_round: int,
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Indices:
        """Returns the units of a layer that a client holds, ascending.

        Args:
            width: K, units of the layer.
            level: r, the client's.
            server_round: t, from 0.
            weights: if `ranks`, norm of each unit's numbers (`fl.submodels.importance`), (K,).
            rng: of this round, layer and, if `by_client`, client.
        """

    def extract(self, whole: Whole, level: float, server_round: int, rng: RngOf) -> SubModel:
        """Returns the part of a client.

        Args:
            whole: the model.
            level: the client's.
            server_round: from 0.
            rng: returns the generator of a layer, by its name.

        Raises:
            ConfigError: `index_set` returns what are no units of a layer.
        """
        kept = {}
        for layer in whole.units:
            weights = importance(whole.layout, layer, whole.w) if self.ranks else np.empty(0)
            held = self.index_set(layer.width, level, server_round, weights, rng(layer.name))
            self._check(held, layer)
            kept[layer.name] = held
        return slice_of(whole.layout, whole.units, kept)

    def _check(self, held: Indices, layer: Units) -> None:
        found = np.asarray(held)
        whole = found.ndim == 1 and found.size > 0 and found.dtype.kind in "iu"
        if not whole or found[0] < 0 or found[-1] >= layer.width or (np.diff(found) <= 0).any():
            raise ConfigError(
                f"extraction is {type(self).__name__}, whose index_set returns {held!r:.80} of "
                f"layer {layer.name!r}: it must be at least one of the units 0 to "
                f"{layer.width - 1}, as whole numbers, ascending"
            )


def share_of(width: int, level: float) -> int:
    """Returns ceil(r K) of K units, at least 1."""
    return max(1, math.ceil(level * width - 1e-9))
