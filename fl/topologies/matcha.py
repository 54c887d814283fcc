"""MATCHA: links that are used the more often, the more they matter for how fast nodes agree.

Wang, Sahu, Yang, Joshi, Kar, "MATCHA: Speeding Up Decentralized SGD via Pairing Decomposition
Sampling", arXiv:1905.09435, section 3; the authors' code, github.com/JYWa/MATCHA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fl.checks import fraction, is_a, read_if
from fl.errors import ConfigError
from fl.randomness import generator
from fl.topologies.topology import Topology
from fl.topologies.weights import Stochasticity

Pairing = list[tuple[int, int]]
Matrix = NDArray[np.float64]

_GAP = 1e-6  # of lambda_2, relative, between the probabilities that are taken and the best
_PASSES = 5_000
_LEAST = 0.001  # budget, below which probabilities are lost in the tolerance of the programmes


@read_if(
    lambda _: False,
    "base.weights",
    only="mixing weights are found for the matchings, from the graph alone",
)
@dataclass(frozen=True)
class MATCHA(Topology):
    """A graph in matchings, each of which takes part in a round by its own probability.

    A node that talks to one neighbour at a time needs as long for a round as there are matchings in
    it; these are `budget` of all, on average. With Laplacians L_j of the M matchings,

        p      maximises lambda_2(sum_j p_j L_j),  0 <= p_j <= 1,  sum_j p_j <= budget M
        alpha  minimises rho = ||E[W_t^2] - 11^T/n||_2 of
        W_t    = I - alpha sum_j B_j L_j,  B_j = 1 with probability p_j, drawn for round t

    so that links between parts that few links join are used more often. Every W_t is symmetric, and
    its rows sum to 1. Where many links of a node are used at once its own model may have a negative
    weight: it is over the rounds that nodes agree, |X - mean|^2 falling by rho a round at least, on
    average. `budget` 1 uses every link in every round.

    A graph of largest degree D has D or D + 1 matchings (Vizing), which Misra and Gries' algorithm
    finds. The authors' code takes perfect matchings first, and p from a semidefinite programme.
    Here p is the limit of linear ones, Kelley's cutting planes, within 1e-6 of the best lambda_2,
    as that is the least v^T (sum_j p_j L_j) v of unit vectors v of sum 0.

    Attributes:
        num_nodes: n, at least 2.
        base: the graph: undirected and connected, and it stays. Its weights are not used.
        seed: of the draws.
        budget: share of the matchings that a round uses on average, in [0.001, 1].

    Raises:
        ConfigError: `budget` is out of range, or no probabilities are found; the graph is another
            kind, or has other nodes.
    """

    base: Topology
    seed: int = 0
    budget: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("budget", self.budget)
        is_a("base", self.base, Topology, "Ring")
        kind, there = type(self.base).__name__, self.base.num_nodes
        if there != self.num_nodes:
            raise ConfigError(
                f"MATCHA: num_nodes is {self.num_nodes}, and base is a {kind} of {there} nodes; "
                "they must be as many: set both, or num_clients alone"
            )
        if self.base.directed or self.base.period != 1 or not nx.is_connected(self.base.graph(0)):
            raise ConfigError(
                f"MATCHA: base is {kind}; it must be an undirected graph that stays and is "
                "connected: use topology@topology.base=ring, torus, random_regular or erdos_renyi"
            )
        if self.budget < _LEAST:
            raise ConfigError(
                f"MATCHA: budget is {self.budget:g}; it must be at least {_LEAST}, as a network "
                "that hardly ever meets is apart: use strategy=local for that"
            )
        self.probabilities  # noqa: B018 (found before anything starts, and kept)

    @property
    def period(self) -> None:
        """None."""
        return None

    @property
    def stochasticity(self) -> Stochasticity:
        """Symmetric."""
        return "symmetric"

    @property
    def signed(self) -> bool:
        """Yes."""
        return True

    @cached_property
    def matchings(self) -> list[Pairing]:
        """The M matchings that the graph is cut into, their edges (a, b), a < b, in order."""
        return matchings_of(self.base.graph(0))

    @cached_property
    def probabilities(self) -> Matrix:
        """The p_j, shape (M,)."""
        p = activation(self._laplacians, self.budget)
        p.flags.writeable = False
        return p

    @cached_property
    def alpha(self) -> float:
        """The weight of a link that is used."""
        return self._mixing_weight[0]

    @cached_property
    def rho(self) -> float:
        """||E[W_t^2] - 11^T/n||_2, below 1."""
        return self._mixing_weight[1]

    @cached_property
    def _mixing_weight(self) -> tuple[float, float]:
        return mixing_weight(self._laplacians, self.probabilities)

    @cached_property
    def _laplacians(self) -> Matrix:
        L = np.zeros((len(self.matchings), self.num_nodes, self.num_nodes))
        for j, matching in enumerate(self.matchings):
            a, b = np.array(matching).T
            L[j, a, a] = L[j, b, b] = 1.0
            L[j, a, b] = L[j, b, a] = -1.0
        return L

    def used(self, t: int) -> NDArray[np.bool_]:
        """Returns which matchings take part in round t, shape (M,): the B_j."""
        rng = generator(self.seed, "topology", self._name, t)
        return np.asarray(rng.random(len(self.matchings)) < self.probabilities)

    def mixing(self, t: int) -> csr_array:
        """Returns W_t; every node has an entry for itself, which may be 0 or negative."""
        n, used = self.num_nodes, self.used(t)
        edges = [edge for j in np.flatnonzero(used) for edge in self.matchings[j]]
        a, b = np.array(edges, dtype=np.int64).reshape(-1, 2).T
        degree = np.bincount(np.append(a, b), minlength=n)
        every = np.arange(n)
        values = np.concatenate([np.full(2 * len(a), self.alpha), 1.0 - self.alpha * degree])
        places = np.concatenate([a, b, every]), np.concatenate([b, a, every])
        return csr_array((values, places), shape=(n, n))


def matchings_of(graph: nx.Graph) -> list[Pairing]:
    """Returns matchings that have every edge of a graph once: at most one more than its degree.

    Misra, Gries: A constructive proof of Vizing's theorem, Inf. Proc. Letters 41 (1992). Edges are
    coloured one at a time; `at[v][c]` is whom v is joined to by its edge of colour c.

    Args:
        graph: of nodes that can be sorted.
    """
    at: dict[int, dict[int, int]] = {v: {} for v in graph}
    colour: dict[tuple[int, int], int] = {}

    def paint(a: int, b: int, c: int) -> None:
        at[a][c], at[b][c] = b, a
        colour[a, b] = colour[b, a] = c

    def clear(a: int, b: int) -> int:
        c = colour.pop((a, b))
        del colour[b, a], at[a][c], at[b][c]
        return c

    def free(v: int) -> int:
        return next(c for c in count() if c not in at[v])

    for u, v in sorted((min(edge), max(edge)) for edge in graph.edges):
        fan = [v]  # the colour of each edge from u, after the first, is free at the one before
        others = sorted(set(at[u].values()))
        while (k := next((k for k in others if colour[u, k] not in at[fan[-1]]), None)) is not None:
            fan.append(k)
            others.remove(k)
        c, d = free(u), free(fan[-1])
        path, end, along = [], u, d  # from u, of colours d and c in turn
        while along in at[end]:
            path.append((end, at[end][along], c + d - along))
            end, along = at[end][along], c + d - along
        for a, b, _ in path:
            clear(a, b)
        for a, b, swapped in path:
            paint(a, b, swapped)
        k = next(k for k, w in enumerate(fan) if d not in at[w])
        moved = [clear(u, w) for w in fan[1 : k + 1]]
        for w, c_of_next in zip(fan[:k], moved, strict=True):
            paint(u, w, c_of_next)
        paint(u, fan[k], d)
    found: dict[int, Pairing] = {}
    for (a, b), c in sorted(colour.items()):
        if a < b:
            found.setdefault(c, []).append((a, b))
    return [found[c] for c in sorted(found)]


def activation(laplacians: Matrix, budget: float) -> Matrix:
    """Returns p that maximises lambda_2(sum_j p_j L_j), shape (M,).

    Of 0 <= p_j <= 1 and sum_j p_j <= budget M. Each linear programme bounds lambda_2 by the
    eigenvectors that were found so far, and its value is a bound on the best. It is solved for
    p / budget, so that its tolerances are those of numbers near 1.

    Args:
        laplacians: L_j of connected sum, shape (M, n, n).
        budget: in (0, 1].

    Raises:
        ConfigError: no p within 1e-6 of the bound was found.
    """
    from scipy.optimize import linprog  # heavy, and few come here

    M, n = laplacians.shape[:2]
    p, most = np.ones(M), 1.0 / budget
    best, best_p, bound = -np.inf, p, np.inf
    cuts: list[Matrix] = []  # lambda_2 <= cut p
    for number in range(_PASSES):
        # 11^T moves the eigenvalue of the mean above all others.
        values, V = np.linalg.eigh(np.tensordot(p, laplacians, 1) + 2.0)
        if values[0] > best:
            best, best_p = float(values[0]), p
        near = V[:, : max(1, np.count_nonzero(values[: n - 1] < 1.05 * values[0] + 1e-9))]
        cuts += list(np.einsum("ik,mij,jk->km", near, laplacians, near))
        if number % 2 == 0:  # between the best so far and where the programme is best, in turn
            A = np.vstack([np.column_stack([-np.array(cuts), np.ones(len(cuts))]), [1.0] * M + [0]])
            found = linprog(
                [0.0] * M + [-1.0],
                A,
                [0.0] * len(cuts) + [float(M)],
                bounds=[(0, most)] * M + [(0, None)],
            )
            bound, target = -found.fun, np.clip(found.x[:M], 0, most)
            if bound - best <= _GAP * bound:
                return np.minimum(budget * best_p, 1.0)
            p = (target + best_p) / 2
        else:
            p = target
    raise ConfigError(
        f"MATCHA: lambda_2 is {budget * best:.6g} after {_PASSES} passes, and may be up to "
        f"{budget * bound:.6g}: use "
        "another budget or base"
    )


def mixing_weight(laplacians: Matrix, p: Sequence[float] | Matrix) -> tuple[float, float]:
    """Returns alpha that minimises ||E[W^2] - 11^T/n||_2, and that norm.

    E[W^2] = I - 2 alpha E[L] + alpha^2 (E[L]^2 + 2 sum_j p_j (1 - p_j) L_j), as L_j^2 = 2 L_j; its
    largest eigenvalue is convex in alpha. The paper's semidefinite programme has another variable
    for alpha^2, which is equal to it where the norm is least.

    Args:
        laplacians: L_j, shape (M, n, n).
        p: probabilities, shape (M,).
    """
    from scipy.optimize import minimize_scalar  # heavy, and few come here

    p = np.asarray(p)
    mean = np.tensordot(p, laplacians, 1)
    square = mean @ mean + 2.0 * np.tensordot(p * (1.0 - p), laplacians, 1)
    rest = np.eye(len(mean)) - 1.0 / len(mean)

    def norm(alpha: float) -> float:
        return float(np.linalg.eigvalsh(rest - 2.0 * alpha * mean + alpha**2 * square)[-1])

    # E[W^2] = I on what is left of the mean is reached again at most at 2 / lambda_2(E[L]).
    most = 2.0 / np.linalg.eigvalsh(mean + 2.0 * mean.trace() / len(mean))[0]
    found = minimize_scalar(norm, bounds=(0.0, float(most)), options={"xatol": 1e-9 * most})
    return float(found.x), float(found.fun)
