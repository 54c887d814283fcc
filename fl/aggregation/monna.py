"""Nearest-neighbour averaging, the rule of MoNNA's nodes.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan: Robust Collaborative Learning with Linear
Gradient Overhead, ICML 2023, arXiv:2209.10931.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import OF_DISTANCES, Aggregator, Context, Invariances, Reference
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError


@dataclass(frozen=True)
class NearestNeighbourAveraging(Aggregator):
    """The mean of the n - f vectors nearest to the node's own, which is one of the n.

    n counts the vectors a node aggregates, not the nodes of the network: a MoNNA node that waits
    for n - f of n nodes and tolerates f passes n - f vectors here, and averages n - 2 f. Needs
    2 f < n.

    Attributes:
        f: Byzantine vectors.
        pivot: index of the node's own vector, unless the caller passes it as `reference`; at a
            server, vector 0 is then trusted.

    Raises:
        ConfigError: a parameter is out of range, or 2 f >= n.
    """

    f: int = 0
    pivot: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivot < 0:
            raise ConfigError(f"{self.name}: pivot={self.pivot}: must be an index, at least 0")

    @property
    def reference(self) -> Reference:
        """The node's own vector."""
        return "own-vector"

    @property
    def invariances(self) -> Invariances:
        """Permutation if the own vector is passed as reference."""
        return OF_DISTANCES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1 and the pivot is one of them."""
        check_bound(self.name, n, self.f, 2, 1)
        if self.pivot >= n:
            raise ConfigError(f"{self.name}: pivot={self.pivot} of {n} vectors: choose a lower one")

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of the nearest vectors, shape (d,)."""
        own = context.reference
        if own is None:
            own = rows.combine(np.eye(len(rows))[self.pivot])
        keep = len(rows) - self.f
        a = np.zeros(len(rows))
        a[np.argsort(rows.distances_to(own), kind="stable")[:keep]] = 1.0 / keep
        return rows.combine(a)
