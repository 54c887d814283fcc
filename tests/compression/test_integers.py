import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.compression import integers
from fl.compression.integers import DELTA, FIXED, GAMMA, LEB128, RICE
from fl.compression.wire import PayloadError, Reader

CODES = {"fixed": FIXED, "rice": RICE, "leb128": LEB128, "gamma": GAMMA, "delta": DELTA}


def back(data, count):
    reader = Reader(data, "test")
    values = integers.decode(reader, count)
    reader.end()
    return values


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@given(values=st.lists(st.one_of(st.integers(1, 9), st.integers(1, 2**32 - 1)), max_size=60))
def test_every_code_can_be_undone(code, values):
    data = integers.encode(np.array(values, dtype=np.int64), code=code)
    assert back(data, len(values)).tolist() == values


@given(values=st.lists(st.one_of(st.integers(1, 9), st.integers(1, 2**32 - 1)), max_size=60))
def test_the_shortest_code_is_taken_and_its_length_is_known_beforehand(values):
    array = np.array(values, dtype=np.int64)
    lengths = integers.encoded_lengths(array)
    data = integers.encode(array)
    assert len(data) == integers.OVERHEAD + min(lengths.values())
    for code, length in lengths.items():
        assert len(integers.encode(array, code=code)) == integers.OVERHEAD + length
    assert back(data, len(values)).tolist() == values


def bits_by_table(code, n, m=0):
    """Bits of one value by the table of codes, from the textbook definitions."""
    log = n.bit_length() - 1
    return {
        RICE: (n - 1 >> m) + 1 + m,
        LEB128: 8 * max(math.ceil((n - 1).bit_length() / 7), 1),
        GAMMA: 2 * log + 1,
        DELTA: log + 2 * ((log + 1).bit_length() - 1) + 1,
    }[code]


@pytest.mark.parametrize("code", [RICE, LEB128, GAMMA, DELTA])
def test_lengths_are_those_of_the_table_up_to_padding_of_the_streams(code):
    r = np.random.default_rng(0)
    for scale in (1.1, 5, 100, 1e5):
        values = np.ceil(r.exponential(scale, 500)).astype(np.int64)
        data = integers.encode(values, code=code)
        m = data[5] if code == RICE else 0
        bits = sum(bits_by_table(code, int(n), m) for n in values)
        content = len(data) - integers.OVERHEAD - (1 if code == RICE else 0)
        assert math.ceil(bits / 8) <= content <= math.ceil(bits / 8) + 2


@pytest.mark.parametrize("code", [GAMMA, DELTA])
def test_elias_of_one_is_one_bit(code):
    data = integers.encode(np.ones(8, dtype=np.int64), code=code)
    assert data[integers.OVERHEAD :] == b"\xff"


def test_each_code_wins_where_it_should():
    r = np.random.default_rng(1)
    some = np.full(1000, 700)
    some[::2] = 1000
    geometric = r.geometric(0.01, 1000)
    clustered = np.ones(1000, dtype=np.int64)
    clustered[::20] = r.integers(1, 5000, 50)
    rare = np.ones(5000, dtype=np.int64)
    rare[::50] = r.integers(2**20, 2**31, 100)
    bytes_and_giants = r.integers(64, 128, 1000)
    bytes_and_giants[::100] = 2**31

    def winner(values):
        return integers.encode(values.astype(np.int64))[0]

    assert winner(r.integers(1, 17, 1000)) == FIXED
    assert winner(geometric) == RICE
    assert winner(clustered) in (GAMMA, DELTA)
    assert winner(rare) == DELTA
    assert winner(bytes_and_giants) == LEB128


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001, 0.0001])
def test_rice_is_within_two_percent_of_the_entropy_of_a_random_support(p):
    gaps = np.random.default_rng(2).geometric(p, 200_000).astype(np.int64)
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / p
    bits = 8 * integers.encoded_lengths(gaps)[RICE] / gaps.size
    assert entropy * 0.995 < bits < entropy * 1.02


# Measured bits per index of the methods' document, on 200,000 geometric gaps.
DOCUMENTED = {
    0.1: {RICE: 4.76, DELTA: 6.10, GAMMA: 5.70, LEB128: 8.00},
    0.01: {RICE: 8.11, DELTA: 10.78, GAMMA: 11.76, LEB128: 10.22},
    0.001: {RICE: 11.49, DELTA: 15.38, GAMMA: 18.28, LEB128: 15.03},
    0.0001: {RICE: 14.79, DELTA: 19.00, GAMMA: 24.91, LEB128: 17.45},
}


@pytest.mark.parametrize("p", DOCUMENTED)
def test_bits_per_index_are_those_of_the_document(p):
    gaps = np.random.default_rng(3).geometric(p, 200_000).astype(np.int64)
    lengths = integers.encoded_lengths(gaps)
    for code, bits in DOCUMENTED[p].items():
        assert 8 * lengths[code] / gaps.size == pytest.approx(bits, rel=0.005)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_random_bytes_decode_to_values_in_range_or_are_refused(code):
    r = np.random.default_rng(code)
    for _ in range(300):
        body = r.bytes(int(r.integers(1, 40)))
        data = bytes([code]) + len(body).to_bytes(4, "little") + body
        try:
            values = back(data, int(r.integers(0, 12)))
        except PayloadError:
            continue
        assert values.size == 0 or (values.min() >= 1 and values.max() < 2**32)


def test_superfluous_bytes_of_leb128_are_refused():
    right = bytes([LEB128, 1, 0, 0, 0, 5])
    assert back(right, 1).tolist() == [6]
    with pytest.raises(PayloadError, match="superfluous"):
        back(bytes([LEB128, 2, 0, 0, 0, 0x85, 0]), 1)


def test_values_of_more_than_32_bits_are_refused():
    """The most each code can say: five bytes of LEB128 hold 35 bits, a Rice quotient any number."""
    for body in (
        bytes([LEB128, 5, 0, 0, 0]) + b"\xff\xff\xff\xff\x7f",
        bytes([RICE, 6, 0, 0, 0, 32]) + b"\xff" * 4 + b"\x02",
        bytes([FIXED, 5, 0, 0, 0, 32]) + b"\xff" * 4,
    ):
        with pytest.raises(PayloadError, match="32 bits"):
            back(body, 1)
    with pytest.raises(PayloadError, match="32 bits"):
        back(bytes([GAMMA, 9, 0, 0, 0]) + b"\0" * 4 + b"\x01" + b"\0" * 4, 1)
