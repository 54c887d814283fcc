"""Vectors and matrices of float32: what a model is to whatever computes on it."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

Row = NDArray[np.float32]
"""A model's numbers, shape (d,); or those of several, shape (n, d)."""

Float = TypeVar("Float", np.float32, np.float64)


def is_finite(row: NDArray[Any]) -> bool:
    """Says whether no number of a row is NaN or infinite."""
    # Both survive every addition, so one finite sum clears all numbers at once.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(row.sum()) or np.isfinite(row).all())


def added(start: float, terms: NDArray[np.float64]) -> float:
    """Returns start + terms[0] + terms[1] + ..., added from the left, to the last bit of a loop's.

    Args:
        start: what is there.
        terms: shape (n,).
    """
    if not len(terms):
        return start
    terms = terms.copy()
    terms[0] += start
    return float(np.add.accumulate(terms)[-1])


def weighted_sum(a: NDArray[Any], x: NDArray[Float]) -> NDArray[Float]:
    """Returns sum_i a_i x_i, shape (d,), in the type of x.

    The order of the additions is that of BLAS for (n, d) on one thread, which runs limit NumPy's
    products to (`fl.vectors.threads.limit_blas`): more threads may add in another.

    Args:
        a: shape (n,); rounded to the type of x.
        x: shape (n, d), float32 or float64.
    """
    return np.asarray(a.astype(x.dtype) @ x)


def mean(x: NDArray[Float], weights: NDArray[np.float64] | None = None) -> NDArray[Float]:
    """Returns the mean of rows, sum_i w_i x_i / sum_i w_i, shape (d,), see `weighted_sum`.

    Args:
        x: shape (n, d), float32 or float64.
        weights: shape (n,), not all zero; None if all count the same.
    """
    n = len(x)
    return weighted_sum(np.full(n, 1.0 / n) if weights is None else weights / weights.sum(), x)


def as_row(value: Row | torch.Tensor) -> Row:
    """Returns a vector or matrix as NumPy's, without a copy.

    Raises:
        ConfigError: it is not float32, or not C-contiguous.
    """
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ConfigError(
            f"rows must be float32 and C-contiguous, got {array.dtype} with strides {array.strides}"
        )
    return array


def common_matrix(rows: list[Row]) -> Row | None:
    """Returns the matrix that `rows` are all the consecutive rows of, if they are."""
    first = rows[0]
    base, step = first.base, first.nbytes
    if base is None or step == 0:
        return None
    start = first.ctypes.data
    for i, row in enumerate(rows):
        # The same base: rows of two allocations may lie next to each other by chance.
        if row.base is not base or row.ctypes.data != start + i * step:
            return None
    shape, strides = (len(rows), first.size), (step, first.itemsize)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)


@lru_cache(maxsize=1)
def views_are_never_written() -> None:
    """Takes the warning torch gives, once per process, for a tensor over a read-only array."""
    import torch

    array = np.zeros(1, dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(array)


def as_tensor(row: NDArray[Any]) -> torch.Tensor:
    """Returns a tensor over a read-only array, without a copy; nobody may write to it."""
    import torch

    views_are_never_written()
    return torch.from_numpy(row)
