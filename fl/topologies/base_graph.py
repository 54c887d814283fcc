"""Base-(k+1) graphs: exact agreement after few rounds, for any number of nodes.

Takezawa, Sato, Bao, Niwa, Yamada: Beyond Exponential Graph: Communication-Efficient Topologies for
Decentralized Learning via Finite-time Convergence, NeurIPS 2023, arXiv:2305.11420. The order of
nodes and edges, which the paper leaves open in places, is that of the authors' code,
github.com/yukiTakezawa/BaseGraph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fl.topologies.topology import Topology
from fl.topologies.weights import Stochasticity

Nodes = NDArray[np.int64]


class _Round:
    """The edges of one round as they are collected; what is missing to row sums of 1 is one's own.

    Every node is in at most one group or link of a round, except for those that link to one node of
    each of several blocks.
    """

    def __init__(self) -> None:
        self.i: list[Nodes] = []
        self.j: list[Nodes] = []
        self.w: list[NDArray[np.float64]] = []

    def link(self, a: Nodes, b: Nodes, weight: float) -> None:
        """Adds the edges (a[l], b[l]), both ways."""
        self.i += [a, b]
        self.j += [b, a]
        self.w += [np.full(2 * len(a), weight)]

    def average(self, groups: Nodes) -> None:
        """Lets every row of `groups`, (number, size), take its mean."""
        size = groups.shape[1]
        for a in range(size):
            for b in range(a + 1, size):
                self.link(groups[:, a], groups[:, b], 1.0 / size)

    def matrix(self, n: int) -> csr_array:
        """Returns W, shape (n, n)."""
        i, j, w = (np.concatenate(part) for part in (self.i, self.j, self.w))
        rest = 1.0 - np.bincount(i, w, minlength=n)
        every = np.arange(n)
        return csr_array(
            (np.append(w, rest), (np.append(i, every), np.append(j, every))), shape=(n, n)
        )


@dataclass(frozen=True)
class BaseGraph(Topology):
    """A sequence of graphs of degree at most k whose product is the exact mean, for every n.

    Three constructions build on each other:

    - n with no prime factor above k + 1 (the k-peer hyper-hypercube, Algorithm 1): n = f_1 ... f_L
      with f_l <= k + 1; in round l those nodes average that differ in the l-th digit alone.
    - other n (the simple base-(k+1) graph, Algorithm 2): n = sum_l n_l, n_l = a_l (k+1)^{p_l}, the
      digits of n. Each subset V_l of n_l nodes averages; then, subset after subset, V_l and all
      later ones exchange so that each block of V_l holds the mean in sum; last, blocks average.
    - the base-(k+1) graph (Algorithm 3): n = p q, q without a prime factor up to k + 1; p times the
      simple graph of q nodes, then hyper-hypercubes of p nodes. The simple graph of n nodes is
      taken instead where it is shorter.

    All W are symmetric and doubly stochastic, with weights of their own. The length is at most
    2 log_{k+1} n + 2. For k = 1 and n = 2^m it is m rounds of a one-peer hypercube. A node that
    misses a round spoils the exactness of the period.

    Attributes:
        num_nodes: n, at least 2.
        k: largest degree, from 1 to n - 1.

    Raises:
        ConfigError: k is out of range.
    """

    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_neighbours(self.k)

    @property
    def period(self) -> int:
        """Rounds to exact agreement."""
        return len(self._rounds)

    @property
    def stochasticity(self) -> Stochasticity:
        """Symmetric."""
        return "symmetric"

    def mixing(self, t: int) -> csr_array:
        """Returns the matrix of round t."""
        return self._rounds[t].matrix(self.num_nodes)

    @cached_property
    def _rounds(self) -> list[_Round]:
        n, k = self.num_nodes, self.k
        nodes = np.arange(n)
        simple = _simple(nodes[None], k)
        p = _smooth_part(n, k)
        if p in (1, n):
            return simple
        groups = nodes.reshape(p, n // p)
        base = _simple(groups, k) + _hypercube(groups.T, k)
        return simple if len(simple) < len(base) else base


def _hypercube(sets: Nodes, k: int) -> list[_Round]:
    """Returns the hyper-hypercube's rounds for every row of `sets`, (number, size), at once."""
    rounds = [_Round() for _ in _factors(sets.shape[1], k)]
    for m in range(len(rounds)):
        _hypercube_round(rounds[m], sets, k, m)
    return rounds


def _hypercube_round(made: _Round, sets: Nodes, k: int, m: int) -> None:
    """Adds round m, counted on after the last, of the hyper-hypercubes of the rows of `sets`."""
    factors = _factors(sets.shape[1], k)
    if not factors:
        return
    m %= len(factors)
    stride = int(np.prod(factors[:m], dtype=np.int64))
    digits = sets.reshape(-1, factors[m], stride)  # (all higher digits, the m-th, all lower)
    made.average(digits.transpose(0, 2, 1).reshape(-1, factors[m]))


def _simple(sets: Nodes, k: int) -> list[_Round]:
    """Returns the simple base-(k+1) graph's rounds for all rows of `sets`, (number, n)."""
    n = sets.shape[1]
    if _smooth_part(n, k) == n:
        return _hypercube(sets, k)
    sizes, powers = _digits(n, k + 1)
    bounds = np.cumsum([0, *sizes])
    V = [sets[:, a:b] for a, b in pairwise(bounds)]
    L = len(V)
    first = len(_factors(sizes[0], k))
    last = len(_factors(powers[0], k))
    rounds = []
    for m in range(first + 1 + last):
        made = _Round()
        rounds.append(made)
        for v in range(L):
            step = m - first - v  # rounds since V_v exchanged with the later ones
            if m < first:
                _hypercube_round(made, V[v], k, m)
            elif step == 0 and v < L - 1:
                _exchange(made, V[v], np.hstack(V[:v:-1]), powers[v], k)
            elif step >= 0:
                since = step - (v < L - 1)
                blocks = V[v] if sizes[v] <= k else V[v].reshape(-1, powers[v])
                _hypercube_round(made, blocks, k, since)
    return rounds


def _exchange(made: _Round, V: Nodes, later: Nodes, power: int, k: int) -> None:
    """Links every later node to one of each block of V; the rest of V averages in small groups."""
    size, users = V.shape[1], later.shape[1]
    blocks = V.reshape(len(V), -1, power)
    weight = power / (size + users)  # the share of V's nodes, divided among its blocks
    for block in range(blocks.shape[1]):
        partners = blocks[:, block, ::-1][:, :users]
        made.link(later.ravel(), partners.ravel(), weight)
    free = blocks[:, :, : power - users].reshape(len(V), -1)
    for start in range(0, free.shape[1], k + 1):
        made.average(free[:, start : start + k + 1])


def _factors(n: int, k: int) -> list[int]:
    """Returns f_1 <= ... <= f_L <= k + 1 whose product is n, large ones preferred."""
    factors: list[int] = []
    for factor in range(k + 1, 1, -1):
        while n % factor == 0:
            factors.insert(0, factor)
            n //= factor
    return factors


def _smooth_part(n: int, k: int) -> int:
    """Returns the largest divisor of n without a prime factor above k + 1."""
    return int(np.prod(_factors(n, k), dtype=np.int64))


def _digits(n: int, base: int) -> tuple[list[int], list[int]]:
    """Returns n's digits other than 0, highest first: a_l base^p_l, and base^p_l."""
    sizes: list[int] = []
    powers: list[int] = []
    power = 1
    while power <= n:
        digit = n // power % base
        if digit:
            sizes.insert(0, digit * power)
            powers.insert(0, power)
        power *= base
    return sizes, powers
