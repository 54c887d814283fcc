"""Random graphs by networkx's generators, drawn once and connected, or drawn anew every round."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

from fl.errors import ConfigError
from fl.randomness import generator
from fl.topologies.topology import Weighted, adjacency_of
from fl.topologies.weights import MetropolisHastings, Weights

ATTEMPTS = 100


@dataclass(frozen=True)
class RandomGraph(Weighted):
    """A graph drawn from (seed, kind, round, attempt).

    A graph that stays is the first connected one (strongly, if directed) of ATTEMPTS. Graphs that
    are drawn anew every round are taken as they come: it is their union that has to connect.

    Attributes:
        num_nodes: n.
        seed: of the draws.
        redraw: a new graph every round.
        weights: of the edges.
    """

    seed: int = 0
    redraw: bool = False
    weights: Weights = field(default=MetropolisHastings())

    @property
    def period(self) -> int | None:
        """1, or None if graphs are drawn anew."""
        return None if self.redraw else 1

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> nx.Graph | nx.DiGraph:
        """Returns one graph, connected or not."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to change so that more graphs are connected."""

    def heard(self, t: int) -> csr_array:
        """Returns the graph of round t.

        Raises:
            ConfigError: none of ATTEMPTS graphs was connected.
        """
        if self.redraw:
            return adjacency_of(self.draw(generator(self.seed, "topology", self._name, t)))
        connected = nx.is_strongly_connected if self.directed else nx.is_connected
        for attempt in range(ATTEMPTS):
            graph = self.draw(generator(self.seed, "topology", self._name, "connected", attempt))
            if connected(graph):
                return adjacency_of(graph)
        raise ConfigError(
            f"{self._name}: none of {ATTEMPTS} graphs of {self.num_nodes} nodes was connected: "
            f"{self.remedy}, or set redraw=true"
        )


@dataclass(frozen=True)
class ErdosRenyi(RandomGraph):
    """G(n, p): every pair of nodes is an edge with probability p, each direction on its own if so.

    Connected almost surely for p well above ln(n) / n. By `networkx.fast_gnp_random_graph`.

    Attributes:
        num_nodes: n, at least 2.
        seed: of the draws.
        redraw: a new graph every round.
        weights: of the edges; of a directed graph `PushSum` or `NeighbourAverage`.
        p: in (0, 1].
        directed: directions are drawn one by one.

    Raises:
        ConfigError: p is out of range; on use, if no graph is connected.
    """

    p: float = 0.3
    directed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability(self._name, self.p)
        if self.p == 0:
            raise ConfigError("ErdosRenyi: p is 0, which gives no edges; it must be in (0, 1]")

    @property
    def remedy(self) -> str:
        """A larger p."""
        n = self.num_nodes
        return f"p is {self.p}; raise it above ln(n)/n = {math.log(n) / n:.2g}"

    def draw(self, rng: np.random.Generator) -> nx.Graph | nx.DiGraph:
        """Returns G(n, p)."""
        if self.p == 1:  # which the fast algorithm leaves out
            return nx.complete_graph(self.num_nodes, nx.DiGraph if self.directed else None)
        return nx.fast_gnp_random_graph(self.num_nodes, self.p, rng, self.directed)


@dataclass(frozen=True)
class WattsStrogatz(RandomGraph):
    """A ring where everyone hears the k nearest, with each edge's far end moved with probability p.

    Small p is almost a lattice, p = 1 almost random; short paths appear long before clusters go.
    By `networkx.watts_strogatz_graph`.

    Watts, Strogatz: Collective dynamics of 'small-world' networks, Nature 393 (1998).

    Attributes:
        num_nodes: n.
        seed: of the draws.
        redraw: a new graph every round.
        weights: of the edges.
        k: mean degree, even, from 2 to n - 1.
        p: in [0, 1].

    Raises:
        ConfigError: k or p is out of range; on use, if no graph is connected.
    """

    k: int = 4
    p: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("k", self.k, 2)
        check_probability(self._name, self.p)
        if self.k % 2 or self.k >= self.num_nodes:
            raise ConfigError(
                f"WattsStrogatz: k is {self.k}, of {self.num_nodes} nodes; it must be even and "
                f"less than their number: take an even k from 2 to {self.num_nodes - 1}"
            )

    @property
    def remedy(self) -> str:
        """A larger k, or a smaller p."""
        return f"k is {self.k} and p is {self.p}; raise k, or lower p"

    def draw(self, rng: np.random.Generator) -> nx.Graph:
        """Returns a graph, connected or not."""
        return nx.watts_strogatz_graph(self.num_nodes, self.k, self.p, rng)


@dataclass(frozen=True)
class RandomRegular(RandomGraph):
    """A graph in which everyone has k neighbours, all such graphs about equally likely.

    Weights 1 / (k + 1). For large n the gap is about 1 - (1 + 2 sqrt(k - 1)) / (k + 1), whatever n
    (Friedman: A proof of Alon's second eigenvalue conjecture, arXiv:cs/0405020). With `redraw`, the
    EL-Oracle of epidemic learning (arXiv:2310.01972). By `networkx.random_regular_graph`.

    Attributes:
        num_nodes: n.
        seed: of the draws.
        redraw: a new graph every round.
        weights: of the edges.
        k: degree, from 1 to n - 1; n k is even.

    Raises:
        ConfigError: k is out of range or n k odd; on use, if no graph is connected.
    """

    k: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_neighbours(self.k)
        n = self.num_nodes
        if self.k * n % 2:
            raise ConfigError(
                f"RandomRegular: k is {self.k}, of {n} nodes; k times num_nodes must be even: "
                f"take an even k, or {n + 1} nodes"
            )
        if self.k == 1 and n > 2 and not self.redraw:
            raise ConfigError(
                f"RandomRegular: k is 1, which connects pairs but not {n} nodes: take k of at "
                "least 2, or redraw=true"
            )

    @property
    def regular(self) -> bool:
        """All degrees are k."""
        return True

    @property
    def remedy(self) -> str:
        """A larger k."""
        return f"k is {self.k}; take 3 or more, of which almost all graphs are connected"

    def draw(self, rng: np.random.Generator) -> nx.Graph:
        """Returns a graph, connected or not."""
        n, k = self.num_nodes, self.k
        if 2 * k >= n:
            # The complement is regular too, and of few edges, which the generator needs: it has to
            # find the last pairs that are free.
            return nx.complement(nx.random_regular_graph(n - 1 - k, n, rng))
        return nx.random_regular_graph(k, n, rng)


def check_probability(name: str, p: float) -> None:
    """Raises ConfigError unless p is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ConfigError(f"{name}: p is {p}; it must be in [0, 1]")
