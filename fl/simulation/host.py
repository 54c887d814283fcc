"""The host of the engine: what devices work on, and what of it the server gets to read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from flwr.app import Error, Message, Metadata, RecordDict

from fl.errors import SimulationError
from fl.execution.contract import Result
from fl.flower.payload import payload_bytes
from fl.flower.private import promised
from fl.simulation.ahead import Ahead
from fl.simulation.client_errors import ClientErrors
from fl.simulation.control import RecordedControl
from fl.simulation.cost import CostModel
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.engine import Engine
from fl.simulation.kernel.trace import Event
from fl.simulation.mailbox import Mailbox
from fl.simulation.rounds import group_number
from fl.simulation.serving import Serving
from fl.vectors.layout import LARGE_BYTES


class Inside(Protocol):
    """Keeps the simulator's own doings apart from the app's."""

    def __call__(self) -> AbstractContextManager[None]:
        """Returns a context for them."""


class SimHost:
    """Answers the engine's questions, and fills replies for the server to read.

    Args:
        engine: asks.
        ahead: has the clients' requests answered.
        mailbox: gets the replies.
        cost_model: what the work of an app costs that does not plan.
        control: counts the replies of each client that were read.
        errors: counts exceptions in ClientApps.
        inside: entered when the app looks at a reply that is not fetched yet.
        serving: weighs replies; None where their objects take no time.

    Attributes:
        client_updates: replies with content that reached the server, for `train` messages; of a
            client and a group id that is a number, only one.
    """

    lasting = ("client_updates", "_groups")

    def __init__(
        self,
        engine: Engine,
        ahead: Ahead,
        mailbox: Mailbox,
        cost_model: CostModel,
        control: RecordedControl,
        errors: ClientErrors,
        inside: Inside,
        serving: Serving | None,
    ) -> None:
        self.client_updates = 0
        self._engine = engine
        self._ahead = ahead
        self._mailbox = mailbox
        self._cost_model = cost_model
        self._control = control
        self._errors = errors
        self._inside = inside
        self._serving = serving
        self._groups: dict[int, int] = {}  # client -> group of its last update, if it has one

    # ---- the engine's questions ------------------------------------------------------------------

    def compute_seconds(self, dispatch: Dispatch) -> float:
        """Returns the virtual seconds of the local work."""
        self._ahead.begin(dispatch)
        fleet, plan = self._engine.fleet, dispatch.plan
        if plan is None:
            return self._cost_model.seconds_of(
                fleet, dispatch.request, self._ahead.result(dispatch)
            )
        client, number = dispatch.client, dispatch.number
        dispatch.past_s = fleet.compute_seconds(client, number, plan.past_flops)
        flops, dispatch.steps = plan.flops, plan.local_steps
        if plan.flops_of is not None:
            content = self._ahead.result(dispatch).content
            if content is not None:
                dispatch.steps = _steps(content)
                flops = plan.flops_of(dispatch.steps)
        return fleet.compute_seconds(client, number, flops)

    def computed(self, dispatch: Dispatch) -> int:
        """Commits the client's state and returns the reply's size in bytes."""
        reply_bytes = dispatch.reply_bytes
        if reply_bytes is not None and dispatch.result is None:
            self._ahead.do_later(dispatch)
            return reply_bytes
        result = self._ahead.keep_state(dispatch)
        if result.error is not None:
            self._failed_there(dispatch, result.error[1], result.details)
            return len(result.error[1].encode())
        if result.content is None:
            return 0
        size = payload_bytes(result.content)
        if self._serving is not None:
            self._serving.weigh_reply(dispatch, result.content, size)
        return size

    def replied(self, dispatch: Dispatch) -> None:
        """Makes the reply available to the server."""
        if self._mailbox.awaits(dispatch):
            self._mailbox.deliver(dispatch, self._engine.queue.now)
        else:
            self._ahead.drop(dispatch)  # it expired on the way, or nobody waits for it any more

    def failed(self, dispatch: Dispatch, kind: Event) -> None:
        """Forgets the work of one that brings no reply; a crash also loses the state."""
        self._ahead.drop(dispatch)
        if kind is Event.CRASH:
            self._ahead.lose_state(dispatch.client)
        self._ahead.finish(dispatch)

    def server_learns(self, dispatch: Dispatch, kind: Event) -> None:
        """Replies with the error Flower's server would make up."""
        if self._mailbox.awaits(dispatch):
            if kind is not Event.CRASH:
                self._record(Event.NODE_UNAVAILABLE, dispatch)
            self._mailbox.deliver_failure(dispatch, self._engine.queue.now, kind)

    def expire(self, dispatch: Dispatch) -> None:
        """Ends a message whose time to live has run out, for whoever waits for its reply."""
        if dispatch.reply is None:
            self._record(Event.EXPIRED, dispatch)
        if dispatch.name in self._mailbox.in_flight:
            if dispatch.unread:
                self._ahead.drop(dispatch)
            self._mailbox.deliver_failure(dispatch, self._engine.queue.now, Event.EXPIRED)
        self._engine.expire(dispatch)

    # ---- what the server reads -------------------------------------------------------------------

    def read(self, dispatch: Dispatch) -> Message:
        """Returns a reply that has arrived; a large one is fetched when somebody looks at it.

        Who takes one model after the other then never has all of them in memory.
        """
        reply = dispatch.reply
        if reply is None:
            raise SimulationError(f"the reply to {dispatch.name} has not arrived")
        if not dispatch.unread:
            return reply
        if (dispatch.reply_bytes or 0) < LARGE_BYTES:
            self._fill(dispatch, reply)
            return reply
        # The reply knows how to fill itself; the dispatch forgets it: no cycle of references.
        dispatch.reply = None
        return promised(reply, partial(self._fetch, dispatch))

    def _fetch(self, dispatch: Dispatch, reply: Message) -> None:
        with self._inside():
            self._fill(dispatch, reply)

    def _fill(self, dispatch: Dispatch, reply: Message) -> None:
        dispatch.unread = False
        result = self._ahead.result(dispatch)
        self._ahead.free(dispatch)
        if result.error is not None:
            if dispatch.reply_bytes is not None:  # only known now
                self._failed_there(dispatch, result.error[1], result.details)
            reply.error = Error(*result.error)
            return
        if dispatch.reply_bytes is not None:
            _check_plan(dispatch, dispatch.reply_bytes, result)
        self._count_update(dispatch.client, dispatch.metadata)
        if not dispatch.metadata.message_type.startswith("evaluate"):
            self._control.answers[dispatch.client] += 1
        if result.content is not None:
            reply.content = result.content

    def _count_update(self, client: int, metadata: Metadata) -> None:
        """Counts a reply of a client that trained; of one round's several exchanges, the first."""
        if not metadata.message_type.startswith("train"):
            return
        group = group_number(metadata.group_id)
        if group is None or self._groups.get(client) != group:
            self.client_updates += 1
        if group is not None:
            self._groups[client] = group

    def _failed_there(self, dispatch: Dispatch, reason: str, details: str) -> None:
        """Records, and tells the user, that the client's code failed."""
        self._record(Event.CLIENT_ERROR, dispatch)
        now = self._engine.queue.now
        self._errors.add(reason, details, dispatch.client, dispatch.number, now)

    def _record(self, kind: Event, dispatch: Dispatch) -> None:
        now = self._engine.queue.now
        self._engine.trace.record(now, kind, dispatch.client, dispatch.number)


def _steps(content: RecordDict) -> int:
    metrics: Any = next(iter(content.metric_records.values()))
    return int(metrics["steps"])


def _check_plan(dispatch: Dispatch, reply_bytes: int, result: Result) -> None:
    size = 0 if result.content is None else payload_bytes(result.content)
    if size != reply_bytes or result.state:
        raise SimulationError(
            f"the plan of message {dispatch.name} says that its reply has {reply_bytes} bytes and "
            f"the client keeps nothing, but the reply has {size}, or something is kept"
        )
