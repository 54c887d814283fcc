"""Bulyan: Krum selects, a trimmed mean around the median averages.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium, ICML
2018, arXiv:1802.07927.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.aggregation import order_statistics
from fl.aggregation.aggregator import Aggregator, Context, Invariances
from fl.aggregation.gram import Array, Float64, Index
from fl.aggregation.krum import krum_scores
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError


@dataclass(frozen=True)
class Bulyan(Aggregator):
    """Limits what Krum's choice leaves open in a single coordinate; needs n >= 4 f + 3.

    1. theta = n - 2 f times: run Krum on the vectors that are left, and move its choice to S. The
       number of neighbours, n - f - 2, shrinks with the vectors left; it is at least 1.
    2. In each coordinate: the mean of the beta = theta - 2 f numbers of S nearest to their median.

    Attributes:
        f: Byzantine vectors.
        selection: "iterative", as the paper; or "one-shot", the theta lowest scores among all
            vectors, as in Flower.

    Raises:
        ConfigError: f is negative, n is too small, or `selection` is neither.
    """

    f: int = 0
    selection: Literal["iterative", "one-shot"] = "iterative"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection not in ("iterative", "one-shot"):
            raise ConfigError(
                f"Bulyan: selection={self.selection!r}: must be 'iterative' or 'one-shot'"
            )

    @property
    def invariances(self) -> Invariances:
        """Selection by distances, then coordinates: neither rotation nor separable."""
        return frozenset({"permutation", "translation", "scaling", "resilient", "box"})

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 4 f + 3."""
        check_bound(self.name, n, self.f, 4, 3)

    def select(self, rows: Rows) -> Index:
        """Returns the indices of S in the order they are chosen, shape (theta,)."""
        D, f = rows.squared_distances, self.f
        theta = len(rows) - 2 * f
        if self.selection == "one-shot":
            return np.argsort(_scores(D, f), kind="stable")[:theta]
        left = np.arange(len(rows))
        chosen = []
        for _ in range(theta):
            best = int(np.argmin(_scores(D[np.ix_(left, left)], f)))
            chosen.append(left[best])
            left = np.delete(left, best)
        return np.array(chosen)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the aggregate, shape (d,)."""
        S = rows.take(self.select(rows))
        beta = len(S) - 2 * self.f
        return S.by_coordinate(lambda block: order_statistics.mean_around(block, beta, "median"))


def _scores(D: Float64, f: int) -> Float64:
    return krum_scores(D, max(1, len(D) - f - 2))
