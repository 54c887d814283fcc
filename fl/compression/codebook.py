"""Codebook int8: 256 bins, each decoded to the mean of the entries that fell into it.

The code of INTELLECT-1's int8 all-reduce and of hivemind. Ryabinin et al., hivemind
(github.com/learning-at-home/hivemind, `Uniform8BitQuantization`, `Quantile8BitQuantization`);
Jaghouar et al., INTELLECT-1 Technical Report, 2024, arXiv:2412.01152
(github.com/PrimeIntellect-ai/prime, C++ kernel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

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
from fl.compression.moments import mean_and_variance
from fl.compression.wire import HEADER, buffer, floats, joined
from fl.errors import ConfigError

_BINS = 256
_BLOCK = 1 << 15
_TINY = 2.0**-100
_CHUNK = 100_000  # entries whose quantiles are taken at a time


@dataclass(frozen=True)
class Codebook(Compressor):
    """Sends a bin number per entry and the mean of each bin.

    "uniform" bins: step = 6 sigma / 256, bin = clamp(round((x - m) / step) + 128, 0, 255). The 6 is
    the full width: bins cover -3 sigma to +3 sigma, and the 0.28% of a Gaussian beyond fall into
    the outermost ones. m is the mean (hivemind) or 0 (prime); sigma is about the mean, with d - 1.
    "quantile" bins: edges at multiples of 1/256 of the distribution, as quantiles of the quantiles
    (least and greatest entry included) of runs of 1e5 entries.

    As entries are decoded to the mean of their bin, sums survive: sum(decode(x)) = sum(x), up to
    rounding, and the residual is orthogonal to what is decoded: |x - C(x)|^2 = |x|^2 - |C(x)|^2. No
    constant holds for all vectors. On Gaussian vectors the relative error is 2.6e-4 (uniform) or
    7.4e-4 (quantile).

    Wire: header, 256 float32 means (0 for an empty bin), d bytes of bins. Length: `1030 + d`.

    Attributes:
        bins: "uniform" or "quantile".
        center: subtract the mean before binning; uniform bins only.

    Raises:
        ConfigError: other bins.
    """

    FORMAT: ClassVar[int] = 12

    bins: str = "uniform"
    center: bool = False

    def __post_init__(self) -> None:
        if self.bins not in ("uniform", "quantile"):
            raise ConfigError(f"bins is {self.bins!r}; it must be 'uniform' or 'quantile'")
        if self.bins == "quantile" and self.center:
            raise ConfigError("center is true; quantile bins have no centre: set it to false")

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
            q = _quantile(x if largest <= HUGE else x * np.float32(1 / HUGE))
        counts = np.zeros(_BINS)
        sums = np.zeros(_BINS)
        # A scatter into 256 sums: the one step here that is not a stream of vector instructions.
        for start in range(0, x.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            counts += np.bincount(q[block], minlength=_BINS)
            sums += np.bincount(q[block], weights=x[block], minlength=_BINS)
        means = np.divide(sums, counts, out=np.zeros(_BINS), where=counts > 0)
        return joined(self._header(shapes), floats(means.astype(np.float32)), buffer(q)), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        means = reader.floats(_BINS)
        q = reader.bytes_array(shapes.size)
        reader.end()
        return look_up(means, q)

    def length(self, shapes: Shapes) -> Length:
        """Returns 1030 + d, twice."""
        size = HEADER.size + 4 * _BINS + shapes.size
        return Length(size, size)

    def _uniform(self, x: Vector, largest: float) -> NDArray[np.uint8]:
        q = np.full(x.size, _BINS // 2, dtype=np.uint8)
        # Of entries this small the scale would overflow float32; their mean is all that is kept.
        if largest < _TINY or x.size < 2:
            return q
        # Of x / max|x|, whose squares cannot overflow or vanish.
        scale = 1 / largest
        mean, variance = mean_and_variance(x if 1e-15 < largest < 1e15 else x * np.float32(scale))
        if 1e-15 < largest < 1e15:
            mean, variance = mean * scale, variance * scale**2
        if variance <= 0:
            return q
        variance *= x.size / (x.size - 1)
        step = 6 * math.sqrt(variance) / _BINS
        for start in range(0, x.size, _BLOCK):
            scaled = x[start : start + _BLOCK] * np.float32(scale / step)
            if self.center:
                scaled -= np.float32(mean / step)
            np.rint(scaled, out=scaled)
            np.clip(scaled, -_BINS // 2, _BINS // 2 - 1, out=scaled)
            scaled += _BINS // 2
            np.copyto(q[start : start + _BLOCK], scaled, casting="unsafe")
        return q


def look_up(table: NDArray[np.float32], codes: NDArray[np.uint8]) -> Vector:
    """Returns table[code] for each byte; the table has 256 entries."""
    # Every byte is an index, so the bounds need no check: "clip" is NumPy's quickest mode.
    out = np.empty(codes.size, dtype=np.float32)
    return np.take(np.asarray(table, dtype=np.float32), codes, out=out, mode="clip")


def _quantile(x: Vector) -> NDArray[np.uint8]:
    # With least and greatest entry, so that the quantiles of the quantiles keep their ranks.
    shares = np.arange(_BINS + 1) / _BINS
    runs = np.array_split(x, max(x.size // _CHUNK, 1))
    edges = np.quantile([np.quantile(run, shares) for run in runs], shares)[1:-1]
    return np.searchsorted(edges, x, side="right").astype(np.uint8)
