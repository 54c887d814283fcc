"""Sign compressors: one bit an entry, with no scale or one scale per tensor.

- signSGD: Bernstein, Wang, Azizzadenesheli, Anandkumar, ICML 2018, arXiv:1802.04434; with majority
  vote, arXiv:1810.05291.
- Scaled sign for error feedback (EF-signSGD): Karimireddy, Rebjock, Stich, Jaggi, Error Feedback
  Fixes SignSGD and other Gradient Compression Schemes, ICML 2019, arXiv:1901.09847.
- With the scale |x|_2 / sqrt(d): the compressor of 1-bit Adam (see `onebit_adam`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.compressor import (
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
    extent,
)
from fl.compression.moments import mean_magnitude, root_mean_square
from fl.compression.wire import HEADER, Buffer, floats, joined
from fl.errors import ConfigError


@dataclass(frozen=True)
class Sign(Compressor):
    """Sends sign(x_i), with sign(0) = +1, and one scale per tensor.

    | scale | s of a tensor of n entries | constant |
    |---|---|---|
    | "none" | 1, nothing is sent | biased, no contraction |
    | "l1" | abs(x)_1 / n | delta(x) = abs(x)_1^2 / (n abs(x)_2^2), at least 1 / n |
    | "l2" | abs(x)_2 / sqrt n | not contractive: the residual of a one-hot vector is nearly 2 |

    There is no code for zero: an entry that is zero is sent as +s. A tensor of zeros has s = 0 and
    arrives as zeros; an entry that is always zero inside another tensor arrives as noise of size s,
    which under error feedback changes sign from message to message.

    Wire: header, one float32 scale per tensor unless there is none, ceil(d / 8) bytes of signs (1
    for negative). Length: `6 + 4 L + ceil(d / 8)` for L tensors, `6 + ceil(d / 8)` without scales.

    Attributes:
        scale: "none", "l1" or "l2".

    Raises:
        ConfigError: another scale.
    """

    FORMAT: ClassVar[int] = 10

    scale: str = "l1"

    def __post_init__(self) -> None:
        if self.scale not in ("none", "l1", "l2"):
            raise ConfigError(f"scale is {self.scale!r}; it must be 'none', 'l1' or 'l2'")

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        checked(x, shapes)
        negative = np.less(x, 0)
        return joined(self._header(shapes), self._scales(x, shapes), pack(negative, 1)), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        parts = self._parts(shapes)
        scales = (
            np.ones(1, dtype=np.float32)
            if self.scale == "none"
            else reader.floats(len(parts), least=0.0)
        )
        negative = read_packed(reader, shapes.size, 1)
        reader.end()
        # 0 and 1 become +1 and -1: cheaper than choosing between two numbers.
        signs = np.subtract(1, np.left_shift(negative, 1, out=negative).view(np.int8))
        x = np.empty(shapes.size, dtype=np.float32)
        for part, scale in zip(parts, scales, strict=True):
            np.multiply(signs[part], scale, out=x[part])
        return x

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + 4 L + ceil(d / 8), twice; without scales L = 0."""
        scales = 0 if self.scale == "none" else 4 * len(shapes.sizes)
        size = HEADER.size + scales + packed_length(shapes.size, 1)
        return Length(size, size)

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns 1 / n of the largest tensor if the scale is "l1"."""
        return 1 / max(shapes.sizes) if self.scale == "l1" else None

    def _parts(self, shapes: Shapes) -> Sequence[slice]:
        return (slice(0, shapes.size),) if self.scale == "none" else shapes.slices

    def _scales(self, x: Vector, shapes: Shapes) -> Buffer:
        if self.scale == "none":
            extent(x)
            return b""
        parts = [x[part] for part in shapes.slices]
        if self.scale == "l1":
            return floats(np.array([mean_magnitude(part) for part in parts], dtype=np.float32))
        return floats(np.array([root_mean_square(part) for part in parts], dtype=np.float32))


def majority(votes: Sequence[Vector]) -> Vector:
    """Returns the sign of the sum of decoded signs, the server's vote in signSGD.

    Args:
        votes: vectors of -1 and +1, shape (d,) each.

    Returns:
        Shape (d,), float32; a tie is +1, like the sign of zero.
    """
    total = np.sum(votes, axis=0, dtype=np.int64)
    return np.where(total < 0, np.float32(-1), np.float32(1))
