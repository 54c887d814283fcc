"""Vectors that have nothing to do with training: noise, and constants that are no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.aggregation.gram import Array
from fl.attacks.attack import Attack, Forged, Knowledge, SameVector, Scene, require


@dataclass(frozen=True)
class Gauss(Attack):
    """Sends centre + N(0, sigma^2) in each coordinate.

    Attributes:
        sigma: standard deviation, not negative.
        centre: "zero", or the "mean" of the honest vectors.
        same: all clients send one draw, as in ByzFL; otherwise each its own.

    Raises:
        ConfigError: a parameter is out of range, or the scene has no generator.
    """

    sigma: float = 1.0
    centre: Literal["zero", "mean"] = "zero"
    same: bool = False

    def __post_init__(self) -> None:
        require(self.sigma >= 0, f"Gauss: sigma={self.sigma}: must not be negative")
        require(self.centre in ("zero", "mean"), f"Gauss: centre={self.centre!r}: 'zero' or 'mean'")

    @property
    def knowledge(self) -> Knowledge:
        """The honest vectors, if their mean is the centre."""
        return "own" if self.centre == "zero" else "honest-vectors"

    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns the draws, shape (f, d)."""
        f, d = own.shape
        rng = scene.generator("Gauss")
        dtype = np.float32 if own.dtype == np.float32 else np.float64
        rows = rng.standard_normal((1 if self.same else f, d), dtype=dtype)
        rows *= dtype(self.sigma)
        if self.centre == "mean":
            rows += honest.mean(axis=0)
        return Forged(np.broadcast_to(rows, own.shape), {})


@dataclass(frozen=True)
class UniformNoise(Attack):
    """Sends numbers drawn evenly from [low, high), each client its own.

    [0, 1) is the random attack of the Flag Aggregator's authors.

    Attributes:
        low: lower end.
        high: upper end, above it.

    Raises:
        ConfigError: the range is empty, or the scene has no generator.
    """

    knowledge: ClassVar[Knowledge] = "own"

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(self.low < self.high, f"Uniform: [{self.low}, {self.high}) is empty")

    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns the draws, shape (f, d)."""
        draws = scene.generator("UniformNoise").uniform(self.low, self.high, own.shape)
        return Forged(draws.astype(own.dtype), {})


@dataclass(frozen=True)
class ConstantUpdate(SameVector):
    """Sends one value in every coordinate: zero, infinity, NaN, or the largest number there is.

    Attributes:
        value: any float.
    """

    knowledge: ClassVar[Knowledge] = "own"

    value: float = 0.0

    def vector(self, honest: Array, scene: Scene) -> Array:
        """Returns the constant vector, shape (d,)."""
        return np.full(honest.shape[1], self.value, dtype=honest.dtype)
