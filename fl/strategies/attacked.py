"""Any strategy whose rounds have Byzantine clients that forge what they send."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy

from fl.attacks import Attack, Scene
from fl.errors import ConfigError
from fl.flower.carried import carried
from fl.flower.grid_view import Control, GridView
from fl.flower.identity import client_of
from fl.flower.messages import with_content
from fl.flower.records import from_record, layout_of, to_record
from fl.randomness import generator
from fl.strategies.aggregate import Aggregate
from fl.strategies.guarded import Guarded
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

log = logging.getLogger("fl")


class Attacked(strategy.Strategy):
    """Replaces what Byzantine clients send by what an attack makes of the round's updates.

    A Byzantine client trains like any other, so the time, bytes and energy it takes are those of an
    honest one; a forged model has the size of a real one. When the round's replies are there, and
    before the strategy sees them, the changes x_i = w_i - w of the model become the vectors of the
    attack: `honest` in the order of the clients, whatever the order of arrival, and `own` of the
    Byzantine ones. What a client sends beside the model (metrics, control variates) stays true. A
    Byzantine client whose reply did not come, or is none, forges nothing, and only those whose
    replies came count as the attack's f.

    Attacks that know more than the client's own update read all honest ones, as no client of a
    deployment can: this runs on a simulated grid only. Every forged reply is an event of the trace,
    counted with the faults.

    Args:
        inner: the strategy, with rounds of Flower's kind; it gets ordinary replies.
        attack: what is sent.
        byzantine: the clients that carry it out, as indices in the fleet.
        seed: of attacks that draw.
        arrays_key: name of the model's record in messages and replies.

    Raises:
        ConfigError: the strategy has no rounds; or the attack knows the server's rule, and there is
            none it could read.
    """

    def __init__(
        self,
        inner: strategy.Strategy,
        attack: Attack,
        byzantine: Collection[int],
        *,
        seed: int = 0,
        arrays_key: str = "arrays",
    ) -> None:
        name = type(inner.inner if isinstance(inner, Guarded) else inner).__name__
        if type(inner).start is not strategy.Strategy.start:
            raise ConfigError(
                f"{name} does not work in rounds, and forged updates are made of "
                "those of a round: use a strategy with rounds, or an attack on data (label_flip, "
                "backdoor)"
            )
        if attack.knowledge == "aggregation" and not isinstance(inner, Aggregate):
            raise ConfigError(
                f"{type(attack).__name__} searches against the server's rule, which "
                f"{name} does not show: use strategy=aggregate, or an attack that "
                "does not know the rule"
            )
        self.inner = inner
        self.attack = attack
        self.byzantine = frozenset(byzantine)
        self.seed = seed
        self.arrays_key = arrays_key
        self._memory: Mapping[str, np.ndarray] = {}
        self._bases: dict[int, Row] = {}  # what each node was sent in this round
        self._layout: Layout | None = None
        self._control: Control | None = None

    def summary(self) -> None:
        """Logs the inner strategy's configuration."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages.

        Raises:
            ConfigError: the grid is not simulated.
        """
        if not GridView(grid).clock.virtual:
            raise ConfigError(
                f"{type(self.attack).__name__} is simulated: it replaces clients' updates on the "
                f"server, so it runs on the simulator only, and {type(grid).__name__} is a real "
                "grid: leave the attack out"
            )
        self._control = GridView(grid).control
        self._layout = layout_of(arrays)
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        rows: dict[int, Row] = {}  # a cohort's messages share one content
        self._bases = {}
        for message in messages:
            key = id(message.content)
            if key not in rows:
                rows[key] = from_record(self._layout, self._model(message))
            self._bases[message.metadata.dst_node_id] = rows[key]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what the inner strategy makes of honest and forged replies."""
        return self.inner.aggregate_train(server_round, self.forged(server_round, list(replies)))

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

    def forged(self, server_round: int, replies: Sequence[Message]) -> list[Message]:
        """Returns the replies of a round with those of Byzantine clients forged.

        Without a Byzantine reply, or without an honest one for an attack that reads some, they are
        returned as they are; and, for an attack that knows the rule, if there are too few for it.

        Args:
            server_round: the round.
            replies: all that came, in any order; the result has the same order.

        Raises:
            ConfigError: the attack refuses what it finds.
        """
        changes = {
            i: x for i, reply in enumerate(replies) if (x := self._change(reply)) is not None
        }
        order = sorted(changes, key=lambda i: replies[i].metadata.src_node_id)
        own = [i for i in order if self._is_byzantine(replies[i])]
        honest = [i for i in order if i not in own and np.isfinite(changes[i]).all()]
        if not own or (not honest and self.attack.knowledge != "own"):
            return list(replies)
        d = len(changes[own[0]])
        scene = self._scene(server_round, len(own), len(own) + len(honest), d)
        if scene is None:
            return list(replies)
        with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
            rows, self._memory = self.attack(
                np.stack([changes[i] for i in honest]) if honest else np.empty((0, d), np.float32),
                np.stack([changes[i] for i in own]),
                scene,
            )
            result = list(replies)
            for i, row in zip(own, rows, strict=True):
                result[i] = self._forged(replies[i], row)
        return result

    def _scene(self, server_round: int, f: int, n: int, d: int) -> Scene | None:
        rng = generator(self.seed, "attack", server_round)
        if self.attack.knowledge != "aggregation" or not isinstance(self.inner, Aggregate):
            return Scene(f, rng, memory=self._memory)
        known = self.inner.known(server_round, d)
        try:
            known.rule.check(n)
        except ConfigError:  # for the strategy to say
            return None
        return Scene(f, rng, known.rule, known.rng, known.reference, self._memory)

    def _is_byzantine(self, reply: Message) -> bool:
        return client_of(reply.metadata.src_node_id) in self.byzantine

    def _model(self, message: Message) -> ArrayRecord:
        record = message.content.get(self.arrays_key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"a message has no ArrayRecord '{self.arrays_key}', only {sorted(message.content)}"
            )
        return record

    def _change(self, reply: Message) -> Row | None:
        """Returns how a client says the model changed, shape (d,); None if it says nothing."""
        base = self._bases.get(reply.metadata.src_node_id)
        if base is None or self._layout is None or not reply.has_content():
            return None
        try:
            w = from_record(self._layout, self._model(reply), finite=False)
        except ConfigError as error:
            log.warning("node %d: %s", reply.metadata.src_node_id, error)
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(w - base)

    def _forged(self, reply: Message, change: Row) -> Message:
        if self._layout is None or self._control is None:
            raise ConfigError("a reply came before the first message was sent")
        row = self._bases[reply.metadata.src_node_id] + change.astype(np.float32, copy=False)
        content = RecordDict(dict(reply.content))
        content[self.arrays_key] = to_record(
            self._layout, row, carried(self._layout, self._model(reply))
        )
        self._control.forged(reply.metadata.reply_to_message_id)
        return with_content(reply, content)
