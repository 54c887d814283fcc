"""Block top-k: the largest entries of every block of B.

Every block gets its share, an index is local and needs log2 B bits, and selection is one pass over
rows. MicroAdam (arXiv:2405.15593) selects this way; with k = 1 it is blockwise max pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import at_least
from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.budget import Budget
from fl.compression.compressor import Length, Shapes, State, Transform, Vector, checked
from fl.compression.largest import largest_in_rows
from fl.compression.wire import Reader, joined


@dataclass(frozen=True)
class BlockTopK(Budget, Transform):
    """Keeps the k_b entries of largest |x_i| of every block of B entries; delta = k_b / B.

    The last block may be shorter, of r entries; it keeps its own count, by density or min(k, r).

    Wire, with float32 values:

    | bytes | content |
    |---|---|
    | 6 | header |
    | ceil(K ceil(log2 B) / 8) | positions inside their block, ascending in each block, packed |
    | 4 K | values |

    Length: K = floor(d / B) k_b + (that of the last block) is fixed, so
    `6 + ceil(K ceil(log2 B) / 8) + 4 K`.

    Attributes:
        block: B, at least 1.
    """

    FORMAT: ClassVar[int] = 3

    block: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("block", self.block, 1)

    @property
    def isometric(self) -> bool:
        """True: the values are entries of the vector."""
        return True

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns the positions inside the blocks, and the values at them."""
        checked(x, shapes)
        inside = [
            largest_in_rows(x[part].reshape(rows, -1), k).reshape(-1)
            for part, rows, k in self._parts(shapes)
        ]
        local = np.concatenate(inside)
        return (
            joined(pack(local.astype(np.uint32), self._width)),
            x[self._positions(local, shapes)],
            state,
        )

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads the positions inside the blocks."""
        count = self.kept(shapes)[0]
        local = read_packed(reader, count, self._width).astype(np.int64)
        at = 0
        for part, rows, k in self._parts(shapes):
            inside = local[at : at + rows * k].reshape(rows, k)
            at += rows * k
            if int(inside.max()) >= (part.stop - part.start) // rows:
                raise reader.fail(f"position {int(inside.max())} lies outside its block")
            if k > 1 and int(np.diff(inside, axis=1).min()) < 1:
                raise reader.fail("positions of a block are not strictly ascending")
        return self._positions(local, shapes), count

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the values at their positions, zero elsewhere."""
        x = np.zeros(shapes.size, dtype=np.float32)
        x[side] = values
        return x

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the bytes of the positions."""
        size = packed_length(self.kept(shapes)[0], self._width)
        return Length(size, size)

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns K, twice."""
        k = sum(rows * k for _, rows, k in self._parts(shapes))
        return k, k

    def contraction(self, shapes: Shapes) -> float:
        """Returns the least share kept of a block."""
        shares = (k * rows / (part.stop - part.start) for part, rows, k in self._parts(shapes))
        return float(min(shares))

    @property
    def _width(self) -> int:
        return (self.block - 1).bit_length()

    def _parts(self, shapes: Shapes) -> list[tuple[slice, int, int]]:
        """Returns (entries, blocks, kept per block) of the whole blocks, and of the last one."""
        whole, rest = divmod(shapes.size, self.block)
        end = whole * self.block
        parts = [(slice(0, end), whole, self.count(self.block))] if whole else []
        if rest:
            parts.append((slice(end, shapes.size), 1, self.count(rest)))
        return parts

    def _positions(self, local: Any, shapes: Shapes) -> Any:
        starts = [
            part.start + np.repeat(np.arange(rows) * self.block, k)
            for part, rows, k in self._parts(shapes)
        ]
        return local + np.concatenate(starts)
