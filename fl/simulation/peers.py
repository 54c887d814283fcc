"""Transfers among clients: what they take, cost and lose along the fleet's edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flwr.app import Message

from fl.flower.identity import client_of, node_id
from fl.simulation.kernel.engine import Engine
from fl.simulation.kernel.events import Priority
from fl.simulation.kernel.trace import Event


class SimPeers:
    """Carries payloads from client to client, under their Flower ids; `fl.flower.grid_view.Peers`.

    Args:
        engine: counts bytes and joules, and knows the time.
        push: sends messages that come from peers.
    """

    def __init__(
        self, engine: Engine, push: Callable[[Sequence[Message], Sequence[float]], list[str]]
    ) -> None:
        self._engine = engine
        self._push = push
        self._reducing: dict[int, float] = {}  # client -> end of its last all-reduce

    def nodes(self) -> list[int]:
        """Returns the fleet's clients."""
        return [node_id(client) for client in range(len(self._engine.fleet))]

    def push(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Pushes messages at no cost; a client begins when it has what it needs."""
        return self._push(messages, ready_s)

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
        """Sends a payload; returns when it arrives, in s, and whether it does.

        The sender's radio is on for 1/fanout of the transfer, the receiver's for 1/fanin: what
        several transfers at once share is paid once.
        """
        fleet, queue = self._engine.fleet, self._engine.queue
        i, j = client_of(source), client_of(target)
        seconds = fleet.peers.transfer_s(i, j, size, fanout=fanout, fanin=fanin)
        arrival = max(queue.now, since + fleet.peers.latency_s(i, j) + seconds)
        lost = fleet.faults.loses_transfer(fleet.seed, i, j, index)
        kind = Event.TRANSFER_LOST if lost else Event.TRANSFER
        self._engine.spend_radio(i, seconds / fanout)
        self._engine.spend_radio(j, seconds / fanin)
        sent = (kind, j, size, float(i))
        if arrival > queue.now:
            queue.schedule(arrival, Priority.PROGRESS, self._sent, sent)
        else:  # the caller may use it now, so it has to be counted now
            self._sent(sent)
        return arrival, not lost

    def all_reduce(self, nodes: Sequence[int], size: int) -> float:
        """Averages payloads around a ring; returns when that is finished, in s."""
        clients = [client_of(node) for node in nodes]
        m = len(clients)
        seconds = 2 * (m - 1) * self._hop_s(clients, [size / m] * m) if m > 1 else 0.0
        return self._around_ring(clients, seconds, [math.ceil(2 * (m - 1) * size / m)] * m)

    def all_gather(self, nodes: Sequence[int], sizes: Sequence[int]) -> float:
        """Brings all payloads to all clients around a ring; returns when that is finished, in s."""
        clients = [client_of(node) for node in nodes]
        m, total = len(clients), sum(sizes)
        seconds = sum(self._hop_s(clients, [sizes[i - k] for i in range(m)]) for k in range(m - 1))
        return self._around_ring(clients, seconds, [total - sizes[(i + 1) % m] for i in range(m)])

    def _hop_s(self, clients: Sequence[int], sizes: Sequence[float]) -> float:
        """Returns how long all take to hand a payload each to the next one in the ring, s."""
        peers = self._engine.fleet.peers
        return max(
            peers.latency_s(i, j) + 8.0 * size / peers.bandwidth_bps(i, j)
            for i, j, size in zip(clients, [*clients[1:], clients[0]], sizes, strict=True)
        )

    def _around_ring(self, clients: Sequence[int], seconds: float, sizes: Sequence[int]) -> float:
        """Has clients send so many bytes each in so many seconds; returns when that ends, s."""
        queue = self._engine.queue
        began = max(queue.now, *(self._reducing.get(client, queue.now) for client in clients))
        finished = began + seconds
        for client, size in zip(clients, sizes, strict=True):
            self._reducing[client] = finished
            self._engine.spend_radio(client, seconds)
            queue.schedule(
                finished, Priority.PROGRESS, self._sent, (Event.ALL_REDUCE, client, size, seconds)
            )
        return finished

    def _sent(self, transfer: tuple[Event, int, int, float]) -> None:
        kind, client, size, value = transfer
        self._engine.bytes_up += size
        self._engine.trace.record(self._engine.queue.now, kind, client, size=size, value=value)
