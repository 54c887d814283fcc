"""Products of small graphs: the torus, of two rings, and the hypercube, of edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array

from fl.errors import ConfigError
from fl.topologies.topology import Weighted
from fl.topologies.weights import MetropolisHastings, Weights


@dataclass(frozen=True)
class Torus(Weighted):
    """A grid of rows x cols nodes whose borders meet; node r cols + c; weights 1/5.

    Eigenvalues (1 + 2 cos(2 pi p / rows) + 2 cos(2 pi q / cols)) / 5.

    Attributes:
        num_nodes: n = rows cols, both at least 3.
        rows: None chooses the most square grid, with rows <= cols.
        cols: None follows from rows.
        weights: of the edges.

    Raises:
        ConfigError: n is not rows times cols, or one of them is below 3, or n has no such factors.
    """

    rows: int | None = None
    cols: int | None = None
    weights: Weights = field(default=MetropolisHastings())

    def __post_init__(self) -> None:
        self.check_whole("num_nodes", self.num_nodes, 9)
        for name in ("rows", "cols"):
            if getattr(self, name) is not None:
                self.check_whole(name, getattr(self, name), 3, "with fewer use topology=ring")
        rows, cols = self.shape
        if rows * cols != self.num_nodes or min(rows, cols) < 3:
            near = [n for n in range(9, self.num_nodes + 9) if _most_square(n) >= 3]
            raise ConfigError(
                f"Torus: num_nodes is {self.num_nodes}, rows {self.rows}, cols {self.cols}; "
                "num_nodes must be rows times cols, both at least 3: leave both null, and take "
                f"{min(near, key=lambda n: abs(n - self.num_nodes))} nodes, or topology=ring"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.rows is None and self.cols is None:
            rows = _most_square(self.num_nodes)
            return rows, self.num_nodes // rows
        rows = self.rows or self.num_nodes // (self.cols or 1)
        return rows, self.cols or self.num_nodes // rows

    @property
    def regular(self) -> bool:
        """All degrees are 4."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the torus."""
        grid = np.arange(self.num_nodes).reshape(self.shape)
        senders = [np.roll(grid, shift, axis).ravel() for axis in (0, 1) for shift in (1, -1)]
        return _adjacency(grid.ravel(), senders)


@dataclass(frozen=True)
class Hypercube(Weighted):
    """n = 2^k nodes; those hear each other whose numbers differ in one bit; weights 1/(k+1).

    Eigenvalues 1 - 2 j / (k + 1), j = 0..k, C(k, j) times; gap 2 / (k + 1).

    Attributes:
        num_nodes: n, a power of 2, at least 2.
        weights: of the edges.

    Raises:
        ConfigError: n is no power of 2.
    """

    weights: Weights = field(default=MetropolisHastings())

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.num_nodes
        if n & (n - 1):
            below = 1 << (n.bit_length() - 1)
            raise ConfigError(
                f"Hypercube: num_nodes is {n}; it must be a power of 2: take {below} or "
                f"{2 * below}, or topology=base, which is as fast for any number of nodes"
            )

    @property
    def regular(self) -> bool:
        """All degrees are k."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the hypercube."""
        nodes = np.arange(self.num_nodes)
        bits = range(self.num_nodes.bit_length() - 1)
        return _adjacency(nodes, [nodes ^ (1 << bit) for bit in bits])


def _adjacency(nodes: np.ndarray, senders: list[np.ndarray]) -> csr_array:
    """Returns A where node i hears the i-th of each array of senders; all are different."""
    ones = np.ones(len(nodes) * len(senders), dtype=np.int8)
    where = (np.tile(nodes, len(senders)), np.concatenate(senders))
    return csr_array((ones, where), shape=(len(nodes), len(nodes)))


def _most_square(n: int) -> int:
    """Returns the largest factor of n up to its root."""
    return next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
