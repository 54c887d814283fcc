"""Rules that look at the length of each vector alone: clipping, and leaving out the longest.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, arXiv:1911.07963
(clipping). Gupta, Vaidya: Fault-Tolerance in Distributed Optimization: The Case of Redundancy, PODC
2020 (comparative gradient elimination).

They are for updates: of full models they would take what is far from zero, which means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances, PreAggregation
from fl.aggregation.gram import Array, Float64
from fl.aggregation.mean import Mean
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError


def clipping_factors(norms: Float64, most: float) -> Float64:
    """Returns min(1, c / |x_i|), shape (n,); 1 for the zero vector."""
    return np.where(norms > most, most / np.where(norms > 0, norms, 1.0), 1.0)


@dataclass(frozen=True)
class Clipping(PreAggregation):
    """y_i = x_i min(1, c / |x_i|).

    Attributes:
        max_norm: c, positive; infinity clips nothing.

    Raises:
        ConfigError: c is not positive.
    """

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_max_norm(self.name, self.max_norm)

    @property
    def invariances(self) -> Invariances:
        """Neither translation nor scaling: c has the vectors' unit."""
        return frozenset({"permutation", "rotation", "resilient"})

    @property
    def bounds(self) -> bool:
        """Yes."""
        return True

    def apply(self, rows: Rows, context: Context) -> Rows:
        """Returns the clipped rows."""
        return rows.scaled(clipping_factors(rows.norms, self.max_norm))


@dataclass(frozen=True)
class NormClipping(Aggregator):
    """The mean of the clipped vectors, sum_i w_i x_i min(1, c / |x_i|).

    Tolerates any f in the sense that f vectors move the result by at most 2 c f / n.

    Attributes:
        max_norm: c, positive.
        weighted: w_i is the client's share of the examples; otherwise 1/n.

    Raises:
        ConfigError: c is not positive.
    """

    max_norm: float = 1.0
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_max_norm(self.name, self.max_norm)

    @property
    def invariances(self) -> Invariances:
        """Those of the clipping."""
        return Clipping(self.max_norm).invariances

    def tolerates(self, n: int) -> int:
        """Returns n - 1: one update has to be left."""
        return n - 1

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of the clipped vectors, shape (d,)."""
        clipped = Clipping(self.max_norm).transform(rows, context)
        return Mean(self.weighted).aggregate(clipped, context)


@dataclass(frozen=True)
class NormElimination(Aggregator):
    """The mean of the n - f shortest vectors (comparative gradient elimination, CGE).

    Of vectors equally long the first are kept. Needs 2 f < n.

    Attributes:
        f: Byzantine vectors.

    Raises:
        ConfigError: f is negative, or 2 f >= n.
    """

    f: int = 0

    @property
    def invariances(self) -> Invariances:
        """Not translation."""
        return frozenset({"permutation", "scaling", "rotation", "resilient", "hull"})

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of the shortest vectors, shape (d,)."""
        keep = len(rows) - self.f
        a = np.zeros(len(rows))
        a[np.argsort(rows.norms, kind="stable")[:keep]] = 1.0 / keep
        return rows.combine(a)


def check_max_norm(rule: str, max_norm: float) -> None:
    """Raises ConfigError unless the number is positive."""
    if not max_norm > 0:
        raise ConfigError(f"{rule}: max_norm={max_norm}: must be positive")
