"""What a strategy may tell its surroundings beside messages: stop, and what became of an update.

On the simulator these reach the fleet and the record of the run. A deployment has no such channel:
there a client that was told to stop goes on, and its reply is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from flwr.serverapp import Grid


class Control(Protocol):
    """Orders and reports of a strategy."""

    def cancel(self, message_id: str) -> bool:
        """Tells the client that has this message to stop.

        Returns:
            Whether no reply can come any more; if not, it must still be pulled.
        """

    def applied(self, message_id: str, staleness: int, metrics: Mapping[str, Any]) -> None:
        """Reports that the reply to a message entered the server's model.

        Args:
            message_id: of the message.
            staleness: server versions since the one that was sent.
            metrics: what the client reported.
        """

    def discarded(self, message_id: str, staleness: int) -> None:
        """Reports that the reply to a message was not used."""

    def rejected(self, message_id: str) -> None:
        """Reports that the reply to a message was no valid one: a fault."""

    def forged(self, message_id: str) -> None:
        """Reports that the reply to a message was replaced by an attack: a fault."""

    def absent(self, node: int, server_round: int) -> None:
        """Reports that a client, by its Flower id, takes no part in a round: a fault."""


class NoControl:
    """A deployment: nobody listens."""

    def cancel(self, message_id: str) -> bool:
        """Returns False: the client goes on."""
        return False

    def applied(self, message_id: str, staleness: int, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def discarded(self, message_id: str, staleness: int) -> None:
        """Does nothing."""

    def rejected(self, message_id: str) -> None:
        """Does nothing."""

    def forged(self, message_id: str) -> None:
        """Does nothing."""

    def absent(self, node: int, server_round: int) -> None:
        """Does nothing."""


def control_of(grid: Grid) -> Control:
    """Returns the control that belongs to a grid; one without effect on a deployment."""
    control: Control | None = getattr(grid, "control", None)
    return NoControl() if control is None else control
