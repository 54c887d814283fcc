"""Flower's `Grid` in virtual time: the one seam between server algorithms and the world."""

from __future__ import annotations

import heapq
import math
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl.errors import SimulationError
from fl.execution.contract import Payload, Request, Result
from fl.execution.executor import Executor
from fl.execution.speech import Line
from fl.execution.virtual_time import EPOCH, answering
from fl.flower.identity import (
    FIRST_NODE_ID,
    RUN_ID,
    assume_identity,
    client_of,
    message_id,
    node_id,
)
from fl.flower.payload import payload_bytes, snapshot
from fl.flower.private import Run, copied, empty_run, give_id, message_of, promised, reply_metadata
from fl.simulation.client_errors import ClientErrors
from fl.simulation.control import OnApplied, OnStep, RecordedControl
from fl.simulation.kernel.clock import VirtualClock
from fl.simulation.kernel.engine import Engine, Stage, Task
from fl.simulation.kernel.events import Priority
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.rounds import group_number
from fl.simulation.work import Charge, Planner
from fl.simulation.world.fleet import Fleet
from fl.vectors.layout import LARGE_BYTES

_SAME_POLLS = 3  # so many equal polls in a row mean that the app is waiting for time to pass
_MANY_POLLS = 1000  # after so many, somebody asks whether what the app waits for can happen
_SPARE_EXPIRIES = 100  # entries of messages that were answered, before they are cleared away
_LONG_WAIT_S = 7 * 86400.0  # longer than the period of any behaviour that repeats itself daily

_REASONS = {
    Event.CRASH: (ErrorCode.CLIENT_APP_CRASHED, "the client's process crashed"),
    Event.DROPOUT: (ErrorCode.NODE_UNAVAILABLE, "the client dropped out during the task"),
    Event.DEPARTURE: (ErrorCode.NODE_UNAVAILABLE, "the client became unavailable during the task"),
    Event.EXPIRED: (
        ErrorCode.MESSAGE_UNAVAILABLE,
        "the message's time to live ran out before a reply arrived",
    ),
}


_FREED = Payload(RecordDict(), 0)
"""Stands for a payload that is not needed any more, so that a model is not kept alive."""


class _Flight:
    """A message, from the push to the moment its reply is pulled."""

    __slots__ = (
        "assignment",
        "expiry",
        "flops",
        "metadata",
        "outcome",
        "past_flops",
        "planned",
        "reply",
        "reply_bytes",
        "submitted",
        "unread",
    )

    def __init__(self, metadata: Metadata, assignment: Request, expiry: float) -> None:
        self.metadata = metadata
        self.assignment = assignment
        self.expiry = expiry
        self.outcome: Result | None = None
        self.reply: Message | None = None
        self.submitted = False
        self.planned = False
        self.reply_bytes: int | None = None  # of the content, if the plan knows; then the client
        self.unread = False  # keeps nothing, and its work may be done when the reply is read
        self.flops = 0.0
        self.past_flops = 0.0


@dataclass
class _Polls:
    """How often the app has asked who is available since it last sent or pulled anything."""

    since: float = 0.0  # virtual time of the first poll
    last: float = -1.0  # virtual time of the latest
    total: int = 0
    same: int = 0  # polls in a row at the time of the latest


