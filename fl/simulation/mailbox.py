"""The server's mailbox: ids of messages, what is in flight, what has arrived, what has expired."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Set

from flwr.app import Error, Message, Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from numpy import int64
from numpy.typing import NDArray

from fl.execution.contract import CohortRequest, Payload, Request
from fl.flower.identity import FIRST_NODE_ID, RUN_ID, client_of, message_id, node_id
from fl.flower.payload import snapshot
from fl.flower.private import give_id, message_of, reply_metadata
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.trace import Event

_SPARE_EXPIRIES = 100  # entries of messages that were answered, before they are cleared away

_REASONS = {
    Event.CRASH: (ErrorCode.CLIENT_APP_CRASHED, "the client's process crashed"),
    Event.DROPOUT: (ErrorCode.NODE_UNAVAILABLE, "the client dropped out during the task"),
    Event.DEPARTURE: (ErrorCode.NODE_UNAVAILABLE, "the client became unavailable during the task"),
    Event.EXPIRED: (
        ErrorCode.MESSAGE_UNAVAILABLE,
        "the message's time to live ran out before a reply arrived",
    ),
}


class Mailbox:
    """Keeps dispatches by the ids of their messages, until their replies are pulled.

    Args:
        num_clients: of the fleet.
        epoch: the date at virtual time 0, in s since 1970.
        waits: returns whether a dispatch waits for its client, as `Engine.waits` does.

    Attributes:
        dispatches: how many messages each client was sent so far.
        in_flight: pushed, reply not pulled.
        arrived: whose reply is there, in order of arrival.
    """

    lasting = ("dispatches", "_posted")

    def __init__(self, num_clients: int, epoch: int, waits: Callable[[Dispatch], bool]) -> None:
        self.dispatches: dict[int, int] = {}
        self.in_flight: dict[str, Dispatch] = {}
        self.arrived: dict[str, Dispatch] = {}
        self._num_clients = num_clients
        self._epoch = epoch
        self._waits = waits
        self._abandoned: dict[str, Dispatch] = {}  # waited for their clients when given up
        self._expiries: list[tuple[float, int, str]] = []
        self._posted = 0

    # ---- messages --------------------------------------------------------------------------------

    def check(self, metadata: Metadata) -> None:
        """Checks a message that is pushed.

        Raises:
            ValueError: it goes to a node that does not exist, is a reply, or has a TTL that is not
                positive and finite.
        """
        if not 0 <= client_of(metadata.dst_node_id) < self._num_clients:
            raise ValueError(
                f"message to node {metadata.dst_node_id}, which does not exist: this fleet's nodes "
                f"are {FIRST_NODE_ID} to {FIRST_NODE_ID + self._num_clients - 1} (get_node_ids)"
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

    def request(self, message: Message, payloads: dict[int, Payload], now: float) -> Request:
        """Gives a message its id, and returns what it asks of its client.

        Args:
            message: checked.
            payloads: of the contents that were pushed together with it, by their identity: a
                cohort's messages share one content object, which is copied and weighed once.
            now: time in s.
        """
        content = message.content
        payload = payloads.get(id(content))
        if payload is None:
            payload = payloads[id(content)] = Payload(snapshot(content))
        metadata = message.metadata
        client = client_of(metadata.dst_node_id)
        number = self.dispatches.get(client, 0)
        self.dispatches[client] = number + 1
        give_id(message, message_id(client, number))
        return Request(
            client,
            number,
            payload,
            metadata.message_type,
            metadata.group_id,
            float(metadata.ttl),
            self._epoch + now,
        )

    def cohort_request(
        self,
        clients: NDArray[int64],
        numbers: NDArray[int64],
        payload: Payload,
        ttl_s: float,
        now: float,
    ) -> CohortRequest:
        """Returns what `train` messages would ask of clients, without sending any.

        Args:
            clients: at least one, shape (n,).
            numbers: of the messages among each one's, shape (n,).
            payload: of the messages.
            ttl_s: their time to live.
            now: time in s.
        """
        return CohortRequest(
            int(clients[0]),
            int(numbers[0]),
            payload,
            "train",
            "",
            ttl_s,
            self._epoch + now,
            clients=clients,
            dispatches=numbers,
        )

    def post(self, dispatch: Dispatch) -> None:
        """Keeps a dispatch that is sent now."""
        name = dispatch.name
        self.in_flight[name] = dispatch
        self._posted += 1
        alive = len(self.in_flight) + len(self._abandoned)
        if len(self._expiries) > 2 * alive + _SPARE_EXPIRIES:
            # Most messages are answered long before: their entries would stay until then.
            self._expiries = [entry for entry in self._expiries if self._can_expire(entry[2])]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (dispatch.expiry, self._posted, name))

    @property
    def at_rest(self) -> bool:
        """Whether no reply can come."""
        return not (self.in_flight or self.arrived or self._abandoned)

    # ---- replies ---------------------------------------------------------------------------------

    def awaits(self, dispatch: Dispatch) -> bool:
        """Returns whether somebody waits for a reply, and there is none."""
        return dispatch.reply is None and dispatch.name in self.in_flight

    def deliver(self, dispatch: Dispatch, now: float, error: Error | None = None) -> None:
        """Makes a reply available; without an error it is yet to be filled."""
        metadata = reply_metadata(dispatch.metadata, node_id(dispatch.client), now)
        dispatch.reply = message_of(metadata, error=error)
        dispatch.unread = error is None
        self.arrived[dispatch.name] = dispatch

    def deliver_failure(self, dispatch: Dispatch, now: float, kind: Event) -> None:
        """Makes the error available that Flower's server would make up."""
        self.deliver(dispatch, now, Error(*_REASONS[kind]))

    def take(self, names: Set[str]) -> list[Dispatch]:
        """Returns and forgets those of `names` whose reply is there, in order of arrival."""
        ready = [name for name in self.arrived if name in names]
        for name in ready:
            del self.in_flight[name]
        return [self.arrived.pop(name) for name in ready]

    def withdraw(self, name: str) -> Dispatch | None:
        """Forgets a dispatch whose reply nobody wants; returns it, if it was there."""
        self.arrived.pop(name, None)
        return self.in_flight.pop(name, None)

    def abandon(self, names: Iterable[str]) -> None:
        """Gives up waiting for replies."""
        for name in names:  # kept until their TTL, they could fill the memory
            dispatch = self.in_flight.pop(name)
            if self._waits(dispatch):
                self._abandoned[name] = dispatch

    # ---- time to live ----------------------------------------------------------------------------

    def next_expiry(self) -> float:
        """Returns when the TTL of the next message runs out for which that makes a difference."""
        while self._expiries:
            time, _, name = self._expiries[0]
            if self._can_expire(name):
                return time
            heapq.heappop(self._expiries)
        return math.inf

    def _can_expire(self, name: str) -> bool:
        """Returns whether somebody waits for a reply, or else the message waits for its client."""
        if name in self.in_flight:
            return True
        dispatch = self._abandoned.get(name)
        if dispatch is None:
            return False
        if not self._waits(dispatch):
            del self._abandoned[name]
            return False
        return True

    def expired(self, now: float) -> Dispatch | None:
        """Returns a dispatch whose TTL has run out by now and is not dealt with; None if none."""
        if self.next_expiry() > now:
            return None
        name = heapq.heappop(self._expiries)[2]
        awaited = self.in_flight.get(name)
        return self._abandoned.pop(name) if awaited is None else awaited


def reason_of(kind: Event) -> tuple[int, str]:
    """Returns code and text of the error that the server gets for a lost dispatch."""
    code, reason = _REASONS[kind]
    return int(code), reason


def unavailable(name: str, now: float) -> Message:
    """Returns the error that Flower gives for an id it does not know."""
    metadata = Metadata(
        run_id=RUN_ID,
        message_id=f"{name}.unavailable",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=name,
        group_id="",
        created_at=now,
        ttl=0,
        message_type="system",
    )
    error = Error(
        ErrorCode.MESSAGE_UNAVAILABLE,
        f"message '{name}' does not exist, or its reply was pulled before",
    )
    return message_of(metadata, error=error)
