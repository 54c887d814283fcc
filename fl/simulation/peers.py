"""Transfers among clients: what they take, cost and lose along the fleet's edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fl.collectives import Collective, Failure, Gather, Reals, RingAllReduce, Times, around, times
from fl.collectives.sound import check_closed, check_order, check_steps
from fl.flower.grid_view import Collected, Relayed
from fl.flower.identity import client_of, node_id
from fl.randomness import generator
from fl.simulation.kernel.engine import Engine
from fl.simulation.kernel.events import Priority
from fl.simulation.kernel.links import PeerLinks, RankLinks
from fl.simulation.kernel.trace import Event

_MOST_PLANS = 256


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
        self._carried: dict[int, float] = {}  # link of the network -> end of what it has to carry
        self._sending: dict[int, float] = {}  # client -> end of what it sends in turn
        self._receiving: dict[int, float] = {}  # client -> end of what it receives in turn
        self._reducing: dict[int, float] = {}  # client -> end of its last collective
        self._plans: dict[Any, _Plan] = {}  # those made last
        self._checked: set[tuple[Collective, int]] = set()  # with how many clients

    def nodes(self) -> list[int]:
        """Returns the fleet's clients."""
        return [node_id(client) for client in range(len(self._engine.fleet))]

    def reachable(self, node: int) -> bool:
        """Returns whether others can open connections to a client."""
        reachable = self._engine.fleet.peers.links.reachable
        return reachable is None or bool(reachable[client_of(node)])

    def site(self, node: int) -> int:
        """Returns the number of the site where a client is."""
        site = self._engine.fleet.peers.site
        return 0 if site is None else int(site[client_of(node)])

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
        in_turn: bool = False,
    ) -> tuple[float, bool]:
        """Sends a payload; returns when it arrives, in s, and whether it does.

        The sender's radio is on for 1/fanout of the transfer, the receiver's for 1/fanin: what
        several transfers at once share is paid once. Links of a network carry peers' transfers in
        the order of these calls, as each is told when it arrives.
        """
        fleet, queue = self._engine.fleet, self._engine.queue
        i, j = client_of(source), client_of(target)
        seconds = fleet.peers.transfer_s(i, j, size, fanout=fanout, fanin=fanin)
        seconds = max(seconds, self._carry(fleet.peers.shared(i, j), size, since))
        if in_turn:
            up = self._sending[i] = max(self._sending.get(i, since), since) + (
                8.0 * size / fleet.links.up_bps.item(i)
            )
            down = self._receiving[j] = max(self._receiving.get(j, since), since) + (
                8.0 * size / fleet.links.down_bps.item(j)
            )
            seconds = max(seconds, up - since, down - since)
        arrival = max(queue.now, since + fleet.peers.latency_s(i, j) + seconds)
        lost = fleet.faults.loses_transfer(fleet.seed, i, j, index)
        kind = Event.TRANSFER_LOST if lost else Event.TRANSFER
        self._engine.spend_radio(i, seconds / fanout, since, arrival, sent=size)
        self._engine.spend_radio(j, seconds / fanin, since, arrival, received=size)
        sent = (kind, j, size, float(i))
        if arrival > queue.now:
            queue.schedule(arrival, Priority.PROGRESS, self._sent, sent)
        else:  # the caller may use it now, so it has to be counted now
            self._sent(sent)
        return arrival, not lost

    def _carry(self, links: Mapping[int, float], size: int, since: float) -> float:
        """Returns after how long links have carried a payload, and what was theirs before, s.

        Args:
            links: numbers to bit/s.
            size: bytes of the payload.
            since: when it comes, s.
        """
        seconds = 0.0
        for link, bps in links.items():
            end = max(self._carried.get(link, since), since) + 8.0 * size / bps
            self._carried[link] = end
            seconds = max(seconds, end - since)
        return seconds

    def collect(
        self,
        nodes: Sequence[int],
        sizes: Sequence[int],
        by: Collective,
        failure: Failure | None = None,
        since: float | None = None,
        avoided: frozenset[tuple[int, int]] = frozenset(),
    ) -> Collected:
        """Has clients take part in a collective, see `fl.flower.grid_view.Peers.collect`."""
        queue = self._engine.queue
        size = {client_of(node): n for node, n in zip(nodes, sizes, strict=True)}
        since = queue.now if since is None else since
        began = max([since, *(self._reducing.get(client, since) for client in size)])
        pairs = frozenset((client_of(i), client_of(j)) for i, j in avoided)
        gone: list[int] = []
        left_over = 0 if failure is None else failure.attempts
        while True:
            plan = self._plan(list(size), list(size.values()), by, pairs)
            seconds = plan.seconds + (plan.vote_s if failure and failure.votes else 0.0)
            end = began + seconds
            left, when = (None, end) if failure is None else self._first_to_leave(size, began, end)
            if failure is None or left is None:
                self._charge(Event.ALL_REDUCE, plan, end, seconds, plan.sent, plan.busy)
                order = [node_id(client) for client in plan.clients]
                return Collected(end, order, [node_id(client) for client in gone])
            part = plan.until(when - began)
            noticed = failure.noticed_s(when, self._phase(left) if failure.heartbeat_s else 0.0)
            took = noticed - began
            self._charge(Event.ALL_REDUCE_FAILED, plan, noticed, took, part.sent, part.busy)
            online = self._engine.presence.is_online
            lost = [c for c in size if c == left or not online(c, noticed)]
            gone += lost
            size = {c: n for c, n in size.items() if c not in lost}
            began, left_over = noticed, left_over - 1
            if not (left_over and size):
                return Collected(noticed, [], [node_id(client) for client in gone])

    def _phase(self, client: int) -> float:
        """Returns the phase of a client's heartbeats, in [0, 1)."""
        return float(generator(self._engine.fleet.seed, "heartbeat", client).random())

    def _first_to_leave(
        self, clients: Iterable[int], began: float, end: float
    ) -> tuple[int | None, float]:
        """Returns which client goes offline first before the end, and when; None if none does."""
        availability = self._engine.presence
        first, when = None, end
        for client in clients:
            leaves = began
            if availability.is_online(client, began):
                leaves = availability.next_change(client, began)
            if leaves < when:
                first, when = client, leaves
        return first, when

    def ring_delays(self, nodes: Sequence[int]) -> dict[tuple[int, int], float]:
        """Returns the seconds that a byte takes from each client to the next one."""
        if len(nodes) < 2:
            return {}
        network = RankLinks(self._engine.fleet.peers, [client_of(node) for node in nodes])
        ranks = np.arange(len(nodes))
        rates = np.asarray(network.rates(ranks, np.roll(ranks, -1)), np.float64).tolist()
        edges = zip(nodes, [*nodes[1:], nodes[0]], strict=True)
        return {edge: 8.0 / bps for edge, bps in zip(edges, rates, strict=True)}

    def _plan(
        self,
        clients: Sequence[int],
        sizes: Sequence[int],
        by: Collective,
        avoided: frozenset[tuple[int, int]],
    ) -> _Plan:
        key = by, tuple(clients), tuple(sizes), avoided
        if key not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            kind = by, len(clients)
            check = kind not in self._checked and max(sizes, default=0) > 0
            self._plans[key] = _Plan.of(
                self._engine.fleet.peers, clients, sizes, by, avoided, check=check
            )
            if check:
                self._checked.add(kind)
        return self._plans[key]

    def _charge(
        self, kind: Event, plan: _Plan, end: float, seconds: float, sent: Reals, busy: Reals
    ) -> None:
        """Has clients send so many bytes each until then, with their radios on for so long.

        What somebody has sent others have received: each of them the mean, to its radio.
        """
        received = float(sent.mean()) if len(sent) else 0.0
        for client, size, on_s in zip(plan.clients, sent.tolist(), busy.tolist(), strict=True):
            self._reducing[client] = end
            self._engine.spend_radio(client, on_s, end - seconds, end, received=received, sent=size)
            # Sums of fractions of bytes, which rounding may leave above a whole number.
            row = (kind, client, max(0, math.ceil(size * (1 - 1e-12) - 1e-6)), seconds)
            if end > self._engine.queue.now:
                self._engine.queue.schedule(end, Priority.PROGRESS, self._sent, row)
            else:  # it has ended while clients computed, and has to be counted now
                self._sent(row)

    def _sent(self, transfer: tuple[Event, int, int, float]) -> None:
        kind, client, size, value = transfer
        self._engine.bytes_up += size
        self._engine.trace.record(self._engine.queue.now, kind, client, size=size, value=value)


