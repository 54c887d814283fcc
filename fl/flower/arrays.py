"""Arrays that are parts of a row, and arrays that somebody else has sent."""

from __future__ import annotations

from math import prod
from typing import Any, cast

import numpy as np
from flwr.app import Array
from flwr.common.constant import SType
from numpy.typing import NDArray

from fl.errors import ConfigError, NotFinite
from fl.flower.private import set_fields
from fl.vectors import npy
from fl.vectors.layout import FLOAT, FLOAT_BYTES, FLOATS, Entry, Layout
from fl.vectors.rows import Row

_MOST_DIMENSIONS = 64  # of NumPy's arrays


class RowArray(Array):
    """A Flower `Array` that is a part of a row, and serialises itself only when `data` is read.

    `numpy()` returns a read-only view of the row, not a copy; `data` gives the bytes Flower's own
    `Array` would hold. Setting `data` makes it an ordinary array. It pickles and copies as a part
    of its row: the arrays of one record still share one row afterwards.

    Args:
        row: the vector, shape (d,), float32, read-only; nobody may change it any more.
        offset: index of the part's first number.
        shape: shape of the part.

    Attributes:
        row: the vector; None once `data` was set.
        offset: index of the part's first number.
    """

    row: Row | None
    offset: int
    _extent: tuple[int, ...]
    _bytes: bytes | None = None  # `data`, once it was made

    def __init__(self, row: Row, offset: int, shape: tuple[int, ...]) -> None:
        # Not Array's constructor: it inspects its arguments for 3 us, and wants bytes.
        set_fields(
            self,
            {
                "dtype": FLOAT,
                "shape": shape,
                "stype": SType.NUMPY,
                "row": row,
                "offset": offset,
                "_extent": shape,
            },
        )

    @property
    def data(self) -> bytes:
        """The array in `.npy` format, as `np.save` writes it."""
        if self._bytes is None:
            self._bytes = npy.header(FLOAT, self._extent) + self._view().tobytes()
        return self._bytes

    @data.setter
    def data(self, value: bytes) -> None:
        self._bytes = value
        self.row = None

    @property
    def num_bytes(self) -> int:
        """Length of `data` in bytes, known without making it."""
        if self.row is None:
            return len(self.data)
        return len(npy.header(FLOAT, self._extent)) + FLOAT_BYTES * prod(self._extent)

    def _view(self) -> NDArray[np.float32]:
        row = cast(Row, self.row)
        return row[self.offset : self.offset + prod(self._extent)].reshape(self._extent)

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

    def is_untouched(self) -> bool:
        """Whether the array is still what it was made as: a part of its row."""
        return (
            self.row is not None
            and self.dtype == FLOAT
            and self.shape == self._extent
            and self.stype == SType.NUMPY
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
        if self.is_untouched():
            return _row_array, (self.row, self.offset, self._extent)
        return Array, (self.dtype, self.shape, self.stype, self.data)

    def __repr__(self) -> str:
        """Returns a description without the numbers."""
        return f"RowArray(dtype={self.dtype!r}, shape={self.shape!r})"


def _row_array(row: Row, offset: int, shape: tuple[int, ...]) -> RowArray:
    # An unpickled or deep-copied row belongs to its record alone, and has forgotten its flag.
    row.flags.writeable = False
    return RowArray(row, offset, shape)


# ---- arrays that somebody else has sent ----------------------------------------------------------


def read_array(array: Array) -> NDArray[Any]:
    """Returns the numbers of an array that somebody else has sent, read-only.

    `Array.numpy()` asks for as much memory as the sender says; this asks for none, and reads an
    array only if its bytes are the numbers that its type and shape promise.

    Raises:
        ConfigError: they are not, or it holds something else than numbers or booleans.
    """
    if isinstance(array, RowArray) and array.is_untouched():
        return array.numpy()
    check_claim("array", array)
    try:
        return npy.read(array.data, array.dtype, tuple(array.shape))
    except ValueError as error:
        raise ConfigError(f"the array cannot be read: {error}") from error


def check_claim(name: str, array: Array) -> None:
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


def decode(entry: Entry, array: Array) -> NDArray[Any]:
    """Returns an entry's numbers, in float32 or, if it is carried, in its own type.

    Raises:
        ConfigError: the array has another shape or type than the entry, is not `.npy` bytes, or not
            as many as its shape says.
        NotFinite: it is carried, and came as floats that are not finite.
    """
    # Some of Flower's strategies compute in float64 and send that: FedAdam from its second round,
    # and all that average, of integers.
    rounded = array.dtype in FLOATS and array.dtype != entry.dtype
    Layout.check_form(entry, entry.dtype if rounded else array.dtype, array.shape)
    if array.stype != SType.NUMPY:
        raise ConfigError(
            f"entry {entry.name!r} is serialised as {array.stype!r:.40}, expected {SType.NUMPY!r}: "
            "decode the message before reading it"
        )
    if isinstance(array, RowArray) and array.is_untouched():
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
