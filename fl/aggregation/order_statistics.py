"""Sorting the columns of a block of rows, only as far as needed.

A coordinate-wise rule needs certain order statistics of n numbers, for each of d coordinates. For
the n of a round of training that is work for a sorting network: a fixed list of
compare-and-exchange steps between two rows, each of which is a vector minimum and a vector maximum
over thousands of coordinates. Steps whose result nobody asks for are left out beforehand. Above
`MAX_NETWORK_ROWS` rows it is faster to sort each coordinate by itself.

Batcher: Sorting networks and their applications, AFIPS 1968 (odd-even merge sort). Knuth, The Art
of Computer Programming, volume 3, algorithm 5.2.2M gives the form for any n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from fl.aggregation.gram import Array

MAX_NETWORK_ROWS = 48

# What is asked of a place in sorted order: its value; only that it be summed with the other summed
# places, in whatever order; nothing.
Need = Literal["value", "summed", "nothing"]


class Comparator(NamedTuple):
    """One compare-and-exchange: afterwards row `low` has the minimum, row `high` the maximum."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


def batcher(n: int) -> Iterator[tuple[int, int]]:
    """Yields the comparisons (low, high) of Batcher's odd-even merge sort of n numbers."""
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, j + min(k, n - j - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        yield i, i + k
            k //= 2
        p *= 2


@lru_cache(maxsize=256)
def network(needs: tuple[Need, ...]) -> tuple[Comparator, ...]:
    """Returns the steps that put the needed order statistics into their places.

    Args:
        needs: for each place in ascending order, what is asked of it; its length is n.
    """
    wanted = list(needs)
    steps = []
    for low, high in reversed(list(batcher(len(needs)))):
        pair = wanted[low], wanted[high]
        if pair in (("summed", "summed"), ("nothing", "nothing")):
            continue  # exchanging two places of which the same is asked changes nothing
        steps.append(Comparator(low, high, pair[0] != "nothing", pair[1] != "nothing"))
        wanted[low] = wanted[high] = "value"
    return tuple(reversed(steps))


def block_width(n: int) -> int:
    """Returns how many columns of n rows to work on at a time.

    A network makes two calls per comparison, so its blocks are as wide as the cache bears. A block
    that is transposed must not be a power of two wide: its rows would share few lines of the cache.
    """
    return 16384 if n <= MAX_NETWORK_ROWS else 1000


def ordered(block: Array, needs: tuple[Need, ...]) -> list[Array]:
    """Returns n rows in which each place that is needed holds its order statistic, per column.

    Args:
        block: shape (n, c), n at most `MAX_NETWORK_ROWS`; what it holds afterwards is undefined.
        needs: what is asked of each place. Places marked "summed" hold together the order
            statistics of all such places, in any order; places marked "nothing" hold anything.

    Returns:
        n arrays of shape (c,), all but one of them rows of the block.
    """
    rows = list(block)
    spare = np.empty_like(rows[0])
    for low, high, keep_low, keep_high in network(needs):
        a, b = rows[low], rows[high]
        if keep_low and keep_high:
            np.minimum(a, b, out=spare)
            np.maximum(a, b, out=b)
            rows[low], spare = spare, a
        elif keep_low:
            np.minimum(a, b, out=a)
        else:
            np.maximum(a, b, out=b)
    return rows


def sorted_coordinates(block: Array) -> Array:
    """Returns the columns of a block, each sorted, as rows: shape (c, n)."""
    return _sort_into(np.empty(block.size, dtype=block.dtype), block)


def _sort_into(flat: Array, block: Array) -> Array:
    coordinates = flat.reshape(block.shape[1], block.shape[0])
    np.copyto(coordinates, block.T)
    coordinates.sort(axis=1)
    return coordinates


def median(block: Array) -> Array:
    """Returns the median of each column: for an even number, the mean of the middle two."""
    n = len(block)
    low, high = (n - 1) // 2, n // 2
    if n > MAX_NETWORK_ROWS:
        coordinates = sorted_coordinates(block)
        return _midpoint(coordinates[:, low], coordinates[:, high])
    rows = ordered(block, tuple("value" if i in (low, high) else "nothing" for i in range(n)))
    return _midpoint(rows[low], rows[high])


def lower_median(block: Array) -> Array:
    """Returns the median of each column: for an even number, the lower of the middle two."""
    n = len(block)
    low = (n - 1) // 2
    if n > MAX_NETWORK_ROWS:
        return np.asarray(sorted_coordinates(block)[:, low])
    return ordered(block, tuple("value" if i == low else "nothing" for i in range(n)))[low]


def _midpoint(a: Array, b: Array) -> Array:
    return np.asarray(a * 0.5 + b * 0.5)  # halved first: the sum could overflow


def trimmed_mean(block: Array, f: int) -> Array:
    """Returns the mean of each column without its f smallest and f largest numbers."""
    n = len(block)
    if n > MAX_NETWORK_ROWS and f > 0:
        return np.asarray(sorted_coordinates(block)[:, f : n - f].mean(axis=1))
    rows = ordered(block, tuple("summed" if f <= i < n - f else "nothing" for i in range(n)))
    return np.asarray(total(rows[f : n - f]) / (n - 2 * f))


def mean_around(block: Array, keep: int, centre: Literal["median", "lower-median"]) -> Array:
    """Returns the mean of the `keep` numbers of each column that are nearest to its median.

    In sorted order these are consecutive. Of two numbers equally near, the smaller is kept.

    Args:
        block: shape (n, c).
        keep: how many to average, from 1 to n.
        centre: the median of an even count: the mean of the middle two, or the lower of them.
    """
    n = len(block)
    if keep == n:
        return np.asarray(total(block) / n)
    low, high = (n - 1) // 2, (n - 1) // 2 if centre == "lower-median" else n // 2
    if n > MAX_NETWORK_ROWS:
        return _mean_of_window(block, keep, low, high)
    rows = ordered(block, tuple("value" for _ in range(n)))
    middle = _midpoint(rows[low], rows[high])
    # The sum of a window is that of its parts below and above the cut. It is not made from the
    # window before it by subtracting: an outlier of 1e20 would take the other numbers with it.
    cut = n // 2
    below, above = _partial_sums(rows[:cut][::-1]), _partial_sums(rows[cut:])
    first, last = max(0, cut - keep), min(n - keep, cut)
    best = below[cut - first] + above[first + keep - cut]
    for k in range(first, last):
        # The window moves on while what it gains is nearer than what it loses; the difference only
        # falls with k, so a column that stops once has stopped for good.
        moves = middle - rows[k] > rows[k + keep] - middle
        np.add(below[cut - k - 1], above[k + 1 + keep - cut], out=best, where=moves)
    return np.asarray(best / keep)


def _mean_of_window(block: Array, keep: int, low: int, high: int) -> Array:
    """As `mean_around`, with the sums of all windows taken in one call."""
    n, c = block.shape
    # `reduceat` sums from each index to the next. The end of the last window must be an index too,
    # so there is one more number.
    flat = np.zeros(c * n + 1, dtype=block.dtype)
    coordinates = _sort_into(flat[:-1], block)
    middle = _midpoint(coordinates[:, low], coordinates[:, high])[:, None]
    moves = middle - coordinates[:, : n - keep] > coordinates[:, keep:] - middle
    first = np.arange(c) * n + np.count_nonzero(moves, axis=1)
    ends = np.stack([first, first + keep], axis=1).ravel()
    return np.asarray(np.add.reduceat(flat, ends)[::2] / keep)


def _partial_sums(rows: Sequence[Array]) -> list[Array]:
    """Returns the sums of the first 0, 1, ..., len(rows) rows."""
    sums = [np.zeros_like(rows[0]), rows[0]]
    for row in rows[1:]:
        sums.append(sums[-1] + row)
    return sums


def total(rows: Sequence[Array] | Array) -> Array:
    """Returns the sum of rows, shape (c,)."""
    result = rows[0].copy()
    for row in rows[1:]:
        np.add(result, row, out=result)
    return result
