"""Flower's records over a model's row, and the rows of records that somebody has sent.

A record made here holds `RowArray`s: views of the row that become bytes only if someone asks for
bytes. In a simulation nobody does, which saves about 70 us per message for a model of four tensors.
This module is the only place that turns rows into records and back.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.constant import SType
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.flower.arrays import RowArray, check_claim, decode, read_array
from fl.flower.private import trusted_record
from fl.vectors.layout import FLOAT, FLOATS, Entry, Layout
from fl.vectors.rows import (
    Row,
    as_row,
    as_tensor,
    common_matrix,
    views_are_never_written,
)

if TYPE_CHECKING:
    import torch

VECTOR = "vector"  # name of the only array in a record that holds one bare vector
_VALUES, _POSITIONS = "values", "positions"  # of one whose zeros do not travel


class RowRecord(ArrayRecord):
    """An `ArrayRecord` of `RowArray`s.

    Its arrays, and all `numpy()` views of them, are read-only and may be shared with the records
    of other clients. The two conversions that code written for Flower takes as its own to change,
    `to_torch_state_dict` and `to_numpy_ndarrays`, return copies, as Flower's do.

    Attributes:
        place: the block that the record was made with, and its number there; None if alone.
    """

    place: tuple[_RowBlock, int] | None = None

    def deflate(self) -> bytes:
        """Returns Flower's wire form, under the name of `ArrayRecord`."""
        return ArrayRecord(dict(self.items())).deflate()

    def to_torch_state_dict(self, *, keep_input: bool = True) -> OrderedDict[str, torch.Tensor]:
        """Returns the arrays as tensors of their own."""
        views_are_never_written()
        shared = super().to_torch_state_dict(keep_input=keep_input)
        return type(shared)((name, tensor.clone()) for name, tensor in shared.items())

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[NDArray[Any]]:
        """Returns the arrays as writable copies."""
        arrays = super().to_numpy_ndarrays(keep_input=keep_input)
        return [np.array(array) for array in arrays]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as a place in its block while blocks travel whole, else as its own arrays."""
        place = self.place
        if _whole_blocks and place is not None and _shared_row(place[0].layout, self) is not None:
            return _record_at, place
        return _own_arrays, (dict(self.items()),)


def _own_arrays(items: dict[str, Array]) -> RowRecord:
    return trusted_record(RowRecord, items)


class _RowBlock:
    """Records made together: the rows of one matrix."""

    __slots__ = ("layout", "matrix")

    def __init__(self, layout: Layout, matrix: Row) -> None:
        matrix.flags.writeable = False  # and so are its rows
        self.layout = layout
        self.matrix = matrix

    def __reduce__(self) -> tuple[Any, ...]:
        return _RowBlock, (self.layout, self.matrix)


def _record_at(block: _RowBlock, i: int) -> RowRecord:
    row = block.matrix[i]
    items: dict[str, Array] = {
        name: RowArray(row, offset, shape) for name, offset, shape in block.layout.places
    }
    record = trusted_record(RowRecord, items)
    record.place = (block, i)
    return record


_whole_blocks = False


class Sharing:
    """A mark in what is pickled: between two, records that `to_records` made together are a matrix.

    Each record by itself pickles without its neighbours. Between `Sharing(True)` and
    `Sharing(False)` they go together: n records cost little more than their matrix, which stays out
    of band where the pickler wants that. A mark is read back as its truth value.
    """

    def __init__(self, on: bool) -> None:
        self.on = on

    def __reduce__(self) -> tuple[type[bool], tuple[bool]]:
        global _whole_blocks
        _whole_blocks = self.on
        return bool, (self.on,)


# ---- between rows and records --------------------------------------------------------------------


def layout_of(record: ArrayRecord) -> Layout:
    """Returns the layout of a record; every float entry counts as trainable.

    Raises:
        ConfigError: the record holds arrays that are not `.npy` bytes, not as many numbers as they
            say, or neither floats nor integers nor booleans.
    """
    for name, array in record.items():
        check_claim(f"array {name!r:.80}", array)
    return Layout.of_entries((name, tuple(a.shape), a.dtype) for name, a in record.items())


def model_record(layout: Layout, model: torch.nn.Module) -> ArrayRecord:
    """Returns the record of those entries of a model that a layout has.

    Raises:
        ConfigError: an entry is missing, or has another shape or type.
    """
    state = model.state_dict()
    named = {entry.name: state[entry.name] for entry in layout.entries if entry.name in state}
    layout.check_names(named)
    return ArrayRecord(OrderedDict(named))


def to_record(
    layout: Layout, row: Row | torch.Tensor, carried: Mapping[str, Array] | None = None
) -> ArrayRecord:
    """Returns a record over a row: no copy, no serialisation.

    Args:
        layout: of the model.
        row: shape (d,), float32, C-contiguous; must not be changed afterwards.
        carried: the carried entries, as `carried` takes them from another record.

    Raises:
        ConfigError: the row has another shape or type, or a carried entry is missing.
    """
    row = as_row(row)
    layout.check_row(row.shape)
    return to_records(layout, row[None], carried)[0]


def to_records(
    layout: Layout, matrix: Row | torch.Tensor, carried: Mapping[str, Array] | None = None
) -> list[ArrayRecord]:
    """Returns one record for every row of a matrix.

    Args:
        layout: of the model.
        matrix: shape (n, d), float32, C-contiguous; must not be changed afterwards.
        carried: the carried entries, the same in every record.

    Raises:
        ConfigError: the matrix has another shape or type, or a carried entry is missing.
    """
    matrix = as_row(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != layout.size:
        raise ConfigError(
            f"rows of this model have length {layout.size}, got a matrix of shape {matrix.shape}"
        )
    carried = carried or {}
    layout.check_carried(carried.keys())
    block = _RowBlock(layout, matrix.view())
    if layout.is_plain:
        return [_record_at(block, i) for i in range(len(matrix))]
    return [
        trusted_record(RowRecord, {e.name: _encode(e, row, carried) for e in layout.entries})
        for row in block.matrix
    ]


def _encode(entry: Entry, row: Row, carried: Mapping[str, Array]) -> Array:
    if entry.kind == "carried":
        return carried[entry.tied_to or entry.name]
    if entry.dtype == FLOAT:
        return RowArray(row, entry.offset, entry.shape)
    values = row[entry.offset : entry.offset + entry.size].reshape(entry.shape)
    with np.errstate(over="ignore"):  # becomes infinite, which who reads it refuses
        return Array(values.astype(entry.dtype))


def from_record(layout: Layout, record: ArrayRecord, *, finite: bool = True) -> Row:
    """Returns the row of a record: shape (d,), float32, read-only.

    A record made by `to_record`, and not changed since, gives its row back without a copy if all
    its entries are float32. Entries that come in another float type than the model's are rounded.

    Args:
        layout: of the model.
        record: one array per entry of the layout.
        finite: refuse NaN and infinity.

    Raises:
        ConfigError: an entry is missing or unknown, has another shape or type, is not `.npy` bytes
            or not as many as its shape says. The message names the entry, what came and what was
            expected.
        NotFinite: an entry is not finite.
    """
    row = _shared_row(layout, record)
    if row is None:
        row = _decoded_row(layout, record)
    if finite:
        layout.check_finite(row)
    return row


def with_entries(layout: Layout, row: Row, record: ArrayRecord, entries: Iterable[Entry]) -> Row:
    """Returns a row whose given entries are those of a record; a copy if there are any.

    Args:
        layout: of the model.
        row: shape (d,); not changed.
        record: has at least these entries.
        entries: of the row.

    Raises:
        ConfigError: an entry is missing, or of another shape or type.
    """
    for number, entry in enumerate(entries):
        if entry.name not in record:
            raise ConfigError(f"the record has no entry {entry.name!r} among {len(record)}")
        row = row if number else row.copy()
        place = slice(entry.offset, entry.offset + entry.size)
        row[place] = decode(entry, record[entry.name]).reshape(-1)
    return row


class RecordReader:
    """Reads the rows of records, and remembers the last few: a broadcast reaches many clients.

    Of records made by `to_record` it remembers which are finite, without keeping them in memory.

    Args:
        layout: of the model.
        keep: how many rows to remember; None is 4, and 1 if they are large.
    """

    def __init__(self, layout: Layout, keep: int | None = None) -> None:
        self.layout = layout
        if keep is None:
            keep = 1 if layout.is_large else 4
        self._finite: deque[weakref.ref[Row]] = deque(maxlen=keep)
        self._decoded: deque[tuple[list[Any], Row]] = deque(maxlen=keep)

    def __reduce__(self) -> tuple[type[RecordReader], tuple[Layout, int | None]]:
        """Leaves what it remembers behind: another process is sent other rows."""
        return RecordReader, (self.layout, self._finite.maxlen)

    def row(self, record: ArrayRecord) -> Row:
        """Returns what `from_record` returns; the same object for records with the same content.

        Raises:
            ConfigError: as `from_record`.
        """
        row = _shared_row(self.layout, record)
        if row is not None:
            if not any(row is known() for known in self._finite):
                self.layout.check_finite(row)
                self._finite.append(weakref.ref(row))
            if self.layout.is_large:
                self._decoded.clear()  # of an earlier broadcast, bytes and all
            return row
        if any(isinstance(array, RowArray) for array in record.values()):
            return from_record(self.layout, record)
        # Comparing bytes that are one object costs nothing; other bytes differ early.
        form = [(key, a.dtype, a.shape, a.stype, a.data) for key, a in record.items()]
        for known, row in self._decoded:
            if form == known:
                return row
        if len(self._decoded) == self._decoded.maxlen:
            self._decoded.popleft()  # before another takes memory
        row = from_record(self.layout, record)
        self._decoded.append((form, row))
        return row


def stack(
    layout: Layout,
    records: Sequence[ArrayRecord],
    *,
    finite: bool = True,
    scratch: Row | None = None,
) -> Row:
    """Returns the rows of n records as one matrix: shape (n, d), float32, read-only.

    Records made together by `to_records`, all of them and in their order, give their matrix back
    without a copy. The rows of large models move: afterwards the records' arrays are views of the
    matrix, so that there is never more than one row in two places.

    Args:
        layout: of the model.
        records: the records.
        finite: refuse numbers that are not finite.
        scratch: float32, shape (m, d): memory for the matrix if it has to be made, the model is not
            large, and m is at least n. Fresh memory takes several times as long to fill.

    Raises:
        ConfigError: as `from_record`; the message begins with the position of the record.
    """
    rows = []
    for i, record in enumerate(records):
        try:
            rows.append(from_record(layout, record, finite=finite))
        except ConfigError as error:  # or one of its kinds
            raise type(error)(f"record {i} of {len(records)}: {error}") from None
    if not rows:
        return np.empty((0, layout.size), dtype=np.float32)
    matrix = common_matrix(rows)
    if matrix is None:
        if scratch is not None and len(scratch) >= len(rows) and not layout.is_large:
            matrix = scratch[: len(rows)]
        else:
            matrix = np.empty((len(rows), layout.size), dtype=np.float32)
        for i, record in enumerate(records):
            matrix[i] = rows[i]
            if layout.is_large and _shared_row(layout, record) is rows[i]:
                _rebase(record, matrix[i])
            rows[i] = matrix[i]
        matrix.flags.writeable = False
    return matrix


def _rebase(record: ArrayRecord, row: Row) -> None:
    row.flags.writeable = False
    if isinstance(record, RowRecord):
        record.place = None
    for array in record.values():
        if isinstance(array, RowArray):
            array.row = row


def _shared_row(layout: Layout, record: ArrayRecord) -> Row | None:
    """Returns the row that all arrays of a record are parts of, at the layout's places, or None."""
    if len(record) != len(layout.entries):
        return None
    row: Row | None = None
    for entry, (name, array) in zip(layout.entries, record.items(), strict=True):
        if not isinstance(array, RowArray) or name != entry.name:
            return None
        if row is None:
            row = array.row
        if (
            row is None
            or array.row is not row
            or array.offset != entry.offset
            or array.shape != entry.shape
            or not array.is_untouched()
        ):
            return None
    return row if row is not None and row.shape == (layout.size,) else None


