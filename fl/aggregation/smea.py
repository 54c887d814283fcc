"""SMEA, smallest-maximum-eigenvalue averaging.

Allouah, Guerraoui, Gupta, Pinot, Stephan: On the Privacy-Robustness-Utility Trilemma in Distributed
Learning, ICML 2023, arXiv:2302.04787.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np

from fl.aggregation.aggregator import OF_DISTANCES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array, Float64, Index, squared_distances
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError

_BATCH = 4096  # subsets whose eigenvalues are computed in one call


def smallest_eigenvalue_subset(products: Float64, size: int) -> Index:
    """Returns the subset of `size` vectors whose covariance has the smallest leading eigenvalue.

    The nonzero eigenvalues of sum_{i in S} (x_i - mu_S)(x_i - mu_S)^T are those of the matrix of
    inner products of the x_i - mu_S, which is small. A subset is passed over without its
    eigenvalues if their bound from below, |K|_F^2 / tr K, exceeds the best found.

    Args:
        products: G, shape (n, n).
        size: from 1 to n.

    Returns:
        Ascending indices, shape (size,); of several such subsets the first.
    """
    # A first guess, for a bound: the vectors nearest to all others.
    nearest = np.argsort(squared_distances(products).sum(axis=1), kind="stable")[:size]
    bound = _leading_eigenvalues(_centred_subsets(products, nearest[None]))[0]
    smallest, best = np.inf, nearest
    every = combinations(range(len(products)), size)
    while batch := list(islice(every, _BATCH)):
        subsets = np.array(batch)
        K = _centred_subsets(products, subsets)
        trace = np.trace(K, axis1=1, axis2=2)
        # lambda_1 tr K >= |K|_F^2; the margin is for rounding.
        possible = np.flatnonzero((K * K).sum(axis=(1, 2)) <= bound * trace * (1 + 1e-9))
        if not len(possible):
            continue
        values = _leading_eigenvalues(K[possible])
        first = int(np.argmin(values))
        if values[first] < smallest:
            smallest, best = values[first], subsets[possible[first]]
            bound = min(bound, smallest)
    return np.sort(best)


def _centred_subsets(products: Float64, subsets: Index) -> Float64:
    """Returns the inner products of x_i - mu_S for each subset, shape (subsets, size, size)."""
    G = products[subsets[:, :, None], subsets[:, None, :]]
    to_mean = G.mean(axis=2)
    of_means = to_mean.mean(axis=1)[:, None, None]
    return np.asarray(G - to_mean[:, :, None] - to_mean[:, None, :] + of_means)


def _leading_eigenvalues(K: Float64) -> Float64:
    return np.asarray(np.linalg.eigvalsh(K)[:, -1])


@dataclass(frozen=True)
class SMEA(Aggregator):
    """The mean of the n - f vectors whose covariance has the smallest leading eigenvalue.

    Needs 2 f < n, and looks at all subsets of n - f vectors. Eigenvalues are exact; ByzFL takes one
    step of the power method from a random vector, and returns other subsets with other seeds.

    Attributes:
        f: Byzantine vectors.
        max_subsets: refuse to look at more than so many; 15,504 of 15 vectors take about 1 s.

    Raises:
        ConfigError: a parameter is out of range, 2 f >= n, or there are too many subsets.
    """

    f: int = 0
    max_subsets: int = 200_000

    @property
    def invariances(self) -> Invariances:
        """Those of a rule of inner products of differences."""
        return OF_DISTANCES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1 and the subsets are not too many."""
        check_bound(self.name, n, self.f, 2, 1)
        if comb(n, self.f) > self.max_subsets:
            raise ConfigError(
                f"SMEA: n={n} vectors with f={self.f} have {comb(n, self.f)} subsets of n - f, "
                f"more than max_subsets={self.max_subsets}: lower f, raise max_subsets, or put "
                "Bucketing before it"
            )

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of the subset, shape (d,)."""
        size = len(rows) - self.f
        a = np.zeros(len(rows))
        a[smallest_eigenvalue_subset(rows.gram, size)] = 1.0 / size
        return rows.combine(a)
