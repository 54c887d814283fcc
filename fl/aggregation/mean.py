"""Plain averaging, the rule that a single Byzantine client can move anywhere.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, arXiv:1602.05629.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances
from fl.aggregation.gram import Array
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
