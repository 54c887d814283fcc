"""Model parameters as flat vectors.

A model travels as a record with the names and types of its `state_dict`. Everything that computes
on models (client rules, aggregation, compression) works on one flat float32 vector, the *row*: all
floating entries in the order of the state dict, each flattened in C order. A `Layout` says where
each lies; `fl.flower.records` turns rows into records and back.

What an entry is decides what happens to it:

- `trainable`: a float parameter that requires a gradient; in the row, and moved by client rules.
- `frozen`: a float parameter that requires none; in the row, but no rule moves it. Clients of ours
  have them in the model itself, and none in their rows (`Layout.of(model, frozen=False)`).
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
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np

from fl.errors import ConfigError, NotFinite
from fl.vectors.rows import Row, is_finite

if TYPE_CHECKING:
    import torch

Kind = Literal["trainable", "frozen", "buffer", "tied", "carried"]

FLOAT = "float32"
FLOATS = ("float16", "float32", "float64")  # the types that entries of a row may have in a record
FLOAT_BYTES = 4
LARGE_BYTES = 16 * 2**20
"""A model that takes more is worth not copying, and its reply worth fetching by itself."""


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
    def of(cls, model: torch.nn.Module, *, frozen: bool = True) -> Layout:
        """Returns the layout of a module's `state_dict`.

        Args:
            model: the module.
            frozen: with its frozen parameters, which may otherwise be of any type.

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
            if (first or name) in trained:
                kind = "trainable"
            if kind == "frozen" and not frozen:
                continue
            if first:
                kind = "tied"
            dtype = _numpy_name(value)
            if name in parameters and dtype == "float64":
                raise ConfigError(
                    f"parameter {name!r} has type float64, and training has the precision of "
                    "float32: convert the model with .float()"
                )
            described.append((name, tuple(value.shape), dtype, kind, first, name not in slots))
        return cls._build(described)

    @classmethod
    def of_entries(cls, described: Iterable[tuple[str, tuple[int, ...], str]]) -> Layout:
        """Returns the layout of named entries; every float entry counts as trainable.

        Args:
            described: name, shape, and NumPy's name of the type of each, in order.

        Raises:
            ConfigError: an entry is neither of floats nor of integers nor of booleans.
        """
        return cls._build((*entry, "trainable", "", False) for entry in described)

    @classmethod
    def of_vector(cls, name: str, size: int) -> Layout:
        """Returns the layout of one bare vector, shape (size,), float32."""
        return cls.of_entries([(name, (size,), FLOAT)])

    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """Returns the layout of a model with the same entries in other shapes.

        Args:
            shapes: of all entries, by name.
        """
        return Layout._build(
            (e.name, shapes[e.name], e.dtype, e.kind, e.tied_to, e.again) for e in self.entries
        )

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
            if dtype not in FLOATS:
                raise ConfigError(
                    f"entry {name!r} has type {dtype}; it must be one of {', '.join(FLOATS)}, an "
                    "integer or a boolean, as NumPy has no other: convert the model with .float()"
                )
            entries.append(Entry(name, shape, dtype, kind, offset, size, tied_to, again))
            offset += size
        return cls(tuple(entries))

    def of_names(self, names: Collection[str]) -> Layout:
        """Returns the layout of some entries alone, in the same order.

        Args:
            names: of the entries; an entry that is tied needs the earlier one beside it.
        """
        return self._build(
            (e.name, e.shape, e.dtype, e.kind, e.tied_to, e.again)
            for e in self.entries
            if e.name in names
        )

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
        return all(entry.dtype == FLOAT for entry in self.entries)

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
        return self.size * FLOAT_BYTES > LARGE_BYTES

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

        self.check_names(state_dict.keys())
        for entry in self.entries:
            value = state_dict[entry.name]
            self.check_form(entry, _numpy_name(value), tuple(value.shape))
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
        self.check_row(tuple(row.shape))
        carried = carried or {}
        self.check_carried(carried.keys())
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
            model: its parameters are replaced; tied ones stay tied. What the layout leaves out
                stays as it is.
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
        model.load_state_dict(state, assign=True, strict=False)

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

    def check_names(self, names: Iterable[str]) -> None:
        """Raises a ConfigError unless the names are those of the entries."""
        got = frozenset(names)
        if got != self.names:
            raise ConfigError(
                f"the names do not fit the model: missing {_some(self.names - got)}, unknown "
                f"{_some(got - self.names)}; expected {_some(self.names)}"
            )

    @staticmethod
    def check_form(entry: Entry, dtype: str, shape: tuple[int, ...]) -> None:
        """Raises a ConfigError unless an entry has its type and shape."""
        if dtype != entry.dtype or shape != entry.shape:
            raise ConfigError(
                f"entry {entry.name!r} is {dtype!s:.40} of shape {shape!r:.80}; the model has "
                f"{entry.dtype} of shape {entry.shape}"
            )

    def check_row(self, shape: tuple[int, ...]) -> None:
        """Raises a ConfigError unless a row has shape (d,)."""
        if shape != (self.size,):
            raise ConfigError(f"a row of this model has shape ({self.size},), got {shape}")

    def check_carried(self, names: Iterable[str]) -> None:
        """Raises a ConfigError unless the names are those of the carried entries."""
        got = frozenset(names)
        expected = frozenset(entry.name for entry in self.carried)
        if got != expected:
            raise ConfigError(
                f"the model carries {sorted(expected)} outside its row, got {sorted(got)}: take "
                "them from the record with carried()"
            )

    def check_finite(self, row: Row) -> None:
        """Raises NotFinite, with the first such entry, if a number of a row is NaN or infinite."""
        if is_finite(row):
            return
        for entry in self.floats:
            values = row[entry.offset : entry.offset + entry.size]
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise NotFinite(
                    f"entry {entry.name!r} has {bad.size} of {entry.size} values that are not "
                    f"finite, the first {values[bad[0]]} at index {bad[0]}; training may have "
                    "diverged: lower the learning rate"
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
    if entry.dtype == FLOAT:
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
