"""Stochastic rounding to integer levels, fast and without bias.

A level is floor(y + u) with u uniform on the multiples of 2**-16 in [0, 1), which is y rounded up
with probability equal to its fraction, rounded to a multiple of 2**-16. It works on signed y as it
is: no separate sign. Sixteen bits per entry instead of a float keep the generator, which is the
most expensive part, at half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fl.compression.compressor import Vector

_BLOCK = 1 << 16  # entries per pass: the temporaries stay in a core's cache
_ONE = 1 << 16
_LARGEST = float(np.finfo(np.float32).max)
_AES_BYTES = 16  # of a block, a key and a counter
_ZEROS = memoryview(bytes(2 * _BLOCK))
_FAST = 127  # levels up to which 16 fractional bits fit into 32-bit arithmetic and int8


class Words:
    """Uniform random bits in 64-bit words, from a stream that 64 bits determine.

    The key stream of AES-128 in counter mode (FIPS 197, SP 800-38A): key, the seed as 16 bytes,
    little-endian; counter, from 0. A standard gives the same words on every machine and in every
    version, so a seed can travel, and processors have instructions for it: it takes two fifths of
    the time of SFC64, the fastest of NumPy's bit generators.

    Args:
        seed: in [0, 2^64).
    """

    def __init__(self, seed: int) -> None:
        key = algorithms.AES(seed.to_bytes(16, "little"))
        self._stream = Cipher(key, modes.CTR(bytes(_AES_BYTES))).encryptor()

    @classmethod
    def of(cls, rng: np.random.Generator) -> Words:
        """Returns a stream whose seed is drawn from `rng`."""
        return cls(draw_seed(rng))

    def u64(self, count: int) -> NDArray[np.uint64]:
        """Returns `count` words."""
        words = np.empty(count + _AES_BYTES // 8, dtype="<u8")  # the cipher asks for room to spare
        self._stream.update_into(_zeros(8 * count), words.data.cast("B"))
        return words[:count].astype(np.uint64, copy=False)

    def u32(self, count: int) -> NDArray[np.uint32]:
        """Returns `count` half words."""
        return self.u64((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]

    def u16(self, count: int) -> NDArray[np.uint16]:
        """Returns `count` quarter words."""
        return self.u64((count + 3) // 4).astype("<u8", copy=False).view("<u2")[:count]


def _zeros(count: int) -> memoryview | bytes:
    """Returns `count` zero bytes, of which a block's worth is kept."""
    return _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)


def draw_seed(rng: np.random.Generator) -> int:
    """Returns 64 random bits."""
    return int(rng.integers(0, 2**64, dtype=np.uint64))


def pieces(size: int, bucket: int) -> Iterator[tuple[slice, slice, int]]:
    """Cuts a vector into runs that fit a cache and respect buckets.

    Args:
        size: entries of the vector.
        bucket: entries of a bucket; the last may be shorter.

    Yields:
        A slice of entries, the slice of buckets they lie in, and the entries per bucket in it:
        either several whole buckets, or a part of one.
    """
    if bucket >= _BLOCK:
        for b, start in enumerate(range(0, size, bucket)):
            stop = min(start + bucket, size)
            for at in range(start, stop, _BLOCK):
                end = min(at + _BLOCK, stop)
                yield slice(at, end), slice(b, b + 1), end - at
        return
    whole = size // bucket
    step = _BLOCK // bucket
    for b in range(0, whole, step):
        end = min(b + step, whole)
        yield slice(b * bucket, end * bucket), slice(b, end), bucket
    if size % bucket:
        yield slice(whole * bucket, size), slice(whole, whole + 1), size % bucket


