"""The majority vote of signs (signSGD with majority vote).

Bernstein, Zhao, Azizzadenesheli, Anandkumar: signSGD with Majority Vote is Communication Efficient
and Fault Tolerant, ICLR 2019, arXiv:1810.05291.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.errors import ConfigError


@dataclass(frozen=True)
class SignMajority(Aggregator):
    """sign(sum_i sign(x_i)) in each coordinate: -1, 0 or 1. Fewer than n/2 cannot turn a consensus.

    Attributes:
        tie: result where as many are positive as negative: 0, or the -1 or 1 that fits into one
            bit. A zero votes for neither.

    Raises:
        ConfigError: `tie` is none of these.
    """

    tie: Literal[-1, 0, 1] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tie not in (-1, 0, 1):
            raise ConfigError(f"SignMajority: tie={self.tie!r}: must be -1, 0 or 1")

    @property
    def invariances(self) -> Invariances:
        """The result has no scale of its own."""
        return frozenset({"permutation", "separable", "resilient"})

    def tolerates(self, n: int) -> int:
        """Returns the largest minority."""
        return (n - 1) // 2

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the majority's signs, shape (d,)."""
        return rows.by_coordinate(self._vote)

    def _vote(self, block: Array) -> Array:
        # One byte per vote: counting is the cost, and this is half that of summing signs.
        votes = (block > 0).view(np.int8) - (block < 0).view(np.int8)
        signs = np.sign(votes.sum(axis=0, dtype=np.int32)).astype(block.dtype)
        return np.asarray(np.where(signs == 0, block.dtype.type(self.tie), signs))
