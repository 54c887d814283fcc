"""Rings and the path: the fewest edges that connect all nodes, and the slowest mixing."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx
from scipy.sparse import csr_array

from fl.topologies.topology import Weighted, adjacency_of, circulant
from fl.topologies.weights import MetropolisHastings, PushSum, Weights


@dataclass(frozen=True)
class Ring(Weighted):
    """Node i and its neighbours i - 1 and i + 1, modulo n, at weights 1/3.

    Eigenvalues (1 + 2 cos(2 pi k / n)) / 3; gap about 4 pi^2 / (3 n^2). With `LazyMetropolis` the
    weights are 1/2 and 1/4 and the gap (1 - cos(2 pi / n)) / 2.

    Attributes:
        num_nodes: n, at least 3.
        weights: of the edges.

    Raises:
        ConfigError: n is below 3.
    """

    weights: Weights = field(default=MetropolisHastings())

    def __post_init__(self) -> None:
        self.check_whole("num_nodes", self.num_nodes, 3, "use topology=complete for 2 nodes")

    @property
    def regular(self) -> bool:
        """All degrees are 2."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the ring."""
        return circulant(self.num_nodes, {-1, 1})


@dataclass(frozen=True)
class DirectedRing(Weighted):
    """Node i sends to i + 1, modulo n; both weights are 1/2.

    Doubly stochastic but not symmetric: eigenvalues (1 + exp(2 pi i k / n)) / 2, gap
    1 - cos(pi / n).

    Attributes:
        num_nodes: n, at least 2.
        weights: of the edges.
    """

    weights: Weights = field(default=PushSum())

    @property
    def directed(self) -> bool:
        """Yes."""
        return True

    @property
    def regular(self) -> bool:
        """All degrees are 1."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the ring."""
        return circulant(self.num_nodes, {1})


@dataclass(frozen=True)
class Path(Weighted):
    """Node i and its neighbours i - 1 and i + 1, without an edge between the two ends.

    With Metropolis-Hastings weights: eigenvalues (1 + 2 cos(pi k / n)) / 3, the gap of a ring of
    2 n nodes.

    Attributes:
        num_nodes: n, at least 2.
        weights: of the edges.
    """

    weights: Weights = field(default=MetropolisHastings())

    def heard(self, t: int) -> csr_array:
        """Returns the path."""
        return adjacency_of(nx.path_graph(self.num_nodes))
