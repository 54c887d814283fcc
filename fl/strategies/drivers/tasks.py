"""Tasks in flight: what was sent to whom and when, on any Flower grid."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl.errors import Diverged, SimulationError
from fl.flower.grid_view import GridView, Summation
from fl.flower.private import message_of
from fl.strategies.drivers.codec import Codec
from fl.strategies.drivers.patience import Patience

Memo = TypeVar("Memo")

TTL_S = 30 * 86400.0
"""Time to live of messages whose replies may come at any time: longer than any task."""

_RARELY = 30.0  # times the shortest pause between two looks for clients
_FEW = 100  # clients that have become busy or idle: with more, all are looked at again

_MOST_FAILURES = 1000  # in a row: then none will ever succeed,
_FAILURES_EACH = 10  # if every task in flight has failed so often;
_TRIES = 3  # of each, before training has diverged
_MOST_TTLS = 2.0  # nor if nothing else has happened for so many times the TTL
_REMEDIES = {
    ErrorCode.NODE_UNAVAILABLE: "lower fleet.faults.dropout, or choose clients that stay longer",
    ErrorCode.CLIENT_APP_CRASHED: "lower fleet.faults.crash",
}


class Failures:
    """Counts tasks that fail one after the other, and ends a run in which nothing else happens.

    Args:
        brought: what a task should have brought.
        timeout_s: after which clients that have not answered count as failed, if the user has set
            it, s; None if messages live for `TTL_S`.
    """

    lasting = ("_since_s", "_diverged", "_reasons")

    def __init__(self, brought: str, timeout_s: float | None) -> None:
        self._brought = brought
        self._most_s = _MOST_TTLS * TTL_S if timeout_s is None else math.inf
        self._since_s: float | None = None  # of the first
        self._diverged = 0
        self._remedies = dict(_REMEDIES)
        self._remedies[ErrorCode.MESSAGE_UNAVAILABLE] = (
            "lower fleet.faults.message_loss, or set fleet.faults.detection_s"
            if timeout_s is None
            else f"raise round_timeout_s, which is {timeout_s:g} s, above the time of a task"
        )
        self._reasons: dict[int, tuple[int, str]] = {}  # error code -> how often, the last reason

    def clear(self) -> None:
        """Notes a task that did not fail."""
        self._reasons, self._since_s, self._diverged = {}, None, 0

    @property
    def in_a_row(self) -> int:
        """How many tasks have failed since the last that did not."""
        return sum(times for times, _ in self._reasons.values())

    def bears(self, open_before: NDArray[np.int64], failed: NDArray[np.bool_]) -> bool:
        """Returns whether a cohort's failures are no reason to end the run.

        Args:
            open_before: of each task in the order of their ends, how many are in flight before the
                instant of its end, shape (n,).
            failed: which of them fail.
        """
        if self._most_s < math.inf or failed.all():
            return False
        places = np.arange(1, len(failed) + 1)
        good = np.where(failed, -self.in_a_row, places)
        row = places - np.maximum.accumulate(good)
        # In flight, or failed in one instant: whichever are more.
        ends = np.searchsorted(-open_before, -open_before, side="right")
        flight = np.maximum(len(failed) - ends, ends - (len(failed) - open_before))
        return not (failed & (row >= np.maximum(_MOST_FAILURES, _FAILURES_EACH * flight))).any()

    def begin_with(self, failures: Mapping[tuple[int, str], int], since_s: float) -> None:
        """Notes the tasks that have failed after one that has not, by code and reason."""
        self.clear()
        self._reasons = {code: (times, reason) for (code, reason), times in failures.items()}
        self._since_s = since_s if failures else None

    def add(
        self,
        task: Task[Any],
        reply: Message,
        now: float,
        in_flight: int,
        *,
        why: str = "the reply is of no use",
        diverged: bool = False,
    ) -> None:
        """Notes a task that failed.

        Args:
            task: the task.
            reply: what came of it: an error, or content of no use.
            now: time in s.
            in_flight: how many tasks are in flight.
            why: content is of no use.
            diverged: whether it is not finite, which ends the run where it makes no version.

        Raises:
            SimulationError: there were too many in a row.
            Diverged: as many as three for each task in flight were not finite.
        """
        code, reason = 0, why
        if reply.has_error():
            code, reason = reply.error.code, reply.error.reason or f"error {reply.error.code}"
        times, _ = self._reasons.get(code, (0, ""))
        self._reasons[code] = (times + 1, reason)
        failures = sum(times for times, _ in self._reasons.values())
        if self._since_s is None:
            self._since_s = task.sent_s
        self._diverged += diverged
        if self._diverged >= _TRIES * max(1, in_flight):
            raise Diverged(
                f"of the last {failures} tasks, none of which brought a usable {self._brought}, "
                f"{self._diverged} ended with numbers that are not finite: training has diverged; "
                "lower the learning rate"
            )
        few = failures < max(_MOST_FAILURES, _FAILURES_EACH * in_flight)
        if few and now - self._since_s <= self._most_s:
            return
        reasons = sorted(self._reasons.items(), key=lambda item: -item[1][0])
        told = "; ".join(f"{reason} ({times} times)" for _, (times, reason) in reasons)
        remedy = self._remedies.get(reasons[0][0], "fail_fast=true shows the first exception")
        raise SimulationError(
            f"{failures} tasks in a row brought no {self._brought} in {now - self._since_s:.6g} s: "
            f"{told}. To go on, {remedy}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Task(Generic[Memo]):
    """A message whose reply may come.

    Attributes:
        message_id: of the message.
        node: Flower id of the client.
        sent_s: when it was sent, s.
        memo: what the sender wants to remember.
        kind: what sort of work it is.
    """

    message_id: str
    node: int
    sent_s: float
    memo: Memo
    kind: str = ""


class Tasks(Generic[Memo]):
    """Sends messages, waits for replies, and never loses count of what is in flight.

    A task ends in exactly one way: its reply is received, an error takes the reply's place (the
    client failed, or the message's TTL ran out), or it is cancelled. A client that is silent for
    longer than `Patience` allows, from the message or from its last answer on, becomes late:

    - Its tasks are not in flight any more: who counts slots has more of them. It is busy as before,
      and what it answers is received.
    - When it must have lost its tasks, an error is received for each of them, and it is not busy
      any more. Replies are received nevertheless if they come; further errors are not.

    Args:
        grid: Flower's, simulated or real.
        ttl_s: time to live of every message, s; a reply after that does not come.
        patience: factor of `Patience`; None waits for the TTL.
        codec: what messages pass on their way, and replies; None leaves them as they are. What
            peers have from each other does not pass it.

    Attributes:
        became_late: tasks that left the flight in the last `receive`, because their client is late.
    """

    lasting = ("_heard_s", "_nodes")

    def __init__(
        self,
        grid: Grid,
        ttl_s: float,
        patience: float | None = None,
        codec: Codec | None = None,
    ) -> None:
        self._grid = grid
        self._codec = codec
        view = GridView(grid)
        self.clock = view.clock
        self.control = view.control
        self.peers = view.peers
        self.numbered = view.numbered
        self.cohorts = None if codec is not None else view.cohorts
        self._arrived = view.arrived
        self.charge = view.charge
        self.snapshots = view.snapshots
        self.ttl_s = ttl_s
        self.became_late: list[Task[Memo]] = []
        self._open: dict[str, Task[Memo]] = {}  # a reply may come
        self._in_flight: dict[str, Task[Memo]] = {}  # of these, the ones that are waited for
        self._lost: set[str] = set()  # of these, the ones for which an error was received
        self._cancelled: set[str] = set()  # replies that may still come, and are thrown away
        self._of_node: dict[int, dict[str, Task[Memo]]] = {}  # open ones that are not lost
        self._silent_since: dict[int, float] = {}  # of busy clients
        self._late: set[int] = set()
        self._new: dict[int, None] = {}  # who has to answer for the first time, in order of time
        self._ends: list[tuple[float, int, float]] = []  # (when, node, since): of others
        self._factor = patience
        self._patience: dict[str, Patience] = {}  # by kind of work
        self._present = view.nodes
        self._nodes: tuple[float, Sequence[int]] = (-math.inf, [])
        self._idle: list[int] = []  # of them, in ascending order, but for who has changed since
        self._idle_of: Sequence[int] | None = None
        self._changed: dict[int, None] = {}  # clients that have become busy or idle
        self._heard_s = self.now()

    def __len__(self) -> int:
        """Returns the number of tasks in flight."""
        return len(self._in_flight)

    def __iter__(self) -> Iterator[Task[Memo]]:
        """Returns the tasks in flight, in the order in which they were sent."""
        return iter(list(self._in_flight.values()))

    @property
    def any_open(self) -> bool:
        """Whether a reply may come, be it late."""
        return bool(self._open)

    @property
    def at_rest(self) -> bool:
        """Whether no reply may come, not even one that would be thrown away."""
        return not (self._open or self._cancelled)

    def open(self) -> list[Task[Memo]]:
        """Returns all tasks whose reply may come, late and lost ones too, in order of sending."""
        return list(self._open.values())

    def now(self) -> float:
        """Returns the grid's time in s."""
        return self.clock.now()

    def nodes(self) -> Sequence[int]:
        """Returns the clients that are available, asking the grid once an instant."""
        asked_at, nodes = self._nodes
        if asked_at != self.now():
            nodes = self._present()
            self._nodes = (self.now(), nodes)
        return nodes

    def busy(self, node: int) -> int:
        """Returns how many tasks a client has that are not lost."""
        return len(self._of_node.get(node, ()))

    def idle(self) -> Sequence[int]:
        """Returns the available clients that are not busy, until one of them is sent something.

        Few become busy, or idle, from one call to the next of a strategy that asks after every
        event: the others are not looked at.
        """
        nodes, busy = self.nodes(), self._of_node
        if not busy:
            return nodes
        if self._idle_of is not nodes or len(self._changed) > _FEW or not self.numbered:
            self._idle = [node for node in nodes if node not in busy]
            self._idle_of = nodes
        else:
            for node in self._changed:
                place = bisect_left(self._idle, node)
                if place < len(self._idle) and self._idle[place] == node:
                    if node in busy:
                        del self._idle[place]
                elif node not in busy and _holds(nodes, node):
                    self._idle.insert(place, node)
        self._changed.clear()
        return self._idle

    def prompt(self) -> list[int]:
        """Returns the available clients that are not late."""
        return [node for node in self.nodes() if node not in self._late]

    def pause_s(self, retry_s: float) -> float:
        """Returns how long to wait before looking for clients again.

        While all that are there are busy, that is the longer, the longer nothing has been heard of
        any: so that days of silence are no work.

        Args:
            retry_s: the shortest pause, s.
        """
        if not self._open or not self.nodes():
            return retry_s
        return min(max(retry_s, self.now() - self._heard_s), _RARELY * retry_s)

    # ---- sending ---------------------------------------------------------------------------------

    def send(
        self, content: RecordDict, nodes: list[int], memo: Memo, kind: str = ""
    ) -> list[Task[Memo]]:
        """Sends one content to clients, as `train` messages, and returns their tasks."""
        messages = [Message(content, node, "train", ttl=self.ttl_s) for node in nodes]
        memos = [memo] * len(nodes)
        if self._codec is None:
            return self._sent(self._grid.push_messages(messages), nodes, memos, kind)
        packed = self._codec.pack(messages)
        names = list(self._grid.push_messages([message for message, _ in packed]))
        self._codec.sent(names, packed)
        return self._sent(names, nodes, memos, kind)

    def ask(
        self, content: RecordDict, nodes: Sequence[int], timeout_s: float, kind: str = "evaluate"
    ) -> list[Message]:
        """Sends clients messages of a kind, and returns what they reply within so many seconds."""
        messages = [Message(content, node, kind) for node in nodes]
        if self._codec is not None:
            return self._codec.send_and_receive(self._grid, messages, timeout_s)
        return list(self._grid.send_and_receive(messages, timeout=timeout_s))

    @property
    def summation(self) -> Summation | None:
        """What adds up what clients send, on its way; see `fl.flower.grid_view.GridView`."""
        return GridView(self._grid).summation

    def send_from_peers(
        self,
        contents: Sequence[RecordDict],
        nodes: Sequence[int],
        memos: Sequence[Memo],
        ready_s: Sequence[float] | None = None,
        kind: str = "train",
    ) -> list[Task[Memo]]:
        """Has each client work on a content of its own, which it has from its peers.

        Neither the message nor its reply costs anything: see `fl.flower.grid_view.Peers.push`.

        Args:
            contents: of the messages; may be one object for several.
            nodes: Flower ids.
            memos: what the sender wants to remember.
            ready_s: when the clients have it, s; None is now.
            kind: of the messages.
        """
        messages = [
            Message(content, node, kind, ttl=self.ttl_s)
            for content, node in zip(contents, nodes, strict=True)
        ]
        if ready_s is None:
            ready_s = [self.now()] * len(messages)
        return self._sent(self.peers.push(messages, ready_s), nodes, memos)

    def _sent(
        self, names: Iterable[str], nodes: Sequence[int], memos: Sequence[Memo], kind: str = ""
    ) -> list[Task[Memo]]:
        now = self.now()
        tasks = [
            Task(name, node, now, memo, kind)
            for name, node, memo in zip(names, nodes, memos, strict=True)
        ]
        for task in tasks:
            self._open[task.message_id] = self._in_flight[task.message_id] = task
            own = self._of_node.setdefault(task.node, {})
            own[task.message_id] = task
            if len(own) == 1:
                self._changed[task.node] = None
                self._wait_for(task.node)
        return tasks

    # ---- what comes ------------------------------------------------------------------------------

    def receive(self, until: float) -> list[tuple[Task[Memo], Message]]:
        """Returns the replies of the next instant at which there are some, or a client gets late.

        Args:
            until: time in s at which to stop waiting; then the list is empty.
        """
        self.became_late = []
        while True:
            replies = self._pull() + self._overdue() + self._lost_now()
            nothing_comes = not self._open and math.isinf(until)
            if replies or self.became_late or self.now() >= until or nothing_comes:
                return replies
            self.clock.wait(min(until, self._patience_ends()))

    def heard(self) -> None:
        """Notes that clients have answered."""
        self._heard_s = self.now()

    def cancel(self, task: Task[Memo]) -> None:
        """Ends a task: the client is told to stop, and what it may still send is thrown away."""
        self._forget(task)
        if not self.control.cancel(task.message_id):
            self._cancelled.add(task.message_id)

    def _pull(self) -> list[tuple[Task[Memo], Message]]:
        ids = [*self._open, *self._cancelled] if self._cancelled else self._open.keys()
        if not ids:
            return []
        received = []
        for reply in self._grid.pull_messages(self._arrived(ids)):
            if self._codec is not None:
                reply = self._codec.open(reply)
            name = reply.metadata.reply_to_message_id
            task = self._open.get(name)
            if task is None:
                self._cancelled.discard(name)
                continue
            known = name in self._lost
            self._heard_s = self.now()
            # Without patience no reply is looked at here: a large one would be fetched for it.
            if self._factor is not None and not reply.has_error():
                since = task.sent_s if known else self._silent_since[task.node]
                self._patience_with(task).measured(task.node, self.now() - since)
            self._forget(task)
            if not (known and reply.has_error()):
                received.append((task, reply))
        return received

    def _overdue(self) -> list[tuple[Task[Memo], Message]]:
        """Returns an error for every task whose TTL is over and whose grid said nothing of it.

        The simulator tells at that very instant; a SuperLink may never, if the node is gone.
        """
        overdue: list[Task[Memo]] = []
        for task in self._open.values():  # in the order in which they were sent
            if self.now() <= task.sent_s + self.ttl_s:
                break
            overdue.append(task)
        reported = [task for task in overdue if task.message_id not in self._lost]
        for task in overdue:
            self._forget(task)
            self._cancelled.add(task.message_id)
        reason = f"no reply within the time to live, {self.ttl_s:g} s"
        return [(task, self._silence(task, reason)) for task in reported]

    def _silence(self, task: Task[Memo], reason: str) -> Message:
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
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
        return message_of(metadata, error=error)

    def _forget(self, task: Task[Memo]) -> None:
        name, node = task.message_id, task.node
        del self._open[name]
        self._in_flight.pop(name, None)
        if name in self._lost:
            self._lost.discard(name)
            return
        own = self._of_node[node]
        del own[name]
        if own:
            self._wait_for(node)
        else:
            self._do_without(node)

    # ---- patience --------------------------------------------------------------------------------

    def _patience_with(self, task: Task[Memo]) -> Patience:
        if task.kind not in self._patience:
            self._patience[task.kind] = Patience(self._factor)
        return self._patience[task.kind]

    def _wait_for(self, node: int) -> None:
        """Begins to wait for a client's answer to the oldest of its tasks."""
        self._silent_since[node] = self.now()
        self._late.discard(node)
        self._new.pop(node, None)
        if self._next_patience(node).knows(node):
            self._watch(node, self._next_patience(node).late_after(node))
        else:
            self._new[node] = None

    def _next_patience(self, node: int) -> Patience:
        return self._patience_with(next(iter(self._of_node[node].values())))

    def _watch(self, node: int, seconds: float) -> None:
        if math.isfinite(seconds):
            since = self._silent_since[node]
            heapq.heappush(self._ends, (since + seconds, node, since))

    def _do_without(self, node: int) -> None:
        del self._of_node[node], self._silent_since[node]
        self._changed[node] = None
        self._late.discard(node)
        self._new.pop(node, None)

    def _patience_ends(self) -> float:
        """Returns when the patience with the next client ends, s."""
        while self._ends and self._silent_since.get(self._ends[0][1]) != self._ends[0][2]:
            heapq.heappop(self._ends)
        return min(self._ends[0][0] if self._ends else math.inf, self._patience_with_new_ends())

    def _patience_with_new_ends(self) -> float:
        node = next(iter(self._new), None)
        if node is None:
            return math.inf
        return self._silent_since[node] + self._next_patience(node).late_after(node)

    def _lost_now(self) -> list[tuple[Task[Memo], Message]]:
        """Notes who is late now, and returns an error for every task that is lost now."""
        now = self.now()
        lost: list[tuple[Task[Memo], Message]] = []
        while self._patience_with_new_ends() <= now:
            node = next(iter(self._new))
            del self._new[node]
            self._is_late(node)
        while self._ends and self._ends[0][0] <= now:
            _, node, since = heapq.heappop(self._ends)
            if self._silent_since.get(node) != since:
                continue
            if node not in self._late:
                self._is_late(node)
                continue
            self._next_patience(node).lost(node)
            reason = f"no word for {now - since:g} s, much longer than tasks take"
            for name, task in self._of_node[node].items():
                self._lost.add(name)
                lost.append((task, self._silence(task, reason)))
            self._do_without(node)
        return lost

    def _is_late(self, node: int) -> None:
        self._late.add(node)
        self._watch(node, self._next_patience(node).lost_after(node))
        for name, task in self._of_node[node].items():
            if self._in_flight.pop(name, None) is not None:
                self.became_late.append(task)


def _holds(nodes: Sequence[int], node: int) -> bool:
    """Returns whether a client is among some in ascending order."""
    place = bisect_left(nodes, node)
    return place < len(nodes) and nodes[place] == node
