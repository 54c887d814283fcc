"""What a compressor is: `init`, `encode` and `decode` on a flat vector, and bytes in between.

`Channel` is the interface of everything that carries vectors from a sender to a receiver, including
the error control wrappers, whose receiver has a state of its own. `Compressor` is a channel that
needs no state to decode, with the constants that theory asks for. `Transform` is a compressor that
makes a shorter vector of floats, which another compressor can take over (`chain`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.compression.wire import HEADER, PayloadError, Reader, floats, header, joined
from fl.errors import ConfigError

if TYPE_CHECKING:
    from fl.vectors.layout import Layout

Vector = NDArray[np.float32]
State = dict[str, NDArray[Any]]

HUGE = 2.0**64
"""Of entries up to this, nothing that is decoded exceeds float32.

To decode scales by d / k at most, and adds d numbers at most; both are below 2^31, and
2^(64 + 31 + 31) is below the largest float32, 2^128.
"""

_MOST_ENTRIES = 2**31 - 1
_BLOCK = 1 << 15


class Participation(Enum):
    """What a method asks of the set of clients that take part in a round.

    Attributes:
        ANY: a client may miss rounds; the receiver keeps nothing.
        TRACKED: a client may miss rounds, and the receiver keeps a state for each client.
        FULL: every client takes part in every round.
    """

    ANY = "any"
    TRACKED = "tracked"
    FULL = "full"


@dataclass(frozen=True)
class Shapes:
    """The tensors a flat vector consists of, one after another in C order.

    Attributes:
        shapes: of each tensor; at least one entry in all, fewer than 2**31.

    Raises:
        ConfigError: there are no entries, or too many for the wire formats.
    """

    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _MOST_ENTRIES:
            raise ConfigError(
                f"a vector of {self.size} entries; payloads are for 1 to {_MOST_ENTRIES}"
            )

    @classmethod
    def of(cls, layout: Layout) -> Shapes:
        """Returns the shapes of a model's row: its float entries."""
        return cls(tuple(entry.shape for entry in layout.floats))

    @classmethod
    def trained(cls, layout: Layout) -> Shapes:
        """Returns the shapes of what clients train: the entries that an update moves."""
        return cls(tuple(entry.shape for entry in layout.trainable))

    @classmethod
    def vector(cls, size: int) -> Shapes:
        """Returns the shapes of one bare vector of `size` entries."""
        return cls(((size,),))

    @cached_property
    def size(self) -> int:
        """d, the number of entries."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each tensor lies in the vector."""
        ends = np.cumsum(self.sizes).tolist()
        return tuple(slice(end - n, end) for n, end in zip(self.sizes, ends, strict=True))

    @cached_property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Each tensor as a matrix: (n, m) = (shape[0], rest); (size, 1) for vectors and scalars."""
        return tuple(
            (shape[0], size // shape[0]) if len(shape) > 1 and size else (size, 1)
            for shape, size in zip(self.shapes, self.sizes, strict=True)
        )


class Length(NamedTuple):
    """How many bytes a payload can have; `least == most` if it does not depend on the vector."""

    least: int
    most: int


class Channel(ABC):
    """Carries one vector at a time from a sender to a receiver, as bytes.

    Attributes:
        participation: what the method asks of the clients of a round.
    """

    participation: ClassVar[Participation] = Participation.ANY

    @property
    def adds(self) -> bool:
        """Whether two payloads can be added on their way, and the sum sent in the same form.

        So it is where every entry has its own code of a fixed length: a hop of a ring decodes,
        adds, and encodes again, with another rounding.
        """
        return False

    def init(self, shapes: Shapes) -> State:
        """Returns the sender's state before the first message.

        Raises:
            ConfigError: the method cannot work on vectors of these shapes.
        """
        return {}

    @abstractmethod
    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector.

        Args:
            x: shape (d,), float32, C-contiguous, finite; not changed.
            shapes: of the tensors in x.
            state: the sender's; not changed.
            rng: source of the random numbers of this message, from `fl.randomness.generator`.

        Returns:
            The payload, and the sender's state after it.

        Raises:
            ConfigError: x has another shape or type, is not finite, or has entries so large that
                what is decoded would not be: a payload that is returned can be decoded.
        """

    def init_receiver(self, shapes: Shapes) -> State:
        """Returns the state the receiver keeps for one sender, before its first message."""
        return {}

    @abstractmethod
    def receive(self, payload: bytes, shapes: Shapes, state: State) -> tuple[Vector, State]:
        """Decodes a payload.

        Args:
            payload: what `encode` made, or anything else.
            shapes: of the tensors of the receiver's model.
            state: the receiver's for this sender; not changed.

        Returns:
            The vector, shape (d,), float32, finite; and the receiver's state after it.

        Raises:
            PayloadError: no encoder of this configuration can have made the payload. The state
                given remains valid.
        """

    @abstractmethod
    def length(self, shapes: Shapes) -> Length:
        """Returns the least and the most bytes a payload can have."""

    def resume(self, state: State, shapes: Shapes, expected: int) -> State:
        """Returns the sender's state to go on with, given what the receiver expects.

        Args:
            state: the sender's.
            shapes: of the tensors.
            expected: number of the next message for the receiver, as `next_message` gave it.
        """
        return state

    def next_message(self, state: State) -> int:
        """Returns the number of the message that comes next; 0 if messages have no numbers."""
        return 0


