"""What a message weighs on the wire, and a copy of it that later changes cannot reach."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from fl.params import RowArray

NUMBER_BYTES = 8  # Flower sends every int, float and bool of a record as 64 bits


def payload_bytes(content: RecordDict) -> int:
    """Returns the number of bytes of a message's content.

    Counted as Flower counts a record (`count_bytes`, used by its message-size mods): the length of
    every array's serialised data, 8 bytes a number, the length of strings and bytes, and of all keys.
    """
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(key) + _array_bytes(array) for key, array in record.items())
        else:
            total += sum(len(key) + _value_bytes(value) for key, value in record.items())
    return total


def _array_bytes(array: Array) -> int:
    return array.num_bytes if isinstance(array, RowArray) else len(array.data)


def _value_bytes(value: object) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list):
        return sum(_value_bytes(item) for item in value)
    return NUMBER_BYTES


def snapshot(content: RecordDict) -> RecordDict:
    """Returns a copy that shares the arrays' bytes, but no dictionary, with `content`.

    A strategy keeps one configuration and changes it every round; a task may be executed after that.
    """
    return RecordDict({key: record.copy() for key, record in content.items()})
