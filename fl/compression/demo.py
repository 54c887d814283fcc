"""DeMo: the strongest DCT coefficients of every chunk.

Peng, Quesnelle, Kingma, DeMo: Decoupled Momentum Optimization, 2024, arXiv:2411.19870;
github.com/bloc97/DeMo.

DeMo is this compressor under error feedback with decay: `ErrorFeedback(Demo(...), decay=beta)` fed
with lr times the local gradient keeps delta <- beta delta + lr g, sends q = C(delta) and subtracts
it. The receivers combine all messages with `mean_over_senders` and step by the sign of the result:
x <- x - lr sign(u), or by u itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.compressor import (
    Length,
    Shapes,
    State,
    Transform,
    Vector,
    checked,
    extent,
    finite,
)
from fl.compression.largest import largest_in_rows
from fl.compression.wire import Reader, joined
from fl.errors import ConfigError


@dataclass(frozen=True)
class Demo(Transform):
    """Keeps the k coefficients of largest magnitude of every chunk's orthonormal DCT-II.

    A tensor of two or more dimensions is a matrix shape[0] x rest, cut into blocks of s_a x s_b, s
    being the largest divisor of the side that is at most `chunk`; the transform is separable. The
    DCT preserves norms, so delta is the least k / (entries of a chunk). A prime side gives chunks
    of one row: choose widths with divisors.

    Vectors and scalars are sent as they are: 32 of 64 entries with their indices cost as much as
    all of them. With `vectors` they are cut into segments of s like the original does.

    Wire, with float32 values:

    | bytes | content |
    |---|---|
    | 6 | header |
    | ceil(K_t ceil(log2 c_t) / 8) each tensor | index of each coefficient among c_t of a chunk |
    | 4 K | coefficients, and the tensors sent as they are, in order of tensors |

    Indices ascend in each chunk; K_t = chunks_t min(k, c_t), a tensor sent as it is has K_t = size
    and no indices. Length: `6 + sum_t ceil(K_t ceil(log2 c_t) / 8) + 4 K`. With bfloat16 values and
    64 x 64 chunks that is 28 bits a coefficient.

    Attributes:
        k: coefficients per chunk, at least 1 (the code's 32).
        chunk: largest side of a chunk, at least 1 (the code's 64).
        vectors: transform one-dimensional tensors too.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 15

    k: int = 32
    chunk: int = 64
    vectors: bool = False

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("chunk", self.chunk)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")

    @property
    def isometric(self) -> bool:
        """True: the transform is orthonormal."""
        return True

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns the indices of the coefficients, and their values."""
        extent(checked(x, shapes))
        side, values = [], []
        for grid, part in self._grids(shapes):
            if grid is None:
                values.append(x[part])
                continue
            y = grid.transform(x[part])
            chosen = largest_in_rows(y, grid.kept)
            side.append(pack(chosen.reshape(-1).astype(np.uint32), grid.width))
            values.append(np.take_along_axis(y, chosen, axis=1).reshape(-1))
        return joined(*side), np.concatenate(values), state

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads the indices of the coefficients."""
        side = []
        for grid, _ in self._grids(shapes):
            if grid is None:
                continue
            inside = read_packed(reader, grid.chunks * grid.kept, grid.width).astype(np.int64)
            inside = inside.reshape(grid.chunks, grid.kept)
            if int(inside.max()) >= grid.entries:
                raise reader.fail(f"coefficient {int(inside.max())} of {grid.entries}")
            if grid.kept > 1 and int(np.diff(inside, axis=1).min()) < 1:
                raise reader.fail("coefficients of a chunk are not strictly ascending")
            side.append(inside)
        return side, self.kept(shapes)[0]

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the inverse transform of the coefficients at their places."""
        return self._inverse(self._spread(side, values, shapes), shapes)

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the bytes of the indices."""
        size = sum(
            packed_length(grid.chunks * grid.kept, grid.width)
            for grid, _ in self._grids(shapes)
            if grid is not None
        )
        return Length(size, size)

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns K, twice."""
        k = sum(
            part.stop - part.start if grid is None else grid.chunks * grid.kept
            for grid, part in self._grids(shapes)
        )
        return k, k

    def contraction(self, shapes: Shapes) -> float:
        """Returns the least share of coefficients kept of a chunk."""
        return min(
            (grid.kept / grid.entries for grid, _ in self._grids(shapes) if grid is not None),
            default=1.0,
        )

    def mean_over_senders(
        self, payloads: Sequence[bytes], shapes: Shapes, *, sign: bool = True
    ) -> Vector:
        """Returns what all replicas step along, given the messages of all workers in one order.

        Each coefficient is the mean over the workers that sent it, not over all; coefficients that
        nobody sent are 0. Tensors sent as they are: the mean over all workers.

        Args:
            payloads: of this compressor, at least one.
            shapes: of the tensors.
            sign: return the sign of the result, as the paper's optimiser uses it.

        Raises:
            PayloadError: a payload is malformed.
            ConfigError: there are no payloads.
        """
        if not payloads:
            raise ConfigError("no payloads to combine")
        total = np.zeros(shapes.size, dtype=np.float32)
        count = np.zeros(shapes.size, dtype=np.int32)
        for payload in payloads:
            reader = self._open(payload, shapes)
            side, kept = self.read_side(reader, shapes)
            values = reader.floats(kept)
            reader.end()
            total += self._spread(side, values, shapes)
            count += self._spread(side, np.ones(kept, dtype=np.float32), shapes) > 0
        mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        u = finite(self._inverse(mean, shapes), reader)
        return np.sign(u) if sign else u

    def _spread(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the coefficients at their places, zeros elsewhere; chunk after chunk, flat."""
        y = np.zeros(shapes.size, dtype=np.float32)
        at = 0
        indices = iter(side)
        for grid, part in self._grids(shapes):
            if grid is None:
                size = part.stop - part.start
                y[part] = values[at : at + size]
            else:
                size = grid.chunks * grid.kept
                block = values[at : at + size].reshape(grid.chunks, grid.kept)
                np.put_along_axis(
                    y[part].reshape(grid.chunks, grid.entries), next(indices), block, axis=1
                )
            at += size
        return y

    def _inverse(self, y: Vector, shapes: Shapes) -> Vector:
        x = np.empty(shapes.size, dtype=np.float32)
        for grid, part in self._grids(shapes):
            x[part] = y[part] if grid is None else grid.inverse(y[part])
        return x

    def _grids(self, shapes: Shapes) -> list[tuple[_Grid | None, slice]]:
        grids: list[tuple[_Grid | None, slice]] = []
        for (n, m), shape, part in zip(shapes.matrices, shapes.shapes, shapes.slices, strict=True):
            if part.stop == part.start or (len(shape) < 2 and not self.vectors):
                grids.append((None, part))
            else:
                grids.append(
                    (_Grid(n, m, _side(n, self.chunk), _side(m, self.chunk), self.k), part)
                )
        return grids


@dataclass(frozen=True)
class _Grid:
    """An n x m matrix cut into chunks of a x b."""

    n: int
    m: int
    a: int
    b: int
    k: int

    @property
    def entries(self) -> int:
        return self.a * self.b

    @property
    def chunks(self) -> int:
        return self.n // self.a * (self.m // self.b)

    @property
    def kept(self) -> int:
        return min(self.k, self.entries)

    @property
    def width(self) -> int:
        return (self.entries - 1).bit_length()

    def transform(self, x: Vector) -> Vector:
        """Returns the coefficients, shape (chunks, entries)."""
        blocks = x.reshape(self.n // self.a, self.a, self.m // self.b, self.b).transpose(0, 2, 1, 3)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
            y: Vector = np.matmul(np.matmul(dct_matrix(self.a), blocks), dct_matrix(self.b).T)
        return np.ascontiguousarray(y).reshape(self.chunks, self.entries)

    def inverse(self, y: Vector) -> Vector:
        """Returns the matrix, flat, from its coefficients, flat."""
        blocks = y.reshape(self.n // self.a, self.m // self.b, self.a, self.b)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
            x: Vector = np.matmul(np.matmul(dct_matrix(self.a).T, blocks), dct_matrix(self.b))
        return x.transpose(0, 2, 1, 3).reshape(-1)


@lru_cache(maxsize=256)
def dct_matrix(size: int) -> NDArray[np.float32]:
    """Returns the orthonormal DCT-II of `size` points: D[i, j] = c_i cos(pi (j + 1/2) i / size).

    c_0 = sqrt(1 / size), the others sqrt(2 / size). Computed in float64, shape (size, size),
    float32.
    """
    i, j = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix: NDArray[np.float64] = np.sqrt(2 / size) * np.cos(np.pi * (j + 0.5) * i / size)
    matrix[0] = np.sqrt(1 / size)
    return matrix.astype(np.float32)


@lru_cache(maxsize=1024)
def _side(length: int, most: int) -> int:
    """Returns the largest divisor of `length` that is at most `most`."""
    return next(s for s in range(min(length, most), 0, -1) if length % s == 0)
