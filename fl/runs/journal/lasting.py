"""What lasts of a run's parts from one round to the next, as plain data, and back.

A part names in `lasting`, an attribute of its class, those of its attributes that are its state
(`fl.flower.grid_view.Snapshots`). What is written is a JSON description and the numbers of arrays,
as in a journal (`encoding`); nothing is pickled. Reading it makes numbers, text, arrays and
containers of these, records of Flower, and named tuples and data classes of strategies, selections
and the record of a run, and those that the parts have already; it calls nothing else.
What is filled is what is there: a part keeps its type, and an array in an attribute its shape.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl.errors import NoStep
from fl.flower.content import Content
from fl.flower.records import RowRecord
from fl.runs.journal.encoding import Blobs, Views, content_in, record_in

_PLAIN = (type(None), bool, int, float, str)
_DEFINE = ("fl.errors.", "fl.selection.", "fl.simulation.", "fl.strategies.", "fl.runs.recorder.")
_CONTAINERS: dict[str, type] = {
    kind.__name__: kind for kind in (list, tuple, set, frozenset, dict, Counter)
}


class Written:
    """Parts as plain data.

    Attributes:
        blobs: the numbers behind what `state` returns.
        classes: named tuples and data classes that were met, by their names.
    """

    def __init__(self) -> None:
        self.blobs = Blobs()
        self.classes: dict[str, type] = {}

    def state(self, part: object) -> dict[str, Any]:
        """Returns what lasts of a part, as JSON knows it.

        Raises:
            TypeError, ValueError, OverflowError: something of it is no plain value.
        """
        return {name: self.value(getattr(part, name)) for name in lasting_of(part)}

    def value(self, value: Any) -> Any:
        """Returns a value as JSON knows it; errors as of `state`."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind in (dict, Counter):
            return self._mapping(kind.__name__, value)
        if kind in (list, tuple, set, frozenset):
            return self._several(kind.__name__, list(value))
        if isinstance(value, np.ndarray):
            return ["array", *self._array(value), value.flags.writeable]
        if isinstance(value, np.generic):
            return ["number", *self._array(np.asarray(value))]
        if kind in (RecordDict, Content):
            return ["content", self.blobs.describe(value)]
        if kind in (ArrayRecord, RowRecord, MetricRecord, ConfigRecord):
            return ["record", self.blobs.record(value)]
        if isinstance(value, Array):
            return ["record", self.blobs.record(ArrayRecord({"": value})), "entry"]
        if isinstance(value, NoStep):
            return ["reason", self._name(kind), str(value)]
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return ["made", self._name(kind), [self.value(item) for item in value]]
        if is_dataclass(value):
            items = [getattr(value, field.name) for field in fields(value)]
            return ["made", self._name(kind), [self.value(item) for item in items]]
        if hasattr(kind, "lasting"):
            return ["part", self.state(value)]
        raise TypeError(f"a {kind.__name__} is no plain value")

    def _mapping(self, kind: str, value: Mapping[Any, Any]) -> list[Any]:
        keys, values = list(value), list(value.values())
        return [kind, self._several("list", keys), self._several("list", values)]

    def _several(self, kind: str, values: list[Any]) -> list[Any]:
        if len(values) > 1 and all(type(x) is int and abs(x) < 2**63 for x in values):
            return [kind, "whole", *self._array(np.array(values, np.int64))]
        return [kind, "each", [self.value(value) for value in values]]

    def _array(self, value: NDArray[Any]) -> list[Any]:
        if value.dtype.hasobject or value.dtype.names is not None:
            raise TypeError(f"an array of {value.dtype} is no plain value")
        return [self.blobs.numbers(value), value.dtype.str, list(value.shape)]

    def _name(self, kind: type) -> str:
        name = f"{kind.__module__}:{kind.__qualname__}"
        self.classes[name] = kind
        return name


