"""Clustered sampling: one client from each of m distributions, without bias and with less variance.

Fraboni, Vidal, Kameni, Lorenzi, "Clustered Sampling: Low-Variance and Improved Representativity for
Clients Selection in Federated Learning", arXiv:2105.05883 (ICML 2021), Algorithms 1 and 2; details
as in the authors' code (Accenture/Labs-Federated-Learning, branch clustered_sampling).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.selection.selection import Choice, Opening, RoundEnd
from fl.selection.sizes import BySize, Sizes
from fl.vectors.rows import Row

Matrix = NDArray[np.float64]

Distance = Literal["angle", "l1", "l2"]

_ROUNDING = 1e-9  # of masses, which are about 1


class KnownGradients(NamedTuple):
    """What clustered sampling knows.

    Attributes:
        sizes: of the clients.
        latest: representative gradient of each client that has replied, the last change that it
            made of the model, shape (d,), float32.
    """

    sizes: Sizes = Sizes()
    latest: Mapping[int, Row] = {}


@dataclass(frozen=True)
class _Clustered(BySize):
    """Base: draws one client from each of the distributions, W_1, ..., W_m.

    Row k of r, shape (m, n), is W_k; every row has the sum 1, and column i the sum m p_i, p_i being
    client i's share of the examples of all that are there. So a client is drawn m p_i times on
    average, as often as in m draws by p, with a variance of sum_k r_ki (1 - r_ki), which is at most
    that of these, m p_i (1 - p_i).

    A client that is drawn several times trains once, and its update weighs so many times that of
    another: (1/m) sum over the draws. In the authors' code it trains several times, on other
    batches. A round that ends before all have answered is biased after all.
    """

    def init(self, num_rounds: int) -> KnownGradients:
        """Returns the state in which nothing is known of any client."""
        return KnownGradients()

    def select(self, state: KnownGradients, opening: Opening) -> tuple[Choice, KnownGradients]:
        """Returns the clients that were drawn, weighted by how often."""
        clients, p = self.with_examples(state, opening.idle)
        if not clients:
            return Choice(()), state
        r = self.distributions(state, clients, p, opening)
        rng = opening.rng("clustered")
        draws = Counter(int(rng.choice(len(clients), p=row / row.sum())) for row in r)
        return Choice([clients[i] for i in draws], [float(k) for k in draws.values()]), state

    @abstractmethod
    def distributions(
        self, state: KnownGradients, clients: list[int], p: Matrix, opening: Opening
    ) -> Matrix:
        """Returns r for clients with shares p, shape (m, len(clients))."""


@dataclass(frozen=True)
class ClusteredBySize(_Clustered):
    """Algorithm 1: clients of similar size share a distribution; see `by_size`."""

    def distributions(
        self, state: KnownGradients, clients: list[int], p: Matrix, opening: Opening
    ) -> Matrix:
        """Returns r of Algorithm 1."""
        return by_size(p, opening.count)


@dataclass(frozen=True)
class ClusteredBySimilarity(_Clustered):
    """Algorithm 2: clients whose changes of the model are alike share a distribution.

    A client's representative gradient is the last change that it made of the model, 0 before the
    first. Clients are joined by Ward's linkage of the distances between these; see `by_similarity`.
    The server keeps a model for each client, and compares all of those that are there in each
    round: n^2 d work.

    Attributes:
        distance: "angle", arccos of the cosine, 0 if one is 0; "l1"; or "l2", squared.

    Raises:
        ConfigError: an argument is out of its range.
    """

    keeps_changes: ClassVar[bool] = True

    distance: Distance = "angle"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in ("angle", "l1", "l2"):
            raise ConfigError(f"distance is {self.distance!r}; it must be 'angle', 'l1' or 'l2'")

    def learn(self, state: KnownGradients, end: RoundEnd) -> KnownGradients:
        """Notes the clients' changes of the model."""
        new = {
            reply.client: reply.delta
            for reply in end.replies
            if reply.delta is not None and np.isfinite(reply.delta).all()
        }
        return state._replace(latest={**state.latest, **new})

    def distributions(
        self, state: KnownGradients, clients: list[int], p: Matrix, opening: Opening
    ) -> Matrix:
        """Returns r of Algorithm 2."""
        d = len(next(iter(state.latest.values()), ()))
        gradients = np.stack([state.latest.get(i, np.zeros(d, np.float32)) for i in clients])
        distances = pairwise(gradients, self.distance)
        return by_similarity(p, opening.count, distances, opening.rng("clusters"))