class RelayedPeers(Relayed):
    """Carries payloads through the server, as a deployment does, whose clients have no links.

    Args:
        grid: the simulator's.
        num_clients: of its fleet.
    """

    def __init__(self, grid: Grid, num_clients: int) -> None:
        super().__init__(grid)
        self._num_clients = num_clients

    def nodes(self) -> list[int]:
        """Returns the fleet's clients, also those that are not available."""
        return [node_id(client) for client in range(self._num_clients)]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A collective on the links of some clients.

    Attributes:
        network: their links.
        clients: by rank.
        sizes: of their payloads, by rank.
        by: the collective.
        seconds: that it takes.
        sent: bytes that each sends.
        busy: seconds for which each has its radio on.
    """

    network: RankLinks
    clients: Sequence[int]
    sizes: Sequence[int]
    by: Collective
    seconds: float
    sent: Reals
    busy: Reals

    @classmethod
    def of(
        cls,
        peers: PeerLinks,
        clients: Sequence[int],
        sizes: Sequence[int],
        by: Collective,
        avoided: frozenset[tuple[int, int]],
        *,
        check: bool,
    ) -> _Plan:
        """Returns the plan of clients, with payloads of so many bytes each.

        A ring passes around the pairs of clients that are avoided, if it can.

        Raises:
            ConfigError: it is checked, and does not bring the payloads to all.
        """
        m = len(clients)
        given = RankLinks(peers, clients)
        if m < 2:
            return cls(given, clients, sizes, by, 0.0, np.zeros(m), np.zeros(m))
        order = by.arranged(given)
        if avoided and isinstance(by, RingAllReduce | Gather):
            rank = {client: k for k, client in enumerate(clients)}
            edges = {(rank[i], rank[j]) for i, j in avoided if i in rank and j in rank}
            order = around(given, list(order), edges)
        if check:
            check_order(by, order, m)
        clients, sizes = [clients[k] for k in order], [sizes[k] for k in order]
        network = RankLinks(peers, clients)
        # Formulas are of edges that have their bandwidth for themselves.
        closed = None if peers.contended else by.closed(network, sizes)
        if closed is not None:
            if check:
                check_closed(by, closed, m)
            seconds, sent = closed
            return cls(network, clients, sizes, by, seconds, sent, np.full(m, seconds))
        if check:
            check_steps(by, network, sizes)
        took = times(by.steps(network, sizes), network, np.zeros(m))
        return cls(network, clients, sizes, by, float(took.finished.max()), took.sent, took.busy)

    @property
    def vote_s(self) -> float:
        """What it takes all ranks to tell the first one, and that one all others, s."""
        others = np.arange(1, len(self.clients))
        if not len(others):
            return 0.0
        there, back = self.network.delays(others, 0), self.network.delays(0, others)
        return float(there.max() + back.max())

    def until(self, seconds: float) -> Times:
        """Returns what the transfers cost that begin before so many seconds."""
        nothing = np.zeros(len(self.clients))
        if len(self.clients) < 2:
            return Times(nothing, nothing, nothing)
        return times(self.by.steps(self.network, self.sizes), self.network, nothing, seconds)
