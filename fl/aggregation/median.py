"""The coordinate-wise median.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates, ICML 2018, arXiv:1803.01498, Definition 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl.aggregation import order_statistics
from fl.aggregation.aggregator import OF_COORDINATES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.errors import ConfigError


@dataclass(frozen=True)
class Median(Aggregator):
    """In each coordinate the middle of the n numbers. Tolerates fewer than n/2 Byzantine vectors.

    Attributes:
        even: of an even count, the mean of the middle two ("mean", as the paper, NumPy and Flower),
            or the lower one ("lower", as `torch.median`).

    Raises:
        ConfigError: `even` is neither.
    """

    even: Literal["mean", "lower"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.even not in ("mean", "lower"):
            raise ConfigError(f"Median: even={self.even!r}: must be 'mean' or 'lower'")

    @property
    def invariances(self) -> Invariances:
        """Those of a rule that sorts each coordinate."""
        return OF_COORDINATES

    def tolerates(self, n: int) -> int:
        """Returns the largest minority."""
        return (n - 1) // 2

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the median, shape (d,)."""
        of = order_statistics.median if self.even == "mean" else order_statistics.lower_median
        return rows.by_coordinate(of)
