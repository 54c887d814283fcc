"""FABA, fast aggregation against Byzantine attacks.

Xia, Tao, Hao, Li: FABA: An Algorithm for Fast Aggregation against Byzantine Attacks in Distributed
Neural Networks, IJCAI 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import OF_DISTANCES, Aggregator, Context, Invariances
from fl.aggregation.geometric_median import distances
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound


@dataclass(frozen=True)
class FABA(Aggregator):
    """f times leaves out the vector farthest from the mean of those left; then their mean.

    Of vectors equally far the first goes. Needs 2 f < n.

    Attributes:
        f: Byzantine vectors; the paper's epsilon is f / n.

    Raises:
        ConfigError: f is negative, or 2 f >= n.
    """

    f: int = 0

    @property
    def invariances(self) -> Invariances:
        """Those of a rule of inner products of differences."""
        return OF_DISTANCES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of the vectors left, shape (d,)."""
        G = rows.gram
        left = np.ones(len(rows))
        for _ in range(self.f):
            away = distances(G, left / left.sum())
            left[np.argmax(np.where(left > 0, away, -1.0))] = 0.0
        return rows.combine(left / left.sum())