def _decoded_row(layout: Layout, record: ArrayRecord) -> Row:
    layout.check_names(record.keys())
    row = np.empty(layout.size, dtype=np.float32)
    for entry in layout.entries:
        values = decode(entry, record[entry.name])
        if entry.kind != "carried":
            row[entry.offset : entry.offset + entry.size] = values.reshape(-1)
    row.flags.writeable = False
    return row


def not_finite(record: ArrayRecord | None, like: ArrayRecord | None = None) -> frozenset[str]:
    """Returns the names of the float arrays of any app's record that hold NaN or infinity.

    Args:
        record: the record; None has none.
        like: a record with the types that the arrays will be rounded to; None leaves them.
    """
    names = set()
    for name, array in (record or {}).items():
        if array.stype == SType.NUMPY and array.dtype in FLOATS:
            with suppress(ConfigError), np.errstate(over="ignore"):  # in a form of the app's own
                values = read_array(array)
                kept = None if like is None else like.get(name)
                if kept is not None and kept.dtype in FLOATS:
                    values = values.astype(kept.dtype, copy=False)
                if not np.isfinite(values).all():
                    names.add(name)
    return frozenset(names)


# ---- tensors beside a model ----------------------------------------------------------------------


def vector_record(vector: torch.Tensor) -> ArrayRecord:
    """Returns a record of one bare vector, shape (p,), float32, that travels beside a model."""
    return tensors_record({VECTOR: vector})


