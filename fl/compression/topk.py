"""Top-k: keep the entries of largest magnitude.

Selection is exact, the lowest index wins ties. Kept exactly, the entries leave a residual on the
others: C(x) and x - C(x) have disjoint supports.

Used as such since Aji and Heafield, Sparse Communication for Distributed Gradient Descent, EMNLP
2017, arXiv:1704.05021. The code of PowerSGD (github.com/epfml/powersgd) halves k to pay for
indices; here k is what the configuration says, and the indices cost what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.compression import indices
from fl.compression.budget import Budget
from fl.compression.compressor import Length, Shapes, State, Transform, Vector, checked
from fl.compression.largest import largest
from fl.compression.wire import Reader, u32
from fl.errors import ConfigError


@dataclass(frozen=True)
class TopK(Budget, Transform):
    """Keeps the k entries of largest |x_i| and drops the others; delta = k / d.

    By tensor, k_l entries of each tensor are kept, and delta is the least k_l / d_l; the constant
    of the global k does not hold then.

    Wire, with float32 values:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 4 | k, all tensors together |
    | ... | positions, as `indices` writes them |
    | 4 k | values |

    Length: `10 + indices + 4 k`. `indices` is the least of its codes, at 1% density about 8.2 bits
    an index where the information bound is 8.08.

    Attributes:
        scope: "global" ranks all entries together, "tensor" each tensor by itself.
    """

    FORMAT: ClassVar[int] = 2

    scope: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("global", "tensor"):
            raise ConfigError(f"scope is {self.scope!r}; it must be 'global' or 'tensor'")

    @property
    def isometric(self) -> bool:
        """True: the values are entries of the vector."""
        return True

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns k and the positions, and the values at them."""
        checked(x, shapes)
        positions = np.concatenate(
            [part.start + largest(x[part], self.count(n)) for part, n in self._parts(shapes)]
        )
        return write_support(positions, shapes.size), x[positions], state

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads k and the positions."""
        return read_support(reader, shapes.size, self.kept(shapes))

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the values at their positions, zero elsewhere."""
        return scattered(side, values, shapes.size)

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the bytes of k and the positions."""
        return support_length(shapes.size, self.kept(shapes))

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns k, twice."""
        k = sum(self.count(n) for _, n in self._parts(shapes))
        return k, k

    def contraction(self, shapes: Shapes) -> float:
        """Returns the least k_l / d_l."""
        return min(self.count(n) / n for _, n in self._parts(shapes))

    def _parts(self, shapes: Shapes) -> list[tuple[slice, int]]:
        if self.scope == "global":
            return [(slice(0, shapes.size), shapes.size)]
        return [(s, n) for s, n in zip(shapes.slices, shapes.sizes, strict=True) if n]


def write_support(positions: indices.Positions, size: int) -> bytes:
    """Returns k and the positions as bytes."""
    return u32(positions.size) + indices.encode(positions, size)


def read_support(reader: Reader, size: int, kept: tuple[int, int]) -> tuple[Any, int]:
    """Reads what `write_support` wrote.

    Raises:
        PayloadError: k is not within `kept`, or the positions are malformed.
    """
    count = reader.u32()
    if not kept[0] <= count <= kept[1]:
        raise reader.fail(f"k={count}; this configuration sends {kept[0]} to {kept[1]} of {size}")
    return indices.decode(reader, count, size), count


def support_length(size: int, kept: tuple[int, int]) -> Length:
    """Returns the least and the most bytes of `write_support`."""
    # The least is that of an empty body: a run of k positions in a row takes next to nothing.
    return Length(4 + 1, 4 + max(indices.longest(k, size) for k in kept))


def scattered(positions: indices.Positions, values: Vector, size: int) -> Vector:
    """Returns a vector with `values` at `positions` and zeros elsewhere."""
    x = np.zeros(size, dtype=np.float32)
    x[positions] = values
    return x
