"""The server's ends of the links of one vector: of a model, or of what travels beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fl.clients.app.uplink import NOT_FINITE
from fl.compression import Broadcast, Receivers
from fl.compression.compressor import State, Vector
from fl.errors import ConfigError
from fl.vectors.rows import Row


class Heard(NamedTuple):
    """What a payload holds, shape (p,), and the receiver's state after it; None if it stays."""

    vector: Vector
    state: State | None


class UpLink:
    """What clients send of a vector.

    Args:
        receivers: decode it.

    Attributes:
        unsure: senders whose last message has not arrived.
    """

    def __init__(self, receivers: Receivers) -> None:
        self.receivers = receivers
        self.unsure: set[int] = set()

    def number_to_tell(self, sender: int) -> int | None:
        """Returns the number that a sender's next payload must have, if it cannot know it.

        From now on it is unsure whether that arrives.
        """
        unsure = sender in self.unsure
        self.unsure.add(sender)
        keeps = unsure and self.receivers.keeps
        return self.receivers.next_message(sender) if keeps else None

    def hear(self, sender: int, payload: bytes) -> Heard:
        """Returns what a payload holds; nothing is kept yet.

        Raises:
            PayloadError: no encoder can have made it.
        """
        if payload == NOT_FINITE:  # for the strategy to see
            return Heard(np.full(self.receivers.shapes.size, np.nan, np.float32), None)
        return Heard(*self.receivers.decode(sender, payload))

    def keep(self, sender: int, heard: Heard) -> None:
        """Keeps the state after a payload whose reply is right in all else."""
        if heard.state is not None:
            self.receivers.keep(sender, heard.state)
            self.unsure.discard(sender)


class DownLink:
    """What clients are sent of a vector.

    Args:
        broadcast: encodes it.
        what: the vector, in words.

    Attributes:
        known: version that each node holds, by its id.
    """

    def __init__(self, broadcast: Broadcast, what: str) -> None:
        self.broadcast = broadcast
        self.what = what
        self.known: dict[int, int] = {}

    def send(self, rows: Sequence[Row]) -> None:
        """Makes a vector the next version, given once for each of a round's records.

        Raises:
            ConfigError: they are not the same.
        """
        if any((row != rows[0]).any() for row in rows[1:]):
            raise ConfigError(
                f"the strategy sends different {self.what} at once, and a compressed downlink is "
                "one broadcast to all: leave the downlink uncompressed"
            )
        if rows:
            self.broadcast.send(rows[0])

    def parts(self, node: int) -> tuple[bytes, ...]:
        """Returns what a node needs to hold the last version."""
        return self.broadcast.parts(self.known.get(node))

    def holds(self, node: int, version: int) -> None:
        """Notes that a node holds a version, or a later one."""
        self.known[node] = max(version, self.known.get(node, -1))

    def forget(self, node: int) -> None:
        """Notes that a node may hold nothing."""
        self.known.pop(node, None)
