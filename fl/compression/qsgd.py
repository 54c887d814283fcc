"""QSGD: stochastic rounding to s levels of each bucket's 2-norm.

Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via Gradient Quantization
and Encoding, NeurIPS 2017, arXiv:1610.02132.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.compression import indices, integers
from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.compressor import (
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
)
from fl.compression.moments import bucket_norms
from fl.compression.rounding import (
    Words,
    bucket_count,
    level_steps,
    scaled_levels,
    stochastic_levels,
)
from fl.compression.wire import HEADER, Buffer, Reader, floats, joined, u8, u32
from fl.errors import ConfigError

DENSE, SPARSE = 0, 1
_TINY = 2.0**-100  # a bucket of smaller norm is sent as zeros: its factor would overflow float32


@dataclass(frozen=True)
class Qsgd(Compressor):
    """Rounds s |x_i| / |x|_2 of each bucket to a neighbouring integer at random.

        xi_i = floor(s x_i / |x_b| + u_i),   decoded |x_b| xi_i / s,   u_i uniform on [0, 1)

    Unbiased, omega = min(B / s^2, sqrt(B) / s) for buckets of B entries. At most s (s + sqrt B)
    levels of a bucket are expected to differ from zero, so for small s and long buckets the sparse
    coding is shorter; the shorter one is chosen per payload.

    Wire:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 1 | 0 dense, 1 sparse |
    | 4 ceil(d / B) | norms, float32 |
    | dense: ceil(d b / 8) | xi + 2^(b-1) packed in b = 1 + ceil(log2(s + 1)) bits |
    | sparse: 4 | N, number of non-zero levels |
    | ... | their positions, as `indices` writes them |
    | ceil(N / 8) | signs, 1 for negative |
    | ... | absolute values, as `integers` writes them |

    Length: `7 + 4 ceil(d / B) + min(ceil(d b / 8), sparse)`.

    Departures: probabilities are multiples of 2^-16; the sparse coding uses the shortest of several
    universal codes where the paper uses Elias omega; a bucket of norm below 2^-100 is sent as
    zeros.

    Attributes:
        levels: s, 1 to 32767.
        bucket: B, at least 1; None puts the whole vector into one.
        sparse: take the sparse coding where it is shorter. It is slower, and 4 bits with buckets of
            512 make it shorter, as three of four levels are zero there.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 6

    levels: int = 7
    bucket: int | None = 512
    sparse: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 32767:
            raise ConfigError(f"levels is {self.levels}; it must be 1 to 32767")
        if self.bucket is not None and self.bucket < 1:
            raise ConfigError(f"bucket is {self.bucket}; it must be at least 1, or null")

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        bucket = self._bucket(shapes)
        norms = bucket_norms(checked(x, shapes), bucket)
        norms[norms < _TINY] = 0
        factors = np.divide(
            np.float32(self.levels), norms, out=np.zeros_like(norms), where=norms > 0
        )
        xi = stochastic_levels(x, factors, bucket, self.levels, Words.of(rng))
        head = self._header(shapes)
        sparse = self._sparse(xi) if self.sparse else None
        if sparse is not None:
            return joined(head, u8(SPARSE), floats(norms), sparse), state
        return joined(head, u8(DENSE), floats(norms), write_offset(xi, self._bits)), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        coding = reader.u8()
        bucket = self._bucket(shapes)
        norms = reader.floats(bucket_count(shapes.size, bucket), least=0.0)
        if coding == DENSE:
            xi = read_offset(reader, shapes.size, self._bits, self.levels)
        elif coding == SPARSE:
            xi = self._read_sparse(reader, shapes.size)
        else:
            raise reader.fail(f"unknown coding {coding}")
        reader.end()
        return scaled_levels(xi, level_steps(norms, self.levels), bucket)

    def length(self, shapes: Shapes) -> Length:
        """Returns the bytes of a payload of zeros, and of a dense one."""
        fixed = HEADER.size + 1 + 4 * bucket_count(shapes.size, self._bucket(shapes))
        dense = packed_length(shapes.size, self._bits)
        return Length(fixed + min(dense, 4), fixed + dense)

    def variance(self, shapes: Shapes) -> float:
        """Returns min(B / s^2, sqrt(B) / s)."""
        bucket, s = min(self._bucket(shapes), shapes.size), self.levels
        return float(min(bucket / s**2, bucket**0.5 / s))

    def _bucket(self, shapes: Shapes) -> int:
        return self.bucket or shapes.size

    @property
    def _bits(self) -> int:
        return 1 + self.levels.bit_length()

    def _sparse(self, xi: NDArray[np.signedinteger]) -> bytes | None:
        """Returns the sparse coding, or None where it is not shorter than the dense one."""
        dense = packed_length(xi.size, self._bits)
        # Three bits an entry at least: position, sign and level. Most payloads end here.
        if np.count_nonzero(xi) * 3 >= 8 * dense:
            return None
        positions = np.flatnonzero(xi)
        values = xi[positions].astype(np.int64)
        body = joined(
            u32(positions.size),
            indices.encode(positions, xi.size),
            pack(values < 0, 1),
            integers.encode(np.abs(values)),
        )
        return body if len(body) < dense else None

    def _read_sparse(self, reader: Reader, size: int) -> NDArray[np.signedinteger]:
        count = reader.u32()
        if count > size:
            raise reader.fail(f"{count} levels for a vector of {size}")
        positions = indices.decode(reader, count, size)
        negative = read_packed(reader, count, 1)
        values = integers.decode(reader, count)
        if count and int(values.max()) > self.levels:
            raise reader.fail(f"level {int(values.max())}, at most {self.levels} exist")
        xi = np.zeros(size, dtype=np.int32)
        xi[positions] = np.where(negative, -values, values)
        return xi


def write_offset(levels: NDArray[np.signedinteger], bits: int) -> Buffer:
    """Packs signed levels as level + 2^(bits - 1)."""
    if bits <= 8:
        unsigned: NDArray[Any] = levels.view(np.uint8) + np.uint8(1 << bits - 1)
    else:
        unsigned = (levels + (1 << bits - 1)).astype(np.uint32)
    return pack(unsigned, bits)


def read_offset(reader: Reader, count: int, bits: int, most: int) -> NDArray[np.signedinteger]:
    """Reads levels written by `write_offset`, int8 up to 8 bits, else int32.

    Raises:
        PayloadError: a level exceeds `most` in magnitude.
    """
    unsigned = read_packed(reader, count, bits)
    if bits <= 8:
        # Modulo 256 the subtraction gives the signed number's bits.
        levels: NDArray[np.signedinteger] = (unsigned - np.uint8(1 << bits - 1)).view(np.int8)
    else:
        levels = unsigned.astype(np.int32) - np.int32(1 << bits - 1)
    if int(levels.min()) < -most or int(levels.max()) > most:
        raise reader.fail(f"a level lies outside -{most}..{most}")
    return levels
