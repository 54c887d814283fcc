"""Peers that hold stages of a model that is not here: their passes, and what crosses between them.

Nothing is computed. A pass takes its FLOPs on the peer's device, and what it needs crosses the
direct paths between peers, as bytes that nobody holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl.clients.app.planner import FLOPS_KEY, STAGE_QUERY
from fl.collectives import Collective, Failure
from fl.errors import ConfigError
from fl.flower.grid_view import Collected
from fl.strategies.drivers.tasks import TTL_S, Task, Tasks

STALLED_S = 7 * 86400.0
"""A run in which nothing has come further for so long ends: no fleet's day or week is longer."""


@dataclass(frozen=True, slots=True, eq=False)
class StageJob:
    """Work that a peer was given.

    Attributes:
        peer: its index.
        ready_s: when it has what it needs, s.
        memo: what the sender wants to remember.
    """

    peer: int
    ready_s: float
    memo: Any


class StagePeers:
    """The clients of a simulated fleet as peers.

    Args:
        grid: the simulator's.
        patience: work is given up that takes so many times its peer's longest, see
            `fl.strategies.drivers.patience`; None waits for ever.
        name: of the strategy, for messages.

    Attributes:
        waiting: jobs at each peer.

    Raises:
        ConfigError: the grid is a deployment.
    """

    def __init__(self, grid: Grid, patience: float | None, name: str) -> None:
        self.tasks: Tasks[StageJob] = Tasks(grid, TTL_S, patience)
        if not self.tasks.clock.virtual:
            raise ConfigError(
                f"{name} passes simulated time, and trains nothing: it runs on a simulated fleet "
                "alone, with `fl strategy=...`"
            )
        self.ids = self.tasks.peers.nodes()
        self._peer_of = {node: peer for peer, node in enumerate(self.ids)}
        self._sent: Counter[tuple[int, int]] = Counter()
        self._free: dict[int, float] = {}  # when each peer's last answer came
        self._contents: dict[float, RecordDict] = {}
        self._given_up: set[str] = set()  # whose answers may still come
        self._nodes: Sequence[int] = []
        self._there: frozenset[int] = frozenset()
        self.waiting: Counter[int] = Counter()

    def __len__(self) -> int:
        """Returns the number of peers."""
        return len(self.ids)

    @property
    def now(self) -> float:
        """Time in s."""
        return self.tasks.now()

    def there(self) -> frozenset[int]:
        """Returns the peers that are there now."""
        nodes = self.tasks.nodes()
        if nodes is not self._nodes:
            self._nodes = nodes
            self._there = frozenset(self._peer_of[node] for node in nodes)
        return self._there

    def send(
        self, source: int, target: int, size: int, *, beside: bool = False
    ) -> tuple[float, bool]:
        """Sends bytes from peer to peer; returns when they arrive, s, and whether they do.

        Args:
            source: index of the peer that sends.
            target: of the one that receives.
            size: bytes.
            beside: a large download, which has half of its source's uplink, and lets what is sent
                in turn pass.
        """
        pair = (source, target)
        self._sent[pair] += 1
        ids, index = (self.ids[source], self.ids[target]), self._sent[pair] - 1
        transfer = self.tasks.peers.transfer
        if beside:
            return transfer(*ids, size, self.now, fanout=2, index=index)
        return transfer(*ids, size, self.now, index=index, in_turn=True)

    def give(self, peer: int, flops: float, ready_s: float, memo: Any) -> None:
        """Gives a peer work that it begins when it has what it needs, and the earlier work is done.

        Args:
            peer: its index.
            flops: that the work takes.
            ready_s: when it has what it needs, s.
            memo: what to remember.
        """
        content = self._contents.get(flops)
        if content is None:
            content = RecordDict({"config": ConfigRecord({FLOPS_KEY: float(flops)})})
            self._contents[flops] = content
        self.waiting[peer] += 1
        job = StageJob(peer, ready_s, memo)
        self.tasks.send_from_peers([content], [self.ids[peer]], [job], [ready_s], STAGE_QUERY)

    def receive(self, until: float) -> list[tuple[Task[StageJob], Message, float]]:
        """Returns the answers of the next instant with some, and the s that each has computed.

        Of work that has been given up for its silence, what comes later is thrown away.

        Args:
            until: time in s at which to stop waiting; then the list is empty.
        """
        answers = []
        for task, reply in self.tasks.receive(until):
            peer, name = task.memo.peer, task.message_id
            if name in self._given_up:
                self._given_up.remove(name)
                continue
            if reply.has_error() and any(task is late for late in self.tasks.open()):
                self._given_up.add(name)
            self.waiting[peer] -= 1
            took = 0.0
            if not reply.has_error():
                # One job after the other: it began when the last one ended, or when it was there.
                took = self.now - max(task.memo.ready_s, self._free.get(peer, 0.0))
                self._free[peer] = self.now
            answers.append((task, reply, took))
        return answers

    def collect(
        self, peers: Sequence[int], size: int, by: Collective, failure: Failure
    ) -> Collected:
        """Has peers average payloads of so many bytes each; the result has their indices."""
        ids = [self.ids[peer] for peer in peers]
        found = self.tasks.peers.collect(ids, [size] * len(ids), by, failure)
        nodes, gone = ([self._peer_of[node] for node in some] for some in found[1:])
        return Collected(found.finish_s, nodes, gone)
