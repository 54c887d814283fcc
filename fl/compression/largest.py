"""Exact selection of the entries of largest magnitude; the lowest index wins ties.

The bits of a float32 without its sign, read as an integer, are ordered like its absolute value, and
NaN and the infinities lie above all numbers. So selection works on integers, and an entry that is
not finite is always selected and found.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError

_ABS = np.uint32(0x7FFFFFFF)
_INFINITY = 0x7F800000
_BLOCK = 1 << 15  # entries per pass: the temporaries stay in a core's cache
_SAMPLE = 1 << 13


def largest(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Returns the positions of the k entries of largest |x_i|, ascending.

    One pass over x finds the candidates above a bound guessed from a sample; only they are sorted
    out. If the guess was too high the whole vector is partitioned, so the answer is exact.

    Args:
        x: shape (d,), float32, C-contiguous.
        k: 1 to d.

    Raises:
        ConfigError: x has an entry that is not finite.
    """
    bits = x.view(np.uint32)
    d = x.size
    if d <= 4 * _SAMPLE:
        candidates = None
    else:
        sample = bits[:: d // _SAMPLE] & _ABS
        expected = sample.size * k / d
        # Four standard deviations of a binomial count, so that one pass nearly always suffices.
        rank = int(expected + 4 * expected**0.5 + 8)
        candidates = _at_least(bits, _kth(sample, rank)) if rank < sample.size // 2 else None
        if candidates is not None and candidates.size < k:
            candidates = None
    magnitude = (bits if candidates is None else bits[candidates]) & _ABS
    chosen = _first_k(magnitude, k)
    if int(magnitude[chosen].max()) >= _INFINITY:
        raise ConfigError(
            f"the vector has entries that are not finite (d={d}): training diverged, or the update "
            "was divided by zero; lower the learning rate or clip"
        )
    return chosen if candidates is None else candidates[chosen]


def largest_in_rows(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Returns, for each row, the columns of its k entries of largest magnitude, ascending.

    Args:
        x: shape (rows, width), float32.
        k: 1 to width.

    Returns:
        Shape (rows, k).

    Raises:
        ConfigError: x has an entry that is not finite.
    """
    rows, width = x.shape
    magnitude = np.ascontiguousarray(x).view(np.uint32) & _ABS
    if magnitude.size and int(magnitude.max()) >= _INFINITY:
        raise ConfigError(f"a matrix of shape {x.shape} has entries that are not finite")
    if k == width:
        return np.broadcast_to(np.arange(width), (rows, width))
    kth = np.partition(magnitude, width - k, axis=1)[:, width - k, None]
    chosen = magnitude >= kth
    # Ties at the boundary are rare, and only their rows are looked at again.
    again = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
    if again.size:
        above, tied = magnitude[again] > kth[again], magnitude[again] == kth[again]
        room = k - np.count_nonzero(above, axis=1)[:, None]
        chosen[again] = above | (tied & (np.cumsum(tied, axis=1) <= room))
    columns: NDArray[np.int64] = np.flatnonzero(chosen).reshape(rows, k) % width
    return columns


def _kth(magnitude: NDArray[np.uint32], k: int) -> int:
    """Returns the k-th largest."""
    at = magnitude.size - k
    return int(np.partition(magnitude, at)[at])


def _at_least(bits: NDArray[np.uint32], bound: int) -> NDArray[np.int64]:
    """Returns the positions whose magnitude is at least `bound`, ascending."""
    mask = np.empty(bits.size, dtype=np.bool_)
    magnitude = np.empty(_BLOCK, dtype=np.uint32)
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        np.bitwise_and(block, _ABS, out=magnitude[: block.size])
        np.greater_equal(
            magnitude[: block.size], np.uint32(bound), out=mask[start : start + _BLOCK]
        )
    return np.flatnonzero(mask)


def _first_k(magnitude: NDArray[np.uint32], k: int) -> NDArray[np.int64]:
    kth = _kth(magnitude, k)
    chosen = magnitude > kth
    tied = np.flatnonzero(magnitude == kth)
    chosen[tied[: k - np.count_nonzero(chosen)]] = True
    return cast("NDArray[np.int64]", np.flatnonzero(chosen))
