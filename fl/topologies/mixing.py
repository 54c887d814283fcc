"""A round of gossip: the product of mixing matrix and models, and the matrix if nodes are away.

Measured for 1,000 nodes with 50,890 weights each, on one thread, as multiples of a copy of the
models: a BLAS axpy per edge takes 1.7 for a ring and 6 for an exponential graph of 10 neighbours,
scipy's product 2.7 and 8.4, torch's 16 and 25 (`benchmarks/gossip_mixing.py`). scipy's of blocks of
columns is no faster for few neighbours, and takes 25 where a block is too large for the allocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import daxpy, saxpy
from scipy.sparse import csr_array, diags_array

from fl.errors import ConfigError

Float = TypeVar("Float", np.float32, np.float64)


def mix(W: csr_array, X: NDArray[Float], out: NDArray[Float] | None = None) -> NDArray[Float]:
    """Returns W X, a round of gossip.

    What W has no entry for does not enter the sum, so a model that is not finite reaches those
    alone that hear it. Weights are rounded to the type of the models: in float32 the mean moves by
    up to 1e-7 of itself a round, and stops to once nodes agree.

    Args:
        W: shape (n, n).
        X: models, shape (n, d), float32 or float64; not written to.
        out: where to put the result, like X, contiguous and apart from it; None makes a new array.

    Raises:
        ConfigError: shapes or types do not fit.
    """
    n = W.shape[0]
    if X.ndim != 2 or len(X) != n or X.dtype not in (np.float32, np.float64):
        raise ConfigError(
            f"models have shape {X.shape} and type {X.dtype}; of {n} nodes they must have shape "
            f"({n}, d) and type float32 or float64"
        )
    if out is None:
        out = np.empty_like(X, order="C")
    elif (
        out.shape != X.shape
        or out.dtype != X.dtype
        or not out.flags.c_contiguous
        or np.may_share_memory(out, X)
    ):
        raise ConfigError(
            f"out has shape {out.shape} and type {out.dtype}; it must be another array of shape "
            f"{X.shape} and type {X.dtype}, contiguous"
        )
    W = W.astype(X.dtype)
    if W.nnz == n * n:  # all hear all, so a dense product adds nobody's model times zero
        return cast(NDArray[Float], np.matmul(W.toarray(), X, out=out))
    return mix_rows(W, X, out)


def mix_rows(
    W: csr_array, X: NDArray[Float] | Sequence[NDArray[Float]], out: NDArray[Float]
) -> NDArray[Float]:
    """Puts W X into `out`, for some rows of a mixing matrix and models wherever they are.

    Args:
        W: shape (m, n), in the type of the models.
        X: n models of shape (d,), contiguous; only those that W has an entry for are looked at.
        out: shape (m, d), contiguous and apart from X.
    """
    axpy = daxpy if out.dtype == np.float64 else saxpy
    starts, senders, weights = W.indptr.tolist(), W.indices.tolist(), W.data
    for i, row in enumerate(out):
        edges = range(starts[i], starts[i + 1])
        if not edges:
            row.fill(0)
            continue
        np.multiply(X[senders[edges[0]]], weights[edges[0]], out=row)
        for edge in edges[1:]:
            axpy(X[senders[edge]], row, a=weights[edge])  # row += weight X[sender], in place
    return out


def renormalised(
    W: csr_array, online: ArrayLike, keep: Literal["rows", "columns"] = "rows"
) -> csr_array:
    """Returns W for a round in which some nodes are away.

    Edges to and from a node that is away are gone, and its own model stays as it is. Of the nodes
    that are there,

    - "rows": W'_ii = W_ii + sum of W_ij over all j away. Who receives takes its own model instead
      of the one it misses; rows still sum to 1.
    - "columns": W'_jj = W_jj + sum of W_ij over all i away. Who sends keeps the share it cannot
      deliver, as push-sum has to; columns still sum to 1.

    For symmetric W the two are the same, and W' is symmetric and doubly stochastic again. For other
    doubly stochastic W, such as those of directed exponential graphs, W' is doubly stochastic in
    neither way.

    Args:
        W: shape (n, n).
        online: who is there, boolean, shape (n,).
        keep: the sums to keep.

    Raises:
        ConfigError: `online` is not boolean of shape (n,).
    """
    there = np.asarray(online)
    if there.shape != (W.shape[0],) or there.dtype != np.bool_:
        raise ConfigError(
            f"online has shape {there.shape} and type {there.dtype}; it must be boolean, of shape "
            f"({W.shape[0]},)"
        )
    if there.all():
        return W
    mask = diags_array(there.astype(np.float64), format="csr")
    kept = csr_array(mask @ W @ mask)
    axis = 1 if keep == "rows" else 0
    rest = _sums(W, axis) - _sums(kept, axis)
    made = csr_array(kept + diags_array(rest, format="csr"))
    made.eliminate_zeros()
    return made


def _sums(W: csr_array, axis: int) -> NDArray[Any]:
    return np.asarray(W.sum(axis=axis)).ravel()