def sparse_record(vector: torch.Tensor) -> ArrayRecord:
    """Returns a record of a vector, shape (p,), float32, that is mostly zeros.

    It has the others as values, float32, and positions, uint32; or the whole vector, if that is
    less.
    """
    row = vector.numpy()
    (positions,) = np.nonzero(row)
    if 2 * len(positions) > len(row):
        return vector_record(vector)
    others = row[positions]
    others.flags.writeable = False
    arrays = {
        _VALUES: RowArray(others, 0, others.shape),
        _POSITIONS: Array(positions.astype(np.uint32)),
    }
    return trusted_record(RowRecord, arrays)


def record_vector(
    record: ArrayRecord, size: int, what: str, *, finite: bool = True
) -> torch.Tensor:
    """Returns the vector of a record made by `vector_record` or `sparse_record`.

    Nobody may write to it.

    Args:
        record: the record.
        size: the length it must have.
        what: its name in an error message.
        finite: whether all numbers have to be finite, as of what others have sent.

    Raises:
        ConfigError: the record holds something else, or numbers that are not finite.
    """
    layout = Layout.of_vector(VECTOR, size)
    try:
        if record.keys() == {_VALUES, _POSITIONS}:
            return as_tensor(_scattered(layout, record))
        return as_tensor(from_record(layout, record, finite=finite))
    except ConfigError as error:  # or one of its kinds
        raise type(error)(f"{what}: {error}") from None


