"""Model parameters as flat vectors, and the records that carry them.

A model travels as a Flower `ArrayRecord` with the names of its `state_dict`. Everything that
computes on models (client rules, aggregation, compression) works on one flat float32 vector, the
*row*: all floating entries in the order of the state dict, each flattened in C order. This module
is the only place that turns one into the other.

What an entry is decides what happens to it:

- `trainable`: a float parameter that requires a gradient; in the row, and moved by client rules.
- `buffer`: any other float entry (BatchNorm's running statistics, frozen parameters); in the row,
  so it is averaged like Flower averages it, but no rule moves it.
- `carried`: an integer or boolean entry (BatchNorm's counters); not in the row. Averaging it would
  mean nothing, so it goes from record to record as it is.

A record made here holds `RowArray`s: views of the row that become bytes only if someone asks for
bytes. In a simulation nobody does, which saves about 70 us per message for a model of four tensors.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from io import BytesIO
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.recorddict import _SyncedDict
from flwr.app.message.typeddict import TypedDict
from flwr.common.constant import SType
from numpy.typing import NDArray

from fl.errors import ConfigError

if TYPE_CHECKING:
    from collections import OrderedDict

    import torch

Kind = Literal["trainable", "buffer", "carried"]
Row = NDArray[np.float32]

_FLOAT = "float32"
_FLOAT_BYTES = 4
LARGE_BYTES = 16 * 2**20
"""A model that takes more is worth not copying, and its reply worth fetching by itself."""
VECTOR = "vector"  # name of the only array in a record that holds one bare vector


# ---- the .npy format -----------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Returns what `np.save` writes before the numbers of a C-contiguous array."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {
            "shape": shape,
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        },
    )
    return buffer.getvalue()


def _read_npy(data: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns the array in `.npy` bytes, of a dtype and shape known beforehand, without a copy.

    Raises:
        ValueError: the bytes hold something else, or not as many numbers as they claim.
    """
    header = _npy_header(dtype, shape)
    if data.startswith(header):
        # The header is the one numpy writes here: nothing to parse.
        start, fortran = len(header), False
    else:
        buffer = BytesIO(data)
        version = np.lib.format.read_magic(buffer)
        if version == (1, 0):
            got_shape, fortran, got_dtype = np.lib.format.read_array_header_1_0(buffer)
        elif version == (2, 0):
            got_shape, fortran, got_dtype = np.lib.format.read_array_header_2_0(buffer)
        else:
            raise ValueError(f"its data is in version {version} of the .npy format, not 1.0 or 2.0")
        if str(got_dtype) != dtype or got_shape != shape:
            raise ValueError(
                f"its data holds {got_dtype} of shape {got_shape}, not {dtype} of shape {shape}"
            )
        start = buffer.tell()
    # Checked before anything is allocated: a header can claim any size.
    expected = prod(shape) * np.dtype(dtype).itemsize
    if len(data) - start != expected:
        raise ValueError(f"its data has {len(data) - start} bytes of numbers, not {expected}")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


# ---- arrays and records over a row ---------------------------------------------------------------