class Read:
    """Plain data, to fill parts with.

    Args:
        views: the numbers behind it.
        classes: named tuples and data classes that are known beside those of `fl`, by their names.
    """

    def __init__(self, views: Views, classes: Mapping[str, type]) -> None:
        self._views = views
        self._classes = classes
        self._arrays: dict[tuple[Any, ...], NDArray[Any]] = {}
        self._changes: list[Callable[[], None]] = []

    def into(self, part: object, state: Any) -> None:
        """Takes what lasts of a part, to be put there by `fill`.

        Raises:
            ValueError: it is not what such a part has.
        """
        names = lasting_of(part)
        if not isinstance(state, dict) or state.keys() != set(names):
            raise ValueError(f"it does not have what lasts of {type(part).__name__}")
        for name in names:
            current, described = getattr(part, name), state[name]
            if hasattr(type(current), "lasting"):
                if not isinstance(described, list) or described[:1] != ["part"]:
                    raise ValueError(f"{type(part).__name__} has no part {name!r}")
                self.into(current, described[1])
                continue
            value = self.value(described)
            _check_alike(f"{name!r} of {type(part).__name__}", current, value)
            self._changes.append(_putting(part, name, current, value))

    def fill(self) -> None:
        """Fills the parts."""
        for change in self._changes:
            change()

    def value(self, described: Any) -> Any:
        """Returns a value.

        Raises:
            ValueError: it is none.
        """
        try:
            return self._value(described)
        except (TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError(f"what it holds is no plain value: {error!r}") from error

    def _value(self, described: Any) -> Any:
        if type(described) in _PLAIN:
            return described
        tag, *rest = described
        if tag in ("dict", "Counter"):
            keys, values = map(self._value, rest)
            return _CONTAINERS[tag](dict(zip(keys, values, strict=True)))
        if tag in _CONTAINERS:
            how, *values = rest
            if how == "whole":
                return _CONTAINERS[tag](self._array(values).tolist())
            return _CONTAINERS[tag](map(self._value, values[0]))
        if tag == "array":
            return self._array(rest[:3], writeable=rest[3])
        if tag == "number":
            return self._array(rest)[()]
        if tag == "content":
            return content_in(rest[0], self._views)
        if tag == "record":
            kind, values = rest[0]
            found = record_in(kind, values, self._views)
            return found[""] if rest[1:] == ["entry"] else found
        if tag == "reason":
            kind = self._class(rest[0])
            if not issubclass(kind, NoStep):
                raise ValueError(f"{rest[0]!r:.80} is no reason")
            return kind(str(rest[1]))
        if tag == "made":
            kind, values = self._class(rest[0]), [self._value(item) for item in rest[1]]
            if issubclass(kind, tuple) and hasattr(kind, "_fields"):
                return kind(*values)
            names = [field.name for field in fields(kind)]
            return kind(**dict(zip(names, values, strict=True)))
        raise ValueError(f"nothing is called {tag!r:.80}")

    def _array(self, described: list[Any], *, writeable: bool = True) -> NDArray[Any]:
        number, dtype, shape = described
        kind = np.dtype(dtype)
        if kind.hasobject or kind.names is not None:
            raise ValueError(f"an array of {dtype!r:.80} is no plain value")
        key = number, dtype, tuple(shape), writeable
        if key not in self._arrays:
            made = np.frombuffer(self._views.bytes(number), kind).reshape(shape).copy()
            made.flags.writeable = writeable
            self._arrays[key] = made
        return self._arrays[key]

    def _class(self, name: Any) -> Any:
        """Returns a class that is known, or that a loaded module defines of which states are."""
        if name in self._classes:
            return self._classes[name]
        module, _, attribute = str(name).partition(":")
        found: Any = None
        if f"{module}.".startswith(_DEFINE):
            found = vars(sys.modules.get(module, object)).get(attribute)
        plain = isinstance(found, type) and found.__module__ == module
        if not plain or not (is_dataclass(found) or issubclass(found, NoStep | tuple)):
            raise ValueError(f"{name!r:.80} is no plain value of fl")
        return found


def lasting_of(part: object) -> tuple[str, ...]:
    """Returns which attributes of a part last."""
    names: tuple[str, ...] = getattr(type(part), "lasting", ())
    return names


def _check_alike(what: str, current: Any, value: Any) -> None:
    """Raises ValueError if an attribute can have no such value: each keeps its type."""
    if current is None or value is None:
        return
    numbers = (bool, int, float)
    if isinstance(current, np.ndarray):
        alike = isinstance(value, np.ndarray) and value.dtype == current.dtype
        alike = alike and value.shape == current.shape
    elif isinstance(current, numbers):
        alike = isinstance(value, numbers)
    else:
        alike = type(value) is type(current)
    if not alike:
        raise ValueError(f"{what} is not what it must be")


def _putting(part: object, name: str, current: Any, value: Any) -> Callable[[], None]:
    """Returns what puts a value there; containers stay the objects that others know."""
    if type(current) in (dict, Counter, set):

        def fill() -> None:
            current.clear()
            current.update(value)

        return fill
    return lambda: setattr(part, name, value)
