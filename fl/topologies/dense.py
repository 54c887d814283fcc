"""The graphs of diameter 1 and 2: everybody hears everybody, or one node hears all."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

from fl.topologies.topology import Weighted, adjacency_of
from fl.topologies.weights import MetropolisHastings, Weights


@dataclass(frozen=True)
class Complete(Weighted):
    """Every node hears every other, at weights 1/n: one round is the mean, W = 11^T / n.

    W has n^2 entries: 16 MB for 1,000 nodes, 1.6 GB for 10,000.

    Attributes:
        num_nodes: n, at least 2.
        weights: of the edges.
    """

    weights: Weights = field(default=MetropolisHastings())

    @property
    def regular(self) -> bool:
        """All degrees are n - 1."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the complete graph."""
        n = self.num_nodes
        return csr_array(np.ones((n, n), dtype=np.int8) - np.eye(n, dtype=np.int8))


@dataclass(frozen=True)
class Star(Weighted):
    """Node 0 and all others hear each other.

    With Metropolis-Hastings weights every edge has 1/n: eigenvalues 1, 1 - 1/n (n - 2 times) and 0,
    gap 1/n.

    Attributes:
        num_nodes: n, at least 2.
        weights: of the edges.
    """

    weights: Weights = field(default=MetropolisHastings())

    def heard(self, t: int) -> csr_array:
        """Returns the star."""
        return adjacency_of(nx.star_graph(self.num_nodes - 1))
