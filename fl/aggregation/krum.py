"""Krum and Multi-Krum.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent, NeurIPS 2017, arXiv:1703.02757.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.aggregation.aggregator import OF_DISTANCES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array, Float64, Index
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError

Neighbours = Literal["n-f-2", "n-f-1", "n-f"]


def krum_scores(squared_distances: Float64, k: int, power: int = 2) -> Float64:
    """Returns for each vector the sum of its k smallest distances to others, to a power.

    Args:
        squared_distances: D, shape (n, n).
        k: how many neighbours count; all others, if there are fewer.
        power: 2 sums squared distances, 1 distances.

    Returns:
        Scores, float64, shape (n,). Equal sets of distances have equal scores, to the last bit.
    """
    D = squared_distances if power == 2 else np.sqrt(squared_distances)
    others = D + np.diag(np.full(len(D), np.inf))
    return np.asarray(np.sort(others, axis=1)[:, : min(k, len(D) - 1)].sum(axis=1))


@dataclass(frozen=True)
class Krum(Aggregator):
    """The vector nearest to its neighbours: argmin_i sum of |x_i - x_j|^2 over the k nearest j.

    Of vectors with equal scores the first is taken. The result is one of the vectors, unchanged.

    Five definitions circulate. The default is the paper's, which Flower shares; ByzFL has
    neighbours="n-f-1" and bound="2f+1" (it averages where the paper sums, which picks the same
    vector); code that followed the authors of Bulyan has neighbours="n-f-1" and power=1.

    Attributes:
        f: Byzantine vectors.
        neighbours: k, how many other vectors count; at least 1.
        power: of the distances.
        bound: n must be at least 2 f + 3, as the paper's guarantee asks; or 2 f + 1.

    Raises:
        ConfigError: a parameter is none of these, or n is too small.
    """

    f: int = 0
    neighbours: Neighbours = "n-f-2"
    power: Literal[1, 2] = 2
    bound: Literal["2f+3", "2f+1"] = "2f+3"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours not in ("n-f-2", "n-f-1", "n-f"):
            raise ConfigError(
                f"{self.name}: neighbours={self.neighbours!r}: 'n-f-2', 'n-f-1' or 'n-f'"
            )
        if self.power not in (1, 2) or self.bound not in ("2f+3", "2f+1"):
            raise ConfigError(
                f"{self.name}: power={self.power!r}, bound={self.bound!r}: power is 1 or 2, bound "
                "'2f+3' or '2f+1'"
            )

    @property
    def invariances(self) -> Invariances:
        """Those of a rule of distances that selects."""
        return OF_DISTANCES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n is at least the bound."""
        constant = 3 if self.bound == "2f+3" else 1
        check_bound(self.name, n, self.f, 2, constant, "or bound: 2f+1" if constant == 3 else "")

    def scores(self, rows: Rows) -> Float64:
        """Returns the score of each vector, shape (n,)."""
        k = len(rows) - self.f - {"n-f-2": 2, "n-f-1": 1, "n-f": 0}[self.neighbours]
        return krum_scores(rows.squared_distances, max(1, k), self.power)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the chosen vector, shape (d,)."""
        chosen = np.zeros(len(rows))
        chosen[np.argmin(self.scores(rows))] = 1.0
        return rows.combine(chosen)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the m vectors with the lowest Krum scores, which are not computed anew.

    Attributes:
        m: how many to average: a number from 1 to n, or n - f - 2, the most for which the paper has
            its guarantee, or n - f, as in ByzFL.
        weighted: weight them by their numbers of examples, as in Flower.

    Raises:
        ConfigError: a parameter is none of these, or n is too small.
    """

    m: int | Literal["n-f-2", "n-f"] = "n-f-2"
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m not in ("n-f-2", "n-f") and (not isinstance(self.m, int) or self.m < 1):
            raise ConfigError(f"MultiKrum: m={self.m!r}: must be 'n-f-2', 'n-f', or at least 1")

    def check(self, n: int) -> None:
        """Raises ConfigError unless n is at least the bound, and 1 <= m <= n."""
        super().check(n)
        if not 1 <= self._m(n) <= n:
            raise ConfigError(
                f"MultiKrum: m={self.m} of n={n} vectors with f={self.f}: must be from 1 to n; "
                "choose another m"
            )

    def _m(self, n: int) -> int:
        if isinstance(self.m, int):
            return self.m
        return n - self.f - (2 if self.m == "n-f-2" else 0)

    def select(self, rows: Rows) -> Index:
        """Returns the indices of the m vectors averaged, lowest score first."""
        return np.argsort(self.scores(rows), kind="stable")[: self._m(len(rows))]

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of the chosen vectors, shape (d,)."""
        chosen = np.zeros(len(rows))
        chosen[self.select(rows)] = 1.0
        if self.weighted:
            chosen *= rows.shares
        total = chosen.sum()
        if total == 0.0:
            raise ConfigError("MultiKrum: the vectors chosen have no examples: set weighted: false")
        return rows.combine(chosen / total)
