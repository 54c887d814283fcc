"""Codebook: a bin for every entry, each decoded to the mean of the entries that fell into it.

The code of INTELLECT-1's int8 all-reduce and of hivemind. Ryabinin et al., hivemind
(github.com/learning-at-home/hivemind, `Uniform8BitQuantization`, `Quantile8BitQuantization`);
Jaghouar et al., INTELLECT-1 Technical Report, 2024, arXiv:2412.01152
(github.com/PrimeIntellect-ai/prime, C++ kernel). In 2 bits, of top-k values, it is SparseLoCo's,
Sarfi, Therien, Lidin, Belilovsky, 2025, arXiv:2508.15706.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.compressor import (
    HUGE,
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
    extent,
)
from fl.compression.moments import mean_and_variance, means_and_variances
from fl.compression.wire import HEADER, floats, joined
from fl.errors import ConfigError

_MOST_BINS = 256
_BLOCK = 1 << 15
_TINY = 2.0**-100
LONGEST_ROW = 1 << 12  # entries of vectors that are encoded side by side
_ROWS = 128
_CHUNK = 100_000  # entries whose quantiles are taken at a time


@dataclass(frozen=True)
class Codebook(Compressor):
    """Sends a bin number per entry and the mean of each bin, of N = 2^bits bins.

    "uniform" bins: step = 6 sigma / N, bin = clamp(round((x - m) / step) + N / 2, 0, N - 1). The 6
    is the full width: bins cover -3 sigma to +3 sigma, and the 0.28% of a Gaussian beyond fall into
    the outermost ones. m is the mean (hivemind) or 0 (prime); sigma is about the mean, with d - 1.
    "quantile" bins: edges at multiples of 1/N of the distribution, as quantiles of the quantiles
    (least and greatest entry included) of runs of 1e5 entries.

    As entries are decoded to the mean of their bin, sums survive: sum(decode(x)) = sum(x), up to
    rounding, and the residual is orthogonal to what is decoded: |x - C(x)|^2 = |x|^2 - |C(x)|^2. No
    constant holds for all vectors. On Gaussian vectors the relative error is 2.6e-4 (uniform) or
    7.4e-4 (quantile) with 256 bins.

    Wire: header, N float32 means (0 for an empty bin), the bins, packed. Length:
    `6 + 4 N + ceil(bits d / 8)`.

    Attributes:
        bins: "uniform" or "quantile".
        center: subtract the mean before binning; uniform bins only.
        bits: of a bin number, 1 to 8.

    Raises:
        ConfigError: other bins, or more bits.
    """

    FORMAT: ClassVar[int] = 12

    bins: str = "uniform"
    center: bool = False
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bins not in ("uniform", "quantile"):
            raise ConfigError(f"bins is {self.bins!r}; it must be 'uniform' or 'quantile'")
        if self.bins == "quantile" and self.center:
            raise ConfigError("center is true; quantile bins have no centre: set it to false")
        if isinstance(self.bits, bool) or self.bits not in range(1, 9):
            raise ConfigError(f"bits is {self.bits!r}; it must be a whole number, from 1 to 8")

    @property
    def _bins(self) -> int:
        return int(2**self.bits)

    @property
    def adds(self) -> bool:
        """True."""
        return True

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        largest = extent(checked(x, shapes))
        if self.bins == "uniform":
            q = self._uniform(x, largest)
        else:  # a power of two changes no rank, and differences of huge numbers would overflow
            q = _quantile(x if largest <= HUGE else x * np.float32(1 / HUGE), self._bins)
        counts = np.zeros(self._bins)
        sums = np.zeros(self._bins)
        # A scatter into so few sums: the one step here that is not a stream of vector instructions.
        for start in range(0, x.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            counts += np.bincount(q[block], minlength=self._bins)
            sums += np.bincount(q[block], weights=x[block], minlength=self._bins)
        means = np.divide(sums, counts, out=np.zeros(self._bins), where=counts > 0)
        return joined(
            self._header(shapes), floats(means.astype(np.float32)), pack(q, self.bits)
        ), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        means = np.zeros(_MOST_BINS, dtype=np.float32)
        means[: self._bins] = reader.floats(self._bins)
        q = read_packed(reader, shapes.size, self.bits)
        reader.end()
        return look_up(means, q)

    def decoded_rows(self, x: Vector) -> Vector:
        """Returns what is decoded of each row's payload, to the bit, shape (n, d).

        For many short vectors at once, in uniform bins about 0.

        Args:
            x: shape (n, d), float32; d is from 1 to `LONGEST_ROW`.

        Raises:
            ConfigError: an entry is not finite.
        """
        q, bins = self._uniform_rows(x), self._bins * np.arange(_ROWS)[:, None]
        out = np.empty_like(x)
        for start in range(0, len(x), _ROWS):  # so few that their bins stay in the cache
            rows = x[start : start + _ROWS]
            of = (q[start : start + _ROWS] + bins[: len(rows)]).reshape(-1)
            sums, counts = np.bincount(of, weights=rows.reshape(-1)), np.bincount(of)
            out[start : start + _ROWS] = (sums[of] / counts[of]).reshape(rows.shape)
        return out

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + 4 N + ceil(bits d / 8), twice."""
        size = HEADER.size + 4 * self._bins + packed_length(shapes.size, self.bits)
        return Length(size, size)

    def _uniform(self, x: Vector, largest: float) -> NDArray[np.uint8]:
        q = np.full(x.size, self._bins // 2, dtype=np.uint8)
        # Of entries this small the scale would overflow float32; their mean is all that is kept.
        if largest < _TINY or x.size < 2:
            return q
        # Of x / max|x|, whose squares cannot overflow or vanish.
        scale = 1 / largest
        mean, variance = mean_and_variance(x if 1e-15 < largest < 1e15 else x * np.float32(scale))
        if 1e-15 < largest < 1e15:
            mean, variance = mean * scale, variance * (scale * scale)
        if variance <= 0:
            return q
        variance *= x.size / (x.size - 1)
        step, half = 6 * math.sqrt(variance) / self._bins, self._bins // 2
        for start in range(0, x.size, _BLOCK):
            scaled = x[start : start + _BLOCK] * np.float32(scale / step)
            if self.center:
                scaled -= np.float32(mean / step)
            np.rint(scaled, out=scaled)
            np.clip(scaled, -half, half - 1, out=scaled)
            scaled += half
            np.copyto(q[start : start + _BLOCK], scaled, casting="unsafe")
        return q

    def _uniform_rows(self, x: Vector) -> NDArray[np.int64]:
        """Returns `_uniform` of each row, shape (n, d)."""
        half = self._bins // 2
        q = np.full(x.shape, half)
        extent(x.reshape(-1))  # refuses what is not finite
        largest = np.maximum(x.max(axis=1), -x.min(axis=1)).astype(np.float64)
        wide = largest >= _TINY
        if x.shape[1] < 2 or not wide.any():
            return q
        scale = np.divide(1, largest, out=np.ones_like(largest), where=wide)
        usual = (largest > 1e-15) & (largest < 1e15)
        of_one = np.where(usual[:, None], x, x * scale[:, None].astype(np.float32))
        _, variance = means_and_variances(of_one)
        variance = np.where(usual, variance * (scale * scale), variance)
        wide &= variance > 0
        variance *= x.shape[1] / (x.shape[1] - 1)
        step = np.where(wide, 6 * np.sqrt(variance) / self._bins, 1.0)
        scaled = x * (scale / step).astype(np.float32)[:, None]
        np.clip(np.rint(scaled, out=scaled), -half, half - 1, out=scaled)
        scaled += half
        return np.where(wide[:, None], scaled.astype(np.int64), q)


def look_up(table: NDArray[np.float32], codes: NDArray[np.uint8]) -> Vector:
    """Returns table[code] for each byte; the table has 256 entries."""
    # Every byte is an index, so the bounds need no check: "clip" is NumPy's quickest mode.
    out = np.empty(codes.size, dtype=np.float32)
    return np.take(np.asarray(table, dtype=np.float32), codes, out=out, mode="clip")


def _quantile(x: Vector, bins: int) -> NDArray[np.uint8]:
    # With least and greatest entry, so that the quantiles of the quantiles keep their ranks.
    shares = np.arange(bins + 1) / bins
    runs = np.array_split(x, max(x.size // _CHUNK, 1))
    edges = np.quantile([np.quantile(run, shares) for run in runs], shares)[1:-1]
    return np.searchsorted(edges, x, side="right").astype(np.uint8)
