"""Uniform quantisation to b-bit integers, one scale per vector or per bucket.

The stochastic form is unbiased; the deterministic form has half the largest error. With one scale
agreed on by all workers the integers could be summed; here each payload brings its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.bits import packed_length
from fl.compression.compressor import Compressor, Length, Shapes, State, Vector, checked, extent
from fl.compression.qsgd import read_offset, write_offset
from fl.compression.rounding import (
    Words,
    bucket_count,
    level_steps,
    nearest_levels,
    pieces,
    scaled_levels,
    stochastic_levels,
)
from fl.compression.wire import HEADER, floats, joined
from fl.errors import ConfigError

_TINY = 2.0**-100  # a bucket of smaller maximum is sent as zeros: its factor would overflow float32


@dataclass(frozen=True)
class UniformQuantizer(Compressor):
    """Rounds S x_i / a to an integer, a = max |x_j| of the bucket, S = 2^(b-1) - 1.

        q_i = floor(S x_i / a + u_i), u_i uniform on [0, 1), or the nearest integer;
        decoded a q_i / S

    Stochastic: unbiased, with n = B - 1 as the largest entry is exact,

        omega = min(n / 4 S^2, max(1/8, (sqrt(1 + n / S^2) - 1) / 2)).

    The first is p (1 - p) <= 1/4 of a squared step. Entries below one step have variance
    |x| (a / S - |x|), which is greatest against |x|^2 if all are equal; above one step it is
    p (1 - p) / (1 + p)^2 <= 1/8 of the entry's square.
    Nearest: biased, delta = 1 / (1 + n / 4 S^2). For S = 1 the first is TernGrad's constant.

    Clipped at c standard deviations about zero, neither holds: what lies beyond is cut off.

    Wire:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 4 ceil(d / B) | a of each bucket, float32 |
    | ceil(d b / 8) | q + 2^(b-1) packed in b bits |

    Length: `6 + 4 ceil(d / B) + ceil(d b / 8)`.

    Departures: probabilities are multiples of 2^-16; a bucket with a below 2^-100 is sent as zeros.

    Attributes:
        bits: b, 2 to 16.
        stochastic: round at random, else to the nearest (halves to even).
        bucket: B, at least 1; None puts the whole vector into one.
        clip: c, above 0; a is then at most c times the bucket's root mean square. None does not
            clip.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 11

    bits: int = 8
    stochastic: bool = True
    bucket: int | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ConfigError(f"bits is {self.bits}; it must be 2 to 16")
        if self.bucket is not None and self.bucket < 1:
            raise ConfigError(f"bucket is {self.bucket}; it must be at least 1, or null")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; it must be above 0, or null")

    @property
    def levels(self) -> int:
        """S, the largest integer sent."""
        return (1 << self.bits - 1) - 1

    @property
    def adds(self) -> bool:
        """True."""
        return True

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        bucket = self._bucket(shapes)
        a = self._scales(checked(x, shapes), bucket)
        a[a < _TINY] = 0
        s = self.levels
        factors = np.divide(np.float32(s), a, out=np.zeros_like(a), where=a > 0)
        if self.stochastic:
            q = stochastic_levels(x, factors, bucket, s, Words.of(rng))
        else:
            q = nearest_levels(x, factors, bucket, s)
        return joined(self._header(shapes), floats(a), write_offset(q, self.bits)), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        bucket = self._bucket(shapes)
        a = reader.floats(bucket_count(shapes.size, bucket), least=0.0)
        q = read_offset(reader, shapes.size, self.bits, self.levels)
        reader.end()
        return scaled_levels(q, level_steps(a, self.levels), bucket)

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + 4 ceil(d / B) + ceil(d b / 8), twice."""
        buckets = bucket_count(shapes.size, self._bucket(shapes))
        size = HEADER.size + 4 * buckets + packed_length(shapes.size, self.bits)
        return Length(size, size)

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns 1 / (1 + n / 4 S^2) if rounding to the nearest without clipping."""
        if self.stochastic:
            return super().contraction(shapes)
        if self.clip is not None:
            return None
        n = min(self._bucket(shapes), shapes.size) - 1
        return 1 / (1 + n / (4 * self.levels**2))

    def variance(self, shapes: Shapes) -> float | None:
        """Returns omega as above if stochastic and not clipped."""
        if not self.stochastic or self.clip is not None:
            return None
        return level_variance(min(self._bucket(shapes), shapes.size), self.levels)

    def _bucket(self, shapes: Shapes) -> int:
        return self.bucket or shapes.size

    def _scales(self, x: Vector, bucket: int) -> Vector:
        if bucket >= x.size:
            a = np.array([extent(x)], dtype=np.float32)
        else:
            extent(x)
            a = np.zeros(bucket_count(x.size, bucket), dtype=np.float32)
            for entries, buckets, width in pieces(x.size, bucket):
                largest = np.abs(x[entries]).reshape(-1, width).max(axis=1)
                np.maximum(a[buckets], largest, out=a[buckets])
        if self.clip is None:
            return a
        squares = np.zeros(a.size)
        for entries, buckets, width in pieces(x.size, bucket):
            rows = x[entries].reshape(-1, width).astype(np.float64)
            squares[buckets] += np.vecdot(rows, rows)
        sizes = np.diff(np.minimum(np.arange(a.size + 1) * bucket, x.size))
        rms = np.sqrt(squares / sizes)
        return np.minimum(a, self.clip * rms).astype(np.float32)


def level_variance(size: int, levels: int) -> float:
    """Returns omega of stochastic rounding to multiples of max|x| / S; see `UniformQuantizer`.

    Args:
        size: entries that share the scale.
        levels: S.
    """
    n = size - 1
    return float(min(n / (4 * levels**2), max(1 / 8, ((1 + n / levels**2) ** 0.5 - 1) / 2)))
