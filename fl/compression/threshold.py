"""Threshold sparsification: send what exceeds a bound, fixed or steered to a density.

Strom, Scalable Distributed DNN Training Using Commodity GPU Cloud Computing, Interspeech 2015, uses
a fixed bound. The number of entries sent is then random, so it is capped, and at least one entry is
sent, because a bound above all entries would send nothing for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import fraction, positive, read_if
from fl.compression.compressor import Length, Shapes, State, Transform, Vector, checked, extent
from fl.compression.largest import largest
from fl.compression.topk import read_support, scattered, support_length, write_support
from fl.compression.wire import Reader
from fl.errors import ConfigError


@read_if(lambda a: a["density"] is not None, "gain", only="without {at}density the bound is fixed")
@dataclass(frozen=True)
class Threshold(Transform):
    """Keeps the entries with |x_i| >= lambda: at least 1, at most round(cap d).

    With a target density p, lambda follows it from message to message, K being the number of
    entries that reached it: lambda <- lambda (max(K, 1) / (p d))^gain. As one entry is always sent,
    delta = 1 / d; the delta of a given vector is its share of energy at or above lambda.

    State: `lambda`, float64, shape (1,).

    Wire: that of `TopK`, with K for k. Length: `10 + indices + 4 K`.

    Attributes:
        threshold: lambda, or where it starts; above 0.
        density: target p, in (0, 1]; None keeps lambda fixed.
        gain: exponent of the correction, in (0, 1]. At 1% of a Gaussian, K falls with the seventh
            power of lambda, and a gain above 2/7 overshoots for ever.
        cap: share of the entries that may be sent at most, in (0, 1]: the largest ones.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 4

    threshold: float
    density: float | None = None
    gain: float = 0.1
    cap: float = 0.1

    def __post_init__(self) -> None:
        positive("threshold", self.threshold)
        fraction("gain", self.gain)
        fraction("cap", self.cap)
        if self.density is not None and not 0 < self.density <= self.cap:
            raise ConfigError(
                f"density is {self.density}; it must be above 0 and at most cap={self.cap}"
            )

    def init(self, shapes: Shapes) -> State:
        """Returns lambda as configured."""
        return {"lambda": np.array([self.threshold])}

    @property
    def isometric(self) -> bool:
        """True: the values are entries of the vector."""
        return True

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns K and the positions, and the values at them; and the next lambda."""
        extent(checked(x, shapes))
        bound = float(state["lambda"][0])
        positions = np.flatnonzero(np.abs(x) >= bound)
        reached = positions.size
        _, most = self.kept(shapes)
        if not 1 <= reached <= most:
            positions = largest(x, min(max(reached, 1), most))
        if self.density is not None:
            factor = (max(reached, 1) / (self.density * shapes.size)) ** self.gain
            # A vector of zeros would otherwise drive lambda to 0, from where it cannot return.
            state = {"lambda": np.array([max(bound * factor, np.finfo(np.float32).tiny)])}
        return write_support(positions, shapes.size), x[positions], state

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads K and the positions."""
        return read_support(reader, shapes.size, self.kept(shapes))

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the values at their positions, zero elsewhere."""
        return scattered(side, values, shapes.size)

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the bytes of K and the positions."""
        return support_length(shapes.size, self.kept(shapes))

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns 1 and round(cap d), at least 1."""
        return 1, max(round(self.cap * shapes.size), 1)

    def contraction(self, shapes: Shapes) -> float:
        """Returns 1 / d."""
        return 1 / shapes.size
