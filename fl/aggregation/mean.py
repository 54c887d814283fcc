"""Plain averaging, the rule that a single Byzantine client can move anywhere.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, arXiv:1602.05629.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Fold, Invariances, check_result
from fl.aggregation.gram import Array, column_chunks
from fl.aggregation.guard import check_weights
from fl.aggregation.rows import Rows


@dataclass(frozen=True)
class Mean(Aggregator):
    """sum_i w_i x_i. Tolerates no Byzantine vector.

    Attributes:
        weighted: w_i is the client's share of the examples, as in FedAvg, or 1/n if no numbers are
            given; otherwise 1/n in any case, as in ByzFL.
    """

    weighted: bool = True

    @property
    def invariances(self) -> Invariances:
        """All but resilience."""
        return frozenset(
            {"permutation", "translation", "scaling", "rotation", "separable", "hull", "box"}
        )

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean, shape (d,)."""
        n = len(rows)
        return rows.combine(rows.shares if self.weighted else np.full(n, 1.0 / n))

    def fold(self, d: int) -> Fold:
        """Returns the mean so far."""
        return _RunningMean(d, self.weighted)


class _RunningMean(Fold):
    """m <- m + w_i / (w_1 + ... + w_i) (x_i - m)."""

    def __init__(self, d: int, weighted: bool) -> None:
        self._mean = np.zeros(d, dtype=np.float32)
        self._weighted = weighted
        self._total = 0.0

    def add(self, x: Array, weight: float) -> None:
        weight = float(weight) if self._weighted else 1.0
        if weight == 0.0:
            return
        self._total += weight
        share = np.float32(weight / self._total)
        for columns in column_chunks(len(x)):  # what the processor's cache holds
            mean = self._mean[columns]
            mean += share * (x[columns] - mean)

    def result(self) -> Array:
        check_weights([self._total])
        check_result(Mean.__name__, self._mean)
        return self._mean
