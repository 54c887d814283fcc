"""Bit packing without a loop over entries.

Bit order is little-endian throughout: the first value takes the lowest bits of the first byte.
Every stream is padded with zero bits to whole bytes, and a reader refuses other padding, so that a
sequence has one encoding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.compression.wire import Buffer, Reader, buffer, joined

Bytes = NDArray[np.uint8]

# Lanes of 8, 16 and 32 bits inside a 64-bit word: (mask of the even lanes, lane width).
_LANES = (
    (np.uint64(0x00FF00FF00FF00FF), 8),
    (np.uint64(0x0000FFFF0000FFFF), 16),
    (np.uint64(0x00000000FFFFFFFF), 32),
)


def packed_length(count: int, width: int) -> int:
    """Returns the bytes `pack` makes of `count` values of `width` bits: ceil(count width / 8)."""
    return (count * width + 7) // 8


def pack(values: NDArray[Any], width: int) -> Buffer:
    """Packs unsigned integers below 2**width.

    Widths above 8 are split: the low bytes of all values come first, as whole planes, then what is
    left of each, packed. The length is ceil(count width / 8) either way.

    Args:
        values: shape (count,), any unsigned type; bool if width is 1.
        width: bits per value, 0 to 32.

    Returns:
        `packed_length(count, width)` bytes.
    """
    planes: list[Buffer] = []
    while width > 8:
        planes.append(buffer((values & 0xFF).astype(np.uint8)))
        values = values >> 8
        width -= 8
    if width:
        packed = _pack_narrow(values.astype(np.uint8, copy=False), width)
        planes.append(buffer(np.ascontiguousarray(packed)))
    return planes[0] if len(planes) == 1 else joined(*planes)


def unpack(data: Bytes, count: int, width: int) -> NDArray[Any]:
    """Undoes `pack`.

    Args:
        data: exactly `packed_length(count, width)` bytes.
        count: number of values.
        width: bits per value, 0 to 32.

    Returns:
        Shape (count,), uint8 up to 8 bits, else uint32.
    """
    planes = (width - 1) // 8 if width else 0
    rest = width - 8 * planes
    values: NDArray[Any] = _unpack_narrow(data[planes * count :], count, rest)
    if planes:
        values = values.astype(np.uint32)
        for plane in range(planes - 1, -1, -1):
            values <<= np.uint32(8)
            values |= data[plane * count : (plane + 1) * count]
    return values


def padding_is_zero(data: Bytes, count: int, width: int) -> bool:
    """Says whether the bits behind the last packed value are zero."""
    used = (count * (width - (width - 1) // 8 * 8 if width else 0)) % 8
    return used == 0 or int(data[-1]) >> used == 0


def read_packed(reader: Reader, count: int, width: int) -> NDArray[Any]:
    """Reads what `pack` wrote, checking length and padding."""
    data = reader.bytes_array(packed_length(count, width))
    if not padding_is_zero(data, count, width):
        raise reader.fail("padding bits are not zero")
    return unpack(data, count, width)


def _pack_narrow(values: Bytes, width: int) -> Bytes:
    if width == 8:
        return values
    if width == 1:
        return np.packbits(values.view(np.bool_), bitorder="little")
    count = values.size
    if count % 8:
        values = np.concatenate([values, np.zeros(-count % 8, dtype=np.uint8)])
    words = values.view("<u8")
    if width == 4:
        # Two values are one byte: the first step of the general path is the whole of it.
        pairs = values.view("<u2")
        packed: Bytes = (pairs | pairs >> np.uint16(4)).astype(np.uint8)
        return packed[: packed_length(count, 4)]
    for mask, lane in _LANES:
        shift = np.uint64((8 - width) * (lane // 8))
        words = (words & mask) | ((words & ~mask) >> shift)
    return words.view(np.uint8).reshape(-1, 8)[:, :width].reshape(-1)[: packed_length(count, width)]


def _unpack_narrow(data: Bytes, count: int, width: int) -> Bytes:
    if width == 8:
        return data[:count]
    if width == 0:
        return np.zeros(count, dtype=np.uint8)
    if width == 1:
        return np.unpackbits(data, count=count, bitorder="little")
    if width == 4:
        pairs = data.astype("<u2")
        pairs = (pairs | pairs << np.uint16(4)) & np.uint16(0x0F0F)
        values: Bytes = pairs.view(np.uint8)
        return values[:count]
    groups = (count + 7) // 8
    full = np.zeros(groups * width, dtype=np.uint8)
    full[: data.size] = data
    lanes = np.zeros((groups, 8), dtype=np.uint8)
    lanes[:, :width] = full.reshape(groups, width)
    words = lanes.reshape(-1).view("<u8")
    for _, lane in reversed(_LANES):
        shift = (8 - width) * (lane // 8)
        # A pair of lanes holds 2 (lane - shift) bits in a row; the upper half of them moves up.
        low = np.uint64(_repeat((1 << (lane - shift)) - 1, 2 * lane))
        words = (words & low) | ((words & ~low) << np.uint64(shift))
    return words.view(np.uint8)[:count]


def _repeat(pattern: int, period: int) -> int:
    return sum(pattern << at for at in range(0, 64, period))


# ---- unary runs and fields of varying width ------------------------------------------------------


def write_unary(values: NDArray[np.int64]) -> bytes:
    """Writes each v >= 0 as v zero bits and a one; sum(v + 1) bits."""
    if values.size == 0:
        return b""
    ends = np.cumsum(values + 1)
    bits = np.zeros(int(ends[-1]), dtype=np.bool_)
    bits[ends - 1] = True
    return np.packbits(bits, bitorder="little").tobytes()


def read_unary(reader: Reader, count: int) -> NDArray[np.int64]:
    """Reads `count` numbers written by `write_unary`, up to the byte in which the last one ends.

    The memory used is a small multiple of the bytes that are left.
    """
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    view = reader.peek()
    ones = np.cumsum(np.bitwise_count(view), dtype=np.int64)
    if ones.size == 0 or ones[-1] < count:
        raise reader.fail(f"a unary stream ends before its {count} numbers")
    length = int(np.searchsorted(ones, count)) + 1
    if ones[length - 1] != count:
        raise reader.fail("padding bits are not zero")
    bits = np.unpackbits(reader.bytes_array(length), bitorder="little")
    return np.diff(np.flatnonzero(bits), prepend=-1) - 1


def write_fields(values: NDArray[np.int64], widths: NDArray[np.int64]) -> bytes:
    """Writes the lowest `widths[i]` bits (at most 32) of `values[i]` one after another."""
    ends = np.cumsum(widths)
    total = int(ends[-1]) if ends.size else 0
    if total == 0:
        return b""
    starts = ends - widths
    fields = values.astype(np.uint64) & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))
    shifted = fields << (starts & 31).astype(np.uint64)
    home = starts >> 5
    # A field lies in its word and, at most, the next one. Fields are in order, so those that begin
    # in one word are neighbours, and do not overlap: adding them is joining them.
    first = np.flatnonzero(np.diff(home, prepend=-1))
    words = np.zeros((total + 31) // 32 + 2, dtype=np.uint64)
    at = home[first]
    words[at] += np.bitwise_or.reduceat(shifted & np.uint64(0xFFFFFFFF), first)
    words[at + 1] += np.bitwise_or.reduceat(shifted >> np.uint64(32), first)
    return words.astype("<u4").tobytes()[: (total + 7) // 8]


def read_fields(reader: Reader, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reads fields of known widths (at most 32) written by `write_fields`."""
    ends = np.cumsum(widths)
    total = int(ends[-1]) if ends.size else 0
    data = reader.bytes_array((total + 7) // 8)
    if total % 8 and int(data[-1]) >> total % 8:
        raise reader.fail("padding bits are not zero")
    words = np.zeros((total + 31) // 32 + 2, dtype="<u4")
    words.view(np.uint8)[: data.size] = data
    starts = ends - widths
    home = starts >> 5
    pair = words[home].astype(np.uint64) | (words[home + 1].astype(np.uint64) << np.uint64(32))
    fields = pair >> (starts & 31).astype(np.uint64)
    fields &= (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    values: NDArray[np.int64] = fields.astype(np.int64)
    return values
