"""Entropy codes for sequences of positive integers; the shortest is chosen per sequence.

| code | name | bits of a value n >= 1 | good for |
|---|---|---|---|
| 0 | fixed | w, the width of the largest n - 1 | values of one size |
| 1 | Rice(m) | ((n - 1) >> m) + 1 + m | geometric: gaps of a random support |
| 2 | LEB128 | 8 ceil(bits(n - 1) / 7), at least 8 | a few very large values |
| 3 | Elias gamma | 2 floor(log2 n) + 1 | mostly ones: gaps of a clustered support |
| 4 | Elias delta | L + 2 floor(log2(L + 1)) + 1, L = floor(log2 n) | clustered, with long jumps |

For a random support of density p, Rice with 2**m near ln 2 / p takes within 1.5% of the entropy
H(p)/p per gap; `indices` uses these codes for gaps, `qsgd` for gaps and levels.

Wire: u8 code, u32 length of what follows, then

| code | bytes |
|---|---|
| 0 | u8 w; n - 1 packed in w bits |
| 1 | u8 m; low m bits of n - 1, packed; the quotients in unary |
| 2 | LEB128 of each n - 1 |
| 3 | L in unary, each; the low L bits of n, each |
| 4 | floor(log2(L + 1)) in unary, each; its low bits of L + 1, each; the low L bits of n, each |

The parts of one value (unary, remainder) stand in separate streams, so that writing and reading are
array operations; the number of bits is that of the usual interleaved form, up to padding.

Sources: Golomb 1966 and Rice 1971; Elias, Universal codeword sets, IEEE Trans. Inf. Theory 1975.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fl.compression.bits import (
    pack,
    packed_length,
    read_fields,
    read_packed,
    read_unary,
    write_fields,
    write_unary,
)
from fl.compression.wire import Reader, joined, u8, u32

Integers = NDArray[np.int64]

FIXED, RICE, LEB128, GAMMA, DELTA = range(5)
OVERHEAD = 5  # bytes of code and length
LIMIT = 1 << 32  # values must be below
_TABLE = 1 << 16  # values below this are counted instead of looked at one by one


def bit_length(values: Integers) -> Integers:
    """Returns the number of bits of each value >= 0, exactly; 0 has none."""
    # The exponent of a double: values are below 2**53, so the conversion does not round.
    exponent = values.astype(np.float64).view(np.int64) >> 52
    bits: Integers = np.maximum(exponent - 1022, 0)
    return bits


def encoded_lengths(values: Integers) -> dict[int, int]:
    """Returns the bytes each code takes for a sequence, without code and length (5 bytes more).

    Args:
        values: shape (k,), 1 to 2**32 - 1.
    """
    return _lengths(*_histogram(values))[0]


def _histogram(values: Integers) -> tuple[Integers, Integers]:
    """Returns values, not necessarily distinct, and how often each stands in the sequence."""
    if values.size and int(values.max()) < _TABLE:
        counts = np.bincount(values)
        distinct = np.flatnonzero(counts)
        return distinct, counts[distinct]
    return values, np.ones(values.size, dtype=np.int64)


def _lengths(values: Integers, counts: Integers) -> tuple[dict[int, int], int]:
    """Returns the bytes of each code, and the m of Rice."""
    k = int(counts.sum())
    if k == 0:
        return {FIXED: 1}, 0
    floor_log = bit_length(values) - 1
    ell = int(counts @ floor_log)
    ell_ell = int(counts @ (bit_length(floor_log + 1) - 1))
    below = values - 1
    width = int(below.max()).bit_length()
    # ceil(bits(n - 1) / 7), by how many values reach each further byte.
    leb = k + sum(int(counts @ (below >= 1 << 7 * byte)) for byte in range(1, (width + 6) // 7))
    # Rice is shortest near ln 2 times the mean.
    guess = int(math.log2(max(float(counts @ below) / k * math.log(2), 1.0)))
    quotients = {
        m: int(counts @ (below >> m)) for m in range(max(guess - 1, 0), min(guess + 2, 31) + 1)
    }
    m = min(quotients, key=lambda m: k * m + quotients[m])
    lengths = {
        FIXED: 1 + packed_length(k, width),
        RICE: 1 + packed_length(k, m) + _bytes(k + quotients[m]),
        LEB128: leb,
        GAMMA: _bytes(k + ell) + _bytes(ell),
        DELTA: _bytes(k + ell_ell) + _bytes(ell_ell) + _bytes(ell),
    }
    return lengths, m


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def encode(values: Integers, *, code: int | None = None) -> bytes:
    """Encodes a sequence with the shortest code, the lowest number winning ties.

    Args:
        values: shape (k,), int64, 1 to 2**32 - 1. The receiver must know k.
        code: use this one instead of the shortest.

    Returns:
        5 + min(`encoded_lengths`) bytes.
    """
    lengths, m = _lengths(*_histogram(values))
    if code is None:
        code = min(lengths, key=lambda c: lengths[c])
    body = _body(values, code, m)
    return u8(code) + u32(len(body)) + body


def _body(values: Integers, code: int, m: int) -> bytes:
    below = values - 1
    if code == FIXED:
        width = int(below.max()).bit_length() if values.size else 0
        return joined(u8(width), pack(below.astype(np.uint32), width))
    if code == RICE:
        low = (below & ((1 << m) - 1)).astype(np.uint32)
        return joined(u8(m), pack(low, m), write_unary(below >> m))
    if code == LEB128:
        return _write_leb128(below)
    floor_log = bit_length(values) - 1
    if code == GAMMA:
        return write_unary(floor_log) + write_fields(values, floor_log)
    log_log = bit_length(floor_log + 1) - 1
    head = write_unary(log_log) + write_fields(floor_log + 1, log_log)
    return head + write_fields(values, floor_log)


def decode(reader: Reader, count: int) -> Integers:
    """Reads `count` values written by `encode`.

    Raises:
        PayloadError: an unknown code, lengths that do not add up, padding that is not zero, or a
            value of 2**32 or more.
    """
    code = reader.u8()
    body = reader.inner(reader.what, reader.u32())
    values = _read_body(body, code, count)
    body.end()
    if count and int(values.max()) >= LIMIT:
        raise reader.fail("an integer has more than 32 bits")
    return values


def _read_body(body: Reader, code: int, count: int) -> Integers:
    if code == FIXED:
        width = _parameter(body)
        return read_packed(body, count, width).astype(np.int64) + 1
    if code == RICE:
        m = _parameter(body)
        low = read_packed(body, count, m).astype(np.int64)
        return (read_unary(body, count) << m | low) + 1
    if code == LEB128:
        return _read_leb128(body, count) + 1
    if code == GAMMA:
        return _read_tail(body, read_unary(body, count))
    if code == DELTA:
        return _read_tail(body, _read_tail(body, read_unary(body, count)) - 1)
    raise body.fail(f"unknown integer code {code}")


def _parameter(body: Reader) -> int:
    value = body.u8()
    if value > 32:
        raise body.fail(f"a width of {value} bits, at most 32 are used")
    return value


def _read_tail(body: Reader, logs: Integers) -> Integers:
    """Reads the low bits of numbers whose floor(log2) is known, and adds the leading one."""
    if logs.size and int(logs.max()) > 31:
        raise body.fail("an integer has more than 32 bits")
    return (np.int64(1) << logs) | read_fields(body, logs)


def _write_leb128(values: Integers) -> bytes:
    size = np.maximum((bit_length(values) + 6) // 7, 1)
    ends = np.cumsum(size)
    out = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    starts = ends - size
    for byte in range(int(size.max()) if size.size else 0):  # at most 5
        more = np.flatnonzero(size > byte)
        digit = (values[more] >> 7 * byte & 0x7F).astype(np.uint8)
        digit |= np.where(size[more] > byte + 1, 0x80, 0).astype(np.uint8)
        out[starts[more] + byte] = digit
    return out.tobytes()


def _read_leb128(body: Reader, count: int) -> Integers:
    data = np.frombuffer(body.rest(), dtype=np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if ends.size != count or (count and ends[-1] != data.size - 1) or (not count and data.size):
        raise body.fail(f"{ends.size} LEB128 numbers in {data.size} bytes, {count} expected")
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    size = ends - starts + 1
    if count and int(size.max()) > 5:
        raise body.fail("an integer has more than 32 bits")
    if bool(((data[ends] == 0) & (size > 1)).any()):
        raise body.fail("a LEB128 number ends with a superfluous byte")
    values = np.zeros(count, dtype=np.int64)
    for byte in range(int(size.max()) if count else 0):
        more = np.flatnonzero(size > byte)
        values[more] |= (data[starts[more] + byte].astype(np.int64) & 0x7F) << 7 * byte
    return values
