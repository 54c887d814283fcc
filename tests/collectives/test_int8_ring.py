"""The ring that requantises at every hop, against ranks that each do their own part."""

from __future__ import annotations

import numpy as np
import pytest
from many_cases import for_each

from fl.collectives import Int8Ring, RingAllReduce
from fl.compression import Codebook, Shapes
from fl.errors import ConfigError

CODE = Codebook(bins="uniform", center=False)
RNG = np.random.default_rng(0)


def encoded(x):
    return CODE.encode(np.ascontiguousarray(x), Shapes.vector(x.size), {}, RNG)[0]


def decoded(payload, n):
    return CODE.decode(payload, Shapes.vector(n))


class Rank:
    """One machine, as in PRIME's C++: what it has of every chunk, two of them its own."""

    def __init__(self, rank, m, x):
        self.rank, self.m = rank, m
        width = -(-len(x) // (2 * m))
        self.chunks = [x[k * width : (k + 1) * width].copy() for k in range(2 * m)]
        self.sent = 0

    def send(self, chunk):
        if not self.chunks[chunk].size:
            return b""
        payload = encoded(self.chunks[chunk])
        self.sent += len(payload)
        return payload


def ring(x):
    """Returns what every rank has in the end, and the bytes that it has sent."""
    m = len(x)
    ranks = [Rank(i, m, row) for i, row in enumerate(x)]
    for step in range(1, 2 * (m - 1) + 1):
        sent = [((2 * r.rank - step) % (2 * m), r) for r in ranks]
        payloads = [(chunk, r.send(chunk)) for chunk, r in sent]
        for i, (chunk, payload) in enumerate(payloads):
            target = ranks[(i + 1) % m]
            if payload:
                target.chunks[chunk] = target.chunks[chunk] + decoded(
                    payload, target.chunks[chunk].size
                )
    held = [{} for _ in ranks]
    for r in ranks:
        for chunk in (2 * r.rank, 2 * r.rank + 1):
            if r.chunks[chunk].size:
                payload = encoded(r.chunks[chunk] / np.float32(m))
                held[r.rank][chunk] = payload
                r.chunks[chunk] = decoded(payload, r.chunks[chunk].size)
    for step in range(1, 2 * (m - 1) + 1):
        sent = [(2 * i + 2 - step) % (2 * m) for i in range(m)]
        payloads = [held[i].get(chunk, b"") for i, chunk in enumerate(sent)]
        for i, (chunk, payload) in enumerate(zip(sent, payloads, strict=True)):
            if payload:
                target = (i + 1) % m
                ranks[i].sent += len(payload)
                held[target][chunk] = payload
                ranks[target].chunks[chunk] = decoded(payload, ranks[target].chunks[chunk].size)
    return [np.concatenate(r.chunks) for r in ranks], [r.sent for r in ranks]


@for_each("m", [2, 3, 5])
@for_each("n", [1, 7, 600, 601])
def test_all_ranks_end_with_the_bits_and_send_the_bytes_that_the_ring_says(m, n):
    x = np.random.default_rng(n).standard_normal((m, n)).astype(np.float32)
    rows, sent = ring(x)
    expected = Int8Ring().reduced(x)
    for row in rows:
        np.testing.assert_array_equal(row, expected)

    class Links:
        site = np.zeros(m, int)

        def __len__(self):
            return m

        def rates(self, i, j, fanout=1, fanin=1):
            return np.full(len(i), 8.0)

        def delays(self, i, j):
            return np.zeros(len(i))

    np.testing.assert_array_equal(Int8Ring().closed(Links(), [4 * n] * m).sent, sent)


def test_of_one_rank_it_is_the_vector_and_of_zeros_zeros():
    x = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    np.testing.assert_array_equal(Int8Ring().reduced(x), x[0])
    np.testing.assert_array_equal(Int8Ring().reduced(np.zeros((3, 50), np.float32)), np.zeros(50))
    np.testing.assert_allclose(Int8Ring().reduced(np.full((3, 50), 2.5, np.float32)), 2.5)


@for_each("m", [2, 5])
def test_errors_of_the_hops_add_up_as_squares(m):
    # Within a bin the error has mean 0, whatever is added to what the bin is decoded to: so errors
    # of different hops are uncorrelated. On Gaussians a hop errs by q |partial sum|^2, q = 2.6e-4;
    # later partial sums have lost some of their tails already, and err by less.
    width, q = 50_000, 2.6e-4
    x = np.random.default_rng(m).standard_normal((m, 2 * m * width)).astype(np.float32)
    error = Int8Ring().reduced(x).astype(float) - x.astype(float).mean(axis=0)
    hops = np.zeros(m)
    for chunk in range(2 * m):
        rows = np.roll(x[:, chunk * width :][:, :width], -1 - chunk // 2, axis=0)
        s = rows[0]
        for hop in range(m):
            of = s if hop < m - 1 else s / np.float32(m)
            codes = decoded(encoded(of), width)
            scale = m**2 if hop == m - 1 else 1
            hops[hop] += scale * np.mean((codes.astype(float) - of) ** 2) / (2 * m)
            s = codes + rows[(hop + 1) % m]
    assert hops[0] == pytest.approx(q, rel=0.1)
    assert m**2 * np.mean(error**2) == pytest.approx(hops.sum(), rel=0.03)
    sums = np.arange(1, m + 1)
    assert (hops < 1.1 * q * sums).all()
    assert (hops > 0.5 * q * sums).all()
    # Bins decode to their means, so the entries' sum survives every hop.
    assert abs(error.mean()) < 1e-6


def test_ten_billion_parameters_by_fourteen_are_400_times_fewer_bytes_than_gradients_every_step():
    # INTELLECT-1: 10B parameters, 14 nodes, H = 100; encoded payloads with their codebooks.
    m, n, h = 14, 10**10, 100
    gradients = h * 2 * RingAllReduce().chunks(m, 4 * n).sum()
    outer = 2 * Int8Ring().chunks(m, 4 * n).sum()
    assert gradients / outer == pytest.approx(400, rel=1e-4)


def test_sums_that_float32_cannot_hold_are_refused():
    with pytest.raises(ConfigError):
        Int8Ring().reduced(np.full((4, 8), 3e38, np.float32))
