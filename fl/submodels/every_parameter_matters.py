"""Every Parameter Matters: each client leaves out quarters of every hidden layer, by importance.

Zhou, Lan, Venkataramani, Ding, "Every Parameter Matters: Ensuring the Convergence of Federated
Learning with Dynamic Heterogeneous Models Reduction", arXiv:2310.08670 (NeurIPS 2023). The paper's
text was not at hand: the types are those of the authors' code, hanhanAnderson/FL_Converge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.submodels.extraction import Extraction, Indices, RngOf, Whole
from fl.submodels.submodel import SubModel, masked

# What each type leaves out; quarter 0 has the smallest.
_WITHOUT: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (0,), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class EveryParameterMatters(Extraction):
    """A client of type 1 has all of a layer, of 2 to 4 three quarters, of 5 to 7 two.

        type      1     2     3     4     5      6      7
        without   -     q3    q2    q1    q2 q3  q1 q3  q1 q2

    where q1 has the quarter of smallest rank and q4, which all clients have, that of largest.

    Attributes:
        of: "weights": single weights of each hidden layer are ranked, and a part is the rest of
            them and all other numbers; it saves bytes, and neither work nor memory. "units": units
            are ranked by the norm of all their numbers, and a part is a smaller model.
        rank: "magnitude": by absolute value, or norm. "permutation": as the authors' code, which
            takes the positions that sort the values for their ranks, and so leaves out another
            quarter of arbitrary positions in every round.

    Raises:
        ConfigError: `of` or `rank` is none of these.
    """

    of: Literal["weights", "units"] = "weights"
    rank: Literal["magnitude", "permutation"] = "magnitude"

    ranks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.of not in ("weights", "units"):
            raise ConfigError(f"of is {self.of!r}; it must be 'weights' or 'units'")
        if self.rank not in ("magnitude", "permutation"):
            raise ConfigError(f"rank is {self.rank!r}; it must be 'magnitude' or 'permutation'")

    @property
    def slices(self) -> bool:
        """Whether units are ranked."""
        return self.of == "units"

    def check_level(self, level: float) -> None:
        """Raises ConfigError unless it is a type, a whole number from 1 to 7."""
        if isinstance(level, bool) or level not in range(1, 8):
            raise ConfigError(
                f"level is {level!r}; for EveryParameterMatters it must be a type, a whole number "
                "from 1 to 7"
            )

    def index_set(
        self,
        width: int,
        level: float,
        server_round: int,
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Indices:
        """Returns the units in the quarters that the type has, ascending."""
        if width < 4:
            raise ConfigError(
                f"a layer has {width} units, and extraction is EveryParameterMatters, which needs "
                "at least 4: use a wider model, or of='weights'"
            )
        return np.flatnonzero(self._held(weights, level))

    def extract(self, whole: Whole, level: float, server_round: int, rng: RngOf) -> SubModel:
        """Returns the part of a client; see `Extraction.extract`."""
        if self.slices:
            return super().extract(whole, level, server_round, rng)
        entries = {entry.name: entry for entry in whole.layout.floats}
        masks = {}
        for place in (place for layer in whole.units for place in layer.places):
            entry = entries[place.entry]
            if place.dim == 0 and len(entry.shape) > 1:
                values = whole.w[entry.offset : entry.offset + entry.size]
                masks[entry.name] = self._held(values, level)
        return masked(whole.layout, masks)

    def _held(self, values: NDArray[np.floating], level: float) -> NDArray[np.bool_]:
        """Returns which of n values a type has."""
        if self.rank == "permutation":
            rank = np.argsort(values, kind="stable")
        else:
            rank = np.empty(len(values), np.int64)
            rank[np.argsort(np.abs(values), kind="stable")] = np.arange(len(values))
        quarter = 4 * rank // len(values)
        return ~np.isin(quarter, _WITHOUT[int(level) - 1])