class Compressor(Channel):
    """A channel whose payload can be decoded without a state.

    Attributes:
        FORMAT: number of the wire format.
    """

    FORMAT: ClassVar[int]

    @abstractmethod
    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""

    def receive(self, payload: bytes, shapes: Shapes, state: State) -> tuple[Vector, State]:
        """Returns `decode` of the payload, and the state as it is."""
        return self.decode(payload, shapes), state

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns delta with E|C(x) - x|^2 <= (1 - delta) |x|^2 for all x; None if there is none.

        Constants hold up to the rounding of float32, and for entries whose squares neither overflow
        nor vanish in it.
        """
        omega = self.variance(shapes)
        return 1 - omega if omega is not None and omega < 1 else None

    def variance(self, shapes: Shapes) -> float | None:
        """Returns omega with E C(x) = x and E|C(x) - x|^2 <= omega |x|^2; None if C is biased."""
        return None

    def _open(self, payload: bytes, shapes: Shapes) -> Reader:
        return Reader.open(
            payload, type(self).__name__, self.FORMAT, shapes.size, self.length(shapes)
        )

    def _header(self, shapes: Shapes) -> bytes:
        return header(self.FORMAT, shapes.size)


class Transform(Compressor):
    """A compressor that keeps a shorter vector of floats and some side information.

    Its own payload holds the floats as float32:

    | bytes | content |
    |---|---|
    | 6 | header |
    | ... | side information, whose length follows from its content |
    | 4 each | floats |
    """

    @property
    def isometric(self) -> bool:
        """Whether decoding preserves norms, and what was dropped is orthogonal to what was kept.

        Then an error in the floats and the dropped part add up as squares.
        """
        return False

    @abstractmethod
    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns the side information, the floats to send, shape (k,), and the sender's state."""

    @abstractmethod
    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads the side information.

        Returns:
            Whatever `backward` needs of it, and k, the number of floats that belong to it.

        Raises:
            PayloadError: it is malformed.
        """

    @abstractmethod
    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the vector, shape (d,), from the side information and k finite floats."""

    @abstractmethod
    def side_length(self, shapes: Shapes) -> Length:
        """Returns the least and the most bytes of the side information."""

    @abstractmethod
    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns the least and the greatest k."""

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns header, side information and the floats as float32; and the sender's state."""
        side, values, state = self.forward(x, shapes, state, rng)
        payload = joined(self._header(shapes), side, floats(values))
        check_decodes(self, payload, shapes, extent(values))
        return payload, state

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        side, count = self.read_side(reader, shapes)
        values = reader.floats(count)
        reader.end()
        return finite(self.backward(side, values, shapes), reader)

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 bytes, the side information and 4 bytes a float."""
        side, (fewest, greatest) = self.side_length(shapes), self.kept(shapes)
        return Length(HEADER.size + side.least + 4 * fewest, HEADER.size + side.most + 4 * greatest)


def checked(x: Vector, shapes: Shapes) -> Vector:
    """Returns x, which must be a C-contiguous float32 vector of the shapes' size.

    Raises:
        ConfigError: it is not.
    """
    if x.dtype != np.float32 or x.shape != (shapes.size,) or not x.flags.c_contiguous:
        raise ConfigError(
            f"a vector of type {x.dtype} and shape {x.shape}; the shapes want a C-contiguous "
            f"float32 vector of shape ({shapes.size},)"
        )
    return x


def extent(x: Vector) -> float:
    """Returns max |x_i|, or 0 for an empty vector.

    Raises:
        ConfigError: an entry is not finite.
    """
    low = high = 0.0
    for start in range(0, x.size, _BLOCK):  # the second look at a block finds it in the cache
        block = x[start : start + _BLOCK]
        block_low, block_high = float(block.min()), float(block.max())
        if not (math.isfinite(block_low) and math.isfinite(block_high)):
            raise not_finite(x)
        low, high = min(low, block_low), max(high, block_high)
    return max(high, -low)


def check_decodes(compressor: Compressor, payload: bytes, shapes: Shapes, largest: float) -> None:
    """Refuses a payload that its own decoder would refuse.

    It is decoded only where it has huge numbers, which no training has that has not diverged.

    Args:
        compressor: that made it.
        payload: the bytes.
        shapes: of the tensors.
        largest: magnitude of the numbers in it.

    Raises:
        ConfigError: what is decoded exceeds float32.
    """
    if largest <= HUGE:
        return
    try:
        compressor.decode(payload, shapes)
    except PayloadError as error:
        raise ConfigError(
            f"entries of magnitude {largest:.3g} cannot be compressed: what "
            f"{type(compressor).__name__} decodes would exceed float32; clip the update"
        ) from error


def not_finite(x: Vector) -> ConfigError:
    """Returns the error for a vector with NaN or infinite entries, to be raised."""
    bad = int(x.size - np.count_nonzero(np.isfinite(x)))
    return ConfigError(
        f"{bad} of {x.size} entries of the vector are not finite: training diverged, or the update "
        "was divided by zero; lower the learning rate or clip"
    )


def finite(x: Vector, reader: Reader) -> Vector:
    """Returns a decoded vector.

    Raises:
        PayloadError: an entry is not finite.
    """
    for start in range(0, x.size, _BLOCK):
        block = x[start : start + _BLOCK]
        if not (math.isfinite(float(block.min())) and math.isfinite(float(block.max()))):
            raise reader.fail("the decoded vector has entries that are not finite")
    return x


def prefixed(prefix: str, state: Mapping[str, NDArray[Any]]) -> State:
    """Returns a state with `prefix` and a dot before every name, to keep it inside another."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def unprefixed(prefix: str, state: Mapping[str, NDArray[Any]]) -> State:
    """Undoes `prefixed`, leaving out all other names."""
    start = f"{prefix}."
    return {n.removeprefix(start): value for n, value in state.items() if n.startswith(start)}
