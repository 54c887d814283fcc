"""No compression: every entry as float32.

The base that ratios are taken against, and the oracle of the wrappers: with it each of them is
plain gradient descent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.compressor import Compressor, Length, Shapes, State, Vector, checked, extent
from fl.compression.wire import HEADER, floats, joined


@dataclass(frozen=True)
class Identity(Compressor):
    """Sends all d entries as they are; delta = 1, omega = 0.

    Wire: header, d float32. `6 + 4 d` bytes.
    """

    FORMAT: ClassVar[int] = 1

    @property
    def adds(self) -> bool:
        """True."""
        return True

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        extent(checked(x, shapes))
        return joined(self._header(shapes), floats(x)), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        return reader.floats(shapes.size).astype(np.float32)

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + 4 d, twice."""
        size = HEADER.size + 4 * shapes.size
        return Length(size, size)

    def contraction(self, shapes: Shapes) -> float:
        """Returns 1."""
        return 1.0

    def variance(self, shapes: Shapes) -> float:
        """Returns 0."""
        return 0.0
