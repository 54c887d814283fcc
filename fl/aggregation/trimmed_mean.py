"""The coordinate-wise trimmed mean.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates, ICML 2018, arXiv:1803.01498, Definition 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.aggregation import order_statistics
from fl.aggregation.aggregator import OF_COORDINATES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """In each coordinate the mean without the f smallest and f largest numbers; needs 2 f < n.

    The paper and Flower give the share beta cut off at either end, with f = floor(beta n). The
    number is the parameter here because rounding loses one for many n: in floating point,
    int(4 / 49 * 49) is 3. beta = (f + 0.25) / n makes Flower cut off f.

    Attributes:
        f: numbers cut off at either end.

    Raises:
        ConfigError: f is negative, or 2 f >= n.
    """

    f: int = 0

    @property
    def invariances(self) -> Invariances:
        """Those of a rule that sorts each coordinate."""
        return OF_COORDINATES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the trimmed mean, shape (d,)."""
        return rows.by_coordinate(lambda block: order_statistics.trimmed_mean(block, self.f))
