"""Any strategy with clients that send compressed changes of the model (`fl.clients.Uplink`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, strategy

from fl.clients.uplink import NEXT_KEY, PAYLOAD_KEY, PAYLOAD_STYPE
from fl.compression import Channel, PayloadError, Receivers, Shapes
from fl.errors import ConfigError
from fl.params import Layout, Row, carried, from_record, to_record

log = logging.getLogger("fl")


class Compressed(strategy.Strategy):
    """Decodes what clients send before another strategy sees it.

    A payload that no encoder can have made becomes an error reply, as if the client had failed;
    what the server keeps for that client stays as it was.

    Args:
        inner: the strategy; it gets ordinary replies.
        channel: the one the clients use.
        num_clients: clients there are, for the bound on memory and for methods that need all.
        max_bytes: most bytes kept for all clients together, for methods whose server has a state
            for each.
        arrays_key, config_key: names of the records in messages.
    """

    def __init__(
        self,
        inner: strategy.Strategy,
        channel: Channel,
        *,
        num_clients: int,
        max_bytes: int = 2**30,
        arrays_key: str = "arrays",
        config_key: str = "config",
    ) -> None:
        self.inner = inner
        self.channel = channel
        self.num_clients = num_clients
        self.max_bytes = max_bytes
        self.arrays_key = arrays_key
        self.config_key = config_key
        self._senders: dict[int, int] = {}  # node id -> number, in order of first appearance
        self._receivers: Receivers | None = None
        self._layout: Layout | None = None
        self._sent: Row | None = None

    def summary(self) -> None:
        """Logs the inner strategy's configuration."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, with the number each sender's reply must have.

        Raises:
            ConfigError: the method needs all clients and some are not asked, or the server would
                keep more than `max_bytes`.
        """
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        if self._receivers is None or self._layout is None:
            self._layout = Layout.of_record(arrays)
            self._receivers = Receivers(
                self.channel, Shapes.of(self._layout), self.num_clients, self.max_bytes
            )
        self._sent = from_record(self._layout, arrays)
        senders = [self._sender(message.metadata.dst_node_id) for message in messages]
        self._receivers.check_participants(senders)
        for message, sender in zip(messages, senders, strict=True):
            number = self._receivers.next_message(sender)
            if number:  # methods without numbers keep the cohort's one content: one broadcast
                content = RecordDict(dict(message.content))
                told = ConfigRecord(dict(content.config_records.get(self.config_key, {})))
                told[NEXT_KEY] = number
                content[self.config_key] = told
                message.content = content
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what the inner strategy makes of the decoded replies."""
        return self.inner.aggregate_train(server_round, self._decoded(list(replies)))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns the inner strategy's metrics."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def _sender(self, node: int) -> int:
        return self._senders.setdefault(node, len(self._senders))

    def _decoded(self, replies: list[Message]) -> list[Message]:
        return [self._opened(reply) if reply.has_content() else reply for reply in replies]

    def _opened(self, reply: Message) -> Message:
        """Returns the reply with its model in the place of the payload, or an error reply."""
        try:
            content = RecordDict(dict(reply.content))
            content[self.arrays_key] = self._model(reply)
        except (PayloadError, ConfigError) as error:
            log.warning("node %d: %s", reply.metadata.src_node_id, error)
            fault = Error(ErrorCode.UNKNOWN, str(error))
            return Message(metadata=reply.metadata, error=fault)  # type: ignore[call-overload, no-any-return]
        return Message(metadata=reply.metadata, content=content)  # type: ignore[call-overload, no-any-return]

    def _model(self, reply: Message) -> ArrayRecord:
        if self._layout is None or self._receivers is None or self._sent is None:
            raise ConfigError("a reply came before the first message was sent")
        record = reply.content.get(self.arrays_key)
        payload = record.get(PAYLOAD_KEY) if isinstance(record, ArrayRecord) else None
        if not isinstance(record, ArrayRecord) or payload is None:
            raise PayloadError(f"the reply has no payload '{PAYLOAD_KEY}' in '{self.arrays_key}'")
        if payload.stype != PAYLOAD_STYPE:
            raise PayloadError(f"the payload is of stype '{payload.stype}', not '{PAYLOAD_STYPE}'")
        entries = carried(self._layout, record)
        change = self._receivers.receive(self._sender(reply.metadata.src_node_id), payload.data)
        return to_record(self._layout, self._sent + change, entries)
