import numpy as np
import pytest
from many_cases import for_each

from fl.compression.bits import (
    pack,
    packed_length,
    read_fields,
    read_packed,
    read_unary,
    unpack,
    write_fields,
    write_unary,
)
from fl.compression.wire import PayloadError, Reader


def packed_by_hand(values, width):
    """The bits of a number, lowest first, in the layout `pack` documents: planes, then the rest."""
    planes = b""
    while width > 8:
        planes += bytes(v & 0xFF for v in values)
        values = [v >> 8 for v in values]
        width -= 8
    number = sum(v << i * width for i, v in enumerate(values))
    return planes + number.to_bytes((len(values) * width + 7) // 8, "little")


@pytest.mark.parametrize("width", range(1, 33))
@for_each("count", [0, 1, 7, 8, 9, 100])
def test_packing_is_the_arithmetic_of_the_layout_and_can_be_undone(width, count):
    r = np.random.default_rng(width)
    values = r.integers(0, 2**width, count, dtype=np.uint64).astype(np.uint32)
    data = pack(values, width)
    assert data == packed_by_hand(values.tolist(), width)
    assert len(data) == packed_length(count, width)
    assert np.array_equal(unpack(np.frombuffer(data, np.uint8), count, width), values)


def test_no_bits_hold_only_zeros():
    assert pack(np.zeros(5, dtype=np.uint32), 0) == b""
    assert unpack(np.zeros(0, np.uint8), 5, 0).tolist() == [0] * 5


@pytest.mark.parametrize("width", [1, 3, 4, 5, 7, 12])
def test_padding_that_is_not_zero_is_refused(width):
    data = bytearray(pack(np.zeros(3, dtype=np.uint32), width))
    data[-1] |= 0x80
    with pytest.raises(PayloadError, match="padding"):
        read_packed(Reader(bytes(data), "test"), 3, width)


def unary_by_hand(values):
    bits = "".join("0" * v + "1" for v in values)
    return int(bits[::-1] or "0", 2).to_bytes((len(bits) + 7) // 8, "little")


def test_unary_numbers_are_runs_of_zeros():
    r = np.random.default_rng(0)
    for values in ([], [0], [7], [8], [0, 0, 300, 1], r.geometric(0.3, 500).tolist()):
        data = write_unary(np.array(values, dtype=np.int64))
        assert data == unary_by_hand(values)
        reader = Reader(data, "test")
        assert read_unary(reader, len(values)).tolist() == values
        reader.end()


def test_unary_stream_leaves_what_follows_it():
    reader = Reader(write_unary(np.array([3, 9])) + b"rest", "test")
    assert read_unary(reader, 2).tolist() == [3, 9]
    assert bytes(reader.rest()) == b"rest"


@pytest.mark.parametrize(("data", "why"), [(b"\0\0", "ends before"), (b"\x0f", "padding")])
def test_unary_stream_of_the_wrong_number_is_refused(data, why):
    with pytest.raises(PayloadError, match=why):
        read_unary(Reader(data, "test"), 2)


def test_fields_of_any_width_stand_one_after_another():
    r = np.random.default_rng(1)
    for count in (0, 1, 2, 50, 999):
        widths = r.integers(0, 33, count)
        values = r.integers(0, 2**32, count) & ((1 << widths) - 1)
        data = write_fields(values, widths)
        total, number = 0, 0
        for value, width in zip(values.tolist(), widths.tolist(), strict=True):
            number |= value << total
            total += width
        assert data == number.to_bytes((total + 7) // 8, "little")
        reader = Reader(data, "test")
        assert np.array_equal(read_fields(reader, widths), values)
        reader.end()