class RowArray(Array):
    """A Flower `Array` that is a part of a row, and serialises itself only when `data` is read.

    `numpy()` returns a read-only view of the row, not a copy; `data` gives the bytes Flower's own
    `Array` would hold. Setting `data` makes it an ordinary array. It pickles and copies as a part
    of its row: the arrays of one record still share one row afterwards.

    Args:
        row: the vector, shape (d,), float32, read-only; nobody may change it any more.
        offset: index of the part's first number.
        shape: shape of the part.
    """

    def __init__(self, row: Row, offset: int, shape: tuple[int, ...]) -> None:
        # Not Array's constructor: it inspects its arguments for 3 us, and wants bytes.
        self.__dict__.update(
            dtype=_FLOAT,
            shape=shape,
            stype=SType.NUMPY,
            _row=row,
            _offset=offset,
            _extent=shape,
        )

    @property
    def data(self) -> bytes:
        """The array in `.npy` format, as `np.save` writes it."""
        made = self.__dict__.get("_bytes")
        if made is None:
            made = _npy_header(_FLOAT, self._extent) + self._view().tobytes()
            self.__dict__["_bytes"] = made
        return cast(bytes, made)

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_bytes"] = value
        self.__dict__["_row"] = None

    @property
    def row(self) -> Row | None:
        """The row this array is a part of; None once `data` was set."""
        return cast("Row | None", self.__dict__["_row"])

    @property
    def num_bytes(self) -> int:
        """Length of `data` in bytes, known without making it."""
        if self.row is None:
            return len(self.data)
        return len(_npy_header(_FLOAT, self._extent)) + _FLOAT_BYTES * prod(self._extent)

    @property
    def _extent(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.__dict__["_extent"])

    def _view(self) -> NDArray[np.float32]:
        start = self.__dict__["_offset"]
        row = cast(Row, self.row)
        return row[start : start + prod(self._extent)].reshape(self._extent)

    def numpy(self) -> NDArray[Any]:
        """Returns the array: a read-only view of the row."""
        if self.row is None or self.stype != SType.NUMPY:
            return super().numpy()
        return self._view()

    def deflate(self) -> bytes:
        """Returns Flower's wire form, under the name of `Array`: the receiver knows no other."""
        return self._plain().deflate()

    def _plain(self) -> Array:
        return Array(self.dtype, self.shape, self.stype, self.data)

    def _untouched(self) -> bool:
        fields = self.__dict__
        return (
            fields["_row"] is not None
            and fields["dtype"] == _FLOAT
            and fields["shape"] == fields["_extent"]
            and fields["stype"] == SType.NUMPY
        )

    def __eq__(self, other: object) -> bool:
        """Compares with any `Array`, by type, shape and bytes."""
        if not isinstance(other, Array):
            return NotImplemented
        return (self.dtype, self.shape, self.stype, self.data) == (
            other.dtype,
            other.shape,
            other.stype,
            other.data,
        )

    __hash__ = None  # type: ignore[assignment]  # mutable, like Array

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as (row, offset, shape); pickle stores a row shared by several arrays once."""
        if self._untouched():
            return _row_array, (self.row, self.__dict__["_offset"], self._extent)
        return Array, (self.dtype, self.shape, self.stype, self.data)

    def __repr__(self) -> str:
        """Returns a description without the numbers."""
        return f"RowArray(dtype={self.dtype!r}, shape={self.shape!r})"


def _row_array(row: Row, offset: int, shape: tuple[int, ...]) -> RowArray:
    # An unpickled or deep-copied row belongs to its record alone, and has forgotten its flag.
    row.flags.writeable = False
    return RowArray(row, offset, shape)


class RowRecord(ArrayRecord):
    """An `ArrayRecord` of `RowArray`s.

    Its arrays, and all `numpy()` views of them, are read-only and may be shared with the records
    of other clients. The two conversions that code written for Flower takes as its own to change,
    `to_torch_state_dict` and `to_numpy_ndarrays`, return copies, as Flower's do.
    """

    def deflate(self) -> bytes:
        """Returns Flower's wire form, under the name of `ArrayRecord`."""
        return trusted_record(ArrayRecord, self.__dict__["_data"]).deflate()

    def to_torch_state_dict(self, *, keep_input: bool = True) -> OrderedDict[str, torch.Tensor]:
        """Returns the arrays as tensors of their own."""
        _views_are_never_written()
        shared = super().to_torch_state_dict(keep_input=keep_input)
        return type(shared)((name, tensor.clone()) for name, tensor in shared.items())

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[NDArray[Any]]:
        """Returns the arrays as writable copies."""
        arrays = super().to_numpy_ndarrays(keep_input=keep_input)
        return [np.array(array) for array in arrays]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as a place in its block while blocks travel whole, else as its own arrays."""
        place = self.__dict__.get("_place")
        if _whole_blocks and place is not None and _shared_row(place[0].layout, self) is not None:
            return _record_at, place
        return _own_arrays, (self.__dict__["_data"],)


def _own_arrays(items: dict[str, Array]) -> RowRecord:
    return trusted_record(RowRecord, items)


class _Block:
    """Records made together: the rows of one matrix."""

    __slots__ = ("layout", "matrix")

    def __init__(self, layout: Layout, matrix: Row) -> None:
        matrix.flags.writeable = False  # and so are its rows
        self.layout = layout
        self.matrix = matrix

    def __reduce__(self) -> tuple[Any, ...]:
        return _Block, (self.layout, self.matrix)


def _record_at(block: _Block, i: int) -> RowRecord:
    row = block.matrix[i]
    items: dict[str, Array] = {
        name: RowArray(row, offset, shape) for name, offset, shape in block.layout.places
    }
    record = trusted_record(RowRecord, items)
    record.__dict__["_place"] = (block, i)
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


class Content(RecordDict):
    """A `RecordDict` of trusted records, whose views by kind cost a tenth.

    Flower makes `metric_records` and the like anew at every access, checking every key and record
    twice; a strategy asks some five times for each reply. The views behave as Flower's: what is
    changed in them is changed here.
    """

    @property
    def array_records(self) -> TypedDict[str, ArrayRecord]:
        """The records of arrays."""
        return self._view(ArrayRecord)

    @property
    def metric_records(self) -> TypedDict[str, MetricRecord]:
        """The records of metrics."""
        return self._view(MetricRecord)

    @property
    def config_records(self) -> TypedDict[str, ConfigRecord]:
        """The records of configuration."""
        return self._view(ConfigRecord)

    def _view(self, kind: type[Any]) -> TypedDict[str, Any]:
        view: _SyncedDict[Any] = _SyncedDict.__new__(_SyncedDict)
        view.__dict__.update(
            _check_key_fn=self.__dict__["_check_key_fn"],
            # Flower's is a method of the view: a cycle, which keeps a reply's model in memory until
            # the garbage collector happens to run.
            _check_value_fn=partial(_check_kind, kind),
            _data={k: r for k, r in self.__dict__["_data"].items() if isinstance(r, kind)},
            recorddict=self,
            allowed_type=kind,
        )
        return view

    def deflate(self) -> bytes:
        """Returns Flower's wire form, under the name of `RecordDict`."""
        return RecordDict(dict(self.items())).deflate()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as its records."""
        return content_of, (self.__dict__["_data"],)


def _check_kind(kind: type[Any], record: object) -> None:
    if not isinstance(record, kind):
        raise TypeError(f"Expected `{kind.__name__}`, but received `{type(record).__name__}`.")


def content_of(items: dict[str, Any]) -> Content:
    """Returns a message's content; the dictionary of Flower records becomes its own."""
    return trusted_record(Content, items)


