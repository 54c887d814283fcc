"""Inner products of the rows of one matrix: everything a distance-based rule needs to know of it.

Float32 products are half the work of float64 ones, but two rows that nearly agree lose their
distance in the rounding of their norms, and a Byzantine row of 1e20 overflows. So float32 is used
where the result shows that it was safe, and float64 otherwise. Rows that are exact copies of each
other, which is what many attacks send, are multiplied once: their products agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 or float64
Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

CHUNK = 8192  # columns worked on at a time; a chunk of 30 rows fills a cache of 1 MB
_SAMPLE = 1024  # columns that tell whether float32 is worth trying

# A float32 sum over one chunk is wrong by about 1e-7 of the product of the norms. Two rows whose
# squared distance is at least this share of their squared norms then keep 5 digits of it.
_SEPARATION = 0.01
_SMALLEST = 1e-28  # a smaller sum of float32 squares has lost terms to underflow


def column_chunks(d: int, width: int = CHUNK) -> Iterator[slice]:
    """Yields slices of at most `width` columns that cover d columns."""
    for start in range(0, d, width):
        yield slice(start, min(start + width, d))


def gram(x: Array) -> Float64:
    """Returns G = X X^T, with the cost of one such product in float32 where that is accurate.

    Args:
        x: shape (n, d), float32 or float64; not written to, and never copied as a whole.

    Returns:
        float64, shape (n, n). Entries of equal rows are equal to the last bit. Squared distances
        taken from it are good to about 1e-5 of themselves; rows too close for that in float32 are
        multiplied in float64, which leaves an error of about 1e-16 of the squared norms.
    """
    first = _first_equal_row(x)
    distinct, position = np.unique(first, return_inverse=True)
    products = _distinct_gram(x, distinct if len(distinct) < len(x) else None)
    return products[np.ix_(position, position)]


def _first_equal_row(x: Array) -> Index:
    """Returns for each row the index of the first row equal to it, shape (n,)."""
    # A few entries tell nearly all different rows apart; only rows that share them are compared.
    probe = x[:, :: max(1, x.shape[1] // 64)]
    seen: dict[bytes, list[int]] = {}
    first = np.arange(len(x))
    for i, row in enumerate(probe):
        same_probe = seen.setdefault(row.tobytes(), [])
        for j in same_probe:
            if np.array_equal(x[i], x[j]):
                first[i] = j
                break
        else:
            same_probe.append(i)
    return first


def _distinct_gram(x: Array, index: Index | None) -> Float64:
    wide = np.dtype(np.float64)
    if x.dtype == np.float32 and x.shape[1] > CHUNK:
        sample = _accumulate(x[:, :_SAMPLE], index, wide)
        if _float32_is_safe(sample, x, index):
            products = _accumulate(x, index, x.dtype)
            if _float32_is_safe(products, x, index):
                return products
    return _accumulate(x, index, wide)


def _accumulate(x: Array, index: Index | None, dtype: np.dtype[Any]) -> Float64:
    n = len(x) if index is None else len(index)
    total = np.zeros((n, n))
    with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
        for columns in column_chunks(x.shape[1]):
            chunk = x[:, columns] if index is None else x[index, columns]
            chunk = chunk.astype(dtype, copy=False)
            total += chunk @ chunk.T
    return total


def _float32_is_safe(products: Float64, x: Array, index: Index | None) -> bool:
    squares = np.diagonal(products)
    if not np.isfinite(products).all():
        return False
    tiny = np.flatnonzero(squares < _SMALLEST)
    if any(x[i].any() for i in (tiny if index is None else index[tiny])):
        return False
    sums = squares[:, None] + squares
    distances = sums - 2.0 * products
    np.fill_diagonal(distances, np.inf)
    return bool((distances >= np.maximum(_SEPARATION * sums, _SMALLEST)).all())


def squared_distances(products: Float64) -> Float64:
    """Returns |x_i - x_j|^2 = G_ii + G_jj - 2 G_ij, shape (n, n): symmetric, with a zero diagonal.

    What is not above the rounding of the norms is zero, so equal vectors are at distance zero even
    when they are different combinations of the rows the products were taken of.
    """
    squares = np.diagonal(products)
    sums = squares[:, None] + squares
    distances = sums - 2.0 * products
    distances[distances <= 8 * np.finfo(np.float64).eps * sums] = 0.0
    np.fill_diagonal(distances, 0.0)
    return distances


def centred(products: Float64, shares: Float64) -> Float64:
    """Returns the inner products of x_i - mu, with mu = sum_i p_i x_i and sum_i p_i = 1.

    Args:
        products: G, shape (n, n).
        shares: p, shape (n,); rows with share 0 have no influence on the others' result.
    """
    to_mean = products @ shares
    return products - to_mean[:, None] - to_mean + shares @ to_mean
