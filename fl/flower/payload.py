"""What a message weighs on the wire, and a copy of it that later changes cannot reach."""

from __future__ import annotations

from math import prod

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.constant import SType

from fl.flower.arrays import RowArray
from fl.vectors.npy import read_header

NUMBER_BYTES = 8  # Flower sends every int and float of a record as 64 bits


def payload_bytes(content: RecordDict) -> int:
    """Returns the number of bytes of a message's content.

    Counted as Flower counts a record (`count_bytes`, used by its message-size mods): the length of
    every array's serialised data, 8 bytes a number, 1 byte a boolean, the length of strings and
    bytes, and of all keys within a record.
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
    return 1 if isinstance(value, bool) else NUMBER_BYTES


def num_scalars(content: RecordDict) -> int:
    """Returns the number of scalars in all arrays of a message.

    Flower's older apps send arrays without dtype and shape: these are read from the `.npy` bytes,
    and in any other format a scalar is taken to have 4 bytes. An array has no more scalars than
    bytes, whatever it says.
    """
    records = content.array_records.values()
    return sum(_scalars(array) for record in records for array in record.values())


def _scalars(array: Array) -> int:
    shape = array.shape
    if not array.dtype:
        if not array.data or array.stype != SType.NUMPY:
            return len(array.data) // 4
        try:
            _, shape, _, _ = read_header(array.data)
        except ValueError:
            return len(array.data) // 4
    return max(0, min(prod(shape), _array_bytes(array)))


def num_objects(content: RecordDict, chunk_bytes: int) -> int:
    """Returns as how many objects a message travels in a deployment (flwr 1.41, `inflatable`).

    These are the message, its content, each record, each array, and each chunk of an array.

    Args:
        content: of the message.
        chunk_bytes: the most of an array in one object.
    """
    arrays = [array for record in content.array_records.values() for array in record.values()]
    chunks = sum(-(-_array_bytes(array) // chunk_bytes) for array in arrays)
    return 2 + len(content) + len(arrays) + chunks


def snapshot(content: RecordDict) -> RecordDict:
    """Returns a copy that shares the arrays' bytes, but no dictionary, with `content`.

    A strategy keeps one configuration and changes it every round; a task may be executed after
    that. Lists in it are copied too.
    """
    copies = {key: record.copy() for key, record in content.items()}
    for record in copies.values():
        if not isinstance(record, ArrayRecord):
            for key, value in record.items():
                if isinstance(value, list):
                    record[key] = value.copy()  # type: ignore[assignment]
    return RecordDict(copies)
