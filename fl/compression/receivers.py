"""The receiver's states of all senders: what a server keeps, with a bound."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fl.compression.compressor import (
    Channel,
    Participation,
    Shapes,
    State,
    Vector,
    prefixed,
    unprefixed,
)
from fl.errors import ConfigError


class Receivers:
    """Decodes the messages of many senders, each with a state of its own.

    A state is made when a sender is first heard. The bound is on the states of all senders, so that
    a configuration that would fill the memory after some rounds fails before the first.

    Args:
        channel: carries the messages.
        shapes: of the tensors.
        senders: number of senders there are.
        max_bytes: most bytes their states may take together.
        vectors: of these shapes that each sender has, with receivers of their own and one bound.

    Attributes:
        keeps: whether there is a state at all; messages have numbers if so.
        nbytes: of the states of all senders together.

    Raises:
        ConfigError: they would take more.
    """

    def __init__(
        self, channel: Channel, shapes: Shapes, senders: int, max_bytes: int, vectors: int = 1
    ) -> None:
        self.channel = channel
        self.shapes = shapes
        self.senders = senders
        self._states: dict[int, State] = {}
        each = sum(value.nbytes for value in channel.init_receiver(shapes).values())
        self.keeps = each > 0
        self.nbytes = each * senders
        if vectors * self.nbytes > max_bytes:
            raise ConfigError(
                f"{type(channel).__name__} keeps {vectors * each} bytes for each of {senders} "
                f"clients, {vectors * self.nbytes} in all; the bound is {max_bytes}: raise it, "
                "take fewer clients, or a method whose server keeps nothing (ErrorFeedback, or no "
                "error control)"
            )

    def check_participants(self, participants: Collection[int]) -> None:
        """Checks that the method works with these senders alone.

        Raises:
            ConfigError: it needs all senders, and some are missing.
        """
        require_all(
            self.channel.participation, type(self.channel).__name__, participants, self.senders
        )

    def receive(self, sender: int, payload: bytes) -> Vector:
        """Returns the decoded vector, and keeps the state after it.

        Raises:
            PayloadError: the payload is malformed or out of turn; the state is as before.
        """
        vector, state = self.decode(sender, payload)
        self.keep(sender, state)
        return vector

    def decode(self, sender: int, payload: bytes) -> tuple[Vector, State]:
        """Returns the decoded vector, and the state after it, to be kept if all else is right.

        Raises:
            PayloadError: the payload is malformed or out of turn.
        """
        return self.channel.receive(payload, self.shapes, self._state(sender))

    def keep(self, sender: int, state: State) -> None:
        """Keeps the state after a vector that was decoded."""
        if state:
            self._states[sender] = state

    def next_message(self, sender: int) -> int:
        """Returns the number of the message expected next; the sender gives it to `resume`."""
        return self.channel.next_message(self._state(sender))

    def forget(self, sender: int) -> None:
        """Drops the state of a sender, which then has to start over."""
        self._states.pop(sender, None)

    def state(self) -> State:
        """Returns all states, names prefixed by the sender, for a checkpoint."""
        merged: State = {}
        for sender in sorted(self._states):
            merged.update(prefixed(str(sender), self._states[sender]))
        return merged

    def restore(self, state: Mapping[str, Vector]) -> None:
        """Undoes `state`."""
        senders = {int(name.split(".", 1)[0]) for name in state}
        self._states = {sender: unprefixed(str(sender), state) for sender in sorted(senders)}

    def _state(self, sender: int) -> State:
        if not 0 <= sender < self.senders:
            raise ConfigError(f"sender {sender}; there are {self.senders}, numbered from 0")
        return self._states.get(sender) or self.channel.init_receiver(self.shapes)


def require_all(
    participation: Participation, method: str, participants: Collection[int], senders: int
) -> None:
    """Checks the participants of a round.

    Raises:
        ConfigError: the method needs all senders, and some are missing.
    """
    missing = senders - len(set(participants))
    if participation is Participation.FULL and missing:
        raise ConfigError(
            f"{method} needs every client in every round, and {missing} of {senders} are missing: "
            "sample all clients and use a fleet without faults, or take EF21, DIANA or "
            "ErrorFeedback"
        )
