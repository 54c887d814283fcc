"""Strategies of Flower's and of anybody's, as drivers.

They send and receive by themselves, through nothing but a `Grid`: so what comes between them and
their clients can only be put there, around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx, Result, Strategy

from fl.errors import ConfigError
from fl.flower.carried import carried
from fl.flower.grid_around import GridAround
from fl.flower.grid_view import Clock, Control, GridView
from fl.flower.messages import with_content
from fl.flower.private import message_of
from fl.flower.records import from_record, layout_of, to_record
from fl.strategies.drivers.codec import Codec, OpenMessages, trains
from fl.strategies.drivers.driver import Driver, Traits, told_by
from fl.strategies.drivers.events.server import Sent, Update
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.forging import Forging
from fl.strategies.drivers.guarded import OF_TREES, guarded
from fl.strategies.drivers.replies import model_in
from fl.strategies.drivers.tasks import Task
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

_METRICS = ("train_loss_key",)  # arguments that name one


def driver_of(strategy: Strategy) -> Driver:
    """Returns the strategy itself if it is one of this project, else one that runs it."""
    if isinstance(strategy, Driver):
        return strategy
    keys = ("arrayrecord_key", "arrays"), ("configrecord_key", "config")
    arrays_key, config_key = (str(getattr(strategy, name, key)) for name, key in keys)
    return Foreign(strategy, arrays_key=arrays_key, config_key=config_key)


class Foreign(Driver):
    """Any strategy, run through an exchange; its own `start` runs, whatever it does.

    Flower's averaging strategies are put behind a guard (`Guarded`). Over compressed links the
    strategy is given a grid that encodes what it sends and decodes what it receives; what Byzantine
    clients forge is in the place of their replies there. Replies of one `send_and_receive` are a
    round of the attack, those that are pulled are forged one by one, see `Forging`.

    Args:
        inner: the strategy; it sends and gets ordinary messages.
        arrays_key: name of the record of the model in its messages.
        config_key: name of the record of what they say.
    """

    def __init__(
        self, inner: Strategy, *, arrays_key: str = "arrays", config_key: str = "config"
    ) -> None:
        self.inner = inner
        self.arrays_key = arrays_key
        self.config_key = config_key

    @property
    def name(self) -> str:
        """What the inner strategy is called."""
        return str(getattr(self.inner, "name", type(self.inner).__name__))

    @property
    def evaluates_on_clients(self) -> bool:
        """Whether the inner strategy, as it is configured, sends `evaluate` messages."""
        return bool(getattr(self.inner, "fraction_evaluate", 0.0))

    def told(self) -> dict[str, tuple[str, Any]]:
        """Returns what the inner strategy writes into every message, if that is known."""
        tells = {"proximal-mu": "proximal_mu"} if isinstance(self.inner, FedProx) else {}
        return told_by(self.inner, tells)

    def cohort(self, num_clients: int) -> int:
        """Returns how many clients Flower's strategies select."""
        if not isinstance(self.inner, FedAvg):
            return num_clients
        share = int(self.inner.fraction_train * num_clients)
        return min(num_clients, max(share, self.inner.min_train_nodes))

    @property
    def metrics(self) -> Mapping[str, str]:
        """What Flower's q-FedAvg takes for a client's loss."""
        there = [name for name in _METRICS if hasattr(self.inner, name)]
        return {name: str(getattr(self.inner, name)) for name in there}

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(known=False)

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy that runs through an exchange.

        Raises:
            ConfigError: the attack searches against the rule that combines updates, which is not
                known; or clients of ours are to grow trees.
        """
        attack = exchange.attack
        if exchange.layout is not None and isinstance(self.inner, OF_TREES):
            raise ConfigError(
                f"strategy is {self.name}, whose clients grow trees, and those of client=... train "
                "a model: run it in an app of its own, app=DIR, or use another strategy"
            )
        if attack is not None and attack.knowledge == "aggregation":
            raise ConfigError(
                f"attack is {type(attack).__name__}, which searches against the rule that combines "
                f"updates, and {self.name} shows none: use an attack that does not know the rule, "
                "or a strategy of fl with aggregator=..."
            )
        return super().within(exchange)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Runs the strategy; arguments and result are those of its own `start`.

        Raises:
            ConfigError: updates are to be forged, and the grid is not simulated, or a `train`
                message holds no model.
        """
        exchange, control = self.exchange, GridView(grid).control
        exchange.check(grid)
        codec = exchange.codec(control, self.arrays_key, self.config_key)
        if codec is not None:
            grid = CodedGrid(grid, codec)
        if (forging := exchange.forging()) is not None:
            grid = ForgedGrid(grid, forging, exchange.layout, self.arrays_key)
        return guarded(self.inner, exchange.layout).start(grid, *args, **kwargs)

    def summary(self) -> None:
        """Logs the inner strategy's configuration."""
        self.inner.summary()


