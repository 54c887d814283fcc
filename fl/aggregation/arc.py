"""ARC, adaptive robust clipping.

Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan: Adaptive Gradient Clipping for Robust Federated
Learning, ICLR 2025, arXiv:2405.14432, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Context, Invariances, PreAggregation
from fl.aggregation.norm_clipping import clipping_factors
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound


@dataclass(frozen=True)
class ARC(PreAggregation):
    """Clips the k longest vectors to the length of the next: k = floor(2 (f / n) (n - f)).

    y_i = x_i min(1, C / |x_i|) with C the (k + 1)-th largest norm. Unlike a fixed c this keeps the
    guarantee of the rule after it. Needs 2 f < n. k is computed in integers: in floating point the
    floor loses one, for example for n = 242, f = 33.

    Attributes:
        f: Byzantine vectors.

    Raises:
        ConfigError: f is negative, or 2 f >= n.
    """

    f: int = 0

    @property
    def invariances(self) -> Invariances:
        """Not translation: lengths are from zero."""
        return frozenset({"permutation", "scaling", "rotation", "resilient"})

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    @property
    def bounds(self) -> bool:
        """Yes."""
        return True

    def apply(self, rows: Rows, context: Context) -> Rows:
        """Returns the clipped rows."""
        n, norms = len(rows), rows.norms
        k = 2 * self.f * (n - self.f) // n
        return rows.scaled(clipping_factors(norms, float(np.sort(norms)[n - 1 - k])))
