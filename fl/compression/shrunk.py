"""An unbiased compressor made contractive by scaling.

E|a C(x) - x|^2 <= (a^2 omega + (1 - a)^2) |x|^2, which is least at a = 1 / (1 + omega), where it is
1 - 1 / (1 + omega). A standard step: see Richtarik, Sokolov, Fatkhullin, 2021, arXiv:2106.05203.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.compressor import Compressor, Length, Shapes, State, Vector
from fl.errors import ConfigError


@dataclass(frozen=True)
class Shrunk(Compressor):
    """Decodes C(x) / (1 + omega); delta = 1 / (1 + omega).

    Use it to put an unbiased compressor with omega of 1 or more under error feedback.

    Wire: that of C.

    Attributes:
        compressor: C, unbiased.
    """

    FORMAT: ClassVar[int] = 0  # never written: the payload is that of C

    compressor: Compressor

    def init(self, shapes: Shapes) -> State:
        """Returns the state of C.

        Raises:
            ConfigError: C has no omega.
        """
        self._omega(shapes)
        return self.compressor.init(shapes)

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        return self.compressor.encode(x, shapes, state, rng)

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        return self.compressor.decode(payload, shapes) / np.float32(1 + self._omega(shapes))

    def length(self, shapes: Shapes) -> Length:
        """Returns that of C."""
        return self.compressor.length(shapes)

    def contraction(self, shapes: Shapes) -> float:
        """Returns 1 / (1 + omega)."""
        return 1 / (1 + self._omega(shapes))

    def _omega(self, shapes: Shapes) -> float:
        omega = self.compressor.variance(shapes)
        if omega is None:
            raise ConfigError(
                f"{type(self.compressor).__name__} as configured is biased; only an unbiased "
                "compressor can be shrunk"
            )
        return omega
