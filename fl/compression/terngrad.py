"""TernGrad: ternary entries {-s, 0, +s} without bias, layer by layer.

Wen, Xu, Yan, Wu, Wang, Chen, Li, TernGrad: Ternary Gradients to Reduce Communication in Distributed
Deep Learning, NeurIPS 2017, arXiv:1705.07878; github.com/wenwei202/terngrad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.compression.bits import pack, packed_length, read_packed
from fl.compression.compressed_mean import CompressedMean, CompressesMean
from fl.compression.compressor import Compressor, Length, Shapes, State, Vector, checked, extent
from fl.compression.moments import mean_and_variance
from fl.compression.rounding import Words, stochastic_levels
from fl.compression.uniform import level_variance
from fl.compression.wire import HEADER, Reader, floats, header, joined, u32
from fl.errors import ConfigError
from fl.vectors.rows import Row

_LARGEST = float(np.finfo(np.float32).max)
_TINY = 2.0**-60
_ZERO = 2.0**-100  # a layer with a smaller scaler is sent as zeros
_SUMS_FORMAT = 9
_MOST_SENDERS = 2**15 - 1


@dataclass(frozen=True)
class TernGrad(Compressor, CompressesMean):
    """Sends t_j = sign(g_j) [u_j < |g_j| / s] per layer; decoded s t_j.

    The scaler s of a layer is max |g|, or with clipping c sigma, sigma being the population
    standard deviation of the layer; entries are clamped to it first. Without clipping unbiased with
    omega(g) = s |g|_1 / |g|_2^2 - 1, at most (sqrt n - 1) / 2 for n entries. With clipping it is
    biased by what is cut off.

    Scaler sharing, where workers meet in a ring (`compress_mean`): all use the largest of their
    scalers, which takes one more all-reduce of 4 bytes a layer; the agreed ones are in the state
    under "shared" (zeros mean: use your own). Then the ternary numbers of all workers have one
    unit, and their sums travel as small integers: `encode_sums`.

    Layers below `min_size`, and on request the last one, are sent as float32.

    State: `shared`, float32, shape (L,), one per layer.

    Wire:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 4 L_t | scalers of the L_t ternary layers |
    | ceil(2 d_t / 8) | t + 1 of the d_t entries of these layers, packed in 2 bits; 3 is not used |
    | 4 (d - d_t) | entries of the other layers |

    Length: `6 + 4 L_t + ceil(d_t / 4) + 4 (d - d_t)`.

    Departures: the original pads by a byte even if the size is a multiple of 4; here never.
    Probabilities are multiples of 2^-16. With clipping the code takes c sigma even where max |g| is
    less; so do we.

    Attributes:
        clip: c, above 0 (the paper's 2.5); None does not clip.
        min_size: layers with fewer entries are sent as float32 (the ImageNet scripts use 9217).
        last_float: send the last layer as float32.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 8

    clip: float | None = 2.5
    min_size: int = 0
    last_float: bool = False

    def __post_init__(self) -> None:
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f"clip is {self.clip}; it must be finite and above 0, or null")
        at_least("min_size", self.min_size, 0)

    def init(self, shapes: Shapes) -> State:
        """Returns no shared scalers."""
        return {"shared": np.zeros(len(self._ternary(shapes)), dtype=np.float32)}

    def scalers(self, x: Vector, shapes: Shapes) -> Vector:
        """Returns this worker's scaler of each ternary layer, shape (L_t,), float32.

        Raises:
            ConfigError: x has another shape or type, or a scaler exceeds float32.
        """
        checked(x, shapes)
        s = [self._scaler(x[part]) for part in self._ternary(shapes)]
        if max(s, default=0.0) > _LARGEST:
            raise ConfigError(f"a scaler of {max(s):.3g} exceeds float32; clip the update")
        return np.array(s, dtype=np.float32)

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        own = self.scalers(x, shapes)
        s = np.where(state["shared"] > 0, state["shared"], own).astype(np.float32)
        s[s < _ZERO] = 0
        words = Words.of(rng)
        codes = []
        for part, scaler in zip(self._ternary(shapes), s, strict=True):
            factor = np.array([1 / scaler if scaler else 0], dtype=np.float32)
            # An entry beyond the scaler is held at +-1, which is the clamp.
            t = stochastic_levels(x[part], factor, part.stop - part.start, 1, words)
            codes.append(t.view(np.uint8) + np.uint8(1))
        ternary = pack(np.concatenate(codes), 2) if codes else b""
        dense = [floats(x[part]) for part in self._dense(shapes)]
        for part in self._dense(shapes):
            extent(x[part])
        return joined(self._header(shapes), floats(s), ternary, *dense), state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        scalers, t, dense = self._read(payload, shapes)
        return self._place(scalers, t, dense, shapes)

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + 4 L_t + ceil(d_t / 4) + 4 (d - d_t), twice."""
        parts = self._ternary(shapes)
        ternary = sum(part.stop - part.start for part in parts)
        size = (
            HEADER.size + 4 * len(parts) + packed_length(ternary, 2) + 4 * (shapes.size - ternary)
        )
        return Length(size, size)

    def variance(self, shapes: Shapes) -> float | None:
        """Returns the greatest (sqrt n - 1) / 2 of a layer if not clipped."""
        if self.clip is not None:
            return None
        sizes = [part.stop - part.start for part in self._ternary(shapes)]
        return max((level_variance(n, 1) for n in sizes), default=0.0)

    # ---- of a mean, with shared scalers ----------------------------------------------------------

    def compress_mean(
        self, x: Row, shapes: Shapes, state: State, rngs: Sequence[np.random.Generator]
    ) -> CompressedMean:
        """Returns (s / n) sum_i t_i with s = max_i s_i; see `CompressesMean.compress_mean`.

        The first all-reduce is of the scalers, the second of the sums.
        """
        shared = np.max([self.scalers(x_i, shapes) for x_i in x], axis=0)
        pairs = zip(x, rngs, strict=True)
        payloads = [self.encode(x_i, shapes, {"shared": shared}, rng)[0] for x_i, rng in pairs]
        sums = self.encode_sums(payloads, shapes)
        mean = self.decode_sums(sums, shapes, len(x))
        return CompressedMean(mean, (4 * len(shared), len(sums)), state)

    def encode_sums(self, payloads: Sequence[bytes], shapes: Shapes) -> bytes:
        """Returns the mean of n payloads with equal scalers, as sums of ternary numbers.

        Wire: header (format 9), u32 n, the scalers, the sums + n packed in ceil(log2(2 n + 1))
        bits,
        the mean of the entries of the other layers as float32. Length:
        `10 + 4 L_t + ceil(d_t ceil(log2(2 n + 1)) / 8) + 4 (d - d_t)`.

        Raises:
            PayloadError: a payload is malformed.
            ConfigError: there are no payloads, more than 32767, or their scalers differ.
        """
        n = len(payloads)
        if not 1 <= n <= _MOST_SENDERS:
            raise ConfigError(f"{n} payloads; sums are for 1 to {_MOST_SENDERS}")
        scalers, total, dense = self._read(payloads[0], shapes)
        sums, dense_sum = total.astype(np.int32), dense.astype(np.float64)
        for payload in payloads[1:]:
            other, t, dense = self._read(payload, shapes)
            if not np.array_equal(other, scalers):
                raise ConfigError("the scalers of the payloads differ: share them before encoding")
            sums += t
            dense_sum += dense
        mean = (dense_sum / n).astype(np.float32)
        packed = pack((sums + n).astype(np.uint32), (2 * n).bit_length())
        head = header(_SUMS_FORMAT, shapes.size)
        return joined(head, u32(n), floats(scalers), packed, floats(mean))

    def decode_sums(self, payload: bytes, shapes: Shapes, senders: int) -> Vector:
        """Returns the mean vector of a payload made by `encode_sums`: (s / n) sum_i t_i.

        Args:
            payload: the bytes.
            shapes: of the tensors.
            senders: n, which the receiver must know.

        Raises:
            PayloadError: no server with this configuration can have made the payload.
        """
        parts = self._ternary(shapes)
        ternary = sum(part.stop - part.start for part in parts)
        bits = (2 * senders).bit_length()
        size = (
            HEADER.size
            + 4
            + 4 * len(parts)
            + packed_length(ternary, bits)
            + 4 * (shapes.size - ternary)
        )
        reader = Reader.open(payload, "TernGrad sums", _SUMS_FORMAT, shapes.size, (size, size))
        n = reader.u32()
        if n != senders:
            raise reader.fail(f"sums of {n} workers, there are {senders}")
        scalers = reader.floats(len(parts), least=0.0)
        offset = read_packed(reader, ternary, bits)
        if ternary and int(offset.max()) > 2 * n:
            raise reader.fail(f"a sum of {int(offset.max()) - n} of {n} ternary numbers")
        dense = reader.floats(shapes.size - ternary)
        sums = offset.astype(np.float32) - np.float32(n)
        return self._place(scalers, sums / np.float32(n), dense, shapes)

    # ---- layers ----------------------------------------------------------------------------------

    def _is_ternary(self, index: int, shapes: Shapes) -> bool:
        last = self.last_float and index == len(shapes.sizes) - 1
        return not last and shapes.sizes[index] >= max(self.min_size, 1)

    def _ternary(self, shapes: Shapes) -> list[slice]:
        return [part for i, part in enumerate(shapes.slices) if self._is_ternary(i, shapes)]

    def _dense(self, shapes: Shapes) -> list[slice]:
        return [part for i, part in enumerate(shapes.slices) if not self._is_ternary(i, shapes)]

    def _scaler(self, g: Vector) -> float:
        largest = extent(g)
        if self.clip is None:
            return largest
        # Squares of numbers like these fit into float32; others are rare and pay for float64.
        if _TINY < largest < 1 / _TINY:
            return self.clip * math.sqrt(mean_and_variance(g)[1])
        return self.clip * float(np.std(g, dtype=np.float64))

    def _read(
        self, payload: bytes, shapes: Shapes
    ) -> tuple[Vector, NDArray[np.signedinteger], Vector]:
        reader = self._open(payload, shapes)
        parts = self._ternary(shapes)
        ternary = sum(part.stop - part.start for part in parts)
        scalers = reader.floats(len(parts), least=0.0)
        codes = read_packed(reader, ternary, 2)
        if ternary and int(codes.max()) == 3:
            raise reader.fail("a ternary number has code 3")
        dense = reader.floats(shapes.size - ternary)
        reader.end()
        t = np.subtract(codes, np.uint8(1)).view(np.int8)
        return scalers, t, dense

    def _place(
        self, scalers: Vector, t: NDArray[np.number], dense: Vector, shapes: Shapes
    ) -> Vector:
        x = np.empty(shapes.size, dtype=np.float32)
        at = 0
        for part, scaler in zip(self._ternary(shapes), scalers, strict=True):
            size = part.stop - part.start
            np.multiply(t[at : at + size], scaler, out=x[part], casting="unsafe")
            at += size
        at = 0
        for part in self._dense(shapes):
            size = part.stop - part.start
            x[part] = dense[at : at + size]
            at += size
        return x
