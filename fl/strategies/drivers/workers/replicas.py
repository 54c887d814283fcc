"""The server of workers that are replicas: 1-bit Adam, DeMo, Just One Byte.

The rule is `fl.compression.Replicated`, the workers' part `fl.clients.Replica`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl.aggregation import Mean
from fl.clients.app.replica import Replica, trained_shapes
from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE
from fl.compression import Channel, PayloadError, Replicated, Shapes
from fl.compression.compressor import State
from fl.errors import ConfigError, Diverged, SimulationError
from fl.flower.grid_view import GridView
from fl.flower.identity import client_of
from fl.flower.records import from_record, layout_of, to_record
from fl.randomness import generator
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.liars import Liars
from fl.strategies.drivers.replies import averageable
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

_average = FedAvg().train_metrics_aggr_fn  # what Flower averages metrics by


class Replicas(RuleDriver):
    """Sends every worker the same message, made of all the workers' messages.

    In the first round the model goes out as it is. Afterwards only messages travel, which the
    server applies to its own replica too, for evaluation. A round is one step. It begins when all
    workers are there, and cannot do without the message of any.

    A compressor carries the gradients that workers send as they are, as in the warm-up of 1-bit
    Adam.

    Byzantine workers step as others do. What they send is a message of the vector that the attack
    makes of those that all the others' messages stand for (gradients, momenta, or what is left of
    them), through an encoder of their own: it looks and costs like an honest one.

    Args:
        rule: the method; `rule.workers` is the number of clients.
        **driver: arguments of `RuleDriver` but `min_available_nodes` and `patience`.
    """

    rules = Replicated
    example = "OneBitAdam"
    rule: Replicated

    reads_timeout = True

    def __init__(self, rule: Replicated, **driver: Any) -> None:
        super().__init__(rule, min_available_nodes=1, patience=None, **driver)
        self._layout: Layout | None = None
        self._x: Row | None = None
        self._replica: State = {}
        self._server: State = {}
        self._message = b""
        self._grid: Grid | None = None
        self._liars: Liars | None = None
        self._lying: dict[int, State] = {}  # of each liar, by Flower id
        self._unforged: State = {}  # of a server that gets what liars would send otherwise

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        some = self.rule.sends_gradients
        return Traits(sends="payload", compressors="any" if some else "none", downlink=False)

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError unless every client is a worker."""
        if num_clients != self.rule.workers:
            raise ConfigError(
                f"there are {num_clients} clients and {self.rule.workers} workers: set "
                f"strategy.rule.workers={num_clients}"
            )

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Replica, Replica]:
        """Returns the clients' ends of the links, see `Driver.ends`."""
        rule = self.rule if uplink is None else self.rule.through(uplink)
        worker = Replica(rule, self.arrayrecord_key)
        return worker, worker

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`."""
        made = super().within(exchange)
        if exchange.uplink is not None:
            made.rule = self.rule.through(exchange.uplink)
        return made

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message with the same content for every worker, once all are there.

        Raises:
            ConfigError: there are more clients than workers.
        """
        clock = GridView(grid).clock
        while len(nodes := sorted(grid.get_node_ids())) < self.rule.workers:
            clock.sleep(self.retry_s)
        self.check_clients(len(nodes))
        self._grid = grid
        if self._layout is None:
            self._layout = layout_of(arrays)
            shapes = trained_shapes(self._layout)
            self._x = from_record(self._layout, arrays)
            self._replica = self.rule.init_worker(shapes)
            self._server = self.rule.init_server(shapes)
            self.exchange.check(grid)
            if (attack := self.exchange.attack) is not None:
                self._liars = Liars(attack, self.exchange.seed, None)
                liars = [node for node in nodes if client_of(node) in self.exchange.byzantine]
                self._lying = {node: self._replica for node in liars}
                self._unforged = self._server
        if self._message:
            array = Array("uint8", (len(self._message),), PAYLOAD_STYPE, self._message)
            arrays = ArrayRecord({PAYLOAD_KEY: array})
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [Message(content, node, MessageType.TRAIN) for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the model after the step, and the mean of the workers' metrics.

        Raises:
            ConfigError: a worker's message is malformed: the step cannot be taken.
            SimulationError: a worker's message is missing.
            Diverged: the step would make the model NaN or infinite, at every worker.
        """
        if self._layout is None or self._x is None:
            raise ConfigError("replies came before the first round was configured")
        replies = list(replies)
        arrived = sorted(
            (reply for reply in replies if reply.has_content()),
            key=lambda reply: reply.metadata.src_node_id,
        )
        if len(arrived) < self.rule.workers:
            raise self._missing(server_round, replies, len(arrived))
        shapes = Shapes.of(self._layout)
        payloads = self._payloads(arrived, shapes)
        if self._liars is not None and self._lying:
            payloads = self._forged(self._liars, server_round, arrived, payloads, shapes)
        rng, x = self._rng(server_round), self._x
        try:
            self._message, self._server = self.rule.combine(payloads, shapes, self._server, rng)
            self._x, self._replica = self.rule.apply(x, self._message, shapes, self._replica)
            for node, state in self._lying.items():
                _, self._lying[node] = self.rule.apply(x, self._message, shapes, state)
        except PayloadError as error:  # each payload by itself was right
            raise Diverged(
                f"{type(self.rule).__name__} cannot take step {server_round}: {error}; training "
                "may have diverged: lower the learning rate"
            ) from error
        self._x.flags.writeable = False
        alike = averageable([reply.content for reply in arrived], "num-examples")
        metrics = _average(alike, "num-examples") if alike else None
        return to_record(self._layout, self._x, {}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns no messages: the server evaluates its own replica."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns None."""
        return None

    def _rng(self, server_round: int) -> np.random.Generator:
        """Returns what the server draws from in a round."""
        return generator(self.seed, "compression", "server", server_round)

    def _forged(
        self,
        liars: Liars,
        server_round: int,
        replies: Sequence[Message],
        payloads: Sequence[bytes],
        shapes: Shapes,
    ) -> list[bytes]:
        """Returns the payloads of all workers with those of liars forged.

        Raises:
            ConfigError: no message can hold what a liar is to send.
        """
        rule, forged = self.rule, list(payloads)
        F = Mean() if rule.aggregator is None else rule.aggregator
        nodes = [reply.metadata.src_node_id for reply in replies]
        rows = [rule.decode(p, shapes, self._unforged, i) for i, p in enumerate(payloads)]
        rng = self._rng(server_round)
        _, self._unforged = rule.combine(payloads, shapes, self._unforged, rng)
        lying = [i for i, node in enumerate(nodes) if node in self._lying]
        vectors = liars.forged(
            [row for i, row in enumerate(rows) if i not in lying],
            [rows[i] for i in lying],
            generator(self.exchange.seed, "attack", server_round),
            lambda n, d: (F, self._rng(server_round), self._server.get("result")),
        )
        if vectors is None:
            return forged
        for i, u in zip(lying, vectors, strict=True):
            node, name = nodes[i], replies[i].metadata.reply_to_message_id
            rng = generator(self.exchange.seed, "forged compression", client_of(node), name)
            u = np.ascontiguousarray(u, np.float32)
            try:
                forged[i], self._lying[node] = rule.encode(u, shapes, self._lying[node], rng)
            except ConfigError as error:
                raise ConfigError(
                    f"{type(liars.attack).__name__} makes a vector that no message of "
                    f"{type(rule).__name__} can hold, and no step can be taken without one: {error}"
                ) from error
            if self._grid is not None:
                GridView(self._grid).control.forged(name)
        return forged

    def _missing(self, server_round: int, replies: Sequence[Message], came: int) -> SimulationError:
        reasons = sorted({reply.error.reason or "" for reply in replies if reply.has_error()})
        why = "; ".join(reasons) or "they did not answer within round_timeout_s: raise it"
        return SimulationError(
            f"{type(self.rule).__name__} needs the message of every worker in every round, and in "
            f"round {server_round}, {self.rule.workers - came} of {self.rule.workers} are missing "
            f"({why}). Use a fleet without faults, or, where clients fail, strategy=fedavg with "
            "compressor=topk feedback=ef or ef21"
        )

    def _payloads(self, replies: Sequence[Message], shapes: Shapes) -> list[bytes]:
        payloads: list[bytes] = []
        refused: list[tuple[Message, PayloadError]] = []
        for i, reply in enumerate(replies):
            try:
                payloads.append(self._payload(reply, shapes, i))
            except PayloadError as error:
                refused.append((reply, error))
        for reply, _ in refused:
            if self._grid is not None:
                GridView(self._grid).control.rejected(reply.metadata.reply_to_message_id)
        if not refused:
            return payloads
        first, why = refused[0]
        if not payloads:  # all of them do not lie
            raise Diverged(
                f"the messages of all {len(refused)} workers are refused ({why}); training may "
                "have diverged: lower the learning rate"
            ) from why
        raise ConfigError(
            f"the message of node {first.metadata.src_node_id} is refused ({why}), and "
            f"{type(self.rule).__name__} cannot take a step without it: where clients cannot "
            "be trusted, use strategy=fedavg with a compressor"
        ) from why

    def _payload(self, reply: Message, shapes: Shapes, worker: int) -> bytes:
        record = reply.content.get(self.arrayrecord_key)
        payload = record.get(PAYLOAD_KEY) if isinstance(record, ArrayRecord) else None
        if payload is None or payload.stype != PAYLOAD_STYPE:
            raise PayloadError(f"there is no payload '{PAYLOAD_KEY}' in '{self.arrayrecord_key}'")
        self.rule.decode(payload.data, shapes, self._server, worker)
        return payload.data
