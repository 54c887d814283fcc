"""What is read from a journal cannot be told from what was written, and bad bytes are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl.flower.arrays import RowArray
from fl.flower.content import content_of
from fl.flower.records import from_record, tensors_record, to_records
from fl.runs.journal.encoding import checksum, decode, encode
from fl.vectors.layout import Layout

numbers = st.integers() | st.floats()
metrics = numbers | st.lists(st.integers(), max_size=3) | st.lists(st.floats(), max_size=3)
texts = st.text(max_size=5)
configs = metrics | texts | st.booleans() | st.binary(max_size=9) | st.lists(st.binary(max_size=3))
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    shape = draw(shapes)
    dtype = draw(st.sampled_from(["float64", "float32", "int64", "uint8", "bool", "float16"]))
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    if dtype == "float32" and draw(st.booleans()):
        return tensors_record({"x": torch.from_numpy(values)})["x"]
    return Array(values)


def keyed(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(texts, values, max_size=3)


records = (
    keyed(arrays()).map(ArrayRecord)
    | keyed(metrics).map(MetricRecord)
    | keyed(configs).map(ConfigRecord)
)
contents = keyed(records).map(RecordDict) | keyed(records).map(content_of)


def same(one: RecordDict, other: RecordDict) -> None:
    assert type(one) is type(other)
    assert list(one) == list(other)
    for key, record in one.items():
        twin = other[key]
        assert type(record) is type(twin)
        assert list(record) == list(twin)
        for name, value in record.items():
            assert type(value) is type(twin[name])
            if isinstance(value, Array):
                form = (value.dtype, value.shape, value.stype, value.data)
                copy = twin[name]
                assert form == (copy.dtype, copy.shape, copy.stype, copy.data)
            else:
                assert repr(value) == repr(twin[name])  # NaN is not equal to itself


@given(contents)
def test_content_comes_back_with_its_types_order_and_bits(content: RecordDict) -> None:
    facts = {"seconds": math.nan, "error": None}
    got, back = decode(b"".join(encode(facts, {"content": content, "state": None})))
    assert repr(got) == repr(facts)
    assert back["state"] is None
    assert back["content"] is not None
    same(content, back["content"])


def test_models_of_one_program_come_back_as_rows_without_being_decoded() -> None:
    layout = Layout.of(torch.nn.Linear(3, 2))
    matrix = np.arange(16, dtype=np.float32).reshape(2, 8)
    content = content_of({"arrays": to_records(layout, matrix)[1]})
    parts = encode({}, {"content": content})
    assert sum(len(part) for part in parts[1:]) == 8 * 4  # one row, not one copy for each array
    back = decode(b"".join(parts))[1]["content"]
    assert back is not None
    record = back["arrays"]
    first = record["weight"]
    assert isinstance(first, RowArray)
    assert from_record(layout, record) is first.row
    assert not from_record(layout, record).flags.writeable
    np.testing.assert_array_equal(from_record(layout, record), matrix[1])


@given(contents, st.data())
def test_damaged_bytes_are_refused_and_never_anything_worse(
    content: RecordDict, data: st.DataObject
) -> None:
    whole = bytearray(b"".join(encode({"a": 1}, {"content": content})))
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    for damaged in (whole, cut):
        try:
            decode(bytes(damaged))
        except ValueError:
            continue


def test_what_is_no_record_of_flower_is_refused() -> None:
    content = RecordDict({})
    content.__dict__["_data"] = {"a": object()}
    with pytest.raises(TypeError, match="object is no record of Flower"):
        encode({}, {"content": content})


@given(contents)
def test_checksum_is_of_the_bytes_however_they_are_cut(content: RecordDict) -> None:
    parts = encode({}, {"content": content})
    assert checksum(parts) == checksum([b"".join(parts)])