def stochastic_levels(
    x: Vector, factors: Vector, bucket: int, levels: int, words: Words
) -> NDArray[np.signedinteger]:
    """Returns floor(factor x + u), within -levels..levels.

    Args:
        x: shape (d,), float32.
        factors: one per bucket, float32; |factor x| is at most `levels`, up to rounding.
        bucket: entries per bucket.
        levels: s.
        words: the random bits.

    Returns:
        Shape (d,), int8 if s <= 127, else int32.
    """
    if levels > _FAST:
        return _wide_levels(x, factors, bucket, levels, words)
    out = np.empty(x.size, dtype=np.int8)
    scaled = np.empty(min(x.size, _BLOCK), dtype=np.float32)
    fixed = np.empty(min(x.size, _BLOCK), dtype=np.int32)
    above = np.empty(min(x.size, _BLOCK), dtype=np.int32)
    ahead = factors * np.float32(_ONE)
    bound = levels * _ONE
    for entries, buckets, width in pieces(x.size, bucket):
        block = x[entries]
        n = block.size
        # Fixed point with 16 fractional bits; the shift is the floor, for either sign.
        np.multiply(
            block.reshape(-1, width),
            ahead[buckets, None],
            out=scaled[:n].reshape(-1, width),
        )
        np.clip(scaled[:n], -bound, bound, out=scaled[:n])
        np.copyto(fixed[:n], scaled[:n], casting="unsafe")
        np.copyto(above[:n], words.u16(n))
        np.add(fixed[:n], above[:n], out=fixed[:n])
        np.right_shift(fixed[:n], 16, out=fixed[:n])
        np.copyto(out[entries], fixed[:n], casting="unsafe")
    return out


def _wide_levels(
    x: Vector, factors: Vector, bucket: int, levels: int, words: Words
) -> NDArray[np.signedinteger]:
    out = np.empty(x.size, dtype=np.int32)
    for entries, buckets, width in pieces(x.size, bucket):
        y = x[entries].reshape(-1, width) * factors[buckets, None].astype(np.float64)
        y = np.clip(y.reshape(-1), -levels, levels)
        np.copyto(out[entries], np.floor(y + words.u16(y.size) / _ONE), casting="unsafe")
    return out


def nearest_levels(
    x: Vector, factors: Vector, bucket: int, levels: int
) -> NDArray[np.signedinteger]:
    """Returns factor x rounded to the nearest integer, halves to even; see `stochastic_levels`."""
    out: NDArray[np.signedinteger]
    out = np.empty(x.size, dtype=np.int8) if levels <= _FAST else np.empty(x.size, dtype=np.int32)
    scaled = np.empty(min(x.size, _BLOCK), dtype=np.float32)
    for entries, buckets, width in pieces(x.size, bucket):
        block = x[entries]
        n = block.size
        np.multiply(
            block.reshape(-1, width), factors[buckets, None], out=scaled[:n].reshape(-1, width)
        )
        np.rint(scaled[:n], out=scaled[:n])
        np.clip(scaled[:n], -levels, levels, out=scaled[:n])
        np.copyto(out[entries], scaled[:n], casting="unsafe")
    return out


def level_steps(scales: Vector, levels: int) -> Vector:
    """Returns scale / levels for each bucket, float32, so that no level of it exceeds float32.

    Without that, levels times a rounded quotient could, of scales within a rounding of the largest
    number; there the quotient is held below.
    """
    most = np.float32(_LARGEST / levels)
    if float(most) * levels > _LARGEST:
        most = np.nextafter(most, np.float32(0))
    return np.asarray(np.minimum(scales / np.float32(levels), most), dtype=np.float32)


def scaled_levels(levels: NDArray[np.signedinteger], scales: Vector, bucket: int) -> Vector:
    """Returns scale_b level_i, shape (d,), float32, for the bucket b of each entry."""
    out = np.empty(levels.size, dtype=np.float32)
    for entries, buckets, width in pieces(levels.size, bucket):
        np.multiply(
            levels[entries].reshape(-1, width),
            scales[buckets, None],
            out=out[entries].reshape(-1, width),
            casting="unsafe",
        )
    return out


def bucket_count(size: int, bucket: int) -> int:
    """Returns ceil(size / bucket)."""
    return -(-size // bucket)
