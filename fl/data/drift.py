"""Clients whose data change: mixtures of clusters that move in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.randomness import generator

IntArray = NDArray[np.int64]

DRIFT_BEGINS = 1_735_689_600
"""2025-01-01 in UTC, in s since 1970: time 0 of data that drift, and of a run without a date."""


@dataclass(frozen=True)
class Mixtures:
    """Of which clusters clients are, drawn once: each of one, or a Dirichlet draw.

    Attributes:
        num_clusters: K.
        alpha: concentration of the draws, above 0; None makes client p all of cluster p mod K.
        seed: of the draws.
    """

    num_clusters: int
    alpha: float | None
    seed: int

    def drawn(self, p: int, turn: int) -> NDArray[np.float64]:
        """Returns the shares of client p, shape (K,), and of its later draws, by their number."""
        if self.alpha is None:
            return np.asarray(np.eye(self.num_clusters)[(p + turn) % self.num_clusters])
        rng = generator(self.seed, "mixture", p, turn)
        return rng.dirichlet(np.full(self.num_clusters, self.alpha))


def counts_of(shares: NDArray[np.float64], n: int) -> IntArray:
    """Returns how many of n examples each cluster has, shape (K,), by largest remainders."""
    exact = shares * n
    counts = np.floor(exact + 1e-9).astype(np.int64)
    missing = n - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


@dataclass(frozen=True)
class Drift:
    """A client's mixture moves from one draw to the next, and with it its examples.

        u_p(t) = (1 - a) v_p(e) + a v_p(e + 1),    e = floor(t / T),  a = t / T - e

    with v_p(e) the e-th draw of client p. It is a function of the seed, the client and the time
    alone, so a client that was away finds what it would have found. The client keeps its n base
    examples: the source has each of them once in every cluster, cluster c at rows c B to
    (c + 1) B, and the first n u_p1(t) of the client's count as of the first cluster, and so on.

    Attributes:
        mixtures: the draws.
        period_s: T, s.
    """

    mixtures: Mixtures
    period_s: float

    def shares(self, p: int, t: float) -> NDArray[np.float64]:
        """Returns u_p(t), shape (K,)."""
        turn = math.floor(t / self.period_s)
        a = t / self.period_s - turn
        now = (1 - a) * self.mixtures.drawn(p, turn) + a * self.mixtures.drawn(p, turn + 1)
        return np.asarray(now)

    def rows(self, p: int, rows: IntArray, total: int, t: float) -> IntArray:
        """Returns the client's examples at a time.

        Args:
            p: the client.
            rows: its examples, n rows of the source; only which base examples they are counts.
            total: rows of the source, K B.
            t: s.
        """
        k = self.mixtures.num_clusters
        base = total // k
        of = np.repeat(np.arange(k), counts_of(self.shares(p, t), len(rows)))
        return np.asarray(of * base + rows % base)
