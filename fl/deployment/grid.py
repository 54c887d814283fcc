"""A deployment's grid as the simulator shows one: clients for nodes, counted bytes, a trace."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import Error, Message, Metadata, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl.deployment.nodes import WHO
from fl.errors import ConfigError
from fl.flower.grid_around import GridAround
from fl.flower.grid_view import WallClock
from fl.flower.identity import client_of, message_id, node_id
from fl.flower.payload import payload_bytes
from fl.flower.private import copied, give_id, message_of
from fl.simulation.client_errors import ClientErrors
from fl.simulation.control import OnApplied, OnMeasured, OnStep, RecordedControl
from fl.simulation.kernel.trace import Event, Trace

log = logging.getLogger("fl")

_FAULTS = {  # what an error reply tells, when it is not the ClientApp's own
    ErrorCode.MESSAGE_UNAVAILABLE: Event.EXPIRED,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: Event.EXPIRED,
    ErrorCode.NODE_UNAVAILABLE: Event.DROPOUT,
    ErrorCode.CLIENT_APP_CRASHED: Event.CRASH,
}

Check = Callable[[RecordDict, str, int], object]


@dataclass(frozen=True)
class _Flight:
    """A message whose reply has not been pulled.

    Attributes:
        metadata: of the message, as the strategy sees it.
        real_id: of the message on Flower's grid; None if Flower did not take it.
        dispatch: the client's running number of the message.
        order: number of messages sent before.
    """

    metadata: Metadata
    real_id: str | None
    dispatch: int
    order: int

    @property
    def client(self) -> int:
        return client_of(self.metadata.dst_node_id)


class DeployedGrid(GridAround):
    """Flower's grid, with the names that everything has on `SimGrid`.

    A strategy finds client i as node `node_id(i)`, whatever random id its SuperNode has, its k-th
    message as `message_id(i, k)`, and replies in the order of the messages, whoever was first. So
    what it draws, and the order in which it adds, are those of the simulation. The client gets its
    message's name as the group id, and names its own random streams by it.

    A SuperNode is asked once which client it is. One that was restarted takes its own place; one
    that claims the place of a connected node is left out.

    Args:
        grid: Flower's.
        num_clients: of the experiment.
        on_sent: called with the messages of each `send_and_receive`, and `exchange`, True.
        on_replies: called at the end of each that sent something, with the replies and `exchange`,
            the type of its (first) message.
        on_applied: called for each update that a strategy reports to have used.
        on_step: called for each round of a strategy that has ended, with why it leaves the model as
            it is, or None.
        on_measured: called with what a strategy has measured.
        check: called with content, type and client of each message; raises if the client would.

    Attributes:
        clock: the wall's.
        numbered: True, as on `SimGrid`.
        control: takes a strategy's reports; clients cannot be told to stop.
        trace: what the server sees: messages, replies, and what became of them; times in s since
            the beginning.
        bytes_down, bytes_up: payload bytes of the strategy's messages, and of the replies to them.
        train_messages: `train` messages that were sent.
        client_updates: replies with content to `train` messages.
        client_errors: what went wrong in clients' code.
    """

    def __init__(
        self,
        grid: Grid,
        num_clients: int,
        *,
        on_sent: Callable[..., None] | None = None,
        on_replies: Callable[..., None] | None = None,
        on_applied: OnApplied | None = None,
        on_step: OnStep | None = None,
        on_measured: OnMeasured | None = None,
        check: Check | None = None,
    ) -> None:
        super().__init__(grid)
        self.num_clients = num_clients
        self.clock = WallClock()
        self.numbered = True
        self.trace = Trace()
        self.control = DeployedControl(
            self.trace, lambda: self.now, on_applied, on_step, on_measured
        )
        self.bytes_down = 0
        self.bytes_up = 0
        self.train_messages = 0
        self.client_updates = 0
        self.client_errors = ClientErrors()
        self._on_sent = on_sent
        self._on_replies = on_replies
        self._check = check
        self._began_s = self.clock.now()
        self._clients: dict[int, int] = {}  # Flower's node id -> client
        self._nodes: dict[int, int] = {}  # client -> Flower's node id
        self._asked: dict[str, int] = {}  # Flower's id of the question -> of the node
        self._left_out: dict[int, str] = {}  # Flower's node id -> why
        self._dispatches: Counter[int] = Counter()
        self._flights: dict[str, _Flight] = {}
        self._sent = 0

    # ---- who is there --------------------------------------------------------------------------

    def await_clients(self, least: int, wait_s: float) -> None:
        """Waits until so many clients are connected.

        Args:
            least: number of clients.
            wait_s: s to wait.

        Raises:
            ConfigError: a node's configuration does not fit, two nodes are the same client, or too
                few have come.
        """
        until = self.clock.now() + wait_s
        while len(connected := self.get_node_ids()) < least:
            if self._left_out:
                raise ConfigError("; ".join(self._left_out.values()))
            if self.clock.now() >= until:
                missing = sorted(set(range(self.num_clients)) - set(map(client_of, connected)))
                raise ConfigError(
                    f"{len(connected)} of {least} clients are connected after {wait_s:g} s; there "
                    f"is no SuperNode with partition-id {', '.join(map(str, missing[:10]))}: start "
                    "them, or set the run's nodes to fewer or its wait-s to more"
                )
            self.clock.wait(until)

    def begin(self) -> None:
        """Makes now the beginning of the trace's time."""
        self._began_s = self.clock.now()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock.now() - self._began_s

    @property
    def in_flight(self) -> int:
        """Messages whose reply has not come."""
        return len(self._flights)

    def were_available(self) -> NDArray[np.bool_]:
        """Returns which clients were connected at some time so far, shape (n,)."""
        found = np.zeros(self.num_clients, dtype=np.bool_)
        found[list(self._nodes)] = True
        return found

    def get_node_ids(self) -> list[int]:
        """Returns the connected clients, as `node_id(client)`, in ascending order."""
        with _own_draws():
            connected = set(self.grid.get_node_ids())
            self._ask(connected - self._clients.keys() - set(self._asked.values()))
            if self._asked:
                for reply in self.grid.pull_messages(list(self._asked)):
                    self._admit(reply, connected)
        return sorted(node_id(self._clients[n]) for n in connected & self._clients.keys())

    def _ask(self, nodes: set[int]) -> None:
        new = sorted(nodes - self._left_out.keys())
        if new:
            questions = [Message(RecordDict(), node, WHO) for node in new]
            pushed = zip(self.grid.push_messages(questions), new, strict=True)
            self._asked.update((name, node) for name, node in pushed if name is not None)

    def _admit(self, reply: Message, connected: set[int]) -> None:
        node = self._asked.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return
        answer = None if reply.has_error() else reply.content.get("metrics")
        client = answer.get("partition-id") if isinstance(answer, MetricRecord) else None
        if not isinstance(client, int) or not 0 <= client < self.num_clients:
            told = reply.error.reason if reply.has_error() else f"it is client {client!r}"
            self._leave_out(node, f"SuperNode {node} cannot take part: {told}")
            return
        before = self._nodes.get(client)
        if before is not None and before in connected:
            self._leave_out(
                node,
                f"SuperNodes {before} and {node} were both started with partition-id={client}: "
                "give each its own",
            )
            return
        if before is not None:
            del self._clients[before]
        self._clients[node], self._nodes[client] = client, node

    def _leave_out(self, node: int, reason: str) -> None:
        self._left_out[node] = reason
        log.warning("%s", reason)

    # ---- Flower's Grid -------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages; returns their names.

        Raises:
            ConfigError: clients would refuse a message.
            ValueError: a message goes to a client that was never connected.
            ConnectionError: the SuperLink takes none of them.
        """
        with _own_draws():
            messages = list(messages)
            outgoing = [self._named(message) for message in messages]
            real_ids = list(self.grid.push_messages(outgoing))
            if len(real_ids) != len(messages):
                raise ConnectionError(
                    f"the SuperLink took {len(real_ids)} of {len(messages)} messages: they may be "
                    "too large together; ask fewer clients at once, or use a smaller model"
                )
            return [
                self._note(message, real_id)
                for message, real_id in zip(messages, real_ids, strict=True)
            ]

    def _named(self, message: Message) -> Message:
        """Returns the message for Flower's grid."""
        client = client_of(message.metadata.dst_node_id)
        if client not in self._nodes:
            raise ValueError(
                f"message to node {message.metadata.dst_node_id}, which was never connected "
                "(get_node_ids)"
            )
        if self._check is not None:
            self._check(message.content, message.metadata.message_type, client)
        name = message_id(client, self._dispatches[client])
        self._dispatches[client] += 1
        give_id(message, name)
        metadata = copied(message.metadata)
        metadata.dst_node_id = self._nodes[client]
        metadata.group_id = name
        return message_of(metadata, content=message.content)

    def _note(self, message: Message, real_id: str | None) -> str:
        metadata = copied(message.metadata)
        name, client = metadata.message_id, client_of(metadata.dst_node_id)
        dispatch = int(name.rpartition(".")[2])
        self._flights[name] = _Flight(metadata, real_id, dispatch, self._sent)
        self._sent += 1
        self.train_messages += metadata.message_type.startswith("train")
        size = payload_bytes(message.content)
        self.bytes_down += size
        self.trace.record(self.now, Event.DISPATCH, client, dispatch, size)
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there, in the order in which their messages were sent.

        Ids without a message whose reply is awaited are ignored.
        """
        with _own_draws():
            awaited = {name: self._flights[name] for name in message_ids if name in self._flights}
            names = {f.real_id: name for name, f in awaited.items() if f.real_id is not None}
            came: dict[str, Message] = {}
            if names:
                for reply in self.grid.pull_messages(list(names)):
                    came[names[reply.metadata.reply_to_message_id]] = reply
            now = self.now
            refused = [name for name, flight in awaited.items() if flight.real_id is None]
            ready = sorted([*came, *refused], key=lambda name: awaited[name].order)
            return [self._reply(name, came.get(name), now) for name in ready]

    def _reply(self, name: str, reply: Message | None, now: float) -> Message:
        """Returns a reply as the strategy sees it; without one, the SuperLink took no message."""
        flight = self._flights.pop(name)
        sent = flight.metadata
        came = sent if reply is None else reply.metadata
        metadata = Metadata(
            run_id=came.run_id,
            message_id=f"{name}.reply",
            src_node_id=sent.dst_node_id,
            dst_node_id=sent.src_node_id,
            reply_to_message_id=name,
            group_id=sent.group_id,
            created_at=came.created_at,
            ttl=came.ttl,
            message_type=sent.message_type,
            src_task_id=came.src_task_id,
            dst_task_id=came.dst_task_id,
        )
        where = (flight.client, flight.dispatch)
        if reply is None or reply.has_error():
            error = Error(ErrorCode.NODE_UNAVAILABLE, "the SuperLink did not take the message")
            if reply is not None:
                error = reply.error
            event = _FAULTS.get(error.code, Event.CLIENT_ERROR)
            self.trace.record(now, event, *where)
            if event is Event.CLIENT_ERROR and reply is not None:
                self.client_errors.add(error.reason or "", "", *where, now)
            else:
                log.warning("client %d, message %s: %s", flight.client, name, error.reason)
            return message_of(metadata, error=error)
        size = payload_bytes(reply.content)
        self.bytes_up += size
        if sent.message_type.startswith("train"):
            self.client_updates += 1
        if not sent.message_type.startswith("evaluate"):
            self.control.answers[flight.client] += 1
        self.trace.record(now, Event.UPLOAD_END, *where, size)
        return message_of(metadata, content=reply.content)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sends messages and returns the replies that come within `timeout` seconds.

        They are in the order of the messages. A reply that comes later is thrown away.
        """
        messages = list(messages)
        until = math.inf if timeout is None else self.clock.now() + timeout
        if self._on_sent is not None and messages:
            self._on_sent(messages, exchange=True)
        names = self.push_messages(messages)
        missing, came = set(names), dict[str, Message]()
        while missing:
            for reply in self.pull_messages(missing):
                came[reply.metadata.reply_to_message_id] = reply
            missing -= came.keys()
            if missing and self.clock.now() >= until:
                self.trace.record(self.now, Event.TIMEOUT, value=float(len(missing)))
                for name in missing:
                    del self._flights[name]
                break
            if missing:
                self.clock.wait(until)
        replies = [came[name] for name in names if name in came]
        if self._on_replies is not None and messages:
            self._on_replies(replies, exchange=messages[0].metadata.message_type)
        return replies


class DeployedControl(RecordedControl):
    """Records a strategy's reports; it has no way to stop a client."""

    def cancel(self, message_id: str) -> bool:
        """Records the wish; False, since the client goes on and its reply will come."""
        self.record(Event.CANCELLED, message_id)
        return False

    def forged(self, message_id: str) -> None:
        """Raises: nobody forges replies on a deployment's server."""
        raise ConfigError(f"message {message_id} was forged on the server of a deployment")


@contextmanager
def _own_draws() -> Iterator[None]:
    """Keeps what Flower draws from the global generator, to wait and to retry, from the strategy.

    Flower's strategies choose clients by that generator.
    """
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
