"""What EF21, EF21-SGDM, EControl, DIANA and MARINA share: both ends keep the same vector h.

The sender compresses a difference to h, and both ends add the decoded difference to their h, by the
same float32 operations, so that the two stay equal bit for bit. That breaks if a message is lost,
or one end loses its memory. Therefore messages are numbered. A receiver refuses a difference whose
number it does not expect; number 0 starts over, and h itself is taken at any number. A sender that
is told the number the receiver expects calls `resume` before its next message, and starts over if
it is another than its own. A sender with many receivers sends `catch_up` to one that missed a
message.

Wire:

| bytes | content |
|---|---|
| 6 | header |
| 1 | 0: h itself follows, as d float32; 1: a payload of C follows |
| 4 | number of the message, u32 |
| 4 d, or as C | h, or the difference |

Length: `11 + 4 d` or `11 + length of C`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from fl.compression.compressor import (
    Channel,
    Compressor,
    Length,
    Participation,
    Shapes,
    State,
    Vector,
    checked,
    extent,
    finite,
    prefixed,
    unprefixed,
)
from fl.compression.wire import HEADER, Reader, floats, header, joined, u8, u32
from fl.errors import ConfigError

WHOLE, CHANGE = 0, 1
_OVERHEAD = HEADER.size + 1 + 4


class Tracked(Channel):
    """A channel whose two ends keep an equal vector h.

    Sender's state: `h`, float32, shape (d,), and what a method adds; `sequence`, int64, shape (1,),
    the number of its next message; that of C, prefixed by `inner.`. Receiver's state: `h` and
    `sequence`.

    Attributes:
        FORMAT: number of the wire format.
        compressor: C.
        first: "dense" sends the first vector as it is, "compressed" as C of it.
    """

    FORMAT: ClassVar[int]
    participation: ClassVar[Participation] = Participation.TRACKED

    compressor: Compressor
    first: str

    def init(self, shapes: Shapes) -> State:
        """Returns h = 0, sequence 0 and the state of C."""
        return {**self.init_receiver(shapes), **prefixed("inner", self.compressor.init(shapes))}

    def init_receiver(self, shapes: Shapes) -> State:
        """Returns h = 0 and sequence 0."""
        return {
            "h": np.zeros(shapes.size, dtype=np.float32),
            "sequence": np.zeros(1, dtype=np.int64),
        }

    @abstractmethod
    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""

    def receive(self, payload: bytes, shapes: Shapes, state: State) -> tuple[Vector, State]:
        """Decodes a payload; see `Channel.receive`.

        Raises:
            PayloadError: also if a difference has another number than `next_message`.
        """
        reader, kind, number = self._begun(payload, shapes)
        expected = self.next_message(state)
        if number == 0:
            state = self.init_receiver(shapes)
        elif number != expected and kind != WHOLE:
            raise reader.fail(
                f"message {number}, expected {expected}: one was lost or a memory is gone; the "
                "sender has to start over"
            )
        if kind == WHOLE:
            h = reader.floats(shapes.size).astype(np.float32)
            reader.end()
            estimate = h
        elif kind == CHANGE:
            change = self.compressor.decode(bytes(reader.rest()), shapes)
            with np.errstate(over="ignore"):  # the results are checked
                estimate, h = self._advanced(state["h"], change, shapes)
            finite(estimate, reader)
            finite(h, reader)
        else:
            raise reader.fail(f"kind {kind}, expected 0 or 1")
        return estimate, {"h": h, "sequence": np.array([number + 1], dtype=np.int64)}

    def length(self, shapes: Shapes) -> Length:
        """Returns 11 bytes and the lesser, or greater, of 4 d and the lengths of C."""
        inner, dense = self.compressor.length(shapes), 4 * shapes.size
        return Length(_OVERHEAD + min(inner.least, dense), _OVERHEAD + max(inner.most, dense))

    def resume(self, state: State, shapes: Shapes, expected: int) -> State:
        """Returns the state, or a first one if the receiver expects another message."""
        return state if self.next_message(state) == expected else self.init(shapes)

    def catch_up(self, state: State, shapes: Shapes) -> bytes:
        """Returns a message that brings any receiver to where the last message left the others.

        Args:
            state: the sender's.
            shapes: of the tensors.

        Raises:
            ConfigError: there was no message yet.
        """
        number = self.next_message(state) - 1
        if number < 0:
            raise ConfigError("nothing was sent yet; the first message needs no catching up")
        return self._whole(state["h"], shapes, number)

    def next_message(self, state: State) -> int:
        """Returns the number of the next message."""
        return int(state["sequence"][0])

    def number(self, payload: bytes, shapes: Shapes) -> int:
        """Returns the number of a message.

        Raises:
            PayloadError: the payload is malformed.
        """
        return self._begun(payload, shapes)[2]

    def is_whole(self, payload: bytes, shapes: Shapes) -> bool:
        """Returns whether a message holds h itself, which any receiver can take.

        Raises:
            PayloadError: the payload is malformed.
        """
        return self._begun(payload, shapes)[1] == WHOLE

    def _begun(self, payload: bytes, shapes: Shapes) -> tuple[Reader, int, int]:
        reader = Reader.open(
            payload, type(self).__name__, self.FORMAT, shapes.size, self.length(shapes)
        )
        return reader, reader.u8(), reader.u32()

    def _advanced(self, h: Vector, change: Vector, shapes: Shapes) -> tuple[Vector, Vector]:
        """Returns the receiver's estimate and the next h, given a decoded difference."""
        h = h + change
        return h, h

    def _check_first(self) -> None:
        if self.first not in ("dense", "compressed"):
            raise ConfigError(f"first is {self.first!r}; it must be 'dense' or 'compressed'")

    def _difference(self, x: Vector, state: State) -> Vector:
        """Returns x - h; where it exceeds float32, C refuses it."""
        with np.errstate(over="ignore"):
            return x - state["h"]

    def _starts_dense(self, state: State) -> bool:
        return self.first == "dense" and self.next_message(state) == 0

    def _send_whole(self, x: Vector, shapes: Shapes, state: State) -> tuple[bytes, State]:
        """Returns a message with x itself, and the state that the two ends agree on after it."""
        extent(checked(x, shapes))
        number = self.next_message(state)
        return self._whole(x, shapes, number), self._after(state, x.copy(), number)

    def _whole(self, h: Vector, shapes: Shapes, number: int) -> bytes:
        return joined(header(self.FORMAT, shapes.size), u8(WHOLE), u32(number), floats(h))

    def _send_change(
        self, difference: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns a message with C(difference), what it decodes to, and the state after it."""
        number = self.next_message(state)
        inner = unprefixed("inner", state)
        body, inner = self.compressor.encode(difference, shapes, inner, rng)
        change = self.compressor.decode(body, shapes)
        # The receiver refuses what is not finite, by the same operations.
        with np.errstate(over="ignore", invalid="ignore"):
            estimate, h = self._advanced(state["h"], change, shapes)
        extent(h)
        if estimate is not h:
            extent(estimate)
        payload = joined(header(self.FORMAT, shapes.size), u8(CHANGE), u32(number), body)
        return payload, change, {**self._after(state, h, number), **prefixed("inner", inner)}

    def _after(self, state: State, h: Vector, number: int) -> State:
        return {**state, "h": h, "sequence": np.array([number + 1], dtype=np.int64)}


def require_unbiased(compressor: Compressor, shapes: Shapes, method: str) -> float:
    """Returns omega of a compressor.

    Raises:
        ConfigError: it has none.
    """
    omega = compressor.variance(shapes)
    if omega is None:
        raise ConfigError(
            f"{method} needs an unbiased compressor, and {type(compressor).__name__} as configured "
            "is biased: use RandK(scaled=True), QSGD or natural compression"
        )
    return omega
