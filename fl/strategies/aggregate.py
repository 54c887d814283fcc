"""Rounds whose updates are combined by any rule of `fl.aggregation`, on one (n, d) matrix.

With the mean this is FedAvg (McMahan et al., arXiv:1602.05629), with other rules its robust
relatives. The replies' rows are read where they are, not collected as n dictionaries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy

from fl.aggregation import (
    Admitted,
    Aggregator,
    Dropped,
    Fold,
    Guard,
    check_result,
    fault_of,
    is_diverged,
)
from fl.arguments import read_if
from fl.errors import ConfigError, NoStep
from fl.flower.carried import carried, median_carried
from fl.flower.grid_view import Control, GridView
from fl.flower.records import from_record, layout_of, stack, to_record
from fl.randomness import generator
from fl.strategies.replies import averageable, model_in, weight_in, with_answers
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

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

    A round leaves the model as it is, and says so, if more than f replies are unusable, none weighs
    anything, they are too few for the rule, or its result is not finite. Entries that are no floats
    become the median of those of the replies that reached F.

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
        self._control = GridView(grid).control
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
            ConfigError: the rule cannot work with as many replies as were asked for.
        """
        if self._sent is None or not self._asked:
            return None, None
        layout, replies = layout_of(self._sent), list(replies)
        fold = self.rule.fold(layout.size) if layout.is_large else None
        if fold is not None:
            return self._folded(server_round, layout, replies, fold)
        valid = with_answers(replies, "aggregate_train")
        try:
            if not valid:
                raise NoStep(f"none of {self._asked} clients has answered")
            rows, weights = self._rows(layout, valid)
            admitted = Guard(f=self.rule.tolerates(len(valid)))(
                rows, layout.size, weights, left_out=partial(self._leave_out, server_round, valid)
            )
            new = self._step(server_round, layout, from_record(layout, self._sent), admitted)
        except ConfigError as error:
            self._keep_model(server_round, len(valid), error)
            return None, None
        kept = [valid[i] for i in admitted.kept]
        entries = self._carried(layout, kept) if layout.carried else {}
        metrics = self._metrics([reply.content for reply in kept])
        for reply in valid:  # `Strategy.start` holds them until it has the next round's
            reply.content.pop(self.arrayrecord_key, None)
        self._report(server_round)
        return to_record(layout, new, entries), metrics

    def _carried(self, layout: Layout, replies: Sequence[Message]) -> dict[str, Array]:
        models = (model_in(reply, self.arrayrecord_key) for reply in replies)
        return median_carried(layout, [carried(layout, model) for model in models])

    def _folded(
        self, server_round: int, layout: Layout, replies: Sequence[Message], fold: Fold
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Takes the models one after the other: a large one is in memory once, not n times."""
        dropped: list[Dropped] = []
        kept: list[RecordDict] = []
        entries: list[dict[str, Array]] = []
        for i, reply in enumerate(replies):  # the simulator's clients may train at the first look
            if reply.has_error():
                continue
            row = _row(layout, reply, self.arrayrecord_key)
            weight = weight_in(reply.content, self.weighted_by_key)
            reason = fault_of(row, weight, layout.size)
            if row is not None and reason is None:
                fold.add(row, cast(float, weight))
                entries.append(carried(layout, model_in(reply, self.arrayrecord_key)))
                kept.append(reply.content)
            else:
                dropped.append(Dropped(i, str(reason), is_diverged(row, layout.size)))
            del row
            reply.content.pop(self.arrayrecord_key, None)
        valid = with_answers(replies, "aggregate_train")
        self._leave_out(server_round, replies, dropped)
        try:
            if not valid:
                raise NoStep(f"none of {self._asked} clients has answered")
            Guard(f=self.rule.tolerates(len(valid))).check(dropped, len(valid))
            new = fold.result()
            if self.eta != 1.0:
                w = from_record(layout, cast(ArrayRecord, self._sent))
                new = layout.step(w, self.eta, new - w)
            new = layout.rounded(new)
            check_result("the server", new)
        except ConfigError as error:
            self._keep_model(server_round, len(valid), error)
            return None, None
        self._report(server_round)
        return to_record(layout, new, median_carried(layout, entries)), self._metrics(kept)

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
        if not isinstance(error, NoStep):
            if replies == self._asked:
                raise error  # the rule cannot work with the clients it is given
            error = NoStep(f"{replies} of {self._asked} replies: {error}")
        self._report(server_round, error)

    def _report(self, server_round: int, why_not: NoStep | None = None) -> None:
        if self._control is not None:
            self._control.stepped(server_round, why_not)

    def _rows(
        self, layout: Layout, replies: Sequence[Message]
    ) -> tuple[Row | list[object], list[object]]:
        """Returns the replies' models, as one matrix if all have the right form, and weights."""
        weights = [weight_in(reply.content, self.weighted_by_key) for reply in replies]
        shape, held = (len(replies), layout.size), self._scratch
        if held is None or len(held) < shape[0] or held.shape[1] != shape[1]:
            self._scratch = None if layout.is_large else np.empty(shape, np.float32)
        try:
            records = [model_in(reply, self.arrayrecord_key) for reply in replies]
            return stack(layout, records, finite=False, scratch=self._scratch), weights
        except ConfigError:
            return [_row(layout, reply, self.arrayrecord_key) for reply in replies], weights

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns the mean of the metrics that have the most common form; None if there are none.

        Args:
            server_round: the round.
            replies: to `evaluate` messages.
        """
        valid = with_answers(replies, "aggregate_evaluate")
        alike = averageable([reply.content for reply in valid], self.weighted_by_key)
        return self.evaluate_metrics_aggr_fn(alike, self.weighted_by_key) if alike else None

    def _metrics(self, contents: Sequence[RecordDict]) -> MetricRecord | None:
        """Returns the mean of the metrics that have the most common form; None without any."""
        alike = averageable(contents, self.weighted_by_key)
        return self.train_metrics_aggr_fn(alike, self.weighted_by_key) if alike else None

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

    def _step(self, server_round: int, layout: Layout, w: Row, admitted: Admitted) -> Row:
        """Returns the next model, shape (d,)."""
        rule, rng, reference = self.known(server_round, len(w))
        rule = rule.tolerating(admitted.f)
        if self.eta == 1.0 and reference is None and "translation" in rule.invariances:
            new = rule(admitted.x, admitted.weights, rng)  # F(w_i - w) = F(w_i) - w
            if layout.is_plain:
                return new
            new = layout.rounded(new)
            check_result("the server", new)
            return new
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            last = rule(admitted.x - w, admitted.weights, rng, reference)
        new = layout.step(w, self.eta, last)
        check_result("the server", new)
        self._last = last
        return new


def _row(layout: Layout, reply: Message, key: str) -> Row | None:
    try:
        return from_record(layout, model_in(reply, key), finite=False)
    except ConfigError as error:
        log.warning("node %d: %s", reply.metadata.src_node_id, error)
        return None
