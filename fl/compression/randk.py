"""Rand-k: keep k entries chosen at random, by a seed instead of indices.

The subset is a function of a 64-bit seed in the payload. Encoders that are given equal generators
draw the same seed, and so the same subset; then encoding is linear, and payload values can be
summed in a ring or under secure aggregation.

Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599 (both forms);
contiguous blocks as in the code of PowerSGD (github.com/epfml/powersgd).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fl.compression.budget import Budget
from fl.compression.compressor import Length, Shapes, State, Transform, Vector, checked, extent
from fl.compression.rounding import Words, draw_seed
from fl.compression.wire import Reader, u64


@dataclass(frozen=True)
class RandK(Budget, Transform):
    """Keeps a uniformly random k-subset of the entries.

    Unscaled, E|C(x) - x|^2 = (1 - k/d) |x|^2 exactly, so delta = k / d; use it with error feedback.
    Scaled by d / k, it is unbiased with omega = d / k - 1; use it with DIANA, MARINA or plain
    averaging. Scaled under error feedback the memory grows without bound once d / k > 2; the
    wrappers refuse that.

    Wire, with float32 values:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 8 | seed |
    | 4 k | unscaled values, in ascending order of position |

    Length: `14 + 4 k`.

    Attributes:
        scaled: multiply by d / k when decoding.
        contiguous: keep k entries in a row, with wrap-around, from one random start; the constants
            are the same.
    """

    FORMAT: ClassVar[int] = 5

    scaled: bool = False
    contiguous: bool = False

    @property
    def isometric(self) -> bool:
        """Whether the decoded vector has the norm of the kept values."""
        return not self.scaled

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns the seed, and the values at its subset."""
        extent(checked(x, shapes))
        seed = draw_seed(rng)
        return u64(seed), x[self.subset(seed, shapes.size)], state

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads the seed."""
        return reader.u64(), self.count(shapes.size)

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the values, scaled or not, at the subset of the seed."""
        d = shapes.size
        x = np.zeros(d, dtype=np.float32)
        with np.errstate(over="ignore"):  # the caller refuses what is not finite
            x[self.subset(side, d)] = (
                values * np.float32(d / self.count(d)) if self.scaled else values
            )
        return x

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the 8 bytes of the seed."""
        return Length(8, 8)

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns k, twice."""
        k = self.count(shapes.size)
        return k, k

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns k / d if unscaled; scaled, 1 - omega where that is positive."""
        if self.scaled:
            return super().contraction(shapes)
        return self.count(shapes.size) / shapes.size

    def variance(self, shapes: Shapes) -> float | None:
        """Returns d / k - 1 if scaled."""
        if self.scaled or self.count(shapes.size) == shapes.size:
            return shapes.size / self.count(shapes.size) - 1
        return None

    def subset(self, seed: int, size: int) -> NDArray[np.int64]:
        """Returns the positions a seed stands for, ascending.

        A contract of the wire: it uses only raw generator words and integer arithmetic.
        """
        k = self.count(size)
        if self.contiguous:
            start = _below(Words(seed).u64(1), size)[0]
            return np.sort((start + np.arange(k)) % size)
        if 2 * k <= size:
            return _draw_subset(seed, k, size)
        # The complement of a uniform subset is uniform, and this one is cheaper to draw.
        mask = np.ones(size, dtype=np.bool_)
        if k < size:
            mask[_draw_subset(seed, size - k, size)] = False
        return cast("NDArray[np.int64]", np.flatnonzero(mask))


def _draw_subset(seed: int, k: int, size: int) -> NDArray[np.int64]:
    """Returns the first k distinct numbers of a sequence of draws below `size`, ascending."""
    words = Words(seed)
    drawn = np.zeros(0, dtype=np.int64)
    distinct = first = drawn
    while distinct.size < k:
        # k of at most d/2 numbers: a quarter more draws than k are enough nearly always.
        drawn = np.concatenate([drawn, _below(words.u64(k + k // 4 + 16), size)])
        distinct, first = np.unique(drawn, return_index=True)
    if distinct.size == k:
        return distinct
    last = np.partition(first, k - 1)[k - 1]
    chosen: NDArray[np.int64] = distinct[first <= last]
    return chosen


def _below(words: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    # The remainder is uniform up to size / 2**64.
    return (words % np.uint64(size)).astype(np.int64)