def _scattered(layout: Layout, record: ArrayRecord) -> Row:
    positions, values = (read_array(record[name]) for name in (_POSITIONS, _VALUES))
    wide = positions.astype(np.int64)
    if (
        positions.dtype != np.uint32
        or values.dtype != np.float32
        or positions.ndim != 1
        or positions.shape != values.shape
        or (np.diff(wide) <= 0).any()
        or (wide >= layout.size).any()
    ):
        raise ConfigError(
            f"it has values of shape {values.shape} and type {values.dtype} at positions of shape "
            f"{positions.shape} and type {positions.dtype}; they must be float32 and uint32, of "
            f"one length, the positions ascending and below {layout.size}"
        )
    row = np.zeros(layout.size, np.float32)
    row[wide] = values
    layout.check_finite(row)
    row.flags.writeable = False
    return row


def tensors_record(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Returns a record of named tensors of any shape and type, as client rules keep them.

    Float32 tensors are not copied and must not be changed afterwards.
    """
    arrays: dict[str, Array] = {}
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tensor.shape)
        if values.dtype == np.float32:
            row = values.reshape(-1)
            row.flags.writeable = False
            arrays[name] = RowArray(row, 0, values.shape)
        else:
            arrays[name] = Array(values)
    return trusted_record(RowRecord, arrays)


def record_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Returns the tensors of a record made by `tensors_record`; nobody may write to them."""
    return {name: as_tensor(array.numpy()) for name, array in record.items()}
