"""How fast mixing matrices average.

J = 11^T / n is the matrix of the exact mean, and rho(W) = ||W - J||_2 the factor by which a round
brings nodes together at least: ||W X - J X||_F <= rho(W) ||X - J X||_F if W is doubly stochastic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fl.errors import ConfigError
from fl.topologies.topology import Topology

# Up to this n, norms are taken of dense matrices: below a second. Above, by Lanczos' method.
DENSE = 512
EXACT = 1e-12


def is_doubly_stochastic(W: csr_array, tolerance: float = 1e-12) -> bool:
    """Returns whether no entry is negative, and rows and columns sum to 1 within `tolerance`."""
    return bool((W.data >= 0).all()) and _has_sums_of_1(W, tolerance)


def _has_sums_of_1(W: csr_array, tolerance: float = EXACT) -> bool:
    sums = np.concatenate([np.asarray(W.sum(axis=axis)).ravel() for axis in (0, 1)])
    return bool(np.abs(sums - 1.0).max() <= tolerance)


def spectral_gap(W: csr_array) -> float:
    """Returns 1 - rho(W), rho(W) = ||W - 11^T/n||_2, the second largest singular value.

    For symmetric W this is 1 - max(|lambda_2|, |lambda_n|). Other definitions are in use, such as
    1 - rho^2, or 1 - |lambda_2| where W is not symmetric. 0 if the graph is not connected, and for
    some that are but need several rounds, such as a round of a one-peer graph.

    Args:
        W: doubly stochastic, shape (n, n).

    Raises:
        ConfigError: W is not doubly stochastic, so that nodes do not meet at their mean.
    """
    return 1.0 - _rho([W])


def least_eigenvalue(W: csr_array) -> float:
    """Returns the smallest eigenvalue of a symmetric W, shape (n, n); of a stochastic one, >= -1.

    Args:
        W: symmetric.
    """
    n = W.shape[0]
    if n <= DENSE:
        return float(np.linalg.eigvalsh(W.toarray())[0])
    start = np.random.Generator(np.random.Philox(0)).standard_normal(n)
    from scipy.sparse.linalg import eigsh  # heavy, and few come here

    return float(eigsh(W, 1, which="SA", v0=start, ncv=64, return_eigenvectors=False)[0])


def consensus_rate(topology: Topology, rounds: int | None = None) -> float:
    """Returns the mean factor a round, rho(W_{T-1} ... W_0)^(1/T), over T rounds.

    For a graph that stays and is symmetric, rho(W) for every T. 0 if the T rounds are the exact
    mean: of the rho that rounding leaves, about 1e-16, all up to 1e-12 counts as 0.

    Args:
        topology: doubly stochastic.
        rounds: T; None takes the period.

    Raises:
        ConfigError: a matrix is not doubly stochastic; T is None and there is no period.
    """
    T = _rounds(topology, rounds)
    rho = _rho([topology.matrix(t) for t in range(T)])
    return 0.0 if rho < EXACT else float(rho ** (1.0 / T))


def rounds_to_consensus(topology: Topology, rounds: int | None = None) -> int | None:
    """Returns the least T for which W_{T-1} ... W_0 = 11^T / n, within 1e-12 an entry.

    Args:
        topology: any.
        rounds: how many rounds to look at; None takes the period.

    Returns:
        T, or None if nodes do not agree exactly within those rounds.

    Raises:
        ConfigError: rounds is None and there is no period.
    """
    n = topology.num_nodes
    least = 0
    matrices = [topology.matrix(t) for t in range(_rounds(topology, rounds))]
    for start in range(0, n, 1024):  # columns of the product, so many at a time
        X = np.eye(n, min(1024, n - start), -start)
        agreed = None
        for T, W in enumerate(matrices, 1):
            X = W @ X
            exact = np.abs(X - 1.0 / n).max() <= EXACT
            agreed = (agreed or T) if exact else None
        if agreed is None:
            return None
        least = max(least, agreed)
    return least


def _rounds(topology: Topology, rounds: int | None) -> int:
    T = topology.period if rounds is None else rounds
    if T is None:
        raise ConfigError(f"{type(topology).__name__} has no period: say over how many rounds")
    if T < 1:
        raise ConfigError(f"rounds is {T}; it must be at least 1")
    return T


def _rho(matrices: Sequence[csr_array]) -> float:
    """Returns || W_{T-1} ... W_0 - J ||_2 of doubly stochastic W_0 .. W_{T-1}."""
    for W in matrices:
        if not _has_sums_of_1(W):
            raise ConfigError(
                "the mixing matrix is not doubly stochastic, so nodes do not meet at their mean, "
                "and rho(W) is not the rate at which they do: use other weights, such as "
                "topology/weights=metropolis_hastings"
            )
    n = matrices[0].shape[0]
    if n <= DENSE:
        product = np.full((n, n), -1.0 / n) + _apply(matrices, np.eye(n))
        return float(np.linalg.norm(product, 2))

    def squared(x: NDArray[Any]) -> NDArray[Any]:
        """Returns P^T P x for the product P, without the mean, on which P is the identity."""
        y = _apply(matrices, x - x.mean(axis=0))
        y = _apply([W.T for W in reversed(matrices)], y - y.mean(axis=0))
        return np.asarray(y - y.mean(axis=0))

    from scipy.sparse.linalg import LinearOperator, eigsh  # heavy, and few come here

    operator = LinearOperator((n, n), matvec=squared, dtype=np.float64)
    start = np.random.Generator(np.random.Philox(0)).standard_normal(n)
    if np.linalg.norm(squared(start)) < EXACT**2 * np.linalg.norm(start):
        return 0.0  # on the exact mean Lanczos' method cannot start
    largest = eigsh(operator, 1, which="LA", v0=start, ncv=64, return_eigenvectors=False)
    return float(np.sqrt(max(largest[0], 0.0)))


def _apply(matrices: Sequence[csr_array], x: NDArray[Any]) -> NDArray[Any]:
    for W in matrices:
        x = W @ x
    return x
