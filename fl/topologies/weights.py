"""Mixing weights for a given graph: what share each node takes of what it hears.

All of them map an adjacency matrix A, A[i, j] = 1 where node i hears node j, to a mixing matrix W
of the same support plus the diagonal. A has no diagonal; deg_i is the number of nodes that i hears.
An undirected graph has a symmetric A. For a networkx graph, A is the transpose of
`networkx.to_scipy_sparse_array(graph, nodelist=range(n))`.

What W keeps follows from the kind of its sums. Rows that sum to 1: nodes that agree stay as they
are. Columns that sum to 1: the mean of all nodes stays as it is. D-PSGD needs both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fl.errors import ConfigError

# Each line promises what it says and nothing more: "symmetric" is doubly stochastic as well.
Stochasticity = Literal["symmetric", "doubly", "rows", "columns"]


class Weights(ABC):
    """A rule for weights, from the graph alone."""

    @property
    def for_directed(self) -> bool:
        """Whether directed graphs are allowed."""
        return False

    @property
    @abstractmethod
    def stochasticity(self) -> Stochasticity:
        """What holds for W, whatever the graph. On regular graphs more may."""

    def __call__(self, adjacency: csr_array) -> csr_array:
        """Returns W, shape (n, n), float64, entries positive on the diagonal and the support of A.

        Args:
            adjacency: A, shape (n, n), entries 0 or 1, no diagonal.

        Raises:
            ConfigError: the graph is directed and the weights are for undirected ones.
        """
        A = csr_array(adjacency, dtype=np.float64)
        if not self.for_directed and (A != A.T).nnz:
            raise ConfigError(
                f"{type(self).__name__}: the graph is directed, and these weights are for "
                "undirected ones: use topology/weights=push_sum, or neighbour_average"
            )
        return self.of(A)

    @abstractmethod
    def of(self, A: csr_array) -> csr_array:
        """Returns W for an adjacency matrix that the weights are for."""


@dataclass(frozen=True)
class MetropolisHastings(Weights):
    """W_ij = 1 / (1 + max(deg_i, deg_j)), the rest to W_ii.

    Symmetric and doubly stochastic on every undirected graph, and known from one's own and the
    neighbours' degrees alone. On a graph where all degrees are k, 1 / (k + 1) each.

    Xiao, Boyd: Fast linear iterations for distributed averaging, Systems & Control Letters 53
    (2004), section 4; degrees do not count the node itself.
    """

    @property
    def stochasticity(self) -> Stochasticity:
        """Symmetric."""
        return "symmetric"

    def of(self, A: csr_array) -> csr_array:
        """Returns W."""
        degree, i, j = _edges(A)
        return _with_rest_on_diagonal(1.0 / (1.0 + np.maximum(degree[i], degree[j])), i, j, A)


@dataclass(frozen=True)
class LazyMetropolis(Weights):
    """W_ij = 1 / (2 max(deg_i, deg_j)), the rest, at least half, to W_ii.

    Symmetric and doubly stochastic on every undirected graph. No eigenvalue is negative, which D2
    and others need; nodes average in time O(n^2) on every graph.

    Olshevsky: Linear Time Average Consensus on Fixed Graphs and Implications for Decentralized
    Optimization and Multi-Agent Control, arXiv:1411.4186, section 1.
    """

    @property
    def stochasticity(self) -> Stochasticity:
        """Symmetric."""
        return "symmetric"

    def of(self, A: csr_array) -> csr_array:
        """Returns W."""
        degree, i, j = _edges(A)
        return _with_rest_on_diagonal(0.5 / np.maximum(degree[i], degree[j]), i, j, A)


@dataclass(frozen=True)
class MaxDegree(Weights):
    """W_ij = 1 / (1 + max_k deg_k), the rest to W_ii: W = I - L / (1 + max deg), L the Laplacian.

    Symmetric and doubly stochastic on every undirected graph; nodes have to know the largest
    degree. (Xiao, Boyd 2004, section 4.)
    """

    @property
    def stochasticity(self) -> Stochasticity:
        """Symmetric."""
        return "symmetric"

    def of(self, A: csr_array) -> csr_array:
        """Returns W."""
        degree, i, j = _edges(A)
        return _with_rest_on_diagonal(np.full(len(i), 1.0 / (1.0 + degree.max())), i, j, A)


@dataclass(frozen=True)
class NeighbourAverage(Weights):
    """W_ij = 1 / (deg_i + 1): the plain mean of one's own model and those one hears.

    Rows sum to 1. Columns do on regular graphs only: elsewhere the mean of all nodes drifts
    towards nodes that many hear, and consensus is on another point than the mean.
    """

    @property
    def for_directed(self) -> bool:
        """Yes."""
        return True

    @property
    def stochasticity(self) -> Stochasticity:
        """Rows sum to 1."""
        return "rows"

    def of(self, A: csr_array) -> csr_array:
        """Returns W."""
        heard, i, j = _edges(A)
        share = 1.0 / (heard + 1.0)
        return _assembled(share[i], i, j, share)


@dataclass(frozen=True)
class PushSum(Weights):
    """W_ij = 1 / (out_j + 1): the sender j splits its model equally among itself and who hears it.

    Columns sum to 1: the sum over all nodes stays as it is, and push-sum, which sends a weight
    beside the model, divides by what rows sum to. A node needs to know only how many it sends to.
    On graphs whose in- and out-degrees are all k, W is doubly stochastic.

    Kempe, Dobra, Gehrke: Gossip-Based Computation of Aggregate Information, FOCS 2003; Assran,
    Loizou, Ballas, Rabbat: Stochastic Gradient Push, ICML 2019, arXiv:1811.10792.
    """

    @property
    def for_directed(self) -> bool:
        """Yes."""
        return True

    @property
    def stochasticity(self) -> Stochasticity:
        """Columns sum to 1."""
        return "columns"

    def of(self, A: csr_array) -> csr_array:
        """Returns W."""
        _, i, j = _edges(A)
        share = 1.0 / (np.bincount(j, minlength=A.shape[0]) + 1.0)
        return _assembled(share[j], i, j, share)


@dataclass(frozen=True)
class Lazy(Weights):
    """(I + W) / 2 for the weights `of_weights`: half of every step.

    Keeps what the weights keep. An eigenvalue lambda becomes (1 + lambda) / 2, so that of
    symmetric weights none is negative, and the gap 1 - lambda_2 halves.

    Attributes:
        of_weights: the weights to take half a step of.
    """

    of_weights: Weights = field(default=MetropolisHastings())

    @property
    def for_directed(self) -> bool:
        """As of the weights."""
        return self.of_weights.for_directed

    @property
    def stochasticity(self) -> Stochasticity:
        """As of the weights."""
        return self.of_weights.stochasticity

    def of(self, A: csr_array) -> csr_array:
        """Returns (I + W) / 2."""
        W = 0.5 * self.of_weights.of(A)
        W.setdiag(W.diagonal() + 0.5)
        return W


def _edges(A: csr_array) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]:
    """Returns how many nodes each hears, and (receiver, sender) of every message, row by row."""
    heard = np.diff(A.indptr)
    return heard.astype(np.float64), np.repeat(np.arange(len(heard)), heard), A.indices


def _with_rest_on_diagonal(
    values: NDArray[Any], i: NDArray[Any], j: NDArray[Any], A: csr_array
) -> csr_array:
    """Returns W with W_ij = values, and what is missing to row sums of 1 on the diagonal."""
    return _assembled(values, i, j, 1.0 - np.bincount(i, values, minlength=A.shape[0]))


def _assembled(
    values: NDArray[Any], i: NDArray[Any], j: NDArray[Any], diagonal: NDArray[Any]
) -> csr_array:
    every = np.arange(len(diagonal))
    return csr_array(
        (np.append(values, diagonal), (np.append(i, every), np.append(j, every))),
        shape=(len(diagonal), len(diagonal)),
    )
