"""Rounds whose updates are combined by any rule of `fl.aggregation`, on one (n, d) matrix.

With the mean this is FedAvg (McMahan et al., arXiv:1602.05629), with other rules its robust
relatives. The replies' rows are read where they are, not collected as n dictionaries.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy

from fl.aggregation import Admitted, Aggregator, Dropped, Fold, Guard, fault_of
from fl.arguments import read_if
from fl.errors import ConfigError
from fl.params import Layout, Row, carried, from_record, stack, to_record
from fl.randomness import generator
from fl.simulation.control import Control, control_of

log = logging.getLogger("fl")


class Known(NamedTuple):
    """What decides a round's aggregate beside the updates.

    Attributes:
        rule: F.
        rng: in the state that F is given.
        reference: the vector that F is given, of shape (d,), if it wants one.
    """

    rule: Aggregator
    rng: np.random.Generator
    reference: Row | None


@read_if(
    lambda a: a["f"] is None, "rule.f", "rule.rule.f", "rule.pre.*.f", only="{at}f counts instead"
)
class Aggregate(strategy.FedAvg):
    """Synchronous rounds with a rule F for the clients' updates.

        w <- w + eta F(w_1 - w, ..., w_n - w)

    where w_i is what client i made of w. A reply that is no model of the right form, or not finite,
    never reaches F: it counts as one of the f the rule tolerates, and is an event of the trace.
    More than f raise. A round with too few replies for the rule leaves the model as it is.

    A rule that continues from its last result is given that. One that wants a trusted update, or
    the vector of the node that aggregates, is given the server's own update (`TrustedUpdate`).

    Args:
        rule: F.
        eta: server learning rate, above 0.
        f: how many Byzantine clients F is to tolerate, instead of what the rule itself says; rules
            without such a number stay as they are. None leaves all as they are.
        seed: of rules that draw.
        root_examples: how many examples the server holds itself, for rules that want its update.
        **flower: arguments of `flwr.serverapp.strategy.FedAvg`.

    Attributes:
        trusted: returns the server's own update, from the round, the model and the configuration
            that are sent; to be set for a rule that wants it.

    Raises:
        ConfigError: eta is not positive, or f negative.
    """

    def __init__(
        self,
        *,
        rule: Aggregator,
        eta: float = 1.0,
        f: int | None = None,
        seed: int = 0,
        root_examples: int = 100,
        **flower: Any,
    ) -> None:
        if not eta > 0:
            raise ConfigError(f"eta is {eta}; it must be positive, and 1 replaces the model")
        super().__init__(**flower)
        self.rule = rule if f is None else rule.tolerating(f)
        self.eta = eta
        self.seed = seed
        self.root_examples = root_examples
        self.trusted: Callable[[int, ArrayRecord, ConfigRecord], Row] | None = None
        self._sent: ArrayRecord | None = None
        self._asked = 0
        self._last: Row | None = None  # F's last result, for rules that continue from it
        self._own: Row | None = None  # the server's own update of this round
        self._control: Control | None = None
        self._scratch: Row | None = None  # memory for a round's matrix

    @property
    def wants_own_update(self) -> bool:
        """Whether F is given the server's own update."""
        return self.rule.reference in ("trusted-update", "own-vector")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Samples clients and remembers what they are sent.

        Raises:
            ConfigError: the rule wants the server's own update, and there is nothing to make it of.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sent, self._asked = arrays, len(messages)
        self._control = control_of(grid)
        if self.wants_own_update:
            if self.trusted is None:
                raise ConfigError(
                    f"{self.rule.name} wants an update of the server's own data "
                    f"({self.rule.reference}), and the server has none: set the strategy's "
                    "attribute trusted, for example to a fl.strategies.TrustedUpdate"
                )
            self._own = self.trusted(server_round, arrays, config)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the new model and the clients' mean metrics; None and None without replies.

        Raises:
            ConfigError: more than f replies are unusable.
        """
        if self._sent is None:
            return None, None
        layout, replies = Layout.of_record(self._sent), list(replies)
        fold = self.rule.fold(layout.size) if layout.is_large else None
        if fold is not None:
            return self._folded(server_round, layout, replies, fold)
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        rows, weights = self._rows(layout, valid)
        admitted = Guard(f=self.rule.tolerates(len(valid)))(rows, layout.size, weights)
        self._leave_out(server_round, valid, admitted.dropped)
        try:
            new = self._step(server_round, from_record(layout, self._sent), admitted)
        except ConfigError as error:
            self._keep_model(server_round, len(valid), error)
            return None, None
        kept = [valid[i] for i in admitted.kept]
        buffers = carried(layout, _model(kept[0], self.arrayrecord_key))
        metrics = self._metrics([reply.content for reply in kept])
        for reply in valid:  # `Strategy.start` holds them until it has the next round's
            reply.content.pop(self.arrayrecord_key, None)
        return to_record(layout, new, buffers), metrics

    def _folded(
        self, server_round: int, layout: Layout, replies: Sequence[Message], fold: Fold
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Takes the models one after the other: a large one is in memory once, not n times."""
        dropped: list[Dropped] = []
        kept: list[RecordDict] = []
        buffers: dict[str, Array] = {}
        for i, reply in enumerate(replies):  # the simulator's clients may train at the first look
            if reply.has_error():
                continue
            row, weight = (
                _row(layout, reply, self.arrayrecord_key),
                _weight(reply, self.weighted_by_key),
            )
            reason = fault_of(row, weight, layout.size)
            if row is not None and reason is None:
                fold.add(row, cast(float, weight))
                buffers = buffers or carried(layout, _model(reply, self.arrayrecord_key))
                kept.append(reply.content)
            else:
                dropped.append(Dropped(i, str(reason)))
            del row
            reply.content.pop(self.arrayrecord_key, None)
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not valid:
            return None, None
        Guard(f=self.rule.tolerates(len(valid))).check(dropped, len(valid))
        self._leave_out(server_round, replies, dropped)
        try:
            new = fold.result()
        except ConfigError as error:
            self._keep_model(server_round, len(valid), error)
            return None, None
        if self.eta != 1.0:
            w = from_record(layout, cast(ArrayRecord, self._sent))
            new = np.asarray(w + np.float32(self.eta) * (new - w), dtype=np.float32)
        return to_record(layout, new, buffers), self._metrics(kept)

    def _leave_out(
        self, server_round: int, replies: Sequence[Message], dropped: Sequence[Dropped]
    ) -> None:
        for one in dropped:
            metadata = replies[one.index].metadata
            log.warning(
                "round %d: node %d left out: %s", server_round, metadata.src_node_id, one.reason
            )
            if self._control is not None:
                self._control.rejected(metadata.reply_to_message_id)

    def _keep_model(self, server_round: int, replies: int, error: ConfigError) -> None:
        """Says why the round changes nothing; raises if no other round could do better."""
        if replies == self._asked:
            raise error  # the rule cannot work with the clients it is given
        log.warning(
            "round %d leaves the model as it is, with %d of %d replies: %s",
            server_round,
            replies,
            self._asked,
            error,
        )

    def _rows(
        self, layout: Layout, replies: Sequence[Message]
    ) -> tuple[Row | list[object], list[object]]:
        """Returns the replies' models, as one matrix if all have the right form, and weights."""
        weights = [_weight(reply, self.weighted_by_key) for reply in replies]
        shape, held = (len(replies), layout.size), self._scratch
        if held is None or len(held) < shape[0] or held.shape[1] != shape[1]:
            self._scratch = None if layout.is_large else np.empty(shape, np.float32)
        try:
            records = [_model(reply, self.arrayrecord_key) for reply in replies]
            return stack(layout, records, finite=False, scratch=self._scratch), weights
        except ConfigError:
            return [_row(layout, reply, self.arrayrecord_key) for reply in replies], weights

    def _metrics(self, contents: Sequence[RecordDict]) -> MetricRecord | None:
        """Returns the mean of the metrics that have the most common form; None if there are none.

        What a client says of itself is no more to be trusted than its model: other names, lists of
        another length, or a number that is no float would stop the function that averages.
        """
        forms = [_form(content, self.weighted_by_key) for content in contents]
        found = Counter(form for form in forms if form is not None).most_common(1)
        if not found:
            return None
        alike = [c for c, form in zip(contents, forms, strict=True) if form == found[0][0]]
        return self.train_metrics_aggr_fn(alike, self.weighted_by_key)

    def known(self, server_round: int, size: int) -> Known:
        """Returns what the round's aggregate depends on beside the updates.

        Args:
            server_round: the round.
            size: d.
        """
        reference = None
        if self.rule.reference == "last-result":
            reference = np.zeros(size, np.float32) if self._last is None else self._last
        elif self.wants_own_update:
            reference = self._own
        return Known(self.rule, generator(self.seed, "aggregation", server_round), reference)

    def _step(self, server_round: int, w: Row, admitted: Admitted) -> Row:
        """Returns the next model, shape (d,)."""
        rule, rng, reference = self.known(server_round, len(w))
        rule = rule.tolerating(admitted.f)
        if self.eta == 1.0 and reference is None and "translation" in rule.invariances:
            return rule(admitted.x, admitted.weights, rng)  # F(w_i - w) = F(w_i) - w
        self._last = rule(admitted.x - w, admitted.weights, rng, reference)
        return np.asarray(w + np.float32(self.eta) * self._last, dtype=np.float32)


