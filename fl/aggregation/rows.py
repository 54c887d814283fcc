"""The vectors of one round, as linear combinations of the rows of one matrix.

A pre-aggregation (mixing, bucketing, clipping) replaces n vectors by linear combinations of them.
Here that changes an m x n matrix of coefficients, never the n x d data: inner products follow by
algebra from the one Gram product of the data, coordinates are mixed a few thousand at a time, and
the result of a rule that averages is one product of a vector and the data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.aggregation.gram import (
    _SMALLEST,
    CHUNK,
    Array,
    Float64,
    Index,
    column_chunks,
    gram,
    squared_distances,
)
from fl.aggregation.guard import check_weights
from fl.aggregation.order_statistics import block_width
from fl.errors import ConfigError
from fl.vectors.rows import weighted_sum


class Rows:
    """n vectors of length d that a rule reads and cannot write.

    Args:
        x: shape (n, d), float32 or float64, finite, n and d at least 1.
        weights: numbers of examples, shape (n,), not negative, not all zero; None if all count the
            same.

    Raises:
        ConfigError: the matrix or the weights have another shape, type or sign.
        NoStep: no weight is positive.
    """

    def __init__(self, x: Array, weights: ArrayLike | None = None) -> None:
        if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
            kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise ConfigError(f"the vectors are {kind}: need a NumPy array, float32 or float64")
        if x.ndim != 2 or 0 in x.shape:
            raise ConfigError(f"the vectors have shape {x.shape}: need (n, d), n and d at least 1")
        self._x = x.view()
        self._x.flags.writeable = False
        self._made_of: Rows | None = None  # never itself: a cycle would keep the data in memory
        # The rows are `_mix` times the data; or, where that has one entry per row, picked rows
        # times factors; or the data itself.
        self._mix: Float64 | None = None
        self._picked: tuple[Index, Float64] | None = None
        self.weights = None if weights is None else _checked_weights(weights, len(x))

    def __len__(self) -> int:
        if self._mix is not None:
            return len(self._mix)
        return len(self._x) if self._picked is None else len(self._picked[0])

    @property
    def _base(self) -> Rows:
        """The rows that are the data themselves."""
        return self if self._made_of is None else self._made_of

    @property
    def x(self) -> Array:
        """The vectors, shape (n, d); made if they are combinations."""
        if self._mix is None and self._picked is None:
            return self._x
        return np.stack([self.combine(one) for one in np.eye(len(self))])

    @property
    def d(self) -> int:
        """Length of the vectors."""
        return int(self._x.shape[1])

    @property
    def shares(self) -> Float64:
        """Weights that sum to 1, shape (n,): the examples' shares, or 1/n without weights."""
        if self.weights is None:
            return np.full(len(self), 1.0 / len(self))
        return np.asarray(self.weights / self.weights.sum())

    # ---- other rows made of these ----------------------------------------------------------------

    def take(self, index: Index) -> Rows:
        """Returns the rows with these indices, in this order."""
        weights = None if self.weights is None else self.weights[index]
        return self.mixed(np.eye(len(self))[index], weights)

    def scaled(self, factors: Float64) -> Rows:
        """Returns the rows y_i = a_i x_i; `factors` has shape (n,)."""
        return self.mixed(np.diag(factors), self.weights)

    def mixed(self, mix: Float64, weights: Float64 | None) -> Rows:
        """Returns the rows y_k = sum_i mix_ki x_i.

        Args:
            mix: float64, shape (m, n).
            weights: of the new rows, shape (m,).
        """
        if self._mix is not None:
            mix = mix @ self._mix
        elif self._picked is not None:
            index, factors = self._picked
            of_data = np.zeros((len(self), len(self._x)))
            of_data[np.arange(len(self)), index] = factors
            mix = mix @ of_data
        new = Rows.__new__(Rows)
        new._x, new._made_of, new.weights = self._x, self._base, weights
        new._mix = new._picked = None
        if (np.count_nonzero(mix, axis=1) <= 1).all():
            index = np.argmax(mix != 0.0, axis=1)
            new._picked = index, mix[np.arange(len(mix)), index]
        else:
            new._mix = mix
        return new

    # ---- what rules ask of them ------------------------------------------------------------------

    @cached_property
    def gram(self) -> Float64:
        """Inner products of the rows, float64, shape (n, n).

        Raises:
            ConfigError: a vector is not finite, or its norm is no float64.
        """
        if self._mix is not None:
            products = self._mix @ self._base.gram @ self._mix.T
            return 0.5 * (products + products.T)
        if self._picked is not None:
            index, factors = self._picked
            products = self._base.gram[np.ix_(index, index)]
            return np.asarray(products * factors[:, None] * factors)
        products = gram(self._x)
        _check_finite(np.diagonal(products))
        return products

    @cached_property
    def squared_distances(self) -> Float64:
        """|x_i - x_j|^2, float64, shape (n, n), with a zero diagonal."""
        return squared_distances(self.gram)

    @cached_property
    def norms(self) -> Float64:
        """|x_i|, float64, shape (n,).

        Raises:
            ConfigError: a vector is not finite, or its norm is no float64.
        """
        if self._picked is not None:
            index, factors = self._picked
            return np.asarray(self._base.norms[index] * np.abs(factors))
        if self._mix is not None or "gram" in self.__dict__:
            # For mixed rows the Gram product of the data costs as much as mixing them would.
            return np.asarray(np.sqrt(np.maximum(np.diagonal(self.gram), 0.0)))
        return np.asarray(np.sqrt(self._sums(lambda chunk, _: np.vecdot(chunk, chunk))))

    def distances_to(self, v: Array) -> Float64:
        """Returns |x_i - v|, float64, shape (n,), for a vector of shape (d,).

        Raises:
            ConfigError: a vector is not finite, or its distance is no float64.
        """

        def squared(chunk: Array, columns: slice) -> Array:
            away = chunk - v[columns].astype(chunk.dtype)
            return np.asarray(np.vecdot(away, away))

        return np.asarray(np.sqrt(self._sums(squared)))

    def inner(self, v: Array) -> Float64:
        """Returns <x_i, v>, float64, shape (n,), for a vector of shape (d,).

        The error is about 1e-7 |x_i| |v| for float32 vectors.
        """

        def products(chunk: Array, columns: slice) -> Array:
            return np.asarray(chunk @ v[columns].astype(chunk.dtype))

        largest = self.norms * np.linalg.norm(v.astype(np.float64))
        return self._float32_first(products, lambda total: largest < _SMALLEST)

    def combine(self, coefficients: Float64) -> Array:
        """Returns sum_i a_i x_i, shape (d,), in the type of the data."""
        a = coefficients
        if self._mix is not None:
            a = a @ self._mix
        elif self._picked is not None:
            index, factors = self._picked
            a = np.zeros(len(self._x))
            np.add.at(a, index, coefficients * factors)
        used, extreme = np.flatnonzero(a), _extreme(a, self._x.dtype)
        if len(used) == 1 and not extreme.any():  # one picked vector needs no look at the others
            return np.asarray(self._x[used[0]] * self._x.dtype.type(a[used[0]]))
        result = weighted_sum(np.where(extreme, 0.0, a), self._x)
        for i in np.flatnonzero(extreme):
            for columns in column_chunks(self.d):
                result[columns] += a[i] * self._x[i, columns].astype(np.float64)
        return result

    def by_coordinate(self, rule: Callable[[Array], Array]) -> Array:
        """Returns the vector whose coordinates are `rule` of the coordinates of the rows.

        Args:
            rule: maps (n, c) to (c,), each column by itself; the block it is given is its own.

        Returns:
            Shape (d,), in the type of the data.
        """
        out = np.empty(self.d, dtype=self._x.dtype)
        width = min(block_width(len(self)), self.d)
        # One buffer for all blocks: fresh memory for each would cost as much as filling it.
        buffer = np.empty((len(self), width), dtype=self._x.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the result is checked
            for columns in column_chunks(self.d, width):
                block = buffer[:, : columns.stop - columns.start]
                self._copy_block(columns, block)
                out[columns] = rule(block)
        return out

    # ---- sums over coordinates -------------------------------------------------------------------

    def _copy_block(self, columns: slice, out: Array) -> None:
        data = self._x[:, columns]
        if self._mix is not None:
            if _extreme(self._mix, data.dtype).any():
                np.copyto(out, self._mix @ data.astype(np.float64), casting="same_kind")
            else:
                np.matmul(self._mix.astype(data.dtype), data, out=out)
        elif self._picked is not None:
            index, factors = self._picked
            np.take(data, index, axis=0, out=out, mode="clip")  # any other mode copies twice
            if _extreme(factors, data.dtype).any():
                np.multiply(out, factors[:, None], out=out, casting="same_kind")
            elif not (factors == 1.0).all():
                np.multiply(out, factors.astype(data.dtype)[:, None], out=out)
        else:
            np.copyto(out, data)

    def _sums(self, squares: Callable[[Array, slice], Array]) -> Float64:
        """Returns sums of squares per row, shape (n,)."""
        total = self._float32_first(squares, lambda total: total < _SMALLEST)
        _check_finite(total)
        return total

    def _float32_first(
        self,
        products: Callable[[Array, slice], Array],
        underflows: Callable[[Float64], NDArray[np.bool_]],
    ) -> Float64:
        """Returns sums of products per row, in float32 for rows that do not leave its range."""
        total = self._sum_in(self._x.dtype, products)
        if self._x.dtype == np.float32:
            lost = np.flatnonzero(~np.isfinite(total) | underflows(total))
            if len(lost):
                total[lost] = self.take(lost)._sum_in(np.dtype(np.float64), products)
        return total

    def _sum_in(self, dtype: np.dtype[Any], f: Callable[[Array, slice], Array]) -> Float64:
        total = np.zeros(len(self))
        plain = self._mix is None and self._picked is None
        buffer = np.empty((len(self), 0 if plain else min(CHUNK, self.d)), dtype=self._x.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            for columns in column_chunks(self.d):
                if plain:
                    block = self._x[:, columns]
                else:
                    block = buffer[:, : columns.stop - columns.start]
                    self._copy_block(columns, block)
                total += f(block.astype(dtype, copy=False), columns)
        return total


def _extreme(coefficients: Float64, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Returns which coefficients float32 has no good number for, though the product may have one.

    Such are those that bring a vector of length 1e-40, or 1e40, to length 1.
    """
    if dtype != np.float32:
        return np.zeros(coefficients.shape, dtype=bool)
    size = np.abs(coefficients)
    return np.asarray((size != 0.0) & ((size < 1e-30) | (size > 1e30)))


def _check_finite(squares: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ConfigError(
            f"{len(bad)} of {len(squares)} vectors are not finite or have no finite norm, the "
            f"first at index {bad[0]}: pass them through fl.aggregation.Guard first"
        )


def _checked_weights(weights: ArrayLike, n: int) -> Float64:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise ConfigError(f"weights of shape {w.shape} for {n} vectors: need ({n},)")
    if not np.isfinite(w).all() or (w < 0).any():
        raise ConfigError(
            f"weights {w.tolist()}: must be finite and not negative; a number of examples is what "
            "a client says it is, so pass it through fl.aggregation.Guard first"
        )
    check_weights(w)
    return np.asarray(w / w.max())  # the sum of numbers near 1e308 would be infinite
