"""Methods whose workers are replicas: all hold the same x and take the same step.

A round is `send` at every worker, `combine` at the server, `apply` at every worker and, for
evaluation, at the server. Only what these return travels, so both links carry true bytes; the price
is that a worker that misses a round has lost its place, and all must take part in every round.

`send` is `encode` of the vector that a worker makes of its gradient. One that lies encodes another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from fl.aggregation import Aggregator
from fl.compression.compressor import (
    Channel,
    Length,
    Participation,
    Shapes,
    State,
    Vector,
    extent,
    finite,
    prefixed,
    unprefixed,
)
from fl.compression.receivers import require_all
from fl.compression.wire import HEADER, PayloadError, Reader, header, joined, u32
from fl.errors import ConfigError

_MOST = 1e18


class Replicated(ABC):
    """The three parts of a method with replicas.

    Attributes:
        workers: n, at least 1.
        aggregator: combines the workers' vectors; None if the method does it in a way of its own.
    """

    participation: ClassVar[Participation] = Participation.FULL

    workers: int
    aggregator: Aggregator | None = None

    @property
    def sends_gradients(self) -> bool:
        """Whether workers send some gradients as they are, which a compressor may carry."""
        return False

    def through(self, channel: Channel) -> Self:
        """Returns the method with the gradients that workers send as they are through a channel.

        Raises:
            ConfigError: they send none.
        """
        raise ConfigError(
            f"compressor is {type(channel).__name__}, and {type(self).__name__} compresses all "
            "that workers send: leave it out"
        )

    @abstractmethod
    def init_worker(self, shapes: Shapes) -> State:
        """Returns a worker's state before the first round; x is not in it."""

    @abstractmethod
    def init_server(self, shapes: Shapes) -> State:
        """Returns the server's state before the first round."""

    def send(
        self, g: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns a worker's message, and its state after it.

        Args:
            g: gradient at the worker's x, shape (d,), float32; not changed.
            shapes: of the tensors.
            state: the worker's.
            rng: for compressors that draw.

        Raises:
            ConfigError: no message can hold it.
        """
        return self.encode(self.message_of(g, state), shapes, state, rng)

    @abstractmethod
    def message_of(self, g: Vector, state: State) -> Vector:
        """Returns the vector that a worker sends, shape (d,), float32, given its gradient."""

    @abstractmethod
    def encode(
        self, u: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns the message of a vector, shape (d,), and the worker's state; see `send`."""

    @abstractmethod
    def decode(self, payload: bytes, shapes: Shapes, state: State, worker: int) -> Vector:
        """Returns what others take from one worker's message, shape (d,).

        Args:
            payload: the message.
            shapes: of the tensors.
            state: the server's.
            worker: whose message it is, from 0.

        Raises:
            PayloadError: it is malformed, or of another step.
        """

    @abstractmethod
    def combine(
        self, payloads: Sequence[bytes], shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns the server's message to all workers, and its state after it.

        Args:
            payloads: one from each of the n workers, in the order of workers.
            shapes: of the tensors.
            state: the server's.
            rng: for compressors that draw.

        Raises:
            ConfigError: not n payloads.
            PayloadError: one is malformed, or of another step.
        """

    @abstractmethod
    def apply(
        self, x: Vector, payload: bytes, shapes: Shapes, state: State
    ) -> tuple[Vector, State]:
        """Returns a worker's x after the step, shape (d,), and its state.

        Raises:
            PayloadError: the server's message is malformed, or of another step.
        """


class Gathered(Replicated):
    """Replicas that get all the workers' messages, as an all-gather does, and combine them alike.

    Worker's state: that of the channel, prefixed by `channel.`, and `step`, int64, (1,); server's:
    `step`.

    Wire, from the server (a worker's message is the channel's):

    | bytes | content |
    |---|---|
    | 6 | header |
    | 4 | step, u32 |
    | n times the channel's | the workers' messages, in their order |

    Length: `10 + n p` with p that of the channel's messages, which must all be equally long.

    Attributes:
        FORMAT: number of the wire format.
    """

    FORMAT: ClassVar[int]

    @property
    @abstractmethod
    def channel(self) -> Channel:
        """What a worker's message is made with; its receiver has no state."""

    @abstractmethod
    def stepped(self, x: Vector, payloads: Sequence[bytes], shapes: Shapes) -> Vector:
        """Returns x after the step along all the workers' messages."""

    def init_worker(self, shapes: Shapes) -> State:
        """Returns the channel's state, and step 0."""
        return {**prefixed("channel", self.channel.init(shapes)), **self.init_server(shapes)}

    def init_server(self, shapes: Shapes) -> State:
        """Returns step 0.

        Raises:
            ConfigError: the channel's messages differ in length.
        """
        self._each(shapes)
        return {"step": np.zeros(1, dtype=np.int64)}

    def encode(
        self, u: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns the channel's message; see `Replicated.encode`."""
        inner = unprefixed("channel", state)
        payload, inner = self.channel.encode(u, shapes, inner, rng)
        return payload, {**state, **prefixed("channel", inner)}

    def combine(
        self, payloads: Sequence[bytes], shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns all messages in one; see `Replicated.combine`."""
        require_all(self.participation, type(self).__name__, range(len(payloads)), self.workers)
        for i, payload in enumerate(payloads):
            self.decode(payload, shapes, state, i)
        head = joined(header(self.FORMAT, shapes.size), u32(int(state["step"][0])))
        return joined(head, *payloads), {**state, "step": state["step"] + 1}

    def decode(self, payload: bytes, shapes: Shapes, state: State, worker: int) -> Vector:
        """Returns what the channel decodes; see `Replicated.decode`."""
        x, _ = self.channel.receive(payload, shapes, {})
        largest = extent(x)
        if largest > _MOST:
            raise PayloadError(
                f"{type(self).__name__}: an entry of magnitude {largest:.3g}; at most {_MOST:.0e} "
                "is possible, so that the workers' sum is finite"
            )
        return x

    def apply(
        self, x: Vector, payload: bytes, shapes: Shapes, state: State
    ) -> tuple[Vector, State]:
        """Returns `stepped` of all messages; see `Replicated.apply`."""
        each = self._each(shapes)
        size = HEADER.size + 4 + self.workers * each
        name = type(self).__name__
        reader = Reader.open(payload, name, self.FORMAT, shapes.size, Length(size, size))
        got, expected = reader.u32(), int(state["step"][0])
        if got != expected:
            raise reader.fail(f"message of step {got}, expected {expected}")
        payloads = [bytes(reader.take(each)) for _ in range(self.workers)]
        x = finite(self.stepped(x, payloads, shapes), reader)
        return x, {**state, "step": state["step"] + 1}

    def _each(self, shapes: Shapes) -> int:
        least, most = self.channel.length(shapes)
        if least != most:
            raise ConfigError(
                f"{type(self).__name__}'s messages have {least} to {most} bytes; all must be "
                "equally long"
            )
        return least
