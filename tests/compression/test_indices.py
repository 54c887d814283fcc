import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.compression import TopK, indices
from fl.compression.compressor import Shapes
from fl.compression.wire import Reader


def log2_binomial(d, k):
    return (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)


def back(data, count, size):
    reader = Reader(data, "test")
    positions = indices.decode(reader, count, size)
    reader.end()
    return positions


@given(st.data())
def test_any_support_can_be_undone(data):
    size = data.draw(st.integers(1, 200))
    support = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    coded = indices.encode(np.array(support, dtype=np.int64), size)
    assert back(coded, len(support), size).tolist() == support
    assert len(coded) <= indices.longest(len(support), size)


@pytest.mark.parametrize("size", [1, 8, 1000, 100_000])
def test_nothing_one_and_everything(size):
    for support in ([], [0], [size - 1], range(size)):
        support = np.array(support, dtype=np.int64)
        coded = indices.encode(support, size)
        assert np.array_equal(back(coded, support.size, size), support)
    # All positions: the bitmap, or a bit each.
    assert len(coded) <= 1 + 6 + math.ceil(size / 8)


@pytest.mark.parametrize(("d", "k"), [(1_000_000, 10_000), (1_000_000, 1_000), (100_000, 20_000)])
def test_random_supports_are_within_three_percent_of_the_information_bound(d, k):
    support = np.sort(np.random.default_rng(k).choice(d, k, replace=False))
    bits = 8 * len(indices.encode(support, d))
    bound = log2_binomial(d, k)
    # Below the bound would mean a bug, or information that leaks elsewhere.
    assert bound <= bits < 1.03 * bound


def test_the_documented_bounds_are_these():
    assert log2_binomial(10**6, 10**4) / 10**4 == pytest.approx(8.079, abs=1e-3)
    assert log2_binomial(10**6, 10**3) / 10**3 == pytest.approx(11.401, abs=1e-3)


def test_topk_at_one_percent_is_within_ten_percent_of_the_bound():
    """What the benchmark claims, on the payload itself: everything but values counts as indices."""
    d, k = 1_000_000, 10_000
    x = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    payload, _ = TopK(k=k).encode(x, Shapes.vector(d), {}, np.random.default_rng(0))
    overhead = 8 * (len(payload) - 4 * k)
    assert log2_binomial(d, k) <= overhead < 1.1 * log2_binomial(d, k)


def test_clustered_supports_beat_the_bound_of_random_ones():
    d, k = 1_000_000, 10_000
    starts = np.sort(np.random.default_rng(1).choice(d // 100, k // 100, replace=False)) * 100
    support = (starts[:, None] + np.arange(100)).reshape(-1)
    coded = indices.encode(support, d)
    assert 8 * len(coded) < 0.3 * log2_binomial(d, k)
    assert np.array_equal(back(coded, k, d), support)


def test_dense_supports_become_a_bitmap():
    d = 10_000
    support = np.flatnonzero(np.random.default_rng(2).random(d) < 0.4)
    coded = indices.encode(support, d)
    assert coded[0] == indices.BITMAP
    assert len(coded) == 1 + d // 8
