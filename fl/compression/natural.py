"""Natural compression: round to a neighbouring power of two at random.

Horvath, Ho, Horvath, Sahu, Canini, Richtarik, Natural Compression for Distributed Deep Learning,
2019, arXiv:1905.10988.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.compressor import Compressor, Length, Shapes, State, Vector, checked, extent
from fl.compression.rounding import Words
from fl.compression.wire import HEADER, buffer, joined
from fl.errors import ConfigError

_BLOCK = 1 << 15
_MOST = 2.0**127


@dataclass(frozen=True)
class Natural(Compressor):
    """Keeps sign and exponent: |x| in [2^e, 2^(e+1)) becomes 2^(e+1) with probability |x|/2^e - 1.

    Unbiased, omega = 1/8, reached at |x| = 4/3 2^e. Adding 23 random bits to the mantissa and
    dropping it carries into the exponent with exactly that probability. Below 2^-126 the neighbours
    are 0 and 2^-126: still unbiased, without the bound.

    Wire: header, ceil(d / 8) bytes of signs (1 for negative), d bytes of biased exponents, of which
    0 is the number zero. Length: `6 + ceil(d / 8) + d`, 9 bits an entry.

    Raises:
        ConfigError: when encoding, if an entry is 2^127 or more: its upper neighbour is no float32.
    """

    FORMAT: ClassVar[int] = 7

    @property
    def adds(self) -> bool:
        """True."""
        return True

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        most = extent(checked(x, shapes))
        if most >= _MOST:
            raise ConfigError(f"an entry of magnitude {most:.3g}; it must be below 2^127: clip")
        words = Words.of(rng)
        bits = x.view(np.uint32)
        exponents = np.empty(x.size, dtype=np.uint8)
        for start in range(0, x.size, _BLOCK):
            block = bits[start : start + _BLOCK]
            # The sign bit is 31 and no carry reaches it, as exponents are below 254.
            raised = (block & np.uint32(0x7FFFFFFF)) + (words.u32(block.size) >> np.uint32(9))
            np.copyto(exponents[start : start + _BLOCK], raised >> np.uint32(23), casting="unsafe")
        signs = pack(np.signbit(x), 1)
        return joined(self._header(shapes), signs, buffer(exponents)), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        negative = read_packed(reader, shapes.size, 1)
        exponents = reader.bytes_array(shapes.size)
        reader.end()
        if int(exponents.max()) == 255:
            raise reader.fail("an exponent of 255 is an infinity")
        bits = exponents.astype(np.uint32)
        bits <<= np.uint32(23)
        bits |= np.left_shift(negative, np.uint32(31), dtype=np.uint32)
        return bits.view(np.float32)

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + ceil(d / 8) + d, twice."""
        size = HEADER.size + packed_length(shapes.size, 1) + shapes.size
        return Length(size, size)

    def variance(self, shapes: Shapes) -> float:
        """Returns 1/8."""
        return 0.125
