"""Trees: one way from everybody to everybody."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx
from scipy.sparse import csr_array

from fl.topologies.topology import Weighted, adjacency_of
from fl.topologies.weights import MetropolisHastings, Weights


@dataclass(frozen=True)
class Tree(Weighted):
    """A node and the k it has below it, level by level: node i hears (i - 1) // k.

    n - 1 edges, and at most 2 log_k n + 2 of them between any two nodes.

    Attributes:
        num_nodes: n, at least 2.
        weights: of the edges.
        k: nodes below one, from 1 to n - 1.

    Raises:
        ConfigError: k is out of range.
    """

    weights: Weights = field(default=MetropolisHastings())
    k: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_neighbours(self.k)

    def heard(self, t: int) -> csr_array:
        """Returns the tree."""
        return adjacency_of(nx.full_rary_tree(self.k, self.num_nodes))
