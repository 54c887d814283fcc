"""The mean of each entry over those who sent it, for sparse vectors.

Of SparseLoCo's and DeMo's code. Sarfi, Therien, Lidin, Belilovsky, "Communication Efficient LLM
Pre-training with SparseLoCo", 2025, arXiv:2508.15706; Peng, Quesnelle, Kingma, "DeMo: Decoupled
Momentum Optimization", 2024, arXiv:2411.19870.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows


@dataclass(frozen=True)
class SenderMean(Aggregator):
    """sum_i w_i x_i / sum_(i: x_i != 0) w_i in each coordinate, and 0 where all are 0.

    Tolerates no Byzantine vector. Where vectors have no entry in common it is their sum, n times as
    long as `Mean`'s. A 0 that was sent counts as one that was not.

    Attributes:
        weighted: w_i is the client's number of examples, if there are any; otherwise 1.
    """

    weighted: bool = True

    @property
    def invariances(self) -> Invariances:
        """Zero is special, so neither translation nor rotation."""
        return frozenset({"permutation", "scaling", "separable", "box"})

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the means, shape (d,)."""
        shares = rows.shares if self.weighted else np.full(len(rows), 1.0 / len(rows))

        def mean(block: Array) -> Array:
            sent = shares @ (block != 0)
            total = shares @ block.astype(np.float64)
            means = np.divide(total, sent, out=np.zeros_like(total), where=sent > 0)
            return np.asarray(means, dtype=block.dtype)

        return rows.by_coordinate(mean)
