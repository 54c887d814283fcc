"""NNM, nearest-neighbour mixing.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe for Optimal
Byzantine ML under Heterogeneity, AISTATS 2023, arXiv:2302.01772, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Context, Invariances, PreAggregation
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound


@dataclass(frozen=True)
class NNM(PreAggregation):
    """y_i = mean of the n - f vectors nearest to x_i, itself included; needs 2 f < n.

    Mixes honest vectors that differ, so that the rule after it has less variance to cope with. Of
    vectors equally near the first are taken. Numbers of examples stay with their rows.

    Attributes:
        f: Byzantine vectors.

    Raises:
        ConfigError: f is negative, or 2 f >= n.
    """

    f: int = 0

    @property
    def invariances(self) -> Invariances:
        """All but what needs coordinates."""
        return frozenset(
            {"permutation", "translation", "scaling", "rotation", "resilient", "hull", "box"}
        )

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Rows:
        """Returns the mixed rows."""
        n = len(rows)
        D = rows.squared_distances - np.eye(n)  # itself first, also before copies of it
        nearest = np.argsort(D, axis=1, kind="stable")[:, : n - self.f]
        mix = np.zeros((n, n))
        np.put_along_axis(mix, nearest, 1.0 / (n - self.f), axis=1)
        return rows.mixed(mix, rows.weights)