def by_size(p: Matrix, m: int) -> Matrix:
    """Returns r of Algorithm 1, shape (m, n).

    Clients in descending order of p pour their mass m p_i into distributions of capacity 1, one
    after the other; what does not fit goes into the next one.

    Args:
        p: shares of the clients, positive, of sum 1, shape (n,).
        m: how many distributions.
    """
    order = np.argsort(-p, kind="stable")
    r = np.zeros((m, len(p)))
    _pour(r, order, m * p)
    return r


def by_similarity(p: Matrix, m: int, distances: Matrix, rng: np.random.Generator) -> Matrix:
    """Returns r of Algorithm 2, shape (m, n).

    A client with m p_i >= 1 fills floor(m p_i) distributions alone. The others, and what is left of
    these, are clustered: the clusters of Ward's linkage are joined until one would have more than
    the mass 1 of a distribution. The heaviest ones begin a distribution each; clients of the
    others, the lightest cluster first and in random order within it, pour theirs into what is free.

    Args:
        p: shares of the clients, positive, of sum 1, shape (n,).
        m: how many distributions.
        distances: between all pairs, shape (n, n).
        rng: for the order within clusters.
    """
    n = len(p)
    alone = np.floor(m * p + _ROUNDING).astype(int)
    r = np.zeros((m, n))
    r[np.arange(alone.sum()), np.repeat(np.arange(n), alone)] = 1.0
    rest = r[alone.sum() :]
    mass = np.maximum(m * p - alone, 0.0)
    left = np.flatnonzero(mass > _ROUNDING)
    if not len(rest):
        return r
    among = distances[np.ix_(left, left)][np.triu_indices(len(left), 1)]
    clusters = _clusters(among, mass[left])
    heaviest = sorted(clusters, key=lambda c: -mass[left[c]].sum())
    for row, cluster in zip(rest, heaviest, strict=False):
        row[left[cluster]] = mass[left[cluster]]
    others = [left[rng.permutation(cluster)] for cluster in reversed(heaviest[len(rest) :])]
    if others:
        _pour(rest, np.concatenate(others), mass)
    return r


def _pour(r: Matrix, order: NDArray[np.intp], mass: Matrix) -> None:
    """Pours the masses of clients, in this order, into what rows of r lack to the sum 1."""
    free = np.maximum(1.0 - r.sum(axis=1), 0.0)
    # Mass and room as intervals of one line: what overlaps flows.
    ends, bounds = np.cumsum(mass[order]), np.cumsum(free)
    begins, lows = ends - mass[order], bounds - free
    flows = np.minimum(ends, bounds[:, None]) - np.maximum(begins, lows[:, None])
    r[:, order] += np.maximum(flows, 0.0)


def _clusters(distances: Matrix, mass: Matrix) -> list[list[int]]:
    """Returns the clusters before the first join of Ward's linkage to a mass above 1.

    Args:
        distances: between all pairs i < j, row by row, shape (n (n - 1) / 2,).
        mass: of what is clustered, shape (n,).
    """
    from scipy.cluster.hierarchy import linkage

    n = len(mass)
    joins = linkage(distances, "ward")[:, :2].astype(int) if n > 1 else ()
    clusters = {i: [i] for i in range(n)}
    for step, (a, b) in enumerate(joins):
        if mass[clusters[a] + clusters[b]].sum() > 1 + _ROUNDING:
            break
        clusters[n + step] = clusters.pop(a) + clusters.pop(b)
    return list(clusters.values())


def pairwise(x: Row, distance: Distance) -> Matrix:
    """Returns the distances between all pairs of rows, shape (n, n), of rows (n, d)."""
    if distance != "angle":
        from scipy.spatial.distance import cdist

        return np.asarray(cdist(x, x, "cityblock" if distance == "l1" else "sqeuclidean"))
    norms = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    unit = x / np.where(norms > 0, norms, 1.0)[:, None]
    angles = np.arccos(np.clip(unit @ unit.T, -1.0, 1.0))
    angles[norms == 0] = angles[:, norms == 0] = 0.0
    np.fill_diagonal(angles, 0.0)
    return np.asarray(angles)
