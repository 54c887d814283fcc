"""INTELLECT-1's ring in 8 bits: every hop decodes, adds and encodes again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl.collectives.collective import Ranks, Reals, Requantising
from fl.collectives.ring import RingAllReduce
from fl.compression import Codebook, Shapes
from fl.compression.codebook import LONGEST_ROW
from fl.randomness import generator
from fl.vectors.rows import Row

_CODEBOOK = Codebook(bins="uniform", center=False)


@dataclass(frozen=True)
class Int8Ring(RingAllReduce, Requantising):
    """A ring whose partial sums travel as 8-bit codes, each chunk with the codebook of its sum.

    The vector is cut into 2 M chunks of ceil(n / 2 M) entries, the last ones shorter, of which two
    are on their way between the same ranks at a time. In each of the M - 1 hops of the
    reduce-scatter

        s <- C(s) + x_i

    with s the sum that rank i is sent, and C(s) what `fl.compression.Codebook` makes of it: 256
    bins of 6 sigma / 256 about 0, each decoded to its mean. The last rank divides by M, and takes
    over C(s / M) itself; the all-gather hands those bytes on as they are, so that all ranks end
    with the same bits. Bins have the mean of what is in them, so the sum of all entries survives
    every hop; the error grows by 2.6e-4 |s|^2 a hop on Gaussian sums, see `Codebook`.

    Jaghouar, Ong, Hagemann, "INTELLECT-1 Technical Report", arXiv:2412.01152; the order of chunks
    and hops is that of github.com/PrimeIntellect-ai/prime, `ring_allreduce` in C++.

    Wire: `Codebook`'s of every chunk, 1030 bytes more than its entries; theirs has no header of 6
    bytes. A chunk without entries is not sent, and its hop still takes the latency.
    """

    def chunks(self, m: int, size: int) -> Reals:
        """Returns the bytes of both chunks of every rank as they travel, of float32 of `size`."""
        return np.array(
            [
                sum(_CODEBOOK.length(Shapes.vector(n)).most for n in (a, b) if n)
                for a, b in _entries(size // 4, m).reshape(m, 2).tolist()
            ],
            dtype=np.float64,
        )

    def reduced(self, x: Row) -> Row:
        """Returns the requantised mean, see `Requantising.reduced`; of one rank its own vector."""
        m, n = x.shape
        out: Row = x[0].copy()
        if m == 1:
            return out
        entries = _entries(n, m)
        width = int(entries[0])
        # Chunks of the full width side by side, where they are short; what is left one by one.
        alike = int((entries == width).sum()) if width <= LONGEST_ROW else 0
        cut = alike * width
        out[:cut] = _around(x[:, :cut].reshape(m, alike, width), np.arange(alike) // 2).reshape(-1)
        ends = np.cumsum(entries).tolist()
        for chunk, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if chunk >= alike and begin < end:
                part = x[:, None, begin:end]
                out[begin:end] = _around(part, np.array([chunk // 2])).reshape(-1)
        return out


def _entries(n: int, m: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Returns how many of n entries are in each of 2 m chunks."""
    width = math.ceil(n / (2 * m))
    return np.diff(np.minimum(np.arange(2 * m + 1) * width, n))


def _around(x: Row, owners: Ranks) -> Row:
    """Returns the chunks as they are decoded in the end, shape (k, w).

    Args:
        x: chunks of the ranks, shape (m, k, w), float32.
        owners: ranks that have the sums of the chunks, shape (k,).
    """
    m, chunks = len(x), np.arange(len(owners))
    s: Row = x[(owners + 1) % m, chunks]
    if not len(owners):
        return s
    for hop in range(2, m + 1):
        with np.errstate(over="ignore"):  # seen by the encoder
            s = _decoded_rows(s) + x[(owners + hop) % m, chunks]
    return _decoded_rows(s / np.float32(m))


def _decoded_rows(s: Row) -> Row:
    """Returns what is decoded of each row's payload, shape (k, w)."""
    if s.shape[1] <= LONGEST_ROW:
        return _CODEBOOK.decoded_rows(s)
    return np.stack([_decoded(row) for row in s])


def _decoded(s: Row) -> Row:
    shapes = Shapes.vector(s.size)
    s = np.ascontiguousarray(s, dtype=np.float32)
    payload, _ = _CODEBOOK.encode(s, shapes, {}, generator(0, "int8 ring"))  # which draws nothing
    return _CODEBOOK.decode(payload, shapes)