def _model(reply: Message, key: str) -> ArrayRecord:
    record = reply.content.get(key)
    if not isinstance(record, ArrayRecord):
        raise ConfigError(f"the reply has no ArrayRecord '{key}'")
    return record


def _row(layout: Layout, reply: Message, key: str) -> Row | None:
    try:
        return from_record(layout, _model(reply, key), finite=False)
    except ConfigError as error:
        log.warning("node %d: %s", reply.metadata.src_node_id, error)
        return None


def _form(content: RecordDict, weight_key: str) -> tuple[tuple[str, str, int], ...] | None:
    """Returns names and lengths (-1 for a number) of a client's metrics; None if they are unusable.

    Usable are finite numbers of a client with examples.
    """
    form: list[tuple[str, str, int]] = []
    for record_name, record in sorted(content.metric_records.items()):
        for name, value in sorted(record.items()):
            numbers = value if isinstance(value, list) else [value]
            largest = sys.float_info.max
            if not all(-largest <= number <= largest for number in numbers):  # NaN is not, either
                return None
            if name == weight_key and not (isinstance(value, int | float) and value > 0):
                return None
            form.append((record_name, name, len(value) if isinstance(value, list) else -1))
    return tuple(form)


def _weight(reply: Message, key: str) -> object:
    for record in reply.content.values():
        if isinstance(record, MetricRecord) and key in record:
            return record[key]
    return None
