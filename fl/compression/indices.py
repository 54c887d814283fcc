"""The positions of the entries that were sent: gaps under an entropy code, or a bitmap.

k of d positions, uniformly at random, need log2 binomial(d, k) bits on average, about
log2(e d / k) each when k is small. The gaps of such a support are geometric, and Rice codes them
within 1.5% of that; clustered supports take less with the Elias codes; from a density of about 0.2
the bitmap of d bits is shortest. Each payload takes the shortest of them.

Wire: u8 kind, then

| kind | content |
|---|---|
| 0 | the k gaps, at least 1, as `integers` writes them; the first is the first position + 1 |
| 1 | bitmap of ceil(d / 8) bytes |

The length is `min(1 + 5 + min(integers.encoded_lengths(gaps)), 1 + ceil(d / 8))` bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.compression import integers
from fl.compression.bits import pack, packed_length, padding_is_zero
from fl.compression.wire import Reader, joined, u8

Positions = NDArray[np.int64]

GAPS, BITMAP = 0, 1


def longest(count: int, size: int) -> int:
    """Returns the most bytes `encode` takes for `count` positions below `size`."""
    width = (size - 1).bit_length()
    gaps = 1 + integers.OVERHEAD + 1 + packed_length(count, width)
    return min(gaps, 1 + packed_length(size, 1))


def encode(positions: Positions, size: int) -> bytes:
    """Encodes positions.

    Args:
        positions: shape (k,), int64, strictly ascending, in 0..size - 1. The receiver must know k.
        size: d.
    """
    coded = integers.encode(np.diff(positions, prepend=-1))
    if len(coded) <= packed_length(size, 1):
        return u8(GAPS) + coded
    bits = np.zeros(size, dtype=np.bool_)
    bits[positions] = True
    return joined(u8(BITMAP), pack(bits, 1))


def decode(reader: Reader, count: int, size: int) -> Positions:
    """Reads `count` positions below `size`, strictly ascending.

    Raises:
        PayloadError: positions out of range, not as many as promised, or a malformed code.
            Duplicates and disorder cannot be expressed in either code.
    """
    kind = reader.u8()
    if kind == GAPS:
        positions = np.cumsum(integers.decode(reader, count)) - 1
        if count and int(positions[-1]) >= size:
            raise reader.fail(f"position {int(positions[-1])} is not below d={size}")
        return positions
    if kind == BITMAP:
        data = reader.bytes_array(packed_length(size, 1))
        if not padding_is_zero(data, size, 1):
            raise reader.fail("padding bits are not zero")
        positions = np.flatnonzero(np.unpackbits(data, count=size, bitorder="little"))
        if positions.size != count:
            raise reader.fail(f"a bitmap of {positions.size} positions, {count} were announced")
        return positions
    raise reader.fail(f"unknown kind of positions {kind}")
