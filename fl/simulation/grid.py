"""Flower's `Grid` in virtual time: the one seam between server algorithms and the world."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy import array, bool_, float64, int64
from numpy.typing import NDArray

from fl.errors import Enough, SimulationError
from fl.execution.contract import Payload, Request
from fl.execution.executor import Executor
from fl.execution.speech import Line
from fl.execution.virtual_time import EPOCH, answering
from fl.flower.grid_view import Peers, Snapshots
from fl.flower.identity import FIRST_NODE_ID, RUN_ID, assume_identity
from fl.flower.private import Run, copied, empty_run
from fl.simulation.ahead import Ahead
from fl.simulation.attendance import Attendance
from fl.simulation.client_errors import ClientErrors
from fl.simulation.cohorts import Foreseen, SimCohorts
from fl.simulation.control import OnApplied, OnMeasured, OnStep, OnUsed, SimControl
from fl.simulation.cost import CostModel, Planner
from fl.simulation.host import SimHost
from fl.simulation.kernel.clock import VirtualClock
from fl.simulation.kernel.dispatch import Dispatch, Stage
from fl.simulation.kernel.engine import Engine
from fl.simulation.kernel.events import Priority
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.mailbox import Mailbox, unavailable
from fl.simulation.peers import RelayedPeers, SimPeers
from fl.simulation.serving import Serving
from fl.simulation.summation import SimSummation
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies import Hierarchy
from fl.simulation.world.power import CAP_KEY, asked_cap
from fl.simulation.world.runtime import Runtime

_LONG_S = 86400.0  # to live, of messages that are not sent


def trace_of(fleet: Fleet, folder: Path | None = None) -> Trace:
    """Returns a trace of what is going to happen on a fleet; `folder` as of `Trace`."""
    return Trace(None if fleet.job is None else fleet.job.all_elapsed, folder)


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
        foreseen: our own ClientApp and what its clients know, if it knows answers beforehand.
        cost_model: what a foreign app's work costs.
        runtime: what software takes on the way; None is nothing.
        hierarchy: machines that add updates up on their way to the server; None has none.
        trace: where events are recorded; a new one if None.
        on_sent: called with messages that are sent, and `exchange`: whether by `send_and_receive`.
        on_replies: called with replies that are pulled; and at the end of each `send_and_receive`
            that sent something, with `exchange`, the type of its (first) message.
        on_progress: called after each instant of virtual time.
        on_applied: called for each update that a strategy reports to have used.
        on_used: called in its place with those of one version and instant.
        on_step: called for each round of a strategy that has ended, with why it leaves the model as
            it is, or None.
        on_measured: called with what a strategy has measured.
        on_said: called with each line that clients have said in other processes.
        errors: counts exceptions in ClientApps; a new one if None.
        epoch: the date at virtual time 0, in s since 1970.

    Attributes:
        clock: the grid's clock, which `fl.flower.grid_view.GridView` finds.
        control: takes orders and reports, which `GridView` finds.
        peers: links among the clients, which `GridView` finds.
        runtime: what software takes on the way; None if it is ideal.
        serving: passes what the server's process takes of it; None if that is nothing.
        summation: has updates added up on the hierarchy, which `GridView` finds; None without one.
        numbered: True, which `GridView` finds: a node id says which client it is.
        cohorts: runs cohorts as arrays, which `GridView` finds.
        arrived: ids of messages whose reply is there, which `GridView` finds.
        snapshots: keeps what there is between rounds, which `GridView` finds; None keeps nothing.
        train_messages: `train` messages that were sent.
        client_errors: what went wrong in clients' code.
    """

    lasting = (
        *("train_messages", "_app_waits", "engine", "control", "cohorts", "client_errors"),
        *("trace", "_attendance", "_mailbox", "_host", "_ahead"),
    )

    def __init__(
        self,
        fleet: Fleet,
        executor: Executor,
        *,
        planner: Planner | None = None,
        foreseen: Foreseen | None = None,
        cost_model: CostModel | None = None,
        runtime: Runtime | None = None,
        hierarchy: Hierarchy | None = None,
        trace: Trace | None = None,
        on_sent: Callable[..., None] | None = None,
        on_replies: Callable[..., None] | None = None,
        on_progress: Callable[[], None] | None = None,
        on_applied: OnApplied | None = None,
        on_used: OnUsed | None = None,
        on_step: OnStep | None = None,
        on_measured: OnMeasured | None = None,
        on_said: Callable[[Line], None] | None = None,
        errors: ClientErrors | None = None,
        epoch: int = EPOCH,
    ) -> None:
        behind = fleet  # the hierarchy: with the server's own link
        if hierarchy is not None:
            fleet = hierarchy.attached(fleet)
        self.fleet = fleet
        self.trace = trace_of(fleet) if trace is None else trace
        self.runtime = None if runtime is None or runtime.ideal else runtime
        self.engine = Engine(fleet, self.trace, self.runtime)
        self.serving: Serving | None = None
        if self.runtime is not None:
            foreign = planner is None
            self.serving = Serving(
                self.runtime,
                self.trace,
                self._now,
                self._advance,
                foreign,
                adds=hierarchy is None,
            )
        self.summation: SimSummation | None = None
        if hierarchy is not None:
            queue = self.engine.queue
            self.summation = SimSummation(
                hierarchy, behind, queue, self.trace, self._run_instant, self._advance
            )
        self.clock = VirtualClock(self._now, self.sleep, self.wait, self._elapsed_s)
        self.control = SimControl(
            self.trace, self._now, self.cancel, on_applied, on_step, on_measured, on_used
        )
        self.peers: Peers = SimPeers(self.engine, self._push_from_peers)
        if self.runtime is not None and self.runtime.relayed:
            self.peers = RelayedPeers(self, len(fleet))
        self.numbered = True
        self.snapshots: Snapshots | None = None
        self.client_errors = ClientErrors() if errors is None else errors
        self.train_messages = 0
        self._planner = planner
        self._on_sent = on_sent
        self._on_replies = on_replies
        self._on_progress = on_progress
        self._epoch = epoch
        self._run = empty_run(RUN_ID)
        self._attendance = Attendance(fleet, self._now, self.engine.charges)
        self._mailbox = Mailbox(len(fleet), epoch, self.engine.waits)
        self.arrived: Collection[str] = self._mailbox.arrived
        self._ahead = Ahead(executor, self.trace, self._now, on_said, self._without_draws)
        self._host = self.engine.host = SimHost(
            self.engine,
            self._ahead,
            self._mailbox,
            CostModel() if cost_model is None else cost_model,
            self.control,
            self.client_errors,
            self._inside,
            self.serving,
        )
        self.cohorts = SimCohorts(
            fleet,
            foreseen,
            self.engine,
            self._mailbox,
            self._host,
            self.control,
            ahead=self._ahead,
            runtime=self.runtime is not None or self.summation is not None,
            advance=self.sleep_until,
            end=lambda: self._end_s,
            on_sent=self._count_sent,
            on_used=on_used,
        )
        self._asked: tuple[float, set[str]] = (-1.0, set())  # pulled in vain, and when
        self._taken: list[Dispatch] = []  # whose replies were pulled last
        self._app_waits = False  # moves time itself, through the clock
        self._end_s = math.inf  # of `end_at`
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
        return list(self.present())

    def present(self) -> Sequence[int]:
        """Returns what `get_node_ids` does, which nobody may change; `GridView` finds it."""
        with self._inside():
            if threading.get_ident() != self._thread:
                seen = self._attendance.seen
                return self._attendance.nodes() if seen is None else seen
            return self._attendance.poll(self._step)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages now; returns their ids.

        Raises:
            ValueError: a message goes to a node that does not exist, is a reply, or has a TTL that
                is not positive and finite; then none is sent.
        """
        with self._inside():
            return self._push(list(messages), exchange=False)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there, in the order in which they arrived.

        If none is, and the app asks for the same ids again without having let time pass, virtual
        time moves to the next event, and what has arrived then is returned. An app that sleeps
        between its polls, or waits through the clock, sets the pace itself.
        """
        with self._inside():
            self._attendance.reset()
            # An app that has much in flight asks for all of it after every event: no work for each.
            names: Set[str] = (
                message_ids if isinstance(message_ids, Set) else dict.fromkeys(message_ids).keys()
            )
            now, in_flight = self._now(), self._mailbox.in_flight
            unknown: list[Message] = []
            if not names <= in_flight.keys():
                unknown = [unavailable(name, now) for name in names if name not in in_flight]
            replies = self._take(names)
            if names and not replies and not unknown and not self._app_waits:
                asked_at, asked = self._asked
                if asked_at != now:
                    self._asked = (now, set(names))
                elif not names <= asked:
                    asked.update(names)
                else:
                    self._step(math.inf)
                    replies = self._take(names)
            if self.summation is not None:
                self.summation.weigh(self._taken)
            if replies and self.serving is not None:
                self.serving.receives(self._taken)
            if replies and self._on_replies is not None:
                self._on_replies(replies)
            return unknown + replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sends messages and returns the replies that arrive within `timeout` virtual seconds.

        Replies come in the order of their arrival; one that arrives exactly at the timeout counts.
        Clients that are late go on: they stay busy, and their reply is thrown away.
        """
        with self._inside():
            began = self._now()
            messages = list(messages)
            missing = set(self._push(messages, exchange=True))
            serving, looked = self.serving, self._now()
            self._ahead.submit()  # nothing else is sent before the replies are there
            deadline = math.inf if timeout is None else began + timeout
            arrived: list[Dispatch] = []
            while missing:
                if self._mailbox.arrived and (new := self._mailbox.take(missing)):
                    missing.difference_update(dispatch.name for dispatch in new)
                    arrived += new
                    if serving is not None:
                        serving.receives(new)
                        looked = self._now()
                if missing and not self._step(deadline):
                    break
                if missing and serving is not None and self._mailbox.arrived:
                    serving.waits(looked, deadline, exchange=True)
            if missing:
                self.trace.record(self._now(), Event.TIMEOUT, value=float(len(missing)))
                self._mailbox.abandon(missing)
            # Last, so that processes train while this one simulates.
            replies = [self._host.read(dispatch) for dispatch in arrived]
            if self._on_replies is not None and messages:
                self._on_replies(replies, exchange=messages[0].metadata.message_type)
            return replies

    def _take(self, names: Set[str]) -> list[Message]:
        self._taken = self._mailbox.take(names)
        return [self._host.read(dispatch) for dispatch in self._taken]

    # ---- between messages ------------------------------------------------------------------------

    @property
    def never_rests(self) -> str:
        """Why `lasting` is never all that there is to know of the grid; "" if it can be."""
        for has, what in (
            (self.runtime is not None, "nodes have a runtime"),
            (self.summation is not None, "there is a hierarchy"),
            (self.fleet.network is not None, "there is a network"),
            (self.fleet.job is not None, "clients are one job"),
            (self.engine.charges is not None, "clients have batteries"),
        ):
            if has:
                return what
        return ""

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way, so that `lasting` is all that there is to know."""
        return self.engine.at_rest and self._mailbox.at_rest and self._ahead.at_rest

    # ---- sending -------------------------------------------------------------------------------

    def _push_from_peers(self, messages: Sequence[Message], ready_s: Sequence[float]) -> list[str]:
        """Sends messages that come from the clients' peers; see `fl.flower.grid_view.Peers.push`.

        Raises:
            ValueError: as for `push_messages`, or a time is not finite.
        """
        with self._inside():
            for time in ready_s:
                if not math.isfinite(time):
                    raise ValueError(f"a message is ready at {time} s; it must be finite")
            return self._push(messages, ready_s, exchange=False)

    def _push(
        self,
        messages: Sequence[Message],
        ready_s: Sequence[float] | None = None,
        *,
        exchange: bool,
    ) -> list[str]:
        self._attendance.reset()
        for message in messages:
            self._mailbox.check(message.metadata)
        if messages and self._on_sent is not None:
            self._on_sent(messages, exchange=exchange)
        if messages and self.serving is not None:
            self.serving.sends(messages)
        if messages and self.summation is not None and ready_s is None:
            self.summation.sends(messages)
        payloads: dict[int, Payload] = {}
        times = [None] * len(messages) if ready_s is None else ready_s
        dispatches = [
            self._dispatch(message, payloads, time)
            for message, time in zip(messages, times, strict=True)
        ]
        for dispatch in dispatches:
            self._ahead.add(dispatch)
            self.engine.send(dispatch)
        return [dispatch.name for dispatch in dispatches]

    def _dispatch(
        self, message: Message, payloads: dict[int, Payload], ready_s: float | None
    ) -> Dispatch:
        now = self._now()
        request = self._mailbox.request(message, payloads, now)
        client, number = request.client, request.dispatch
        self.train_messages += request.message_type.startswith("train")
        faults = self.fleet.faults.draw(self.fleet.seed, client, number)
        size = request.payload.size
        if ready_s is not None:  # nothing goes to the server or comes from it
            size, faults = 0, replace(faults, lose_download=False, lose_upload=False)
        power, asked = self.fleet.power, None
        if power is not None:
            asked = _asked_cap(request.payload.content)
        plan = None
        if self._planner is not None:
            seconds_per_flop = self.fleet.seconds_per_flop(client, number)
            if power is not None:
                kind = self.fleet.devices.kind_name(client)
                seconds_per_flop /= power.state(kind, None, asked).speed
            plan = self._planner(request, seconds_per_flop)
            request.work = plan.work
        # A copy: Flower lets an app push the same object again, as a new message.
        metadata = copied(message.metadata)
        dispatch = Dispatch(
            metadata.message_id,
            client,
            number,
            size,
            faults,
            now + request.ttl,
            metadata,
            request,
            plan,
            ready_s,
        )
        dispatch.asked_cap = asked
        if self.serving is not None:
            self.serving.weigh(dispatch)
        self._mailbox.post(dispatch)
        return dispatch

    def aside(self, contents: Mapping[int, RecordDict], number: int) -> dict[int, RecordDict]:
        """Returns what clients answer to `evaluate` messages that are no part of the run.

        They find the clients as they are now, and leave no trace: no event, no time, no bytes, no
        energy, and nothing that a client keeps. Clients answer that are away or busy, too.

        Args:
            contents: of the messages, by client; one object may be for several.
            number: names the random streams of the answers, with the client; at least 0.

        Raises:
            SimulationError: a client cannot answer.
        """
        with self._inside():
            payloads = {id(c): Payload(c, 0) for c in contents.values()}
            requests = [
                Request(
                    client,
                    -1 - number,
                    payloads[id(content)],
                    "evaluate",
                    str(number),
                    ttl=_LONG_S,
                    created_at=self._epoch + self._now(),
                )
                for client, content in contents.items()
            ]
            answers = {}
            for request, result in zip(requests, self._ahead.aside(requests), strict=True):
                if result.content is None:
                    reason = "" if result.error is None else result.error[1]
                    raise SimulationError(f"client {request.client} cannot evaluate: {reason}")
                answers[request.client] = result.content
            return answers

    # ---- time ----------------------------------------------------------------------------------

    def _now(self) -> float:
        return self.engine.queue.now

    def _elapsed_s(self) -> float:
        job = self.fleet.job
        return self._now() if job is None else job.elapsed(self._now())

    def sleep(self, seconds: float) -> None:
        """Lets `seconds` of virtual time pass."""
        with self._inside():
            until = self._now() + max(0.0, float(seconds))
            while self._step(until):
                pass

    def sleep_until(self, time: float) -> None:
        """Lets virtual time pass until `time`."""
        with self._inside():
            self._attendance.reset()
            self._advance(time)

    def _count_sent(self, messages: int) -> None:
        self.train_messages += messages

    def end_at(self, time: float) -> None:
        """Has whoever waits beyond a time be told that it is enough; infinity takes that back.

        What the server is at goes on: its next step is later than that, if it makes one.
        """
        self._end_s = time

    def _advance(self, until: float) -> None:
        while self._run_instant(until):
            pass

    def wait(self, until: float) -> None:
        """Lets virtual time pass until a reply is there to be pulled, at most until `until`.

        An app that waits has no need of `pull_messages` moving time, which it does no more.
        """
        with self._inside():
            self._app_waits, began = True, self._now()
            while not self._mailbox.arrived and self._step(until):
                pass
            if self._mailbox.arrived and self.serving is not None:
                self.serving.waits(began, until)

    def cancel(self, message_id: str) -> None:
        """Tells the client that has this message to stop; its reply will not come."""
        with self._inside():
            dispatch = self._mailbox.withdraw(message_id)
            if dispatch is None:
                return
            if dispatch.stage is not Stage.DONE:
                self.engine.cancel(dispatch)
            elif dispatch.unread:
                self._ahead.drop(dispatch)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Keeps the simulator's own doings apart from the app's.

        One thread at a time, and sleeping means sleeping.
        """
        with self._lock, answering(None):
            yield

    @contextmanager
    def _without_draws(self) -> Iterator[None]:
        """Has what an executor draws from the global generator of `random` leave no trace.

        Ray draws from it, and so does the ServerApp.
        """
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
        """Runs the next instant not later than `until`, for an app that waits; False if none is.

        Raises:
            Enough: that is later than the end.
        """
        if until > self._end_s:
            coming = min(self._mailbox.next_expiry(), self.engine.queue.next_time(), until)
            if self._end_s < coming < math.inf:
                self._advance(self._end_s)
                raise Enough(f"{self._end_s:g} s have passed")
        return self._run_instant(until)

    def _run_instant(self, until: float) -> bool:
        """Runs the next instant not later than `until`; False when there is none."""
        queue = self.engine.queue
        expiry = self._mailbox.next_expiry()
        if expiry < queue.next_time() and expiry <= until:
            time = max(expiry, queue.now)
            queue.schedule(time, Priority.TIMER, self._expire, time)
        advanced = queue.advance(until)
        if self._on_progress is not None:
            self._on_progress()
        return advanced

    def _expire(self, now: float) -> None:
        while (dispatch := self._mailbox.expired(now)) is not None:
            self._host.expire(dispatch)

    # ---- what has happened -----------------------------------------------------------------------

    @property
    def client_updates(self) -> int:
        """Replies with content that reached the server, for `train` messages.

        Of a client and a group id that is a number, only one.
        """
        return self._host.client_updates

    @property
    def utilisation(self) -> float:
        """The share of the time that clients have computed, over those that were sent anything."""
        possible = len(self._mailbox.dispatches) * self._elapsed_s()
        return self.engine.busy_s / possible if possible else 0.0

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary."""
        job = self.fleet.job
        facts = {} if job is None else {"checkpointing": job.report(self._now())}
        if self.serving is not None and (served := self.serving.report()):
            facts["server"] = served
        if self.engine.charges is not None:
            facts["batteries"] = self.engine.charges.report()
        return facts if self.summation is None else {**facts, "hierarchy": self.summation.report()}

    def charge(self, nodes: Sequence[int]) -> NDArray[float64] | None:
        """Returns the charge of clients' batteries now, in [0, 1]; None where there are none."""
        charges = self.engine.charges
        if charges is None:
            return None
        return charges.charge_of(array(nodes, dtype=int64) - FIRST_NODE_ID)

    @property
    def servers_j(self) -> float:
        """Joules of the server and of the machines between it and the clients so far."""
        parts = (self.serving, self.summation)
        return sum(part.energy_j for part in parts if part is not None)

    def were_available(self) -> NDArray[bool_]:
        """Returns which clients were available at some time so far, shape (n,)."""
        return self._attendance.were_there()


def _asked_cap(content: RecordDict) -> float | None:
    """Returns the cap that a message's configuration has; None if it has none."""
    for record in content.config_records.values():
        if CAP_KEY in record:
            return asked_cap(record[CAP_KEY])
    return None
