"""What a client did, as bytes, and back: how a journal keeps replies and states.

The bytes are a JSON description followed by the numbers of the arrays, which are neither pickled
nor compressed. Reading them makes Flower's records and NumPy arrays, nothing else. A `RowArray`
comes back as one, over a row of its own, and any other `Array` with the bytes that it had, so a
reply that was read cannot be told from the one that was written.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl.flower.arrays import RowArray
from fl.flower.content import Content, content_of
from fl.flower.private import trusted_record
from fl.flower.records import RowRecord
from fl.vectors.rows import Row

Buffer = bytes | memoryview

_LENGTH = 4  # bytes that say how long the description is
_ARRAYS, _ROWS, _METRICS, _CONFIG = "arrays", "rows", "metrics", "config"


def encode(facts: Mapping[str, Any], records: Mapping[str, RecordDict | None]) -> list[Buffer]:
    """Returns what `decode` reads, in parts, so that no model is copied.

    Args:
        facts: plain values, as JSON knows them; NaN and infinity as well.
        records: message contents or client states, by name.

    Raises:
        TypeError, ValueError: something is not what Flower's records hold.
    """
    blobs = Blobs()
    described = {
        name: None if content is None else blobs.describe(content)
        for name, content in records.items()
    }
    head = json.dumps([facts, described, blobs.lengths], separators=(",", ":")).encode("ascii")
    return [len(head).to_bytes(_LENGTH, "little") + head, *blobs.buffers]


def decode(data: Buffer) -> tuple[dict[str, Any], dict[str, RecordDict | None]]:
    """Returns the facts and the records that `encode` was given.

    Raises:
        ValueError: the bytes are not `encode`'s.
    """
    try:
        begin = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        facts, described, lengths = json.loads(bytes(data[_LENGTH:begin]))
        views = cut(memoryview(data)[begin:], lengths)
        return facts, {
            name: None if content is None else content_in(content, views)
            for name, content in described.items()
        }
    except (TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a record of a journal: {error!r}") from error


def checksum(parts: Sequence[Buffer]) -> int:
    """Returns the CRC-32 of all parts, one after the other."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


class Blobs:
    """The bytes behind a description; what occurs twice is kept once."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.lengths: list[int] = []
        self._numbers: dict[int, int] = {}  # id of the object -> its number
        self._objects: list[object] = []  # alive, so that an id stays theirs

    def describe(self, content: RecordDict) -> list[Any]:
        """Describes a message's content, or a client's state."""
        records = {key: self.record(record) for key, record in content.items()}
        return [isinstance(content, Content), records]

    def record(self, record: object) -> list[Any]:
        """Describes a record."""
        if isinstance(record, ArrayRecord):
            arrays = {name: self._array(array) for name, array in record.items()}
            return [_ROWS if isinstance(record, RowRecord) else _ARRAYS, arrays]
        if isinstance(record, MetricRecord | ConfigRecord):
            kind = _METRICS if isinstance(record, MetricRecord) else _CONFIG
            return [kind, {key: self._value(value) for key, value in record.items()}]
        raise TypeError(f"{type(record).__name__} is no record of Flower")

    def numbers(self, array: NDArray[Any]) -> int:
        """Returns the number of an array's bytes, in C order."""
        return self._number(array, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def _array(self, array: Array) -> list[Any]:
        if isinstance(array, RowArray) and array.is_untouched() and array.row is not None:
            row = array.row
            return [self._number(row, row), array.offset, list(array.shape)]
        data = array.data
        return [self._number(data, data), array.dtype, list(array.shape), array.stype]

    def _value(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": self._number(value, value)}
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return value

    def _number(self, thing: object, buffer: bytes | NDArray[Any]) -> int:
        number = self._numbers.get(id(thing))
        if number is None:
            number = self._numbers[id(thing)] = len(self.buffers)
            view: Buffer = b""
            if len(buffer):
                view = memoryview(cast(bytes, buffer)).cast("B")  # a row has a buffer as well
            self.buffers.append(view)
            self.lengths.append(len(view))
            self._objects.append(thing)
        return number


class Views:
    """The bytes behind a description, on reading; rows are made once."""

    def __init__(self, views: list[memoryview]) -> None:
        self._views = views
        self._rows: dict[int, Row] = {}

    def bytes(self, number: int) -> bytes:
        """Returns the bytes of something."""
        return bytes(self._views[number])

    def row(self, number: int) -> Row:
        """Returns a row of float32, shape (d,), read-only."""
        if number not in self._rows:
            # A copy: a view of the record would begin at any address.
            row = np.frombuffer(self._views[number], dtype=np.float32).copy()
            row.flags.writeable = False
            self._rows[number] = row
        return self._rows[number]


def cut(data: memoryview, lengths: list[int]) -> Views:
    """Returns the bytes behind a description, of these lengths, one after the other.

    Raises:
        ValueError: they are longer or shorter.
    """
    if any(type(length) is not int or length < 0 for length in lengths) or sum(lengths) != len(
        data
    ):
        raise ValueError("not a record of a journal: its arrays are not as long as it says")
    views, begin = [], 0
    for length in lengths:
        views.append(data[begin : begin + length])
        begin += length
    return Views(views)


def content_in(described: list[Any], views: Views) -> RecordDict:
    """Returns a message's content, or a client's state, that `Blobs` has described."""
    own, records = described
    items = {key: record_in(kind, values, views) for key, (kind, values) in records.items()}
    return content_of(items) if own else trusted_record(RecordDict, items)


def record_in(
    kind: str, values: dict[str, Any], views: Views
) -> ArrayRecord | MetricRecord | ConfigRecord:
    """Returns a record that `Blobs` has described."""
    if kind in (_ARRAYS, _ROWS):
        items = {name: _array(array, views) for name, array in values.items()}
        return trusted_record(RowRecord if kind == _ROWS else ArrayRecord, items)
    # Flower's constructors look at every value.
    restored = {key: _value(value, views) for key, value in values.items()}
    return MetricRecord(restored) if kind == _METRICS else ConfigRecord(restored)


def _array(described: list[Any], views: Views) -> Array:
    if len(described) == 4:
        number, dtype, shape, stype = described
        return Array(dtype, tuple(shape), stype, views.bytes(number))
    number, offset, shape = described
    row = views.row(number)
    if not all(type(extent) is int and extent >= 0 for extent in (offset, *shape)):
        raise ValueError("not a record of a journal: an array has no shape")
    if offset + prod(shape) > row.size:
        raise ValueError("not a record of a journal: an array lies outside its row")
    return RowArray(row, offset, tuple(shape))


def _value(value: Any, views: Views) -> Any:
    if isinstance(value, dict):
        return views.bytes(value["bytes"])
    if isinstance(value, list):
        return [_value(item, views) for item in value]
    return value