class SimGrid(Grid):
    """A `flwr.serverapp.Grid` on which stock strategies and foreign apps run unmodified.

    Waiting costs no host time. `send_and_receive` runs the events until every reply is there or
    virtual time reaches the timeout; a `pull_messages` that again finds nothing moves virtual time
    to the next event; so does polling `get_node_ids` again and again, which also stops where a
    client comes; `time.sleep` in the ServerApp passes virtual time (`fl.execution.virtual_time`).

    What Flower would show in wall time, this shows in virtual time:

    - a client that drops out, departs or crashes gives an error reply once the server has learned
      of it (`Faults.detection_s`), or none at all;
    - a message that was lost gives no reply; when its TTL has run out, pulling it gives an error
      reply (code 3, message unavailable), as does pulling an id twice, or pulling a reply that is
      there after the TTL; a client that comes back after it does not get the message any more;
    - an exception in the ClientApp is an error reply with the exception's text.

    Args:
        fleet: the clients.
        executor: started, runs the clients' work.
        planner: plans the work of our own ClientApp; None for a foreign app.
        charge: what a foreign app's work costs.
        trace: where events are recorded; a new one if None.
        on_sent: called with messages that are sent, and `exchange`: whether by `send_and_receive`.
        on_replies: called with replies that are pulled; and at the end of each `send_and_receive`
            that sent something, with `exchange`, the type of its (first) message.
        on_progress: called after each instant of virtual time.
        on_applied: called for each update that a strategy reports to have used.
        on_step: called for each round of a strategy that has ended, with why it leaves the model as
            it is, or None.
        on_said: called with each line that clients have said in other processes.
        errors: counts exceptions in ClientApps; a new one if None.
        epoch: the date at virtual time 0, in s since 1970.

    Attributes:
        clock: the grid's clock, which `fl.flower.grid_view.GridView` finds.
        control: takes orders and reports, which `GridView` finds.
        peers: direct links among the clients, which `GridView` finds.
        train_messages: `train` messages that were sent.
        client_updates: replies with content that reached the server, for `train` messages; of a
            client and a group id that is a number, only one.
        client_errors: what went wrong in clients' code.
    """

    def __init__(
        self,
        fleet: Fleet,
        executor: Executor,
        *,
        planner: Planner | None = None,
        charge: Charge | None = None,
        trace: Trace | None = None,
        on_sent: Callable[..., None] | None = None,
        on_replies: Callable[..., None] | None = None,
        on_progress: Callable[[], None] | None = None,
        on_applied: OnApplied | None = None,
        on_step: OnStep | None = None,
        on_said: Callable[[Line], None] | None = None,
        errors: ClientErrors | None = None,
        epoch: int = EPOCH,
    ) -> None:
        self.fleet = fleet
        self.trace = Trace() if trace is None else trace
        self.engine = Engine(fleet, self, self.trace)
        self.clock = VirtualClock(lambda: self.engine.queue.now, self.sleep, self.wait)
        self.control = SimControl(self, on_applied, on_step)
        self.peers = SimPeers(self)
        self.train_messages = 0
        self.client_updates = 0
        self._executor = executor
        self._planner = planner
        self._charge = Charge() if charge is None else charge
        self._on_sent = on_sent
        self._on_replies = on_replies
        self._on_progress = on_progress
        self._on_said = on_said
        self.client_errors = ClientErrors() if errors is None else errors
        self._epoch = epoch
        self._run = empty_run(RUN_ID)
        self._dispatches: dict[int, int] = {}  # client -> messages sent to it so far
        self._groups: dict[int, int] = {}  # client -> group of its last update, if it has one
        self._states: dict[int, RecordDict] = {}  # only of clients that keep a state
        self._waiting: dict[Task, None] = {}  # may be executed, not submitted yet; in order
        # Tasks whose work is not done, by client. What a task leaves in its client's state, the
        # next one finds: only the first of a client can be executed ahead of its time.
        self._open: dict[int, list[Task]] = {}
        self._flights: dict[str, Task] = {}  # pushed, reply not pulled
        self._arrived: dict[str, Task] = {}  # reply is there, not pulled; in order of arrival
        self._abandoned: dict[str, Task] = {}  # waited for their clients when the app gave them up
        self._expiries: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._all_nodes: list[int] | None = None
        self._seen_nodes: list[int] | None = None  # by the ServerApp's thread
        self._polls = _Polls()
        self._asked: tuple[float, set[str]] = (-1.0, set())  # pulled in vain, and when
        self._app_waits = False  # moves time itself, through the clock
        self._thread = threading.get_ident()
        self._lock = threading.RLock()
        assume_identity()

    # ---- Flower's Grid -------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Accepts the run Flower wants this grid to serve; the simulator has exactly one."""
        self._run = run

    @property
    def run(self) -> Run:
        """Information on the run."""
        return replace(self._run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a new message; deprecated by Flower in favour of `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Returns the ids of the clients that are available now, in ascending order.

        A thread other than the ServerApp's gets what the ServerApp's saw last: when such a thread
        asks is a matter of host time, which must not decide anything.

        Raises:
            SimulationError: the app waits for clients that will never come.
        """
        with self._inside():
            if threading.get_ident() != self._thread:
                return list(self._node_ids() if self._seen_nodes is None else self._seen_nodes)
            ids = self._node_ids()
            polls, now = self._polls, self.engine.queue.now
            if polls.total == 0:
                polls.since = now
            polls.total += 1
            polls.same = polls.same + 1 if polls.last == now else 1
            if polls.total % _MANY_POLLS == 0:
                self._check_wait(len(ids))
            if polls.same > _SAME_POLLS and len(ids) < len(self.fleet):
                self._step(self._next_arrival())
                ids, polls.same = self._node_ids(), 1
            polls.last = self.engine.queue.now
            self._seen_nodes = ids
            return ids.copy()

    def _node_ids(self) -> list[int]:
        online = self.fleet.availability.online(self.engine.queue.now)
        if online.all():
            if self._all_nodes is None:
                self._all_nodes = list(range(FIRST_NODE_ID, FIRST_NODE_ID + len(self.fleet)))
            return self._all_nodes
        return [int(i) + FIRST_NODE_ID for i in online.nonzero()[0]]

    def _next_arrival(self) -> float:
        """Returns the time at which the next of the unavailable clients comes."""
        availability, now = self.fleet.availability, self.engine.queue.now
        away = (~availability.online(now)).nonzero()[0]
        return min((availability.next_change(int(i), now) for i in away), default=math.inf)

    def _check_wait(self, available: int) -> None:
        waited = self.engine.queue.now - self._polls.since
        hopeless = math.isinf(self._next_arrival())
        if hopeless or waited > _LONG_WAIT_S:
            raise SimulationError(
                f"the ServerApp has asked {self._polls.total} times in a row which clients are "
                f"available, for {waited:g} s of virtual time: {available} of {len(self.fleet)} are"
                f"{', and no other will ever come' if hopeless else ''}. Ask for fewer (a "
                "strategy's min_available_nodes, min_train_nodes, min_evaluate_nodes, workers), or "
                "use a larger fleet, or one whose clients are there (fleet/availability)"
            )

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages now; returns their ids.

        Raises:
            ValueError: a message goes to a node that does not exist, is a reply, or has a TTL that
                is not positive and finite; then none is sent.
        """
        with self._inside():
            return self._push(list(messages), exchange=False)

    def push_from_peers(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Sends messages that come from the clients' peers; see `fl.flower.grid_view.Peers.push`.

        Raises:
            ValueError: as for `push_messages`, or a time is not finite.
        """
        with self._inside():
            for time in ready_s:
                if not math.isfinite(time):
                    raise ValueError(f"a message is ready at {time} s; it must be finite")
            return self._push(messages, ready_s, exchange=False)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there, in the order in which they arrived.

        If none is, and the app asks for the same ids again without having let time pass, virtual
        time moves to the next event, and what has arrived then is returned. An app that sleeps
        between its polls, or waits through the clock, sets the pace itself.
        """
        with self._inside():
            self._polls = _Polls()
            # An app that has much in flight asks for all of it after every event: no work for each.
            names: Set[str] = (
                message_ids if isinstance(message_ids, Set) else dict.fromkeys(message_ids).keys()
            )
            unknown: list[Message] = []
            if not names <= self._flights.keys():
                unknown = [self._unavailable(name) for name in names if name not in self._flights]
            replies = self._take(names)
            if names and not replies and not unknown and not self._app_waits:
                asked_at, asked = self._asked
                if asked_at != self.engine.queue.now:
                    self._asked = (self.engine.queue.now, set(names))
                elif not names <= asked:
                    asked.update(names)
                else:
                    self._step(math.inf)
                    replies = self._take(names)
            if replies and self._on_replies is not None:
                self._on_replies(replies)
            return unknown + replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sends messages and returns the replies that arrive within `timeout` virtual seconds.

        Replies come in the order of their arrival; one that arrives exactly at the timeout counts.
        Tasks that are late go on: their client stays busy, and their reply is thrown away.
        """
        with self._inside():
            began = self.engine.queue.now
            messages = list(messages)
            missing = set(self._push(messages, exchange=True))
            self._submit()  # nothing else is sent before the replies are there
            deadline = math.inf if timeout is None else began + timeout
            arrived: list[Task] = []
            while missing:
                new = self._pop(missing)
                missing.difference_update(task.content.metadata.message_id for task in new)
                arrived += new
                if missing and not self._step(deadline):
                    break
            if missing:
                self.trace.record(self.engine.queue.now, Event.TIMEOUT, value=float(len(missing)))
                for name in missing:  # kept until their TTL, they could fill the memory
                    task = self._flights.pop(name)
                    if self.engine.waits(task):
                        self._abandoned[name] = task
            # Last, so that processes train while this one simulates.
            replies = [self._promised(task) for task in arrived]
            if self._on_replies is not None and messages:
                self._on_replies(replies, exchange=messages[0].metadata.message_type)
            return replies

    @property
    def utilisation(self) -> float:
        """The share of the time that clients have computed, over those that were sent anything."""
        possible = len(self._dispatches) * self.engine.queue.now
        return self.engine.busy_s / possible if possible else 0.0

    def were_available(self) -> NDArray[np.bool_]:
        """Returns which clients were available at some time so far, shape (n,)."""
        availability, now = self.fleet.availability, self.engine.queue.now
        found = availability.online(0.0).copy()
        for client in np.flatnonzero(~found).tolist():
            found[client] = availability.next_change(client, 0.0) <= now
        return found

    # ---- time ----------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Lets `seconds` of virtual time pass."""
        with self._inside():
            deadline = self.engine.queue.now + max(0.0, float(seconds))
            while self._step(deadline):
                pass

    def wait(self, until: float) -> None:
        """Lets virtual time pass until a reply is there to be pulled, at most until `until`.

        An app that waits has no need of `pull_messages` moving time, which it does no more.
        """
        with self._inside():
            self._app_waits = True
            while not self._arrived and self._step(until):
                pass

    def cancel(self, message_id: str) -> None:
        """Tells the client that has this message to stop; its reply will not come."""
        with self._inside():
            task = self._flights.pop(message_id, None)
            self._arrived.pop(message_id, None)
            if task is None:
                return
            if task.stage is not Stage.DONE:
                self.engine.cancel(task)
            elif task.content.unread:
                self._drop(task)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Keeps the simulator's own doings apart from the app's.

        One thread at a time; sleeping means sleeping; and what an executor draws from the global
        generator of `random` (Ray does) leaves no trace in the ServerApp's stream.
        """
        with self._lock, answering(None):
            if threading.get_ident() != self._thread:
                yield  # putting a state back here could undo a draw of the ServerApp's thread
                return
            state = random.getstate()
            try:
                yield
            finally:
                random.setstate(state)

    def answering(self, on_date: Callable[[], None] | None = None) -> AbstractContextManager[None]:
        """Makes clocks in the block show virtual time, and `time.sleep` pass it.

        Args:
            on_date: called when the block asks for the date.
        """
        return answering(self.clock, self._epoch, on_date)

    def _step(self, until: float) -> bool:
        """Runs the next instant not later than `until`; False when there is none."""
        queue = self.engine.queue
        expiry = self._next_expiry()
        if expiry < queue.next_time() and expiry <= until:
            time = max(expiry, queue.now)
            queue.schedule(time, Priority.TIMER, self._expire, time)
        advanced = queue.advance(until)
        if self._on_progress is not None:
            self._on_progress()
        return advanced

    def _next_expiry(self) -> float:
        """Returns when the TTL of the next message runs out for which that makes a difference."""
        while self._expiries:
            time, _, name = self._expiries[0]
            if self._can_expire(name):
                return time
            heapq.heappop(self._expiries)
        return math.inf

    def _can_expire(self, name: str) -> bool:
        """Returns whether somebody waits for a reply, or else the message waits for its client."""
        if name in self._flights:
            return True
        task = self._abandoned.get(name)
        if task is None:
            return False
        if not self.engine.waits(task):
            del self._abandoned[name]
            return False
        return True

    def _expire(self, now: float) -> None:
        while self._next_expiry() <= now:
            _, _, name = heapq.heappop(self._expiries)
            awaited = self._flights.get(name)
            task = self._abandoned.pop(name) if awaited is None else awaited
            if task.content.reply is None:
                self.trace.record(now, Event.EXPIRED, task.client, task.dispatch)
            if awaited is not None:
                self._reply_with_error(task, Event.EXPIRED)
            self.engine.expire(task)

    # ---- sending -------------------------------------------------------------------------------

    def _push(
        self,
        messages: Sequence[Message],
        ready_s: Sequence[float] | None = None,
        *,
        exchange: bool,
    ) -> list[str]:
        self._polls = _Polls()
        for message in messages:
            self._check(message.metadata)
        if messages and self._on_sent is not None:
            self._on_sent(messages, exchange=exchange)
        payloads: dict[int, tuple[RecordDict, Payload]] = {}
        times = [None] * len(messages) if ready_s is None else ready_s
        tasks = [
            self._accept(message, payloads, time)
            for message, time in zip(messages, times, strict=True)
        ]
        for task in tasks:
            tasks_of_client = self._open.setdefault(task.client, [])
            tasks_of_client.append(task)
            if len(tasks_of_client) == 1:
                self._admit(task)
            self.engine.dispatch(task)
        return [task.content.metadata.message_id for task in tasks]

    def _check(self, metadata: Metadata) -> None:
        if not 0 <= client_of(metadata.dst_node_id) < len(self.fleet):
            raise ValueError(
                f"message to node {metadata.dst_node_id}, which does not exist: this fleet's nodes "
                f"are {FIRST_NODE_ID} to {FIRST_NODE_ID + len(self.fleet) - 1} (get_node_ids)"
            )
        if metadata.reply_to_message_id != "":
            raise ValueError(
                f"a reply (to message '{metadata.reply_to_message_id}') cannot be pushed: make a "
                "new message with Message(content, dst_node_id, message_type)"
            )
        if not 0 < metadata.ttl < math.inf:
            raise ValueError(
                f"the TTL of the message to node {metadata.dst_node_id} is {metadata.ttl} s; it "
                "must be positive and finite (leave it out for Flower's default of 12 hours)"
            )

    def _accept(
        self,
        message: Message,
        payloads: dict[int, tuple[RecordDict, Payload]],
        ready_s: float | None,
    ) -> Task:
        metadata = message.metadata
        client = client_of(metadata.dst_node_id)
        # A cohort's messages share one content object: copy and weigh it once.
        held = payloads.get(id(message.content))
        if held is None:
            content = snapshot(message.content)
            held = (message.content, Payload(content, payload_bytes(content)))
            payloads[id(message.content)] = held
        payload = held[1]
        dispatch = self._dispatches.get(client, 0)
        self._dispatches[client] = dispatch + 1
        name = message_id(client, dispatch)
        give_id(message, name)
        ttl = float(metadata.ttl)
        now = self.engine.queue.now
        kind, group = metadata.message_type, metadata.group_id
        self.train_messages += kind.startswith("train")
        assignment = Request(client, dispatch, payload, kind, group, ttl, self._epoch + now)
        expiry = now + ttl
        # A copy of the metadata: Flower lets an app push the same object again, as a new message.
        flight = _Flight(copied(metadata), assignment, expiry)
        faults = self.fleet.faults.draw(self.fleet.seed, client, dispatch)
        size = payload.size
        if ready_s is not None:  # nothing goes to the server or comes from it
            size, faults = 0, replace(faults, lose_download=False, lose_upload=False)
        task = Task(client, dispatch, size, faults, flight, ready_s)
        if self._planner is not None:
            plan = self._planner(assignment, self.fleet.seconds_per_flop(client, dispatch))
            flight.planned, flight.flops, flight.past_flops = True, plan.flops, plan.past_flops
            flight.reply_bytes = plan.reply_bytes
            assignment.work = plan.work
        self._flights[name] = task
        self._pushed += 1
        alive = len(self._flights) + len(self._abandoned)
        if len(self._expiries) > 2 * alive + _SPARE_EXPIRIES:
            # Most messages are answered long before: their entries would stay until then.
            self._expiries = [entry for entry in self._expiries if self._can_expire(entry[2])]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (expiry, self._pushed, name))
        return task

    # ---- whose turn it is ------------------------------------------------------------------------

    def _admit(self, task: Task) -> None:
        """Makes a task executable: no other task of its client will change the client's state."""
        faults, flight = task.faults, task.content
        stops = faults.dropout_at is not None or faults.crash_at is not None
        lost = faults.lose_upload and flight.reply_bytes is not None
        if faults.lose_download or lost or (flight.planned and stops):
            return  # its duration is known or does not matter, and its result is never needed
        flight.assignment.state = self._states.get(task.client)
        self._waiting[task] = None

    def _begin(self, task: Task) -> None:
        """Gives a task that its device starts now the turn, in case it has overtaken another."""
        tasks = self._open[task.client]
        if tasks[0] is not task:
            self._recall(tasks[0])
            tasks.remove(task)
            tasks.insert(0, task)
            self._admit(task)

    def _recall(self, task: Task) -> None:
        """Undoes `_admit`; what the task would have done with an older state is not used."""
        flight: _Flight = task.content
        self._waiting.pop(task, None)
        if flight.submitted:
            self._executor.discard(flight.assignment)
            flight.assignment = replace(flight.assignment)  # to the executor, a new one
            flight.submitted = False

    def _finish(self, task: Task) -> None:
        """Passes the turn on when a task's work is done, or will not be."""
        tasks = self._open.get(task.client, [])
        if task not in tasks:
            return  # it was done before
        first = tasks[0] is task
        tasks.remove(task)
        if not tasks:
            del self._open[task.client]
        elif first:
            self._admit(tasks[0])

    # ---- the engine's questions ------------------------------------------------------------------

    def compute_seconds(self, task: Task) -> float:
        """Returns the virtual seconds of the task's local work."""
        self._begin(task)
        flight: _Flight = task.content
        if flight.planned:
            of = self.fleet.compute_seconds
            task.past_s = of(task.client, task.dispatch, flight.past_flops)
            return of(task.client, task.dispatch, flight.flops)
        outcome = self._outcome(task)
        return self._charge.seconds_for(
            self.fleet, task.client, task.dispatch, flight.assignment, outcome
        )

    def computed(self, task: Task) -> int:
        """Commits the client's state and returns the reply's size in bytes."""
        flight: _Flight = task.content
        if flight.reply_bytes is not None and flight.outcome is None:
            if not flight.submitted and len(self._open.get(task.client, ())) > 1:
                self._submit()  # the client's next task belongs to a later wave
            self._finish(task)
            return flight.reply_bytes
        outcome = self._outcome(task)
        if outcome.state is None:
            self._states.pop(task.client, None)
        else:
            self._states[task.client] = outcome.state
        self._finish(task)
        if outcome.error is not None:
            self._failed_there(task, outcome.error[1], outcome.details)
            return len(outcome.error[1].encode())
        content = outcome.content
        return payload_bytes(content) if content is not None else 0

    def replied(self, task: Task) -> None:
        """Makes the reply available to the server."""
        flight: _Flight = task.content
        if flight.reply is not None or flight.metadata.message_id not in self._flights:
            self._drop(task)  # it expired on the way, or nobody waits for it any more
            return
        flight.unread = True
        self._deliver(task)

    def _read(self, task: Task) -> Message:
        """Returns a reply that has arrived, with what the client's work has come to."""
        flight: _Flight = task.content
        if flight.reply is None:
            raise SimulationError(f"the reply to {flight.metadata.message_id} has not arrived")
        reply = flight.reply
        if flight.unread:
            self._fill(task, reply)
        return reply

    def _promised(self, task: Task) -> Message:
        """Returns a reply that has arrived; a large one is fetched when somebody looks at it.

        Who takes one model after the other then never has all of them in memory.
        """
        flight: _Flight = task.content
        size = flight.reply_bytes or 0
        if flight.reply is None or size < LARGE_BYTES or not flight.unread:
            return self._read(task)
        # The reply knows how to fill itself; the flight forgets it: no cycle of references.
        reply, flight.reply = flight.reply, None
        return promised(reply, partial(self._fetch, task))

    def _fetch(self, task: Task, reply: Message) -> None:
        with self._inside():
            self._fill(task, reply)

    def _fill(self, task: Task, reply: Message) -> None:
        flight: _Flight = task.content
        flight.unread = False
        outcome = self._outcome(task)
        flight.outcome, flight.assignment.payload = None, _FREED
        if outcome.error is not None:
            if flight.reply_bytes is not None:  # only known now
                self._failed_there(task, outcome.error[1], outcome.details)
            reply.error = Error(*outcome.error)
            return
        if flight.reply_bytes is not None:
            self._check_plan(flight, outcome)
        self._count_update(task.client, flight.metadata)
        if not flight.metadata.message_type.startswith("evaluate"):
            self.control.answers[task.client] += 1
        if outcome.content is not None:
            reply.content = outcome.content

    def _count_update(self, client: int, metadata: Metadata) -> None:
        """Counts a reply of a client that trained; of one round's several exchanges, the first."""
        if not metadata.message_type.startswith("train"):
            return
        group = group_number(metadata.group_id)
        if group is None or self._groups.get(client) != group:
            self.client_updates += 1
        if group is not None:
            self._groups[client] = group

    @staticmethod
    def _check_plan(flight: _Flight, outcome: Result) -> None:
        size = 0 if outcome.content is None else payload_bytes(outcome.content)
        if size != flight.reply_bytes or outcome.state:
            raise SimulationError(
                f"the plan of message {flight.metadata.message_id} says that its reply has "
                f"{flight.reply_bytes} bytes and the client keeps nothing, but the reply has "
                f"{size}, or something is kept"
            )

    def _drop(self, task: Task) -> None:
        """Forgets the work of a task whose reply nobody will read."""
        flight: _Flight = task.content
        flight.unread = False
        if flight.submitted and flight.outcome is None:
            self._executor.discard(flight.assignment)
        else:
            self._waiting.pop(task, None)
            flight.outcome = None
            flight.assignment.payload = _FREED

    def failed(self, task: Task, kind: Event) -> None:
        """Forgets the work of a task that brings no reply; a crash also loses the state."""
        self._drop(task)
        if kind is Event.CRASH:
            self._states.pop(task.client, None)
        self._finish(task)

    def server_learns(self, task: Task, kind: Event) -> None:
        """Replies with the error Flower's server would make up."""
        if task.content.reply is None and task.content.metadata.message_id in self._flights:
            if kind is not Event.CRASH:
                self.trace.record(
                    self.engine.queue.now, Event.NODE_UNAVAILABLE, task.client, task.dispatch
                )
            self._reply_with_error(task, kind)

    def valid(self, task: Task) -> bool:
        """Returns whether the message's TTL has not run out."""
        flight: _Flight = task.content
        return self.engine.queue.now < flight.expiry

    def _outcome(self, task: Task) -> Result:
        flight: _Flight = task.content
        if flight.outcome is None:
            if not flight.submitted:
                self._submit()
            outcome = self._executor.result(flight.assignment)
            if self._on_said is not None:
                for line in outcome.said:
                    self._on_said(line)
            if outcome.content is not None and not isinstance(outcome.content, RecordDict):
                self.trace.record(self.engine.queue.now, Event.REJECTED, task.client, task.dispatch)
                kind = type(outcome.content).__name__
                reason = f"the reply's content is {kind}, not a RecordDict"
                outcome.content, outcome.error = None, (ErrorCode.UNKNOWN, reason)
            flight.outcome = outcome
        return flight.outcome

    def _submit(self) -> None:
        """Hands all tasks that may be executed to the executor, as one wave."""
        wave, self._waiting = self._waiting, {}
        for task in wave:
            task.content.submitted = True
        if wave:
            self._executor.submit([task.content.assignment for task in wave])

    # ---- replies ---------------------------------------------------------------------------------

    def _deliver(
        self, task: Task, *, content: RecordDict | None = None, error: Error | None = None
    ) -> None:
        flight: _Flight = task.content
        name = flight.metadata.message_id
        metadata = reply_metadata(flight.metadata, node_id(task.client), self.engine.queue.now)
        flight.reply = message_of(metadata, content=content, error=error)
        self._arrived[name] = task

    def _reply_with_error(self, task: Task, kind: Event) -> None:
        if task.content.unread:
            self._drop(task)
        self._deliver(task, error=Error(*_REASONS[kind]))

    def _take(self, names: Set[str]) -> list[Message]:
        """Returns and forgets the replies to `names` that are there, in order of arrival."""
        return [self._promised(task) for task in self._pop(names)]

    def _pop(self, names: Set[str]) -> list[Task]:
        ready = [name for name in self._arrived if name in names]
        for name in ready:
            del self._flights[name]
        return [self._arrived.pop(name) for name in ready]

    def _unavailable(self, name: str) -> Message:
        metadata = Metadata(
            run_id=RUN_ID,
            message_id=f"{name}.unavailable",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=name,
            group_id="",
            created_at=self.engine.queue.now,
            ttl=0,
            message_type="system",
        )
        error = Error(
            ErrorCode.MESSAGE_UNAVAILABLE,
            f"message '{name}' does not exist, or its reply was pulled before",
        )
        return message_of(metadata, error=error)

    def _failed_there(self, task: Task, reason: str, details: str) -> None:
        """Records, and tells the user, that the client's code failed."""
        now = self.engine.queue.now
        self.trace.record(now, Event.CLIENT_ERROR, task.client, task.dispatch)
        self.client_errors.add(reason, details, task.client, task.dispatch, now)


class SimControl(RecordedControl):
    """Carries out a strategy's orders on the fleet, and records its reports in the trace."""

    def __init__(self, grid: SimGrid, on_applied: OnApplied | None, on_step: OnStep | None) -> None:
        super().__init__(grid.trace, grid.clock.now, on_applied, on_step)
        self._grid = grid

    def cancel(self, message_id: str) -> bool:
        """Stops the client; True, since its reply will not come."""
        self._grid.cancel(message_id)
        return True


class SimPeers:
    """Carries payloads along the fleet's edges; Flower ids are those of its clients."""

    def __init__(self, grid: SimGrid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        """Returns the fleet's clients."""
        return [node_id(client) for client in range(len(self._grid.fleet))]

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
        """Charges a transfer; returns when it arrives, in s, and whether it does."""
        pair = client_of(source), client_of(target)
        return self._grid.engine.transfer(*pair, size, since, fanout, fanin, index)

    def all_reduce(self, nodes: Sequence[int], size: int) -> float:
        """Charges an all-reduce; returns when it is finished, in s."""
        return self._grid.engine.all_reduce([client_of(node) for node in nodes], size)

    def push(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Pushes messages at no cost; a client begins when it has what it needs."""
        return self._grid.push_from_peers(messages, ready_s)