class _SameTime(GridAround):
    """A grid around another, with its clock, its control and its nodes."""

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


class CodedGrid(_SameTime):
    """A grid whose messages pass a codec.

    Args:
        grid: carries the messages.
        codec: of the run.
    """

    def __init__(self, grid: Grid, codec: Codec) -> None:
        super().__init__(grid)
        self._codec = codec

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages, encoded; returns their ids."""
        packed = self._codec.pack(list(messages))
        names = list(self.grid.push_messages([message for message, _ in packed]))
        self._codec.sent(names, packed)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, decoded."""
        return [self._codec.open(reply) for reply in self.grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages, encoded, and returns their replies, decoded."""
        return self._codec.send_and_receive(self.grid, list(messages), timeout)


class ForgedGrid(_SameTime):
    """A grid from which the updates of Byzantine clients come as an attack makes them.

    Args:
        grid: carries the messages; what it returns is decoded.
        forging: of the run.
        layout: of the clients' model; None takes that of the first message.
        arrays_key: name of the model's record in messages.

    Attributes:
        version: rounds so far, of `send_and_receive`.
    """

    def __init__(
        self, grid: Grid, forging: Forging, layout: Layout | None, arrays_key: str
    ) -> None:
        super().__init__(grid)
        self.version = 0
        self._forging = forging
        self._layout = layout
        self._arrays_key = arrays_key
        self._open = OpenMessages[Task[Sent]]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages; returns their ids."""
        messages = list(messages)
        models = self._models(messages)
        names = list(self.grid.push_messages(messages))
        self._sent(messages, names, models)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, forged if they are of Byzantine clients."""
        return [self._pulled(reply) for reply in self.grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages and returns their replies, those of Byzantine clients forged."""
        messages = list(messages)
        models = self._models(messages)
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        names = [message.metadata.message_id for message in messages]
        self._sent(messages, names, models)
        updates = {reply.metadata.reply_to_message_id: self._update(reply) for reply in replies}
        for name, message in zip(names, messages, strict=True):  # a later reply is thrown away
            self._open.pop(message.metadata.dst_node_id, name)
        known = [update for update in updates.values() if update is not None]
        sent = {u.task.message_id: u for u in self._forging.forged(self, known)}
        self.version += any(model is not None for model in models)
        return [
            self._as_sent(reply, updates[name], sent.get(name))
            for reply in replies
            for name in [reply.metadata.reply_to_message_id]
        ]

    def _models(self, messages: Sequence[Message]) -> list[Row | None]:
        """Returns the model in each message that asks a client to train.

        Raises:
            ConfigError: it holds none that an update can be a change of.
        """
        rows: dict[int, Row] = {}  # by identity of the record: a cohort's messages share it
        models: list[Row | None] = []
        for message in messages:
            if not trains(message):
                models.append(None)
                continue
            record = message.content.get(self._arrays_key)
            if not isinstance(record, ArrayRecord):
                raise ConfigError(
                    f"attack is {type(self._forging.attack).__name__}, which forges changes of a "
                    f"model, and the strategy sends none as {self._arrays_key!r}: use an attack on "
                    "data (label_flip, backdoor)"
                )
            if self._layout is None:
                self._layout = layout_of(record)
            if id(record) not in rows:
                rows[id(record)] = from_record(self._layout, record)
            models.append(rows[id(record)])
        return models

    def _sent(
        self, messages: Sequence[Message], names: Sequence[str], models: Sequence[Row | None]
    ) -> None:
        now = self.clock.now()
        for message, name, w in zip(messages, names, models, strict=True):
            if w is not None:
                node = message.metadata.dst_node_id
                self._open.add(node, name, Task(name, node, now, Sent(self.version, w, {})))

    def _update(self, reply: Message) -> Update | None:
        """Returns the update in a reply; None if there is none, for the strategy to see."""
        task = self._open.pop(reply.metadata.src_node_id, reply.metadata.reply_to_message_id)
        if task is None or self._layout is None or not reply.has_content():
            return None
        try:
            record = model_in(reply, self._arrays_key)
            x = from_record(self._layout, record)
            return Update(task, x, {}, self.clock.now(), carried(self._layout, record))
        except ConfigError:
            return None

    def _pulled(self, reply: Message) -> Message:
        update = self._update(reply)
        if update is None:
            return reply
        return self._as_sent(reply, update, self._forging.forged_one(self, update))

    def _as_sent(self, reply: Message, update: Update | None, sent: Update | None) -> Message:
        """Returns a reply with what its client has sent, which may be what it has trained."""
        if sent is update or self._layout is None:
            return reply
        if sent is None:
            error = Error(ErrorCode.UNKNOWN, "no payload holds what it forges")
            return message_of(reply.metadata, error=error)
        model = to_record(self._layout, sent.x, sent.statistics)
        return with_content(reply, RecordDict({**reply.content, self._arrays_key: model}))
