"""What a topology is: who hears whom in a round, and with what weight.

A topology is a frozen dataclass of numbers, whose methods are pure functions of the round t = 0, 1,
2, ... The matrix W_t of a round says everything: node i gives the weight W_t[i, j] to the model of
node j, models are the rows of X, and a round of gossip is X <- W_t X.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

from fl.errors import ConfigError
from fl.topologies.weights import Stochasticity, Weights


@dataclass(frozen=True)
class Topology(ABC):
    """Graphs and mixing matrices over nodes 0..n-1.

    Attributes:
        num_nodes: n, at least 2.

    Raises:
        ConfigError: n is not a whole number of at least 2.
    """

    num_nodes: int

    def __post_init__(self) -> None:
        self.check_whole("num_nodes", self.num_nodes, 2)

    def check_neighbours(self, k: int) -> None:
        """Raises a ConfigError unless a number of neighbours is whole, and from 1 to n - 1."""
        self.check_whole("k", k, 1)
        if k >= self.num_nodes:
            raise ConfigError(
                f"{self._name}: k is {k}, of {self.num_nodes} nodes; it must be less than their "
                "number: lower it, or use topology=complete"
            )

    @property
    def period(self) -> int | None:
        """Rounds until it repeats: 1 for a graph that stays; None if it never does."""
        return 1

    @property
    def directed(self) -> bool:
        """Whether a node may hear another that does not hear it."""
        return False

    @property
    def signed(self) -> bool:
        """Whether a node may give its own model a weight of 0 or less."""
        return False

    @property
    @abstractmethod
    def stochasticity(self) -> Stochasticity:
        """What holds for the matrix of every round; "symmetric" is doubly stochastic as well."""

    @abstractmethod
    def mixing(self, t: int) -> csr_array:
        """Returns the matrix of round t, freshly made; t is below the period, if there is one."""

    def matrix(self, t: int) -> csr_array:
        """Returns W_t: W_t[i, j] is the weight node i gives to the model of node j.

        Kept for the whole period, or for one round where there is none, so it is read-only.

        Args:
            t: the round, from 0.

        Returns:
            shape (n, n), float64; entries positive on the diagonal (of any sign, if `signed`) and
            where node i hears node j, not stored elsewhere; columns in order.

        Raises:
            ConfigError: t is negative; or the graph is random, and none of many was connected.
        """
        if t < 0:
            raise ConfigError(f"{self._name}: there is no round {t}; rounds count from 0")
        phase = t if self.period is None else t % self.period
        if phase not in self._kept:
            if self.period is None:
                self._kept.clear()
            W = self.mixing(phase)
            W.sum_duplicates()
            for part in (W.data, W.indices, W.indptr):
                part.flags.writeable = False
            self._kept[phase] = W
        return self._kept[phase]

    def adjacency(self, t: int) -> csr_array:
        """Returns A_t: A_t[i, j] = 1 where node i hears node j in round t, so j sends to i.

        Returns:
            shape (n, n), int8; no diagonal; `A_t.nnz` is the number of messages.
        """
        W = self.matrix(t).tocoo()
        off = W.row != W.col
        ones = np.ones(np.count_nonzero(off), dtype=np.int8)
        return csr_array((ones, (W.row[off], W.col[off])), shape=W.shape)

    def graph(self, t: int) -> nx.Graph | nx.DiGraph:
        """Returns the edges used in round t, for nodes 0..n-1, without self loops.

        In a directed graph the edge (j, i) means that j sends to i; an undirected edge is a message
        each way.
        """
        graph = nx.DiGraph() if self.directed else nx.Graph()
        graph.add_nodes_from(range(self.num_nodes))
        A = self.adjacency(t).tocoo()
        graph.add_edges_from(zip(A.col.tolist(), A.row.tolist(), strict=True))
        return graph

    @cached_property
    def _kept(self) -> dict[int, csr_array]:
        return {}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def check_whole(self, name: str, value: object, least: int, why: str = "") -> None:
        """Raises ConfigError unless a parameter is a whole number of at least `least`."""
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"{self._name}: {name} is {value!r}; it must be a whole number, at least {least}"
                + (f": {why}" if why else "")
            )


class Weighted(Topology):
    """A topology whose graph leaves the weights open."""

    @property
    @abstractmethod
    def weights(self) -> Weights:
        """The rule for weights."""

    @property
    def regular(self) -> bool:
        """Whether in every round all in- and out-degrees are equal."""
        return False

    @property
    def stochasticity(self) -> Stochasticity:
        """What the weights promise; on regular graphs, all weights are doubly stochastic."""
        if not self.regular:
            return self.weights.stochasticity
        return "doubly" if self.directed else "symmetric"

    def mixing(self, t: int) -> csr_array:
        """Returns the weights of the round's graph."""
        return self.weights(self.heard(t))

    @abstractmethod
    def heard(self, t: int) -> csr_array:
        """Returns A: A[i, j] = 1 where node i hears node j in round t; t is below the period."""


def adjacency_of(graph: nx.Graph | nx.DiGraph) -> csr_array:
    """Returns A, (n, n) int8, of a graph with nodes 0..n-1: A[i, j] = 1 for an edge from j to i."""
    n = graph.number_of_nodes()
    return csr_array(
        nx.to_scipy_sparse_array(graph, nodelist=range(n), dtype=np.int8, weight=None).T
    )


def circulant(num_nodes: int, offsets: set[int]) -> csr_array:
    """Returns A, (n, n) int8, where node j sends to j + s modulo n for each offset s."""
    steps = np.array(sorted({s % num_nodes for s in offsets} - {0}), dtype=np.int64)
    senders = np.repeat(np.arange(num_nodes), len(steps))
    receivers = (senders + np.tile(steps, num_nodes)) % num_nodes
    ones = np.ones(len(senders), dtype=np.int8)
    return csr_array((ones, (receivers, senders)), shape=(num_nodes, num_nodes))
