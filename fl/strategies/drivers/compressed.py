"""Any strategy over compressed links: payloads of real bytes in one direction or both."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Result

from fl.clients.app.downlink import VERSION_KEY
from fl.clients.app.uplink import NEXT_KEY, NOT_FINITE, PAYLOAD_KEY, PAYLOAD_STYPE
from fl.compression import Broadcast, Channel, PayloadError, Receivers, Shapes
from fl.compression.wire import u32
from fl.errors import ConfigError
from fl.flower.carried import carried, carried_tensors
from fl.flower.grid_around import GridAround
from fl.flower.grid_view import Clock, Control, GridView
from fl.flower.messages import with_content
from fl.flower.private import message_of
from fl.flower.records import from_record, layout_of, to_record, with_entries
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor

log = logging.getLogger("fl")

_OPEN = 4  # messages to one client whose reply may still come; of older ones it is refused
_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)  # the client keeps its memory


@dataclass(frozen=True)
class _Sent:
    """What the server must know of a message to read its reply: w_t, and what the client got."""

    node: int
    train: bool
    w: Row
    held: Row
    version: int


class CompressedGrid(GridAround):
    """A grid that compresses the models it sends and decompresses the changes it receives.

    Whoever uses it sees ordinary messages, whether it sends rounds (`send_and_receive`) or pushes
    and pulls single messages. Every message with a model goes down as the payloads of a
    `Broadcast`; every reply to a `train` message comes up as the payload of x = w_i - w_hat, with
    w_hat what the client has decoded (`fl.clients.Downlink`, `fl.clients.Uplink`). The reply's
    model is shown as w_t + x, with w_t the model that was to be sent: the client's step, taken from
    the server's own model, so that errors of the downlink do not accumulate in it.

    What is not trained is not compressed with the rest: buffers come up as they are, frozen
    parameters not at all.

    A payload that no encoder can have made becomes an error reply, as if the client had failed, and
    a fault in the trace; what the server keeps for that client stays as it was.

    Messages that carry the same model share what they carry. Told apart are only clients that lack
    different versions, and those whose last message to the server did not arrive.

    Args:
        grid: carries the messages.
        uplink: the channel of what clients send; None leaves it as it is.
        downlink: the channel of what they receive; None leaves it as it is.
        num_clients: clients there are, for the bound on memory and for methods that need all.
        seed: of the downlink's random numbers.
        max_bytes: most bytes kept for all clients together, for uplinks whose server has a state
            for each.
        layout: of the clients' model, `Layout.of(model)`; None if all its entries are trained.
        arrays_key, config_key: names of the records in messages.
    """

    def __init__(
        self,
        grid: Grid,
        uplink: Channel | None = None,
        downlink: Channel | None = None,
        *,
        num_clients: int,
        seed: int = 0,
        max_bytes: int = 2**30,
        layout: Layout | None = None,
        arrays_key: str = "arrays",
        config_key: str = "config",
    ) -> None:
        super().__init__(grid)
        self.uplink = uplink
        self.downlink = downlink
        self.num_clients = num_clients
        self.seed = seed
        self.max_bytes = max_bytes
        self.arrays_key = arrays_key
        self.config_key = config_key
        self._known_layout = layout
        self._layout: Layout | None = None
        self._receivers: Receivers | None = None
        self._broadcast: Broadcast | None = None
        self._senders: dict[int, int] = {}  # node id -> number, in order of first appearance
        self._unsure: set[int] = set()  # senders whose last message has not arrived
        self._known: dict[int, int] = {}  # node id -> version of the model it holds
        self._open: dict[int, OrderedDict[str, _Sent]] = {}  # by node, then message id

    # ---- Flower's Grid -------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """The clock of the grid underneath."""
        return GridView(self.grid).clock

    @property
    def control(self) -> Control:
        """The control of the grid underneath."""
        return GridView(self.grid).control

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of the connected nodes."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages, compressed; returns their ids.

        Raises:
            ConfigError: see `send_and_receive`.
        """
        packed, sent = self._packed(list(messages))
        names = list(self.grid.push_messages(packed))
        for name, record in zip(names, sent, strict=True):
            self._remember(name, record)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, decompressed."""
        return [self._opened(reply) for reply in self.grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages, compressed, and returns their replies, decompressed.

        Raises:
            ConfigError: the uplink needs all clients and some are not asked; the server would keep
                more than `max_bytes`; the downlink cannot carry a model, or several at once.
        """
        packed, sent = self._packed(list(messages))
        replies = list(self.grid.send_and_receive(messages=packed, timeout=timeout))
        for message, record in zip(packed, sent, strict=True):
            self._remember(message.metadata.message_id, record)
        opened = [self._opened(reply) for reply in replies]
        for message, record in zip(packed, sent, strict=True):
            if record is not None:  # a reply that comes after the timeout is thrown away
                self._open[record.node].pop(message.metadata.message_id, None)
        return opened

    # ---- what is sent --------------------------------------------------------------------------

    def _packed(self, messages: list[Message]) -> tuple[list[Message], list[_Sent | None]]:
        rows: dict[int, Row] = {}  # by identity of the record: a cohort's messages share theirs
        for message in messages:
            record = message.content.get(self.arrays_key)
            if isinstance(record, ArrayRecord) and id(record) not in rows:
                rows[id(record)] = self._row(record)
        if self._receivers is not None:
            asked = [m.metadata.dst_node_id for m in messages if _trains(m)]
            if asked:
                self._receivers.check_participants([self._sender(node) for node in asked])
        if self._broadcast is not None and rows:
            distinct = list(rows.values())
            if any((row != distinct[0]).any() for row in distinct[1:]):
                raise ConfigError(
                    "the strategy sends different models at once, and a compressed downlink is one "
                    "broadcast to all: leave the downlink uncompressed"
                )
            self._broadcast.send(distinct[0])
        shared: dict[Any, Any] = {}  # contents and records made here, by what went into them
        pairs = [self._pack(message, rows, shared) for message in messages]
        return [message for message, _ in pairs], [sent for _, sent in pairs]

    def _row(self, record: ArrayRecord) -> Row:
        if self._layout is None:
            self._layout = self._known_layout or layout_of(record)
            if self._known_layout is None and (self._layout.carried or self._layout.statistics):
                raise ConfigError(
                    "the model has buffers, which are not compressed with what clients train: pass "
                    "layout=Layout.of(model) to fl.strategies.Compressed"
                )
            if self.uplink is not None:
                trained = Shapes.trained(self._layout)
                self._receivers = Receivers(self.uplink, trained, self.num_clients, self.max_bytes)
            if self.downlink is not None:
                self._broadcast = Broadcast(self.downlink, Shapes.of(self._layout), self.seed)
        return from_record(self._layout, record)

    def _pack(
        self, message: Message, rows: dict[int, Row], shared: dict[Any, Any]
    ) -> tuple[Message, _Sent | None]:
        record = message.content.get(self.arrays_key)
        if not isinstance(record, ArrayRecord):
            return message, None
        node, w = message.metadata.dst_node_id, rows[id(record)]
        held, version, parts = w, -1, None
        if self._broadcast is not None:
            held, version = self._broadcast.held, self._broadcast.version
            parts = self._broadcast.parts(self._known.get(node))
        number = self._number_to_tell(node) if _trains(message) else None
        key = (id(message.content), parts, number)
        content = shared.get(key)
        if content is None:
            content = shared[key] = self._content(message.content, record, parts, number, shared)
        sent = _Sent(node, _trains(message), w, held, version)
        if content is message.content:
            return message, sent
        # Not the app's own object: it may push that again.
        return with_content(message, content), sent

    def _content(
        self,
        content: RecordDict,
        record: ArrayRecord,
        parts: tuple[bytes, ...] | None,
        number: int | None,
        shared: dict[Any, Any],
    ) -> RecordDict:
        if parts is None and number is None:
            return content
        records = dict(content)
        if parts is not None:
            key = (id(record), parts)
            if key not in shared:
                shared[key] = self._payloads(record, parts)
            records[self.arrays_key] = shared[key]
        if number is not None:
            told = ConfigRecord(dict(content.config_records.get(self.config_key, {})))
            told[NEXT_KEY] = number
            records[self.config_key] = told
        return RecordDict(records)

    def _payloads(self, record: ArrayRecord, parts: tuple[bytes, ...]) -> ArrayRecord:
        if self._broadcast is None or self._layout is None:
            raise ConfigError("there is no downlink")
        arrays = {VERSION_KEY: _array(u32(self._broadcast.version))}
        arrays.update({f"{PAYLOAD_KEY}.{i}": _array(part) for i, part in enumerate(parts)})
        arrays.update(carried(self._layout, record))
        return ArrayRecord(arrays)

    def _number_to_tell(self, node: int) -> int | None:
        """Returns the number that a client's reply must have, if the client cannot know it."""
        if self._receivers is None:
            return None
        sender = self._sender(node)
        unsure = sender in self._unsure
        self._unsure.add(sender)
        return self._receivers.next_message(sender) if unsure and self._receivers.keeps else None

    def _sender(self, node: int) -> int:
        return self._senders.setdefault(node, len(self._senders))

    def _remember(self, name: str, sent: _Sent | None) -> None:
        if sent is None:
            return
        of_node = self._open.setdefault(sent.node, OrderedDict())
        of_node[name] = sent
        while len(of_node) > _OPEN:  # the server does not keep a model for every lost message
            of_node.popitem(last=False)

    # ---- what arrives --------------------------------------------------------------------------

    def _opened(self, reply: Message) -> Message:
        """Returns the reply with its model in the place of the payload, or an error reply."""
        name, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        sent = self._open.get(node, OrderedDict()).pop(name, None)
        if reply.has_error():
            if reply.error.code not in _GONE:
                self._known.pop(node, None)  # whatever it was, the client may have lost its memory
            return reply
        if sent is None and not reply.metadata.message_type.startswith("train"):
            return reply
        try:
            if sent is None:
                raise PayloadError(f"it answers {name!r}, which was not sent, or too long ago")
            if sent.version >= 0:
                self._known[node] = max(sent.version, self._known.get(node, -1))
            if not sent.train:
                return reply
            content = RecordDict({**reply.content, self.arrays_key: self._model(reply, sent)})
        except (PayloadError, ConfigError) as error:
            log.warning("node %d: %s", node, error)
            self.control.rejected(name)
            fault = Error(ErrorCode.UNKNOWN, str(error))
            return message_of(reply.metadata, error=fault)
        return with_content(reply, content)

    def _model(self, reply: Message, sent: _Sent) -> ArrayRecord:
        if self._layout is None:
            raise ConfigError("a reply came before the first message was sent")
        record = reply.content.get(self.arrays_key)
        if not isinstance(record, ArrayRecord):
            raise PayloadError(f"the reply has no ArrayRecord '{self.arrays_key}'")
        if self._receivers is None:
            change = from_record(self._layout, record, finite=False) - sent.held
            return to_record(self._layout, sent.w + change, carried(self._layout, record))
        payload = record.get(PAYLOAD_KEY)
        if payload is None or payload.stype != PAYLOAD_STYPE:
            raise PayloadError(
                f"'{self.arrays_key}' of the reply has no payload '{PAYLOAD_KEY}' of stype "
                f"'{PAYLOAD_STYPE}'"
            )
        layout, entries = self._layout, carried(self._layout, record)
        base = with_entries(layout, sent.w, record, layout.moving_buffers)
        sender = self._sender(reply.metadata.src_node_id)
        if payload.data == NOT_FINITE:  # for the strategy to see
            change = np.full(layout.num_trainable, np.nan, np.float32)
        else:
            change = self._receivers.receive(sender, payload.data)
            self._unsure.discard(sender)
        with np.errstate(over="ignore"):  # for the strategy to see
            trained = layout.select(as_tensor(base)) + as_tensor(change)
        fixed = layout.fixed(as_tensor(base), carried_tensors(entries))
        return to_record(layout, layout.join(trained, fixed), entries)


