import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from many_cases import for_each

from fl.compression.rounding import (
    Words,
    nearest_levels,
    pieces,
    scaled_levels,
    stochastic_levels,
)


@pytest.mark.parametrize("size", [1, 100, 32_768, 100_000])
@for_each("bucket", [1, 7, 512, 20_000, 32_768, 70_000, 1_000_000])
def test_pieces_cover_every_entry_once_with_its_bucket(size, bucket):
    owner = np.full(size, -1)
    for entries, buckets, width in pieces(size, bucket):
        n = entries.stop - entries.start
        assert n % width == 0
        assert n <= max(1 << 16, width)
        assert n // width == buckets.stop - buckets.start
        assert (owner[entries] == -1).all()
        owner[entries] = np.repeat(np.arange(buckets.start, buckets.stop), width)
    assert np.array_equal(owner, np.arange(size) // bucket)


@pytest.mark.parametrize("levels", [1, 7, 127, 1000])
def test_levels_are_the_neighbours_with_the_right_probability(levels):
    count = 200_000
    for share in (0.0, 0.1, 0.5, 0.93, 1.0):
        for sign in (1, -1):
            y = sign * share * levels
            x = np.full(count, y, dtype=np.float32)
            one = np.ones(1, dtype=np.float32)
            got = stochastic_levels(x, one, count, levels, Words(3)).astype(np.int64)
            low = np.floor(np.float32(y))
            assert set(np.unique(got)) <= {low, low + 1}
            p = np.float64(np.float32(y)) - low
            error = np.sqrt(max(p * (1 - p), 0) / count)
            assert abs((got == low + 1).mean() - p) <= 4 * error + 2.0**-16


@pytest.mark.parametrize("levels", [1, 127, 1000])
def test_whole_levels_stay_as_they_are(levels):
    x = np.array([-levels, -1, 0, 1, levels] * 1000, dtype=np.float32)
    one = np.ones(1, dtype=np.float32)
    assert np.array_equal(stochastic_levels(x, one, x.size, levels, Words(0)), x)
    assert np.array_equal(nearest_levels(x, one, x.size, levels), x)


def test_what_lies_beyond_the_levels_is_held_at_them():
    x = np.array([1e9, -1e9, 1.5, -1.5] * 100, dtype=np.float32)
    one = np.ones(1, dtype=np.float32)
    assert set(stochastic_levels(x, one, x.size, 1, Words(0))) == {-1, 1}
    assert set(nearest_levels(x, one, x.size, 1)) == {-1, 1}


def test_each_bucket_has_its_own_factor():
    x = np.arange(1, 11, dtype=np.float32)
    factors = np.array([1, 10, 100], dtype=np.float32)
    expected = [1, 2, 3, 4, 50, 60, 70, 80, 900, 1000]
    assert nearest_levels(x, factors, 4, 2000).tolist() == expected
    assert stochastic_levels(x, factors, 4, 2000, Words(1)).tolist() == expected
    codes = np.array([1] * 10, dtype=np.int8)
    assert scaled_levels(codes, factors, 4).tolist() == [1] * 4 + [10] * 4 + [100] * 2


def test_a_seed_stands_for_the_same_bits_on_every_machine():
    """The stream travels as a seed: AES-128 in counter mode is part of the wire format."""
    # FIPS 197 gives AES-128 of the zero block under the zero key.
    known = bytes.fromhex("66e94bd4ef8a2c3b884cfa59ca342b2e")
    assert Words(0).u64(2).astype("<u8").tobytes() == known
    assert Words(0).u16(8).astype("<u2").tobytes() == known
    # In counter mode the second block is AES of the number 1.
    key = (12345).to_bytes(16, "little")
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update((1).to_bytes(16, "big"))
    assert Words(12345).u64(4)[2:].astype("<u8").tobytes() == block


def test_words_taken_one_by_one_are_those_taken_at_once():
    words, at_once = Words(7), Words(7).u64(100_000)
    pieces = [words.u64(count) for count in (1, 2, 3, 994, 99_000)]
    assert np.array_equal(np.concatenate(pieces), at_once)
    halves = Words(7).u32(5)
    assert np.array_equal(halves, at_once.astype("<u8").view("<u4")[:5])
