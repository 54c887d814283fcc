"""The server's end of compressed links: payloads of real bytes in one direction or both."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fl.clients.app.choosing import SMOOTHING_KEY, chosen_model, mixed, model_key, shares_of
from fl.clients.app.downlink import VERSION_KEY
from fl.clients.app.task_app import TASK_KEY
from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE, next_key
from fl.compression import Broadcast, PayloadError, Receivers, Shapes
from fl.compression.wire import u32
from fl.errors import ConfigError
from fl.flower.carried import carried, carried_tensors
from fl.flower.grid_view import Control
from fl.flower.messages import with_content
from fl.flower.private import message_of
from fl.flower.records import (
    from_record,
    layout_of,
    record_vector,
    to_record,
    vector_record,
    with_entries,
)
from fl.strategies.drivers.links import DownLink, Heard, UpLink
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_row, as_tensor

if TYPE_CHECKING:
    from fl.strategies.drivers.exchange import Exchange

log = logging.getLogger("fl")

_OPEN = 64  # messages to one client whose reply may still come; of older ones it is refused
_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)  # the client keeps its memory


Memo = TypeVar("Memo")


class OpenMessages(Generic[Memo]):
    """What is remembered of messages whose reply may come, of at most 64 to one client."""

    def __init__(self) -> None:
        self._of_node: dict[int, OrderedDict[str, Memo]] = {}

    def add(self, node: int, name: str, memo: Memo) -> None:
        """Remembers something of a message, and forgets the oldest if there are too many."""
        of_node = self._of_node.setdefault(node, OrderedDict())
        of_node[name] = memo
        while len(of_node) > _OPEN:  # the server does not keep a model for every lost message
            of_node.popitem(last=False)

    def pop(self, node: int, name: str) -> Memo | None:
        """Returns what is remembered of a message, and forgets it; None if nothing is."""
        return self._of_node.get(node, OrderedDict()).pop(name, None)


class _Model:
    """A model's links, and those of vectors beside it.

    Attributes:
        layout: of the model.
        up: what clients send, by the vector's name, "" the model's change; empty if that is not
            compressed.
        down: what they receive, likewise, "" the model.
    """

    def __init__(
        self,
        exchange: Exchange,
        task: str,
        record: ArrayRecord,
        carries: Sequence[str],
        needs: Sequence[str],
    ) -> None:
        known = exchange.layout_of(task)
        if known is not None and exchange.units:
            shapes = {name: tuple(array.shape) for name, array in record.items()}
            known.check_names(shapes)
            known = known.resized(shapes)
        self.layout: Layout = known or layout_of(record)
        if known is None and (self.layout.carried or self.layout.statistics):
            raise ConfigError(
                "the model has buffers, which are not compressed with what clients train: pass "
                "layout=Layout.of(model) to fl.strategies.Exchange"
            )
        self.up: dict[str, UpLink] = {}
        self.down: dict[str, DownLink] = {}
        trained, whole = Shapes.trained(self.layout), Shapes.of(self.layout)
        if (up := exchange.uplink) is not None:
            clients, most, names = exchange.num_clients, exchange.max_bytes, ("", *needs)
            for name in names:
                self.up[name] = UpLink(Receivers(up, trained, clients, most, len(names)))
        if (down := exchange.downlink) is not None:
            for name in ("", *carries):
                broadcast = Broadcast(down, trained if name else whole, exchange.seed, name)
                self.down[name] = DownLink(broadcast, f"vectors {name!r}" if name else "models")


@dataclass(frozen=True)
class _Sent:
    """What the server must know of a message to read its reply: w_t, and what the client got.

    Of compressed vectors in it, "" the model, `versions` has which the client got, and `told` of
    which it was told the number of its payload. Where the client chooses one of several models, or
    `mixes` them, `choice` has all of them.
    """

    model: _Model
    train: bool
    w: Row
    held: Row
    versions: Mapping[str, int]
    told: Collection[str]
    choice: tuple[Row, ...] = ()
    mixes: bool = False


class Packed(NamedTuple):
    """A message as it is sent, and what is remembered of it; None if it carries no model."""

    message: Message
    sent: _Sent | None


class Codec:
    """Compresses the models that a server sends, and decompresses the changes that it receives.

    Whoever sends through it sees ordinary messages. Every message with a model goes down as the
    payloads of a `Broadcast`; every reply to a `train` message comes up as the payload of
    x = w_i - w_hat, with w_hat what the client has decoded (`fl.clients.Downlink`,
    `fl.clients.Uplink`). The reply's model is shown as w_t + x, with w_t the model that was to be
    sent: the client's step, taken from the server's own model, so that errors of the downlink do
    not accumulate in it.

    Vectors beside the model, as SCAFFOLD's, are links of their own through the same channels, which
    keep for each vector what they keep for the model.

    What is not trained is not compressed with the rest: buffers come up as they are, frozen
    parameters not at all.

    A payload that no encoder can have made becomes an error reply, as if the client had failed, and
    a fault in the trace; what the server keeps for that client stays as it was, also for the
    payloads beside it.

    Messages that carry the same model share what they carry. Told apart are only clients that lack
    different versions, and those whose last message to the server did not arrive. Models of several
    learning tasks, which messages name (`fl.clients.TaskApp`), have links of their own.

    Args:
        exchange: has the channels.
        control: is told of payloads that are refused.
        arrays_key, config_key: names of the records in messages.
        carries: records of messages that hold a vector beside the model, to be compressed.
        needs: likewise of replies.
    """

    def __init__(
        self,
        exchange: Exchange,
        control: Control,
        arrays_key: str = "arrays",
        config_key: str = "config",
        carries: Sequence[str] = (),
        needs: Sequence[str] = (),
    ) -> None:
        self._exchange = exchange
        self._control = control
        self._arrays_key = arrays_key
        self._config_key = config_key
        self._carries = carries
        self._needs = needs
        self._models: dict[Hashable, _Model] = {}  # by task, and size where clients hold parts
        self._senders: dict[int, int] = {}  # node id -> number, in order of first appearance
        self._open = OpenMessages[_Sent]()

    # ---- what is sent --------------------------------------------------------------------------

    def pack(self, messages: Sequence[Message]) -> list[Packed]:
        """Returns messages as they are sent; `sent` is to be told their ids.

        Raises:
            ConfigError: the uplink needs all clients and some are not asked; the server would keep
                more than `max_bytes`; the downlink cannot carry a model, or several at once.
        """
        models: dict[int, _Model] = {}  # by identity of the record: a cohort's messages share it
        rows: dict[int, Row] = {}
        choices: dict[int, tuple[Row, ...]] = {}
        asked: dict[Hashable, list[int]] = {}
        for message in messages:
            record = message.content.get(self._arrays_key)
            if not isinstance(record, ArrayRecord):
                continue
            told: Mapping[str, Any] = message.content.config_records.get(self._config_key, {})
            task = str(told.get(TASK_KEY, ""))
            key: Hashable = task
            if self._exchange.units:
                key = task, *(tuple(array.shape) for array in record.values())
            if key not in self._models:
                self._models[key] = _Model(self._exchange, task, record, self._carries, self._needs)
            if id(record) not in rows:
                models[id(record)] = self._models[key]
                rows[id(record)] = from_record(self._models[key].layout, record)
                choices[id(record)] = self._choice(message, self._models[key], rows[id(record)])
            if trains(message):
                asked.setdefault(key, []).append(self._sender(message.metadata.dst_node_id))
        for key, senders in asked.items():
            if self._models[key].up:
                self._models[key].up[""].receivers.check_participants(senders)
        for model in self._models.values():
            self._broadcast(model, messages, models, rows)
        shared: dict[Any, Any] = {}  # contents and records made here, by what went into them
        return [self._pack(message, models, rows, choices, shared) for message in messages]

    def _choice(self, message: Message, model: _Model, first: Row) -> tuple[Row, ...]:
        """Returns the models among which the client chooses; empty if there is one.

        Raises:
            ConfigError: there is a downlink.
        """
        found = [first]
        while (key := model_key(self._arrays_key, len(found))) in message.content.array_records:
            found.append(from_record(model.layout, message.content.array_records[key]))
        if len(found) > 1 and model.down:
            raise ConfigError(
                f"the strategy sends {len(found)} models in a message, and a compressed downlink "
                "carries one: leave the downlink uncompressed"
            )
        return tuple(found) if len(found) > 1 else ()

    def sent(self, names: Iterable[str], packed: Sequence[Packed]) -> None:
        """Notes the ids under which messages were sent."""
        for name, (message, sent) in zip(names, packed, strict=True):
            if sent is not None:
                self._open.add(message.metadata.dst_node_id, name, sent)

    def send_and_receive(
        self, grid: Grid, messages: Sequence[Message], timeout: float | None
    ) -> list[Message]:
        """Sends messages over a grid, and returns the replies that come within a time in s.

        Raises:
            ConfigError: see `pack`.
        """
        packed = self.pack(messages)
        sent = [message for message, _ in packed]
        replies = list(grid.send_and_receive(sent, timeout=timeout))
        names = [message.metadata.message_id for message in sent]
        self.sent(names, packed)
        opened = [self.open(reply) for reply in replies]
        for name, message in zip(names, sent, strict=True):  # a later reply is thrown away
            self._open.pop(message.metadata.dst_node_id, name)
        return opened

    def _broadcast(
        self,
        model: _Model,
        messages: Sequence[Message],
        models: Mapping[int, _Model],
        rows: Mapping[int, Row],
    ) -> None:
        """Makes what messages carry of a model, and beside it, the last versions of its links."""
        if not model.down:
            return
        model.down[""].send([row for key, row in rows.items() if models[key] is model])
        p = model.layout.num_trainable
        for name in self._carries:
            vectors: dict[int, Row] = {}
            for message in messages:
                content = message.content
                record = content.get(name)
                if (
                    isinstance(record, ArrayRecord)
                    and models.get(id(content.get(self._arrays_key))) is model
                    and id(record) not in vectors
                ):
                    vectors[id(record)] = as_row(record_vector(record, p, f"record {name!r}"))
            model.down[name].send(list(vectors.values()))

    def _pack(
        self,
        message: Message,
        models: dict[int, _Model],
        rows: dict[int, Row],
        choices: dict[int, tuple[Row, ...]],
        shared: dict[Any, Any],
    ) -> Packed:
        record = message.content.get(self._arrays_key)
        if not isinstance(record, ArrayRecord):
            return Packed(message, None)
        node, model, w = message.metadata.dst_node_id, models[id(record)], rows[id(record)]
        held = model.down[""].broadcast.held if model.down else w
        carried_here = [name for name in model.down if not name or name in message.content]
        versions = {name: model.down[name].broadcast.version for name in carried_here}
        parts = {name: model.down[name].parts(node) for name in carried_here}
        numbers: dict[str, int] = {}
        if trains(message):
            for name, up in model.up.items():
                if (number := up.number_to_tell(self._sender(node))) is not None:
                    numbers[name] = number
        key = (id(message.content), *parts.items(), *numbers.items())
        content = shared.get(key)
        if content is None:
            content = self._content(message.content, versions, parts, numbers, shared, model)
            shared[key] = content
        told: Mapping[str, Any] = message.content.config_records.get(self._config_key, {})
        choice = choices[id(record)]
        mixes = bool(choice) and SMOOTHING_KEY in told
        sent = _Sent(model, trains(message), w, held, versions, numbers.keys(), choice, mixes)
        if content is message.content:
            return Packed(message, sent)
        # Not the app's own object: it may push that again.
        return Packed(with_content(message, content), sent)

    def _content(
        self,
        content: RecordDict,
        versions: Mapping[str, int],
        parts: Mapping[str, tuple[bytes, ...]],
        numbers: Mapping[str, int],
        shared: dict[Any, Any],
        model: _Model,
    ) -> RecordDict:
        if not parts and not numbers:
            return content
        records = dict(content)
        for name, payloads in parts.items():
            record_key = name or self._arrays_key
            record = content.array_records[record_key]
            key = (id(record), payloads)
            if key not in shared:
                arrays = {VERSION_KEY: _array(u32(versions[name]))}
                arrays.update({f"{PAYLOAD_KEY}.{i}": _array(p) for i, p in enumerate(payloads)})
                if not name:
                    arrays.update(carried(model.layout, record))
                shared[key] = ArrayRecord(arrays)
            records[record_key] = shared[key]
        if numbers:
            told = ConfigRecord(dict(content.config_records.get(self._config_key, {})))
            for name, number in numbers.items():
                told[next_key(name)] = number
            records[self._config_key] = told
        return RecordDict(records)

    def _sender(self, node: int) -> int:
        return self._senders.setdefault(node, len(self._senders))

    # ---- what arrives --------------------------------------------------------------------------

    def open(self, reply: Message) -> Message:
        """Returns the reply with its model in the place of the payload, or an error reply."""
        name, node = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        sent = self._open.pop(node, name)
        if reply.has_error():
            if (
                reply.error.code not in _GONE
            ):  # whatever it was, the client may have lost its memory
                for model in self._models.values():
                    for down in model.down.values():
                        down.forget(node)
            return reply
        if sent is None and not reply.metadata.message_type.startswith("train"):
            return reply
        try:
            if sent is None:
                raise PayloadError(f"it answers {name!r}, which was not sent, or too long ago")
            for vector, version in sent.versions.items():
                sent.model.down[vector].holds(node, version)
            if not sent.train:
                return reply
            content = RecordDict({**reply.content, **self._read(reply, sent)})
        except (PayloadError, ConfigError) as error:
            log.warning("node %d: %s", node, error)
            self._control.rejected(name)
            fault = Error(ErrorCode.UNKNOWN, str(error))
            return message_of(reply.metadata, error=fault)
        return with_content(reply, content)

    def _read(self, reply: Message, sent: _Sent) -> dict[str, ArrayRecord]:
        """Returns the records of a reply as its client has made them; then keeps what was heard."""
        record = reply.content.get(self._arrays_key)
        if not isinstance(record, ArrayRecord):
            raise PayloadError(f"the reply has no ArrayRecord '{self._arrays_key}'")
        layout, up = sent.model.layout, sent.model.up
        if not up and len(record):
            change = from_record(layout, record, finite=False) - sent.held
            return {self._arrays_key: to_record(layout, sent.w + change, carried(layout, record))}
        sender = self._sender(reply.metadata.src_node_id)
        heard: dict[str, Heard] = {}
        read: dict[str, ArrayRecord] = {}
        for name, link in up.items():
            key = name or self._arrays_key
            packed = reply.content.get(key)
            if isinstance(packed, ArrayRecord) and len(packed):  # or it is w, or 0, or missing
                heard[name] = link.hear(sender, _payload(packed, key))
                vector = heard[name].vector
                read[key] = (
                    vector_record(as_tensor(vector))
                    if name
                    else self._changed(reply, sent, packed, vector)
                )
        for name, link in up.items():
            if name in heard:
                link.keep(sender, heard[name])
            elif name not in sent.told:  # nothing was sent that could have been lost
                link.unsure.discard(sender)
        return read

    def _changed(
        self, reply: Message, sent: _Sent, record: ArrayRecord, change: Row
    ) -> ArrayRecord:
        """Returns the model that a client has made, by its change of what it trains."""
        layout, w = sent.model.layout, sent.w
        if sent.choice:
            metrics: Mapping[str, Any] = next(iter(reply.content.metric_records.values()), {})
            k = len(sent.choice)
            if sent.mixes:
                w = mixed(layout, sent.choice, shares_of(metrics, k))
            else:
                w = sent.choice[chosen_model(metrics, k)]
        entries = carried(layout, record)
        base = with_entries(layout, w, record, layout.moving_buffers)
        with np.errstate(over="ignore"):  # for the strategy to see
            trained = layout.select(as_tensor(base)) + as_tensor(change)
        fixed = layout.fixed(as_tensor(base), carried_tensors(entries))
        return to_record(layout, layout.join(trained, fixed), entries)


def trains(message: Message) -> bool:
    """Returns whether a message asks a client to train."""
    return bool(message.metadata.message_type.startswith("train"))


def _array(payload: bytes) -> Array:
    return Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)


def _payload(record: ArrayRecord, key: str) -> bytes:
    payload = record.get(PAYLOAD_KEY)
    if payload is None or payload.stype != PAYLOAD_STYPE:
        raise PayloadError(
            f"'{key}' of the reply has no payload '{PAYLOAD_KEY}' of stype '{PAYLOAD_STYPE}'"
        )
    data: bytes = payload.data
    return data
