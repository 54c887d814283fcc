"""Model parameters as flat vectors, and the records that carry them.

A model travels as a Flower `ArrayRecord` with the names and types of its `state_dict`. Everything
that computes on models (client rules, aggregation, compression) works on one flat float32 vector,
the *row*: all floating entries in the order of the state dict, each flattened in C order. This
module is the only place that turns one into the other.

What an entry is decides what happens to it:

- `trainable`: a float parameter that requires a gradient; in the row, and moved by client rules.
- `frozen`: a float parameter that requires none; in the row, but no rule moves it.
- `buffer`: any other float entry (BatchNorm's running statistics); in the row, so it is averaged
  like Flower averages it; the model's own code moves it.
- `tied`: a float entry that is one tensor with an earlier one. It is in the row as well, since a
  record has both names, but the earlier one counts: this one is written, and not read.
- `carried`: an integer or boolean entry (BatchNorm's counters); not in the row. Averaging it would
  mean nothing: it goes from record to record as it is, and of many records `median_carried` is
  taken.

Float16 entries are float32 in the row and rounded in a record; float64 buffers have float32's
precision. What comes in another float type than the model's, because a strategy computed in it, is
rounded to the nearest number that the model's type has. docs/models.md says what follows for every
part of the package.

A record made here holds `RowArray`s: views of the row that become bytes only if someone asks for
bytes. In a simulation nobody does, which saves about 70 us per message for a model of four tensors.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.recorddict import _SyncedDict
from flwr.app.message.typeddict import TypedDict
from flwr.common.constant import SType
from numpy.typing import NDArray

from fl import npy
from fl.errors import ConfigError, NotFinite

if TYPE_CHECKING:
    from collections import OrderedDict

    import torch

Kind = Literal["trainable", "frozen", "buffer", "tied", "carried"]
Row = NDArray[np.float32]

_FLOAT = "float32"
_FLOATS = ("float16", "float32", "float64")  # the types that entries of a row may have in a record
_MOST_DIMENSIONS = 64  # of NumPy's arrays
_FLOAT_BYTES = 4
LARGE_BYTES = 16 * 2**20
"""A model that takes more is worth not copying, and its reply worth fetching by itself."""
VECTOR = "vector"  # name of the only array in a record that holds one bare vector


# ---- arrays that somebody else has sent ----------------------------------------------------------


def read_array(array: Array) -> NDArray[Any]:
    """Returns the numbers of an array that somebody else has sent, read-only.

    `Array.numpy()` asks for as much memory as the sender says; this asks for none, and reads an
    array only if its bytes are the numbers that its type and shape promise.

    Raises:
        ConfigError: they are not, or it holds something else than numbers or booleans.
    """
    if isinstance(array, RowArray) and array._untouched():
        return array.numpy()
    _check_claim("array", array)
    try:
        return npy.read(array.data, array.dtype, tuple(array.shape))
    except ValueError as error:
        raise ConfigError(f"the array cannot be read: {error}") from error


def _check_claim(name: str, array: Array) -> None:
    """Raises a ConfigError unless an array can be what it says, as far as lengths tell."""
    if array.stype != SType.NUMPY:
        raise ConfigError(
            f"{name} is serialised as {array.stype!r:.40}; a model's arrays must be "
            f"{SType.NUMPY!r}: decode the message before reading it"
        )
    shape = array.shape
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(extent) is int and extent >= 0 for extent in shape)
    ):
        raise ConfigError(
            f"{name} has shape {shape!r:.80}; it must be at most {_MOST_DIMENSIONS} whole numbers, "
            "none of them negative"
        )
    try:
        dtype = np.dtype(array.dtype or object)  # NumPy takes None for float64
    except (TypeError, ValueError):
        dtype = np.dtype(object)
    if dtype.kind not in "biufc" or str(dtype) != array.dtype:
        raise ConfigError(f"{name} has type {array.dtype!r:.40}, which is no type of numbers")
    if isinstance(array, RowArray):
        there = array.num_bytes
    else:
        there = len(array.data) if isinstance(array.data, bytes) else 0
    if prod(shape) * dtype.itemsize > there:
        raise ConfigError(
            f"{name} says that it is {array.dtype} of shape {shape!r:.80}, but has {there} bytes"
        )


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
            made = npy.header(_FLOAT, self._extent) + self._view().tobytes()
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
        return len(npy.header(_FLOAT, self._extent)) + _FLOAT_BYTES * prod(self._extent)

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
        dtype: NumPy's name of its type in a record.
        kind: what happens to it (see the module).
        offset: index of its first number in the row; -1 if carried.
        size: how many numbers it has.
        tied_to: name of the earlier entry that is the same tensor; empty if there is none.
        again: whether it is moreover the same attribute of the same module, under another name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    offset: int
    size: int
    tied_to: str = ""
    again: bool = False


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
            ConfigError: an entry has a type that a record or a row has no place for, such as
                bfloat16; or two entries overlap in memory without being the same tensor.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = model.state_dict()
        ties = _ties(state)
        trained = {ties.get(name, name) for name, p in parameters.items() if p.requires_grad}
        slots = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()  # each module once, under its first name
            for name in (*module._parameters, *module._buffers)
        }
        described = []
        for name, value in state.items():
            first = ties.get(name, "")
            kind: Kind = "frozen" if name in parameters else "buffer"
            if first:
                kind = "tied"
            elif name in trained:
                kind = "trainable"
            dtype = _numpy_name(value)
            if name in parameters and dtype == "float64":
                raise ConfigError(
                    f"parameter {name!r} has type float64, and training has the precision of "
                    "float32: convert the model with .float()"
                )
            described.append((name, tuple(value.shape), dtype, kind, first, name not in slots))
        return cls._build(described)

    @classmethod
    def of_state_dict(cls, state_dict: Mapping[str, torch.Tensor]) -> Layout:
        """Returns the layout of a state dict; every float entry counts as trainable."""
        return cls._build(
            (name, tuple(value.shape), _numpy_name(value), "trainable", "", False)
            for name, value in state_dict.items()
        )

    @classmethod
    def of_record(cls, record: ArrayRecord) -> Layout:
        """Returns the layout of a record; every float entry counts as trainable.

        Raises:
            ConfigError: the record holds arrays that are not `.npy` bytes, not as many numbers as
                they say, or neither floats nor integers nor booleans.
        """
        for name, array in record.items():
            _check_claim(f"array {name!r:.80}", array)
        return cls._build(
            (name, tuple(array.shape), array.dtype, "trainable", "", False)
            for name, array in record.items()
        )

    @classmethod
    def of_vector(cls, name: str, size: int) -> Layout:
        """Returns the layout of a record of one bare vector, shape (size,), float32."""
        return cls._build([(name, (size,), _FLOAT, "trainable", "", False)])

    @classmethod
    def _build(
        cls, described: Iterable[tuple[str, tuple[int, ...], str, Kind, str, bool]]
    ) -> Layout:
        entries: list[Entry] = []
        offset = 0
        for name, shape, dtype, kind, tied_to, again in described:
            size = prod(shape)
            if _is_carried(dtype):
                entries.append(Entry(name, shape, dtype, "carried", -1, size, tied_to, again))
                continue
            if dtype not in _FLOATS:
                raise ConfigError(
                    f"entry {name!r} has type {dtype}; it must be one of {', '.join(_FLOATS)}, an "
                    "integer or a boolean, as NumPy has no other: convert the model with .float()"
                )
            entries.append(Entry(name, shape, dtype, kind, offset, size, tied_to, again))
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
        """The float entries that no rule moves: buffers and frozen parameters."""
        return tuple(entry for entry in self.entries if entry.kind in ("buffer", "frozen"))

    @cached_property
    def moving_buffers(self) -> tuple[Entry, ...]:
        """The float entries that the model's own code moves."""
        return tuple(entry for entry in self.entries if entry.kind == "buffer")

    @cached_property
    def frozen(self) -> tuple[Entry, ...]:
        """The parameters that nothing moves."""
        return tuple(entry for entry in self.entries if entry.kind == "frozen")

    @cached_property
    def tied(self) -> tuple[Entry, ...]:
        """The entries that are one tensor with an earlier one, in the row or not."""
        return tuple(entry for entry in self.entries if entry.tied_to)

    @cached_property
    def statistics(self) -> tuple[Entry, ...]:
        """The float entries that normalisation layers count instead of learning them.

        They are known by PyTorch's names, so that a server finds them in a record as well.
        """
        return tuple(e for e in self.floats if e.name.endswith(("running_mean", "running_var")))

    @cached_property
    def is_plain(self) -> bool:
        """Whether a record is nothing but views of its row: all entries are float32."""
        return all(entry.dtype == _FLOAT for entry in self.entries)

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
    def _all_trainable(self) -> bool:
        return len(self.trainable) == len(self.floats)

    @cached_property
    def _ties_to_pass(self) -> list[tuple[str, str]]:
        # A call of the model replaces attributes of modules: each once, or the last would stay.
        return [(entry.name, entry.tied_to) for entry in self.tied if not entry.again]

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
        parts = [state_dict[e.name].detach().cpu().reshape(-1).float() for e in self.floats]
        return torch.cat(parts) if parts else torch.empty(0)

    def unflatten(
        self, row: torch.Tensor, carried: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns a state dict: views of `row` where an entry is float32, else of its own type.

        Tied entries are the same tensor.

        Args:
            row: shape (d,), float32.
            carried: the carried entries; may be left out if the layout has none.

        Raises:
            ConfigError: `row` has another shape, or a carried entry is missing.
        """
        self._check_row(tuple(row.shape))
        carried = carried or {}
        self._check_carried(carried.keys())
        state: dict[str, torch.Tensor] = {}
        for e in self.entries:
            if e.tied_to:
                state[e.name] = state[e.tied_to]
            elif e.kind == "carried":
                state[e.name] = carried[e.name]
            else:
                state[e.name] = _own_type(e, row[e.offset : e.offset + e.size].view(e.shape))
        return state

    def load(
        self,
        model: torch.nn.Module,
        row: torch.Tensor,
        carried: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Gives a model of this layout the values of a row, without a copy; nobody trains it.

        Args:
            model: its parameters are replaced; tied ones stay tied.
            row: shape (d,), float32.
            carried: the carried entries; may be left out if the layout has none.

        Raises:
            ConfigError: as `unflatten`.
        """
        from torch import nn

        state = self.unflatten(row, carried)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        made: dict[int, nn.Parameter] = {}  # by identity of the tensor, so that ties stay
        for name, value in state.items():
            if name in parameters:
                of = parameters[name].requires_grad
                state[name] = made.setdefault(id(value), nn.Parameter(value, requires_grad=of))
        model.load_state_dict(state, assign=True)

    def split(self, w: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the trainable entries of `w`, shape (p,), as a call of the model takes them.

        They are views, or rounded to the entry's own type; differentiable either way. An entry
        tied to a trainable one is the same tensor. The gradient of a split is one concatenation,
        where slicing entry by entry would add up vectors of length p.
        """
        parts = w.split_with_sizes(self._trainable_sizes)
        entries = {
            e.name: _own_type(e, part.view(e.shape))
            for e, part in zip(self.trainable, parts, strict=True)
        }
        for name, first in self._ties_to_pass:
            if first in entries:
                entries[name] = entries[first]
        return entries

    def fixed(
        self, row: torch.Tensor, carried: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Returns the entries that no rule moves, as tensors of their own for the model to change.

        Args:
            row: shape (d,), float32.
            carried: the carried entries, tensors of their own.

        Returns:
            Entries in their own types; tied ones are the same tensor. What is again the same
            attribute of a module is left out.
        """
        entries = {
            e.name: _own_type(e, row[e.offset : e.offset + e.size].view(e.shape).clone())
            for e in self.buffers
        }
        entries.update((e.name, carried[e.name]) for e in self.carried if not e.tied_to)
        for name, first in self._ties_to_pass:
            if first in entries:
                entries[name] = entries[first]
        return entries

    def carried_of(self, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the carried entries among what `fixed` returned."""
        return {e.name: fixed[e.tied_to or e.name] for e in self.carried}

    def select(self, row: torch.Tensor) -> torch.Tensor:
        """Returns the trainable part of a row, shape (p,): the row itself if there is no other."""
        if self._all_trainable:
            return row
        import torch

        parts = [row[e.offset : e.offset + e.size] for e in self.trainable]
        return torch.cat(parts) if parts else row[:0]

    def join(self, w: torch.Tensor, fixed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the row, shape (d,), of trainable parameters `w`, shape (p,), and other entries.

        Args:
            w: as `select` takes them from a row.
            fixed: one tensor for each frozen parameter and float buffer; others are ignored.
        """
        if self._all_trainable:
            return w
        import torch

        parts = iter(w.split_with_sizes(self._trainable_sizes))
        joined: dict[str, torch.Tensor] = {}
        for e in self.floats:
            if e.kind == "trainable":
                joined[e.name] = next(parts)
            elif e.kind == "tied":
                joined[e.name] = joined[e.tied_to]
            else:
                joined[e.name] = fixed[e.name].reshape(-1).float()
        return torch.cat(list(joined.values()))

    def with_trained(self, row: Row, trained: Row) -> Row:
        """Returns a row with other trainable parameters, and what is tied to them.

        Args:
            row: shape (d,); not changed.
            trained: as `select` takes them from a row, shape (p,).
        """
        row, done = row.copy(), 0
        places: dict[str, slice] = {}
        for e in self.floats:
            place = places[e.name] = slice(e.offset, e.offset + e.size)
            if e.kind == "trainable":
                row[place] = trained[done : done + e.size]
                done += e.size
            elif e.kind == "tied":
                row[place] = row[places[e.tied_to]]
        return row

    def step(self, w: Row, eta: float, change: Row) -> Row:
        """Returns w + eta change, shape (d,), rounded to what a record can hold.

        Statistics of normalisation layers are no directions: they move by the whole change,
        whatever eta is, or a variance could become negative.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # for others to see
            new = np.asarray(w + np.float32(eta) * change, dtype=np.float32)
            if eta != 1.0:
                for e in self.statistics:
                    place = slice(e.offset, e.offset + e.size)
                    new[place] = w[place] + change[place]
        return self.rounded(new)

    def rounded(self, row: Row) -> Row:
        """Returns the row that a record of this row gives back; itself if all entries are wide."""
        narrow = [e for e in self.floats if e.dtype == "float16"]
        if not narrow:
            return row
        row = row.copy()
        with np.errstate(over="ignore"):  # becomes infinite, for others to see
            for e in narrow:
                place = slice(e.offset, e.offset + e.size)
                row[place] = row[place].astype(e.dtype)
        return row

    # ---- checks ----------------------------------------------------------------------------------

    def _check_names(self, names: Iterable[str]) -> None:
        got = frozenset(names)
        if got != self.names:
            raise ConfigError(
                f"the names do not fit the model: missing {_some(self.names - got)}, unknown "
                f"{_some(got - self.names)}; expected {_some(self.names)}"
            )

    @staticmethod
    def _check_form(entry: Entry, dtype: str, shape: tuple[int, ...]) -> None:
        if dtype != entry.dtype or shape != entry.shape:
            raise ConfigError(
                f"entry {entry.name!r} is {dtype!s:.40} of shape {shape!r:.80}; the model has "
                f"{entry.dtype} of shape {entry.shape}"
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


def _some(names: Iterable[str]) -> str:
    """Returns the first of some names for a message: a sender may have chosen a million of them."""
    listed = sorted(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return f"{[name[:80] for name in listed[:10]]}{more}"


def _is_carried(dtype: str) -> bool:
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def _numpy_name(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _own_type(entry: Entry, values: torch.Tensor) -> torch.Tensor:
    if entry.dtype == _FLOAT:
        return values
    import torch

    return values.to(getattr(torch, entry.dtype))


def _ties(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns, for each entry that is one tensor with an earlier one, that one's name.

    Raises:
        ConfigError: two entries overlap in memory and are not the same.
    """
    ties: dict[str, str] = {}
    found: dict[int, list[tuple[str, torch.Tensor]]] = {}  # by storage
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        if value.numel() == 0 or memory == 0:
            continue
        for other, known in found.setdefault(memory, []):
            if (value.data_ptr(), value.shape, value.stride(), value.dtype) == (
                known.data_ptr(),
                known.shape,
                known.stride(),
                known.dtype,
            ):
                ties[name] = other
                break
            if _begin(value) < _end(known) and _begin(known) < _end(value):
                raise ConfigError(
                    f"entries {other!r} and {name!r} overlap in memory, but are not one tensor; a "
                    "flat vector would hold what they share twice and move it twice: give each its "
                    "own memory, or make both the same parameter"
                )
        else:
            found[memory].append((name, value))
    return ties


def _begin(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _end(tensor: torch.Tensor) -> int:
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


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
    carried = carried or {}
    layout._check_carried(carried.keys())
    block = _Block(layout, matrix.view())
    if layout.is_plain:
        return [_record_at(block, i) for i in range(len(matrix))]
    return [
        trusted_record(RowRecord, {e.name: _encode(e, row, carried) for e in layout.entries})
        for row in block.matrix
    ]


def _encode(entry: Entry, row: Row, carried: Mapping[str, Array]) -> Array:
    if entry.kind == "carried":
        return carried[entry.tied_to or entry.name]
    if entry.dtype == _FLOAT:
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
        _check_finite(layout, row)
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
        row[place] = _decode(entry, record[entry.name]).reshape(-1)
    return row


def carried(layout: Layout, record: ArrayRecord) -> dict[str, Array]:
    """Returns the carried entries of a record, for `to_record`.

    One that comes as a float, because a strategy computed with it, is rounded to the nearest number
    that its own type has.

    Raises:
        ConfigError: an entry is missing, or has another shape or type.
    """
    entries = {}
    for entry in layout.carried:
        if entry.name not in record:
            raise ConfigError(f"the record has no entry {entry.name!r} among {len(record)}")
        array = record[entry.name]
        values = _decode(entry, array)
        entries[entry.name] = array if array.dtype == entry.dtype else Array(values)
    return entries


def median_carried(layout: Layout, entries: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Returns what becomes of the carried entries of several records: their median, by number.

    Of an even count it is the lower of the two in the middle, so it is a value that was sent, and
    fewer than half of the senders cannot push it anywhere. Of booleans it is the majority.

    Args:
        layout: of the model.
        entries: as `carried` takes them from records, at least one.
    """
    first, *others = entries
    median = {}
    for entry in layout.carried:
        array = first[entry.name]
        if any(other[entry.name].data != array.data for other in others):
            values = np.stack([read_array(each[entry.name]) for each in entries])
            array = Array(np.asarray(np.sort(values, axis=0)[(len(values) - 1) // 2]))
        median[entry.name] = array
    return median


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
        except ConfigError as error:  # or one of its kinds
            raise type(error)(f"record {i} of {len(records)}: {error}") from None
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
    """Returns an entry's numbers, in float32 or, if it is carried, in its own type."""
    # Some of Flower's strategies compute in float64 and send that: FedAdam from its second round,
    # and all that average, of integers.
    rounded = array.dtype in _FLOATS and array.dtype != entry.dtype
    Layout._check_form(entry, entry.dtype if rounded else array.dtype, array.shape)
    if array.stype != SType.NUMPY:
        raise ConfigError(
            f"entry {entry.name!r} is serialised as {array.stype!r:.40}, expected {SType.NUMPY!r}: "
            "decode the message before reading it"
        )
    if isinstance(array, RowArray) and array._untouched():
        values = array.numpy()
    else:
        try:
            values = npy.read(array.data, array.dtype, entry.shape)
        except ValueError as error:
            raise ConfigError(f"entry {entry.name!r} cannot be read: {error}") from error
    if entry.kind == "carried":
        return _nearest(entry, values) if rounded else values
    with np.errstate(over="ignore"):  # becomes infinite, which is told apart from this
        return values.astype(np.float32, copy=False)


def _nearest(entry: Entry, values: NDArray[Any]) -> NDArray[Any]:
    """Returns floats as the nearest numbers that an integer or boolean type has."""
    if not np.isfinite(values).all():
        raise NotFinite(f"entry {entry.name!r} is {entry.dtype}, and came as NaN or infinity")
    whole = np.asarray(np.rint(values.astype(np.float64)))
    low, high = 0, 1
    if entry.dtype != "bool":
        low, high = int(np.iinfo(entry.dtype).min), int(np.iinfo(entry.dtype).max)
    nearest = np.empty(whole.shape, entry.dtype)
    # Set apart, since the largest numbers of 64 bits have no float64, and a cast would wrap.
    nearest[whole >= high] = high
    nearest[whole <= low] = low
    inside = (whole > low) & (whole < high)
    nearest[inside] = whole[inside]
    return nearest


def _check_finite(layout: Layout, row: Row) -> None:
    if is_finite(row):
        return
    for entry in layout.floats:
        values = row[entry.offset : entry.offset + entry.size]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise NotFinite(
                f"entry {entry.name!r} has {bad.size} of {entry.size} values that are not finite, "
                f"the first {values[bad[0]]} at index {bad[0]}; training may have diverged: lower "
                "the learning rate"
            )


def is_finite(row: NDArray[Any]) -> bool:
    """Says whether no number of a row is NaN or infinite."""
    # Both survive every addition, so one finite sum clears all numbers at once.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(row.sum()) or np.isfinite(row).all())


def not_finite(record: ArrayRecord | None, like: ArrayRecord | None = None) -> frozenset[str]:
    """Returns the names of the float arrays of any app's record that hold NaN or infinity.

    Args:
        record: the record; None has none.
        like: a record with the types that the arrays will be rounded to; None leaves them.
    """
    names = set()
    for name, array in (record or {}).items():
        if array.stype == SType.NUMPY and array.dtype in _FLOATS:
            with suppress(ConfigError), np.errstate(over="ignore"):  # in a form of the app's own
                values = read_array(array)
                kept = None if like is None else like.get(name)
                if kept is not None and kept.dtype in _FLOATS:
                    values = values.astype(kept.dtype, copy=False)
                if not np.isfinite(values).all():
                    names.add(name)
    return frozenset(names)


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
    layout = Layout.of_vector(VECTOR, size)
    try:
        return as_tensor(from_record(layout, record))
    except ConfigError as error:  # or one of its kinds
        raise type(error)(f"{what}: {error}") from None


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
