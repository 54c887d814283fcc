"""One byte per direction: a seed and the projection of the gradient on what it generates.

Zelikman, Huang, Liang, Haber, Goodman, Just One Byte (per gradient): A Note on Low-Bandwidth
Decentralized Language Model Finetuning Using Shared Randomness, 2023, arXiv:2306.10015;
github.com/ezelikman/justonebyte. The estimator: Spall 1992; MeZO, arXiv:2305.17333.

There are two ways to use it:

- Zeroth order, as in the paper: the client asks `direction` for z, computes rho =
  (L(x + eps z) - L(x - eps z)) / (2 eps) by forward passes, and sends `encode_projections`.
- As a compressor of a gradient or update x: rho = <x, z>, the forward gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.checks import at_least, positive
from fl.compression.compressor import (
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
    extent,
    finite,
)
from fl.compression.rounding import Words, draw_seed
from fl.compression.wire import HEADER, buffer, joined, u64
from fl.errors import ConfigError

_BLOCK = 1 << 15
_STEPS = 8  # codes per factor e
_MIDDLE = 64  # code of magnitude 1
_CODES = 127  # magnitudes exp((code - 64) / 8), code 1 to 127; 0 is zero


@dataclass(frozen=True)
class OneByteSpsa(Compressor):
    """Sends a seed and S bytes; decoded (1/S) sum_s rho_s z_s, z_s ~ N(0, I_d) from the seed.

    rho is sent as one sign bit and a 7-bit logarithm: magnitude scale exp((c - 64) / 8) for c = 1
    to 127, from 3.8e-4 to 2.6e3 times the scale; c = 0 is zero. Rounding at random between
    neighbours, the estimate is unbiased within that range, with omega = ((1 + nu)(d + 2) - 1) / S,
    nu = (r - 1)^2 / 4r = 0.0039 for r = e^(1/8). Rounding to the nearest has a relative error of at
    most 6.5%.

    Wire:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 8 | seed |
    | S | sign in bit 7, c in bits 0 to 6 |

    Length: `14 + S`, whatever d is.

    Departures: the paper's code has 255 magnitudes and a sign, 9 bits, and sends floats in spite of
    its switch; the step here is 1/8 instead of 1/16. z is drawn from 2^16 equally probable
    quantiles of the normal distribution, scaled to variance exactly 1, by table and integers alone,
    so that every machine makes the same z from a seed.

    Attributes:
        samples: S, at least 1.
        scale: magnitude that the middle code stands for, above 0.
        stochastic: round rho at random, else to the nearest.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 17

    samples: int = 1
    scale: float = 1.0
    stochastic: bool = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        positive("scale", self.scale)

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes the projections <x, z_s>; see `Channel.encode`."""
        extent(checked(x, shapes))
        seed = draw_seed(rng)
        rho = np.zeros(self.samples)
        for s in range(self.samples):
            words = Words(_sample_seed(seed, s))
            for start in range(0, x.size, _BLOCK):
                block = x[start : start + _BLOCK]
                with np.errstate(over="ignore", invalid="ignore"):  # refused below
                    rho[s] += float(np.sum(block * _normals(words, block.size), dtype=np.float64))
        return self.encode_projections(rho, seed, shapes, rng), state

    def encode_projections(
        self, rho: ArrayLike, seed: int, shapes: Shapes, rng: np.random.Generator
    ) -> bytes:
        """Returns the payload of projections computed elsewhere.

        Args:
            rho: shape (S,).
            seed: the 64 bits that `direction` was given.
            shapes: of the tensors.
            rng: rounds them, if that is stochastic.

        Raises:
            ConfigError: not S finite numbers.
        """
        rho = np.asarray(rho, dtype=np.float64)
        if rho.shape != (self.samples,) or not np.isfinite(rho).all():
            raise ConfigError(
                f"projections {rho} of shape {rho.shape}; {self.samples} finite numbers are "
                "needed: clip the update"
            )
        u = rng.random(self.samples) if self.stochastic else None
        codes = _encode(np.abs(rho) / self.scale, u)
        codes |= np.where((rho < 0) & (codes > 0), 128, 0)
        return joined(self._header(shapes), u64(seed), buffer(codes.astype(np.uint8)))

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        seed = reader.u64()
        codes = reader.bytes_array(self.samples)
        reader.end()
        if (codes == 128).any():
            raise reader.fail("a projection of minus zero")
        rho = _magnitudes()[codes & 127] * np.where(codes & 128, -self.scale, self.scale)
        x = np.zeros(shapes.size, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # the result is checked
            for s in np.flatnonzero(rho):
                words = Words(_sample_seed(seed, int(s)))
                factor = np.float32(rho[s] / self.samples)
                for start in range(0, x.size, _BLOCK):
                    block = x[start : start + _BLOCK]
                    block += factor * _normals(words, block.size)
        return finite(x, reader)

    def direction(self, seed: int, sample: int, shapes: Shapes) -> Vector:
        """Returns z of one sample, shape (d,), float32, the same on every machine."""
        words = Words(_sample_seed(seed, sample))
        sizes = [min(_BLOCK, shapes.size - at) for at in range(0, shapes.size, _BLOCK)]
        return np.concatenate([_normals(words, size) for size in sizes])

    def length(self, shapes: Shapes) -> Length:
        """Returns 14 + S, twice."""
        size = HEADER.size + 8 + self.samples
        return Length(size, size)

    def variance(self, shapes: Shapes) -> float | None:
        """Returns ((1 + nu)(d + 2) - 1) / S if rounding is stochastic."""
        if not self.stochastic:
            return None
        r = math.exp(1 / _STEPS)
        return ((1 + (r - 1) ** 2 / (4 * r)) * (shapes.size + 2) - 1) / self.samples


def _sample_seed(seed: int, sample: int) -> int:
    return (seed + sample * 0x9E3779B97F4A7C15) % 2**64


def _normals(words: Words, count: int) -> Vector:
    return _quantiles()[words.u16(count)]


@lru_cache(maxsize=1)
def _quantiles() -> Vector:
    """Returns the 2^16 mid-point quantiles of N(0, 1), scaled to variance 1."""
    normal = NormalDist()
    half = np.array([normal.inv_cdf((i + 0.5) / 2**16) for i in range(2**15)])
    table = np.concatenate([half, -half[::-1]])
    quantiles: Vector = (table / np.sqrt(np.mean(table**2))).astype(np.float32)
    return quantiles


@lru_cache(maxsize=1)
def _magnitudes() -> NDArray[np.float64]:
    codes = np.arange(_CODES + 1)
    return np.where(codes > 0, np.exp((codes - _MIDDLE) / _STEPS), 0.0)


def _encode(magnitude: NDArray[np.float64], u: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Returns the code of each magnitude: random by u, or the nearest."""
    grid = _magnitudes()
    magnitude = np.minimum(magnitude, grid[-1])
    upper = np.clip(np.searchsorted(grid, magnitude), 1, _CODES)
    low, high = grid[upper - 1], grid[upper]
    share = (magnitude - low) / (high - low)
    up = share > 0.5 if u is None else u < share
    return upper - 1 + up
