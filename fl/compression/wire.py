"""Payloads as bytes: the header every format begins with, and a reader that trusts nothing.

Every payload begins with six bytes, little-endian like all numbers on the wire:

| offset | type | content |
|---|---|---|
| 0 | u8 | format, a number per class (its `FORMAT`) |
| 1 | u8 | version of the format, now 1 |
| 2 | u32 | d, the number of entries of the vector that was encoded |

What follows is described by each class. A payload is read only if its length is possible for the
receiver's own model; lengths inside it are checked against the bytes that are there before anything
is allocated, so the memory used is a small multiple of the model's size whatever a sender claims.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | memoryview

VERSION = 1
HEADER = struct.Struct("<BBI")
_U8 = struct.Struct("<B")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class PayloadError(ValueError):
    """Bytes that no encoder of this configuration can have made.

    The receiver records a fault and drops the message; the run goes on.
    """


def header(fmt: int, size: int) -> bytes:
    """Returns the first six bytes of a payload of format `fmt` for a vector of `size` entries."""
    return HEADER.pack(fmt, VERSION, size)


def u8(value: int) -> bytes:
    """Returns one byte."""
    return _U8.pack(value)


def u32(value: int) -> bytes:
    """Returns four bytes, little-endian."""
    return _U32.pack(value)


def u64(value: int) -> bytes:
    """Returns eight bytes, little-endian."""
    return _U64.pack(value)


def buffer(values: NDArray[Any]) -> Buffer:
    """Returns the bytes of a contiguous array, without a copy; the array must not change."""
    return values.data.cast("B") if values.size else b""


def floats(values: NDArray[np.float32]) -> Buffer:
    """Returns float32 numbers as little-endian bytes, without a copy where they are that."""
    return buffer(np.ascontiguousarray(values, dtype="<f4"))


def joined(*parts: Buffer) -> bytes:
    """Returns the parts one after another; each is copied once."""
    return b"".join(parts)


class Reader:
    """Reads a payload from front to back; every method raises PayloadError rather than overrun.

    Args:
        data: the bytes.
        what: name of the format, for messages.
    """

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self.what = what

    @classmethod
    def open(
        cls, payload: bytes, what: str, fmt: int, size: int, length: tuple[int, int]
    ) -> Reader:
        """Returns a reader behind the header, after checking header and length.

        Args:
            payload: the bytes.
            what: name of the format, for messages.
            fmt: the format expected.
            size: d, the number of entries the receiver's model has.
            length: the least and the most bytes a payload can have.

        Raises:
            PayloadError: not bytes, a length outside the bounds, another format, version or d.
        """
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise PayloadError(f"{what}: a payload must be bytes, got {type(payload).__name__}")
        least, most = length
        got = len(payload)
        if not least <= got <= most:
            bound = f"{least}" if least == most else f"{least} to {most}"
            raise PayloadError(f"{what}: payload of {got} bytes; for d={size} it must have {bound}")
        reader = cls(payload, what)
        got_fmt, got_version, got_size = HEADER.unpack(reader.take(HEADER.size))
        if (got_fmt, got_version) != (fmt, VERSION):
            raise PayloadError(
                f"{what}: payload has format {got_fmt} version {got_version}, expected {fmt} "
                f"version {VERSION}: both ends need the same compressor configuration"
            )
        if got_size != size:
            raise PayloadError(f"{what}: payload is for d={got_size}, the model has d={size}")
        return reader

    @property
    def left(self) -> int:
        """Number of bytes not read yet."""
        return len(self._data) - self._at

    def fail(self, why: str) -> PayloadError:
        """Returns an error that names the format, to be raised."""
        return PayloadError(f"{self.what}: {why}")

    def take(self, count: int) -> memoryview:
        """Returns the next `count` bytes."""
        if count > self.left:
            raise self.fail(f"{count} bytes wanted at offset {self._at}, {self.left} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def peek(self) -> NDArray[np.uint8]:
        """Returns all bytes that are left, without reading past them."""
        return np.frombuffer(self._data[self._at :], dtype=np.uint8)

    def rest(self) -> memoryview:
        """Returns all bytes that are left."""
        return self.take(self.left)

    def u8(self) -> int:
        """Returns the next byte."""
        return int(_U8.unpack(self.take(1))[0])

    def u32(self) -> int:
        """Returns the next four bytes as an unsigned number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """Returns the next eight bytes as an unsigned number."""
        return int(_U64.unpack(self.take(8))[0])

    def bytes_array(self, count: int) -> NDArray[np.uint8]:
        """Returns the next `count` bytes as a read-only array."""
        return np.frombuffer(self.take(count), dtype=np.uint8)

    def floats(self, count: int, *, least: float = -np.inf) -> NDArray[np.float32]:
        """Returns the next `count` float32 numbers, each finite and at least `least`, read-only."""
        values = np.frombuffer(self.take(4 * count), dtype="<f4")
        if count:
            low, high = float(values.min()), float(values.max())
            # NaN fails every comparison, so it lands here too.
            if not (np.isfinite(low) and np.isfinite(high)):
                raise self.fail(f"{count} numbers hold a NaN or an infinity")
            if low < least:
                raise self.fail(f"a number is {low}, below {least}")
        return values

    def inner(self, what: str, count: int) -> Reader:
        """Returns a reader of the next `count` bytes alone."""
        return Reader(self.take(count), what)

    def end(self) -> None:
        """Raises unless everything was read."""
        if self.left:
            raise self.fail(f"{self.left} bytes too many at the end")