class Compressed(strategy.Strategy):
    """Any strategy, run over a `CompressedGrid`.

    The strategy's own `start` runs, whatever it does: rounds, or single messages in its own order.

    Args:
        inner: the strategy; it sends and gets ordinary messages.
        uplink: the channel of what clients send; None leaves it as it is.
        downlink: the channel of what they receive; None leaves it as it is.
        num_clients: clients there are.
        seed: of the downlink's random numbers.
        max_bytes: bound on what the server keeps for all clients together.
        layout: of the clients' model; None if all its entries are trained.
        arrays_key, config_key: names of the records in messages.
    """

    def __init__(
        self,
        inner: strategy.Strategy,
        uplink: Channel | None = None,
        downlink: Channel | None = None,
        *,
        num_clients: int,
        seed: int = 0,
        max_bytes: int = 2**30,
        layout: Layout | None = None,
        arrays_key: str = "arrays",
        config_key: str = "config",
    ) -> None:
        self.inner = inner
        self.uplink = uplink
        self.downlink = downlink
        self._options: dict[str, Any] = {
            "num_clients": num_clients,
            "seed": seed,
            "max_bytes": max_bytes,
            "layout": layout,
            "arrays_key": arrays_key,
            "config_key": config_key,
        }

    def over(self, grid: Grid) -> CompressedGrid:
        """Returns the grid that the strategy is run over."""
        return CompressedGrid(grid, self.uplink, self.downlink, **self._options)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Runs the strategy; arguments and result are those of its own `start`."""
        return self.inner.start(self.over(grid), *args, **kwargs)

    def summary(self) -> None:
        """Logs the inner strategy's configuration."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages; they must be sent over `over(grid)`."""
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what the inner strategy makes of replies that came over `over(grid)`."""
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages; they must be sent over `over(grid)`."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns the inner strategy's metrics."""
        return self.inner.aggregate_evaluate(server_round, replies)


def _trains(message: Message) -> bool:
    return bool(message.metadata.message_type.startswith("train"))


def _array(payload: bytes) -> Array:
    return Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)
