"""What clients send to each other without a server between them: gossip and all-reduce.

Flower has no client-to-client link: contents are relayed by the server's app. On the simulator such
a message is charged to the direct path between the two clients and the server's link carries
nothing; on a deployment it goes through the SuperLink and takes what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fl.simulation.clock import clock_of


class Peers(Protocol):
    """Transfers among clients, and tasks whose messages come by them. Clients are Flower ids."""

    def nodes(self) -> list[int]:
        """Returns all clients there are, in ascending order, whether available or not.

        A deployment returns those that are connected.
        """

    def transfer(
        self,
        source: int,
        target: int,
        size: int,
        since: float,
        *,
        fanout: int = 1,
        fanin: int = 1,
        index: int = 0,
    ) -> tuple[float, bool]:
        """Sends a payload from one client to another.

            arrival = since + latency + 8 size / min(up / fanout, down / fanin, path)

        Args:
            source: the client that sends.
            target: the client that receives.
            size: bytes of the payload.
            since: when it is sent, s, at most now.
            fanout: payloads that the source sends at the same time, which share its uplink.
            fanin: payloads that the target receives at the same time, which share its downlink.
            index: running number of the pair's transfers; decides whether it is lost.

        Returns:
            When it arrives, in s, and whether it does. For a lost one it is the time at which it is
            missed. A deployment returns `since` and True: what is relayed is not lost.
        """

    def all_reduce(self, nodes: Sequence[int], size: int) -> float:
        """Averages payloads of the clients around a ring, beginning now.

            seconds = 2 (M - 1) max over ring neighbours of (latency + 8 (size / M) / bandwidth)

        The M clients are ordered as given. Each sends 2 (M - 1) / M of its payload. A client takes
        part in one all-reduce at a time, in the order of the calls.

        Args:
            nodes: the clients.
            size: bytes of each client's payload.

        Returns:
            When it is finished, in s. A deployment returns the present.
        """

    def push(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Pushes messages whose content has come, or will come, from peers; returns their ids.

        Their payload and that of their replies cost neither bytes nor time: a client begins at
        `ready_s`, and its reply is there when it has computed. On a deployment these are
        ordinary messages.

        Args:
            messages: to clients.
            ready_s: for each message, the time in s at which the client has what it needs.
        """


class Relayed:
    """A deployment: everything goes through the server.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        """Returns the connected clients."""
        return sorted(self._grid.get_node_ids())

    def transfer(
        self,
        source: int,
        target: int,
        size: int,
        since: float,
        *,
        fanout: int = 1,
        fanin: int = 1,
        index: int = 0,
    ) -> tuple[float, bool]:
        """Returns (since, True)."""
        return since, True

    def all_reduce(self, nodes: Sequence[int], size: int) -> float:
        """Returns the present."""
        return clock_of(self._grid).now()

    def push(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Pushes the messages."""
        return list(self._grid.push_messages(messages))


def peers_of(grid: Grid) -> Peers:
    """Returns the direct links among a grid's clients; relays on a deployment."""
    peers: Peers | None = getattr(grid, "peers", None)
    return Relayed(grid) if peers is None else peers
