"""The mean around the median, coordinate by coordinate.

Xie, Koyejo, Gupta: Generalized Byzantine-tolerant SGD, arXiv:1802.10116, Definition 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl.aggregation import order_statistics
from fl.aggregation.aggregator import OF_COORDINATES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError


@dataclass(frozen=True)
class MeaMed(Aggregator):
    """In each coordinate the mean of the n - f numbers nearest to the median; needs 2 f < n.

    Of two numbers equally near to the median the smaller is kept; the paper leaves this open.

    Attributes:
        f: numbers left out.
        median: of an even count, the mean of the middle two ("median"), or the lower of them
            ("lower-median", as in code that uses `torch.median`).

    Raises:
        ConfigError: f is negative, 2 f >= n, or `median` is neither.
    """

    f: int = 0
    median: Literal["median", "lower-median"] = "median"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.median not in ("median", "lower-median"):
            raise ConfigError(f"MeaMed: median={self.median!r}: 'median' or 'lower-median'")

    @property
    def invariances(self) -> Invariances:
        """Those of a rule that sorts each coordinate."""
        return OF_COORDINATES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean around the median, shape (d,)."""
        keep = len(rows) - self.f
        return rows.by_coordinate(
            lambda block: order_statistics.mean_around(block, keep, self.median)
        )