Record = TypeVar("Record", bound=TypedDict[Any, Any])


def trusted_record(kind: type[Record], items: dict[str, Any]) -> Record:
    """Returns a Flower record holding `items`, without its check of every key and value.

    Flower takes 5 us to check three metrics. This is for items made by this package, which have the
    right types by construction; the dictionary becomes the record's own. It relies on Flower's
    `TypedDict` keeping its items in `_data`; a test pins that.
    """
    record = kind.__new__(kind)
    record.__dict__ = {**_empty_record(kind), "_data": items}
    return record


@lru_cache(maxsize=16)
def _empty_record(kind: type[Any]) -> dict[str, Any]:
    return dict(kind().__dict__)


# ---- layout --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One tensor of a state dict.

    Attributes:
        name: its key.
        shape: its shape.
        dtype: NumPy's name of its type; "float32" unless `kind` is "carried".
        kind: what happens to it (see the module).
        offset: index of its first number in the row; -1 if carried.
        size: how many numbers it has.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Where each entry of a model's state dict lies in its row.

    Two layouts whose records and rows mean the same may differ in what is trainable: a server that
    has only seen a record takes every float entry as trainable.

    Attributes:
        entries: in the order of the state dict.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Layout:
        """Returns the layout of a module's `state_dict`.

        Raises:
            ConfigError: a float entry is not float32; an entry is complex; or two entries share
                memory, which one flat vector cannot express.
        """
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        state = model.state_dict()
        _refuse_shared(state)
        return cls._build(
            (name, tuple(value.shape), _numpy_name(value), name in trainable)
            for name, value in state.items()
        )

    @classmethod
    def of_state_dict(cls, state_dict: Mapping[str, torch.Tensor]) -> Layout:
        """Returns the layout of a state dict; every float entry counts as trainable."""
        return cls._build(
            (name, tuple(value.shape), _numpy_name(value), True)
            for name, value in state_dict.items()
        )

    @classmethod
    def of_record(cls, record: ArrayRecord) -> Layout:
        """Returns the layout of a record; every float entry counts as trainable.

        Raises:
            ConfigError: the record holds arrays that are not `.npy` bytes, or not float32,
                integers or booleans.
        """
        for name, array in record.items():
            if array.stype != SType.NUMPY:
                raise ConfigError(
                    f"array {name!r} is serialised as {array.stype!r}; a model's arrays must be "
                    f"{SType.NUMPY!r}: decode the message before reading it"
                )
        return cls._build(
            (name, tuple(array.shape), array.dtype, True) for name, array in record.items()
        )

    @classmethod
    def _build(cls, described: Iterable[tuple[str, tuple[int, ...], str, bool]]) -> Layout:
        entries: list[Entry] = []
        offset = 0
        for name, shape, dtype, trainable in described:
            size = prod(shape)
            if _is_carried(dtype):
                entries.append(Entry(name, shape, dtype, "carried", -1, size))
                continue
            if dtype != _FLOAT:
                raise ConfigError(
                    f"entry {name!r} has type {dtype}; float entries must be {_FLOAT}: convert "
                    "the model with .float()"
                )
            kind: Kind = "trainable" if trainable else "buffer"
            entries.append(Entry(name, shape, dtype, kind, offset, size))
            offset += size
        return cls(tuple(entries))

    @cached_property
    def floats(self) -> tuple[Entry, ...]:
        """The entries in the row."""
        return tuple(entry for entry in self.entries if entry.kind != "carried")

    @cached_property
    def trainable(self) -> tuple[Entry, ...]:
        """The entries that client rules move."""
        return tuple(entry for entry in self.entries if entry.kind == "trainable")

    @cached_property
    def buffers(self) -> tuple[Entry, ...]:
        """The float entries that no rule moves."""
        return tuple(entry for entry in self.entries if entry.kind == "buffer")

    @cached_property
    def carried(self) -> tuple[Entry, ...]:
        """The entries outside the row."""
        return tuple(entry for entry in self.entries if entry.kind == "carried")

    @cached_property
    def places(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """Name, offset and shape of each entry in the row."""
        return [(entry.name, entry.offset, entry.shape) for entry in self.floats]

    @cached_property
    def size(self) -> int:
        """d, the length of a row."""
        return sum(entry.size for entry in self.floats)

    @property
    def is_large(self) -> bool:
        """Whether a copy of a row is worth avoiding: more than 16 MiB."""
        return self.size * _FLOAT_BYTES > LARGE_BYTES

    @cached_property
    def num_trainable(self) -> int:
        """p, how many numbers of a row client rules move; d if the model has no buffers."""
        return sum(entry.size for entry in self.trainable)

    @cached_property
    def _trainable_sizes(self) -> list[int]:
        return [entry.size for entry in self.trainable]

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all entries."""
        return frozenset(entry.name for entry in self.entries)

    # ---- state dicts -----------------------------------------------------------------------------

    def flatten(self, state_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the row of a state dict: shape (d,), float32, memory of its own.

        Raises:
            ConfigError: an entry is missing, unknown, or has another shape or type.
        """
        import torch

        self._check_names(state_dict.keys())
        for entry in self.entries:
            value = state_dict[entry.name]
            self._check_form(entry, _numpy_name(value), tuple(value.shape))
        parts = [state_dict[e.name].detach().cpu().reshape(-1) for e in self.floats]
        return torch.cat(parts) if parts else torch.empty(0)

    def unflatten(
        self, row: torch.Tensor, carried: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns a state dict whose float entries are views of `row`.

        Args:
            row: shape (d,), float32.
            carried: the carried entries; may be left out if the layout has none.

        Raises:
            ConfigError: `row` has another shape, or a carried entry is missing.
        """
        self._check_row(tuple(row.shape))
        carried = carried or {}
        self._check_carried(carried.keys())
        return {
            e.name: carried[e.name]
            if e.kind == "carried"
            else row[e.offset : e.offset + e.size].view(e.shape)
            for e in self.entries
        }

    def split(self, w: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the trainable entries of `w`, shape (p,), as views; differentiable.

        The gradient of a split is one concatenation, where slicing entry by entry would add up
        vectors of length p.
        """
        parts = w.split_with_sizes(self._trainable_sizes)
        return {e.name: part.view(e.shape) for e, part in zip(self.trainable, parts, strict=True)}

    def select(self, row: torch.Tensor) -> torch.Tensor:
        """Returns the trainable part of a row, shape (p,): the row itself if it has no buffers."""
        if not self.buffers:
            return row
        import torch

        return torch.cat([row[e.offset : e.offset + e.size] for e in self.trainable])

    def join(self, w: torch.Tensor, buffers: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the row, shape (d,), of trainable parameters `w`, shape (p,), and buffers.

        Args:
            w: as `select` takes them from a row.
            buffers: one tensor for each float entry that is not trainable; others are ignored.
        """
        if not self.buffers:
            return w
        import torch

        parts = iter(w.split_with_sizes(self._trainable_sizes))
        joined = [
            next(parts) if e.kind == "trainable" else buffers[e.name].reshape(-1)
            for e in self.floats
        ]
        return torch.cat(joined)

    # ---- checks ----------------------------------------------------------------------------------

    def _check_names(self, names: Iterable[str]) -> None:
        got = frozenset(names)
        if got != self.names:
            raise ConfigError(
                f"the names do not fit the model: missing {sorted(self.names - got)}, unknown "
                f"{sorted(got - self.names)}; expected {[entry.name for entry in self.entries]}"
            )

    @staticmethod
    def _check_form(entry: Entry, dtype: str, shape: tuple[int, ...]) -> None:
        if dtype != entry.dtype or shape != entry.shape:
            raise ConfigError(
                f"entry {entry.name!r} is {dtype} of shape {shape}; the model has {entry.dtype} of "
                f"shape {entry.shape}"
            )

    def _check_row(self, shape: tuple[int, ...]) -> None:
        if shape != (self.size,):
            raise ConfigError(f"a row of this model has shape ({self.size},), got {shape}")

    def _check_carried(self, names: Iterable[str]) -> None:
        got = frozenset(names)
        expected = frozenset(entry.name for entry in self.carried)
        if got != expected:
            raise ConfigError(
                f"the model carries {sorted(expected)} outside its row, got {sorted(got)}: take "
                "them from the record with carried()"
            )


def _is_carried(dtype: str) -> bool:
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def _numpy_name(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _refuse_shared(state: Mapping[str, torch.Tensor]) -> None:
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, value in state.items():
        if value.numel() == 0:
            continue
        place = (value.data_ptr(), tuple(value.shape))
        if place in seen:
            raise ConfigError(
                f"entries {seen[place]!r} and {name!r} are one tensor; a flat vector would hold it "
                "twice and move it twice: give each its own memory"
            )
        seen[place] = name


# ---- records -------------------------------------------------------------------------------------


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
    row = _as_numpy(row)
    layout._check_row(row.shape)
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
    matrix = _as_numpy(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != layout.size:
        raise ConfigError(
            f"rows of this model have length {layout.size}, got a matrix of shape {matrix.shape}"
        )
    layout._check_carried((carried or {}).keys())
    block = _Block(layout, matrix.view())
    if not carried:
        return [_record_at(block, i) for i in range(len(matrix))]
    return [
        trusted_record(
            RowRecord,
            {
                e.name: carried[e.name] if e.kind == "carried" else RowArray(row, e.offset, e.shape)
                for e in layout.entries
            },
        )
        for row in block.matrix
    ]


def from_record(layout: Layout, record: ArrayRecord, *, finite: bool = True) -> Row:
    """Returns the row of a record: shape (d,), float32, read-only.

    A record made by `to_record`, and not changed since, gives its row back without a copy. Entries
    that come as float64 are rounded.

    Args:
        layout: of the model.
        record: one array per entry of the layout.
        finite: refuse NaN and infinity.

    Raises:
        ConfigError: an entry is missing or unknown, has another shape or type, is not `.npy` bytes
            or not as many as its shape says, or is not finite. The message names the entry, what
            came and what was expected.
    """
    row = _shared_row(layout, record)
    if row is None:
        row = _decoded_row(layout, record)
    if finite:
        _check_finite(layout, row)
    return row


def carried(layout: Layout, record: ArrayRecord) -> dict[str, Array]:
    """Returns the carried entries of a record, for `to_record`.

    Raises:
        ConfigError: an entry is missing, or has another shape or type.
    """
    entries = {}
    for entry in layout.carried:
        if entry.name not in record:
            raise ConfigError(f"the record has no entry {entry.name!r}: got {sorted(record)}")
        _decode(entry, record[entry.name])
        entries[entry.name] = record[entry.name]
    return entries


def carried_tensors(entries: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Returns carried entries as tensors of their own."""
    import torch

    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in entries.items()}


def carried_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Returns carried entries as arrays, for `to_record`."""
    return {name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}


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

    def row(self, record: ArrayRecord) -> Row:
        """Returns what `from_record` returns; the same object for records with the same content.

        Raises:
            ConfigError: as `from_record`.
        """
        row = _shared_row(self.layout, record)
        if row is not None:
            if not any(row is known() for known in self._finite):
                _check_finite(self.layout, row)
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
        except ConfigError as error:
            raise ConfigError(f"record {i} of {len(records)}: {error}") from None
    if not rows:
        return np.empty((0, layout.size), dtype=np.float32)
    matrix = _common_matrix(rows)
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
    record.__dict__.pop("_place", None)
    for array in record.values():
        array.__dict__["_row"] = row


def _as_numpy(value: Row | torch.Tensor) -> Row:
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ConfigError(
            f"rows must be float32 and C-contiguous, got {array.dtype} with strides {array.strides}"
        )
    return array


def _shared_row(layout: Layout, record: ArrayRecord) -> Row | None:
    """Returns the row that all arrays of a record are parts of, at the layout's places, or None."""
    if len(record) != len(layout.entries):
        return None
    row: Row | None = None
    for entry, (name, array) in zip(layout.entries, record.items(), strict=True):
        if not isinstance(array, RowArray) or name != entry.name:
            return None
        fields = array.__dict__
        if row is None:
            row = fields["_row"]
        if (
            row is None
            or fields["_row"] is not row
            or fields["_offset"] != entry.offset
            or fields["shape"] != entry.shape
            or not array._untouched()
        ):
            return None
    return row if row is not None and row.shape == (layout.size,) else None


def _decoded_row(layout: Layout, record: ArrayRecord) -> Row:
    layout._check_names(record.keys())
    row = np.empty(layout.size, dtype=np.float32)
    for entry in layout.entries:
        values = _decode(entry, record[entry.name])
        if entry.kind != "carried":
            row[entry.offset : entry.offset + entry.size] = values.reshape(-1)
    row.flags.writeable = False
    return row


def _decode(entry: Entry, array: Array) -> NDArray[Any]:
    # Some of Flower's strategies compute in float64 and send that: FedAdam from its second round.
    rounded = entry.dtype == "float32" and array.dtype == "float64"
    dtype = array.dtype if rounded else entry.dtype
    Layout._check_form(entry, entry.dtype if rounded else array.dtype, tuple(array.shape))
    if array.stype != SType.NUMPY:
        raise ConfigError(
            f"entry {entry.name!r} is serialised as {array.stype!r}, expected {SType.NUMPY!r}: "
            "decode the message before reading it"
        )
    if isinstance(array, RowArray):
        values = array.numpy()
    else:
        try:
            values = _read_npy(array.data, dtype, entry.shape)
        except ValueError as error:
            raise ConfigError(f"entry {entry.name!r} cannot be read: {error}") from error
    if not rounded:
        return values
    with np.errstate(over="ignore"):  # becomes infinite, which is told apart from this
        return values.astype(np.float32)


def _check_finite(layout: Layout, row: Row) -> None:
    # Infinity and NaN survive every addition, so one finite sum clears all numbers at once.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(row.sum()):
            return
    for entry in layout.floats:
        values = row[entry.offset : entry.offset + entry.size]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ConfigError(
                f"entry {entry.name!r} has {bad.size} of {entry.size} values that are not finite, "
                f"the first {values[bad[0]]} at index {bad[0]}; training may have diverged: lower "
                "the learning rate"
            )


def _common_matrix(rows: list[Row]) -> Row | None:
    """Returns the matrix that `rows` are all the consecutive rows of, if they are."""
    first = rows[0]
    base, step = first.base, first.nbytes
    if base is None or step == 0:
        return None
    start = first.ctypes.data
    for i, row in enumerate(rows):
        # The same base: rows of two allocations may lie next to each other by chance.
        if row.base is not base or row.ctypes.data != start + i * step:
            return None
    shape, strides = (len(rows), first.size), (step, first.itemsize)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)


# ---- tensors -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _views_are_never_written() -> None:
    """Takes the warning torch gives, once per process, for a tensor over a read-only array."""
    import torch

    array = np.zeros(1, dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(array)


def as_tensor(row: NDArray[Any]) -> torch.Tensor:
    """Returns a tensor over a read-only array, without a copy; nobody may write to it."""
    import torch

    _views_are_never_written()
    return torch.from_numpy(row)


def vector_record(vector: torch.Tensor) -> ArrayRecord:
    """Returns a record of one bare vector, shape (p,), float32, that travels beside a model."""
    return tensors_record({VECTOR: vector})


def record_vector(record: ArrayRecord, size: int, what: str) -> torch.Tensor:
    """Returns the vector of a record made by `vector_record`; nobody may write to it.

    Args:
        record: the record.
        size: the length it must have.
        what: its name in an error message.

    Raises:
        ConfigError: the record holds something else, or numbers that are not finite.
    """
    layout = Layout._build([(VECTOR, (size,), _FLOAT, True)])
    try:
        return as_tensor(from_record(layout, record))
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


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
