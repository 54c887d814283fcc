"""Floats of 16, 8 and 4 bits.

fp16 and bf16 are IEEE binary16 and bfloat16. The 8-bit formats are E4M3 and E5M2 of Micikevicius et
al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433. E3M0 (sign, 3 bits of exponent, no
mantissa) is what Streaming DiLoCo sends: Douillard et al., 2025, arXiv:2501.18512.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.codebook import look_up
from fl.compression.compressor import (
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
    extent,
    finite,
)
from fl.compression.rounding import Words
from fl.compression.wire import HEADER, Reader, buffer, floats, joined
from fl.errors import ConfigError
from fl.vectors.rows import as_tensor

_BLOCK = 1 << 15
_TINY = 2.0**-100  # a tensor of smaller maximum is sent as zeros: its inverse would overflow
_BF16_MOST = 3.3895e38  # just below the largest bfloat16, so that rounding up stays finite


@dataclass(frozen=True)
class Cast(Compressor):
    """Rounds every entry to a shorter float, to the nearest, halves to even.

    | dtype | bits | relative error | scale | constant |
    |---|---|---|---|---|
    | bf16 | 16 | 2^-8 | no | delta = 1 - 2^-16 |
    | fp16 | 16 | 2^-11 in [6.1e-5, 65504] | no | none: small numbers are flushed to 0 |
    | fp8_e4m3 | 8 | 2^-4 in range | per tensor | delta = 1 - 2^-8 - (n - 1) (2^-10 / 448)^2 |
    | fp8_e5m2 | 8 | 2^-3 in range | per tensor | delta = 1 - 2^-6 - (n - 1) (2^-17 / 57344)^2 |
    | e3m0 | 4 | 1/3 in range | per tensor | delta = min(8/9, 1 / (1 + (n - 1) (3/256)^2)) |

    n is the size of a tensor; delta is the least over tensors. A scale maps max |x| of its tensor
    to the largest number of the format, so that nothing overflows. E3M0 is zero and +-7 powers of
    two: the scale is max |x| itself and the magnitudes are max |x| 2^-6 ... max |x|; less than half
    of the smallest becomes 0. (The paper does not say how it chooses the scale.)

    bf16 can be rounded stochastically: unbiased, omega = 2^-16: adding 16 random bits below the
    kept ones carries with the right probability, p (1 - p) <= 1/4 of a step of at most 2^-7.

    Wire: header, one float32 scale per tensor for 8 and 4 bits, the numbers (E3M0: sign in bit 3,
    exponent in bits 0 to 2, two in a byte). Length: `6 + 2 d`, `6 + 4 L + d` or
    `6 + 4 L + ceil(d / 2)` for L tensors.

    Attributes:
        dtype: one of the table.
        stochastic: round at random; bf16 only.

    Raises:
        ConfigError: an unknown type, or stochastic rounding of another; when encoding, an entry
            beyond the range of fp16 or bf16.
    """

    FORMAT: ClassVar[int] = 13

    dtype: str = "bf16"
    stochastic: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _BITS:
            raise ConfigError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_BITS)}")
        if self.stochastic and self.dtype != "bf16":
            raise ConfigError(f"stochastic rounding is for bf16, not {self.dtype}")

    @property
    def adds(self) -> bool:
        """True."""
        return True

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        checked(x, shapes)
        head = self._header(shapes)
        if _BITS[self.dtype] == 16:
            largest = extent(x)
            bound = 65504.0 if self.dtype == "fp16" else _BF16_MOST
            if largest > bound:
                raise ConfigError(
                    f"an entry of magnitude {largest:.3g} exceeds the {bound:.5g} of {self.dtype}: "
                    "clip or scale the update, or choose another type"
                )
            if self.stochastic:
                return joined(head, buffer(_stochastic_bf16(x, Words.of(rng)))), state
            return joined(head, buffer(_bytes_of(as_tensor(x).to(_TORCH[self.dtype])))), state
        scales = np.array([extent(x[part]) for part in shapes.slices], dtype=np.float32)
        scales[scales < _TINY] = 0
        codes = np.empty(shapes.size, dtype=np.uint8)
        for part, scale in zip(shapes.slices, scales, strict=True):
            self._encode_tensor(x[part], float(scale), codes[part])
        body = pack(codes, 4) if self.dtype == "e3m0" else buffer(codes)
        return joined(head, floats(scales), body), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        if _BITS[self.dtype] == 16:
            halves = np.frombuffer(reader.take(2 * shapes.size), dtype="<u2")
            reader.end()
            return finite(self._widen(halves), reader)
        scales = reader.floats(len(shapes.sizes), least=0.0)
        codes = (
            read_packed(reader, shapes.size, 4)
            if self.dtype == "e3m0"
            else reader.bytes_array(shapes.size)
        )
        reader.end()
        return self._decode_tensors(codes, scales, shapes, reader)

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + 2 d, or 6 + 4 L + ceil(d b / 8), twice."""
        bits = _BITS[self.dtype]
        scales = 0 if bits == 16 else 4 * len(shapes.sizes)
        size = HEADER.size + scales + packed_length(shapes.size, bits)
        return Length(size, size)

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns delta of the table, or None where there is none."""
        n = max(shapes.sizes) - 1
        delta = {
            "bf16": 1 - 2.0**-16,
            "fp16": 0.0,
            "fp8_e4m3": 1 - 2.0**-8 - n * (2.0**-10 / 448) ** 2,
            "fp8_e5m2": 1 - 2.0**-6 - n * (2.0**-17 / 57344) ** 2,
            "e3m0": min(8 / 9, 1 / (1 + n * (3 / 256) ** 2)),
        }[self.dtype]
        return delta if delta > 0 else None

    def variance(self, shapes: Shapes) -> float | None:
        """Returns 2^-16 for stochastic bf16."""
        return 2.0**-16 if self.stochastic else None

    def _encode_tensor(self, x: Vector, scale: float, out: NDArray[np.uint8]) -> None:
        if scale == 0:
            out[:] = 0
            return
        most = _MOST.get(self.dtype, 1.0)
        for start in range(0, x.size, _BLOCK):
            y = x[start : start + _BLOCK] * np.float32(most / scale)
            out[start : start + _BLOCK] = (
                _encode_e3m0(y)
                if self.dtype == "e3m0"
                else _bytes_of(torch.from_numpy(y).to(_TORCH[self.dtype]))
            )

    def _decode_tensors(
        self, codes: NDArray[np.uint8], scales: Vector, shapes: Shapes, reader: Reader
    ) -> Vector:
        if self.dtype == "e3m0":
            unused = bool((codes == _E3M0_MINUS_ZERO).any())
        else:
            unused = int((codes & 0x7F).max()) > _LAST_FINITE[self.dtype]
        if unused:
            raise reader.fail("a number has a code that no encoder uses")
        table = _table(self.dtype)
        x = np.empty(shapes.size, dtype=np.float32)
        for part, scale in zip(shapes.slices, scales, strict=True):
            x[part] = look_up(table * scale, codes[part])
        return x

    def _widen(self, halves: NDArray[np.uint16]) -> Vector:
        if self.dtype == "fp16":
            return as_tensor(halves.view("<f2")).to(torch.float32).numpy()
        bits = halves.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)


_BITS = {"fp16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "e3m0": 4}
_MOST = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
_LAST_FINITE = {"fp8_e4m3": 0x7E, "fp8_e5m2": 0x7B}  # magnitudes above are NaN and infinities
_E3M0_MINUS_ZERO = 8
_TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return tensor.view(torch.uint8).numpy()


def _stochastic_bf16(x: Vector, words: Words) -> NDArray[np.uint16]:
    out = np.empty(x.size, dtype="<u2")
    bits = x.view(np.uint32)
    for start in range(0, x.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        np.copyto(
            out[start : start + _BLOCK],
            (block + words.u16(block.size)) >> np.uint32(16),
            casting="unsafe",
        )
    return out


def _encode_e3m0(y: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns sign and exponent of entries in [-1, 1]: exponent e >= 1 stands for 2^(e - 7)."""
    magnitude = np.abs(y)
    # Nearest to 2^j are the numbers from 3/4 to 3/2 of it, so 4/3 y has the exponent j.
    exponent = ((magnitude * np.float32(4 / 3)).view(np.uint32) >> np.uint32(23)).astype(np.int32)
    e = np.clip(exponent - 127 + 7, 1, 7)
    # Below the smallest power the neighbour is 0, half-way at 2^-7.
    e[magnitude < 2.0**-7] = 0
    return (e | np.where(np.signbit(y) & (e > 0), 8, 0)).astype(np.uint8)


@lru_cache(maxsize=len(_BITS))
def _table(dtype: str) -> NDArray[np.float32]:
    """Returns what each byte stands for, as a share of the scale; 0 for codes never sent."""
    codes = np.arange(256, dtype=np.uint8)
    if dtype == "e3m0":
        powers = np.where(codes & 7, 2.0 ** ((codes & 7) - 7.0), 0.0)
        return np.where(codes & 8, -powers, powers).astype(np.float32)
    values = torch.from_numpy(codes).view(_TORCH[dtype]).to(torch.float32).numpy()
    return np.where(np.isfinite(values), values / np.float32(_MOST[dtype]), np.float32(0))
