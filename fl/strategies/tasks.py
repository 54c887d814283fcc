"""Tasks in flight: what was sent to whom and when, on any Flower grid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fl.errors import SimulationError
from fl.simulation.clock import clock_of
from fl.simulation.control import control_of
from fl.simulation.peers import peers_of

Memo = TypeVar("Memo")

_MOST_FAILURES = 1000  # in a row, and for each task at a time: then none will ever succeed


def check_failures(failures: int, at_once: int, brought: str, reason: str | None) -> None:
    """Ends a run whose clients do nothing but fail.

    Args:
        failures: tasks that have failed since the last one that did not.
        at_once: how many tasks are in flight at a time.
        brought: what a task should have brought.
        reason: why the last one failed.

    Raises:
        SimulationError: there were too many.
    """
    if failures >= _MOST_FAILURES * at_once:
        raise SimulationError(
            f"{failures} tasks in a row brought no {brought}, the last one because: {reason}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Task(Generic[Memo]):
    """A message whose reply is awaited.

    Attributes:
        message_id: of the message.
        node: Flower id of the client.
        sent_s: when it was sent, s.
        memo: what the sender wants to remember.
    """

    message_id: str
    node: int
    sent_s: float
    memo: Memo


class Tasks(Generic[Memo]):
    """Sends messages, waits for replies, and never loses count of what is in flight.

    A task ends in exactly one way: its reply is received, an error takes the reply's place (the
    client failed, or the message's TTL ran out), or it is cancelled.

    Args:
        grid: Flower's, simulated or real.
        ttl_s: time to live of every message, s; a reply after that does not come.
    """

    def __init__(self, grid: Grid, ttl_s: float) -> None:
        self.grid = grid
        self.clock = clock_of(grid)
        self.control = control_of(grid)
        self.peers = peers_of(grid)
        self.ttl_s = ttl_s
        self._in_flight: dict[str, Task[Memo]] = {}
        self._cancelled: set[str] = set()  # replies that may still come, and are thrown away
        self._of_node: Counter[int] = Counter()
        self._nodes: tuple[float, list[int]] = (-math.inf, [])

    def __len__(self) -> int:
        """Returns the number of tasks in flight."""
        return len(self._in_flight)

    def __iter__(self) -> Iterator[Task[Memo]]:
        """Returns the tasks in flight, in the order in which they were sent."""
        return iter(list(self._in_flight.values()))

    def now(self) -> float:
        """Returns the grid's time in s."""
        return self.clock.now()

    def nodes(self) -> list[int]:
        """Returns the clients that are available, asking the grid once an instant."""
        asked_at, nodes = self._nodes
        if asked_at != self.now() or not nodes:
            nodes = list(self.grid.get_node_ids())
            self._nodes = (self.now(), nodes)
        return nodes

    def busy(self, node: int) -> int:
        """Returns how many tasks a client has in flight."""
        return self._of_node[node]

    @property
    def num_busy(self) -> int:
        """The number of clients with a task in flight."""
        return len(self._of_node)

    def idle(self) -> list[int]:
        """Returns the available clients without a task in flight."""
        return [node for node in self.nodes() if node not in self._of_node]

    def send(self, content: RecordDict, nodes: list[int], memo: Memo) -> list[Task[Memo]]:
        """Sends one content to clients, as `train` messages, and returns their tasks."""
        messages = [Message(content, node, "train", ttl=self.ttl_s) for node in nodes]
        return self._sent(self.grid.push_messages(messages), nodes, [memo] * len(nodes))

    def send_from_peers(
        self,
        contents: Sequence[RecordDict],
        nodes: Sequence[int],
        memos: Sequence[Memo],
        ready_s: Sequence[float] | None = None,
    ) -> list[Task[Memo]]:
        """Has each client work on a content of its own, which it has from its peers.

        Neither the message nor its reply costs anything: see `fl.simulation.peers.Peers.push`.

        Args:
            contents: of the messages; may be one object for several.
            nodes: Flower ids.
            memos: what the sender wants to remember.
            ready_s: when the clients have it, s; None is now.
        """
        messages = [
            Message(content, node, "train", ttl=self.ttl_s)
            for content, node in zip(contents, nodes, strict=True)
        ]
        if ready_s is None:
            ready_s = [self.now()] * len(messages)
        return self._sent(self.peers.push(messages, ready_s), nodes, memos)

    def _sent(
        self, names: Iterable[str], nodes: Sequence[int], memos: Sequence[Memo]
    ) -> list[Task[Memo]]:
        now = self.now()
        tasks = [
            Task(name, node, now, memo)
            for name, node, memo in zip(names, nodes, memos, strict=True)
        ]
        for task in tasks:
            self._in_flight[task.message_id] = task
            self._of_node[task.node] += 1
        return tasks

    def receive(self, until: float) -> list[tuple[Task[Memo], Message]]:
        """Returns the replies of the next instant at which there are some.

        Args:
            until: time in s at which to stop waiting; then the list is empty.
        """
        while True:
            replies = self._pull() + self._overdue()
            if replies or self.now() >= until or (not self and math.isinf(until)):
                return replies
            self.clock.wait(until)

    def cancel(self, task: Task[Memo]) -> None:
        """Ends a task: the client is told to stop, and what it may still send is thrown away."""
        self._forget(task)
        if not self.control.cancel(task.message_id):
            self._cancelled.add(task.message_id)

    def _pull(self) -> list[tuple[Task[Memo], Message]]:
        ids = [*self._in_flight, *self._cancelled] if self._cancelled else self._in_flight.keys()
        if not ids:
            return []
        received = []
        for reply in self.grid.pull_messages(ids):
            name = reply.metadata.reply_to_message_id
            task = self._in_flight.get(name)
            if task is None:
                self._cancelled.discard(name)
                continue
            self._forget(task)
            received.append((task, reply))
        return received

    def _overdue(self) -> list[tuple[Task[Memo], Message]]:
        """Returns an error for every task whose TTL is over and whose grid said nothing of it.

        The simulator tells at that very instant; a SuperLink may never, if the node is gone.
        """
        overdue: list[tuple[Task[Memo], Message]] = []
        for task in self._in_flight.values():  # in the order in which they were sent
            if self.now() <= task.sent_s + self.ttl_s:
                break
            overdue.append((task, self._silence(task)))
        for task, _ in overdue:
            self._forget(task)
            self._cancelled.add(task.message_id)
        return overdue

    def _silence(self, task: Task[Memo]) -> Message:
        metadata = Metadata(
            run_id=0,
            message_id="",
            src_node_id=task.node,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=task.message_id,
            group_id="",
            created_at=self.now(),
            ttl=self.ttl_s,
            message_type="train",
        )
        reason = f"no reply within the time to live, {self.ttl_s:g} s"
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
        reply: Message = Message(metadata=metadata, error=error)  # type: ignore[call-overload]
        return reply

    def _forget(self, task: Task[Memo]) -> None:
        del self._in_flight[task.message_id]
        self._of_node[task.node] -= 1
        if not self._of_node[task.node]:
            del self._of_node[task.node]
