"""Norms and moments of long float32 vectors, in one pass over memory each.

Sums are taken over runs of 512 entries in float32 and added in float64: as quick as NumPy gets,
with the error of short sums. The runs are short also because BLAS may split long dot products among
threads, and then rounds differently from machine to machine.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fl.compression.compressor import Vector, extent, not_finite
from fl.compression.rounding import bucket_count, pieces
from fl.errors import ConfigError

_RUN = 512
_BLOCK = 1 << 16
_ONES = np.ones(_RUN, dtype=np.float32)


def bucket_norms(x: Vector, bucket: int) -> Vector:
    """Returns the 2-norm of each bucket, float32.

    Args:
        x: shape (d,), float32.
        bucket: entries per bucket; the last may have fewer.

    Raises:
        ConfigError: an entry is not finite, or a norm exceeds float32.
    """
    squares = np.zeros(bucket_count(x.size, bucket))
    for entries, buckets, width in pieces(x.size, bucket):
        rows = x[entries].reshape(-1, width)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = _row_squares(rows)
        # Squares that overflow or vanish in float32 are taken again in float64.
        again = ~((sums > 1e-20) & (sums < 1e35))
        if again.any():
            wide = rows[again].astype(np.float64)
            sums[again] = np.vecdot(wide, wide)
        squares[buckets] += sums
    if not np.isfinite(squares).all():
        raise not_finite(x)
    norms = np.sqrt(squares)
    largest = float(norms.max())
    if largest > float(np.finfo(np.float32).max):
        raise ConfigError(f"a norm of {largest:.3g} exceeds float32; clip the update")
    return norms.astype(np.float32)


def _row_squares(rows: Vector) -> NDArray[np.float64]:
    """Returns the sum of squares of each row, in runs of 512 that are added in float64."""
    # Short runs, because BLAS may split long ones among threads, and then rounds differently.
    cut = rows.shape[1] // _RUN * _RUN
    runs = rows[:, :cut].reshape(len(rows), -1, _RUN)
    sums: NDArray[np.float64] = np.vecdot(runs, runs).sum(axis=1, dtype=np.float64)
    sums += np.vecdot(rows[:, cut:], rows[:, cut:])
    return sums


def mean_magnitude(x: Vector) -> float:
    """Returns sum |x_i| / d, or 0 for an empty vector.

    Raises:
        ConfigError: an entry is not finite.
    """
    magnitude = np.empty(min(x.size, _BLOCK), dtype=np.float32)
    total = 0.0
    for start in range(0, x.size, _BLOCK):
        block = x[start : start + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            total += _sum(np.abs(block, out=magnitude[: block.size]))
    if not math.isfinite(total):
        extent(x)
        total = float(np.abs(x).sum(dtype=np.float64))
    return total / x.size if x.size else 0.0


def root_mean_square(x: Vector) -> float:
    """Returns |x|_2 / sqrt(d), or 0 for an empty vector.

    Raises:
        ConfigError: an entry is not finite, or the norm exceeds float32.
    """
    return float(bucket_norms(x, x.size)[0]) / math.sqrt(x.size) if x.size else 0.0


def means_and_variances(rows: Vector) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns `mean_and_variance` of each row, to the bit, shape (n,) each.

    Args:
        rows: shape (n, d), float32; d is from 1 to 2^16.
    """
    d = rows.shape[1]
    cut = d // _RUN * _RUN
    sums = np.vecdot(rows[:, :cut].reshape(len(rows), -1, _RUN), _ONES).sum(1, dtype=np.float64)
    means = (sums + rows[:, cut:].sum(axis=1, dtype=np.float64)) / d
    return means, _row_squares(rows - means[:, None].astype(np.float32)) / d


def mean_and_variance(x: Vector) -> tuple[float, float]:
    """Returns mean and population variance of a vector whose squares fit into float32.

    Two passes: the second one is about the mean, so that a large mean does not drown the variance.
    """
    if not x.size:
        return 0.0, 0.0
    mean = sum(_sum(x[at : at + _BLOCK]) for at in range(0, x.size, _BLOCK)) / x.size
    centred = np.empty(min(x.size, _BLOCK), dtype=np.float32)
    squares = 0.0
    for start in range(0, x.size, _BLOCK):
        block = x[start : start + _BLOCK]
        np.subtract(block, np.float32(mean), out=centred[: block.size])
        squares += float(_row_squares(centred[None, : block.size])[0])
    return mean, squares / x.size


def _sum(block: Vector) -> float:
    cut = block.size // _RUN * _RUN
    rows: NDArray[np.float32] = np.vecdot(block[:cut].reshape(-1, _RUN), _ONES)
    return float(rows.sum(dtype=np.float64) + block[cut:].sum(dtype=np.float64))
