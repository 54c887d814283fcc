"""Flower's averaging strategies, whatever their clients send.

They take what comes for models with weights: a weight of NaN makes the model NaN, weights that are
all 0 divide by 0, and an array may claim any size. On a deployment that is how a client ends a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Result

from fl.aggregation import Dropped, Guard, check_weights, dropped_of, fault_of_weight, weight_of
from fl.errors import ConfigError, NoStep, NotFinite
from fl.flower.arrays import read_array
from fl.flower.carried import carried, median_carried
from fl.flower.grid_view import Control, GridView, NoControl
from fl.flower.messages import with_content
from fl.flower.private import message_of, restore, state_of, trusted_record, wrapping
from fl.flower.records import RowRecord, from_record, not_finite
from fl.strategies.drivers.replies import alike, averageable, model_in, weight_in
from fl.vectors.layout import Layout
from fl.vectors.rows import mean

log = logging.getLogger("fl")

OF_TREES = (strategy.FedXgbBagging, strategy.FedXgbCyclic)
"""Flower's strategies whose clients grow trees."""

_WITH_MOMENTUM = (strategy.FedAvgM, strategy.FedAdagrad, strategy.FedAdam, strategy.FedYogi)


def guarded(inner: strategy.Strategy, layout: Layout | None = None) -> strategy.Strategy:
    """Returns a strategy behind a guard if it averages by Flower's own code, else the strategy.

    Args:
        inner: any strategy.
        layout: of the clients' model, if they are ours; see `Guarded`.
    """
    return Guarded(inner, layout) if _averages(inner) else inner


@contextmanager
def guarding() -> Iterator[None]:
    """Puts strategies that are started in the block behind a guard, where `guarded` does."""

    def behind_a_guard(start: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(start)
        def guarded_start(self: strategy.Strategy, *args: Any, **kwargs: Any) -> Result:
            return start(guarded(self), *args, **kwargs)

        return guarded_start

    with wrapping(strategy.Strategy, "start", behind_a_guard):
        yield


def _averages(inner: strategy.Strategy) -> bool:
    kind = type(inner)
    if kind.aggregate_train.__module__.rpartition(".")[0] != strategy.__name__:
        return False  # somebody's own
    if kind.start.__module__.rpartition(".")[0] != strategy.__name__:
        return False  # likewise: it may have no rounds
    if kind.__name__.startswith("DifferentialPrivacy"):
        return isinstance(_weighing(inner), strategy.FedAvg)
    return isinstance(inner, strategy.FedAvg) and not isinstance(inner, OF_TREES)


def _weighing(inner: strategy.Strategy) -> strategy.Strategy:
    """Returns the strategy inside Flower's wrappers for differential privacy."""
    while not isinstance(inner, strategy.FedAvg) and hasattr(inner, "strategy"):
        inner = inner.strategy
    return inner


class Guarded(strategy.Strategy):
    """Shows a strategy only replies that it can average, and keeps its last finite model.

    A reply whose weight is no finite number of at least 0, or whose model cannot be read or is not
    finite (what `fl.aggregation.Guard` leaves out), becomes an error reply, as of a client that
    failed, and an event of the trace. A round in which no reply weighs anything, and a step to a
    model that is not finite, leave the model as it is, and are events. Where all is well the
    strategy sees what it would see without this.

    For our own clients, whose layout is known, also:

    - a reply must have the entries of the model, in their shapes;
    - metrics of another form than most clients' make a reply unusable;
    - integers and booleans are kept from the strategy's arithmetic, which some cannot do with them.
      They become the median of the replies', or stay as they are under differential privacy;
    - statistics of normalisation layers become the replies' weighted mean where the strategy steps
      along the mean change with a momentum: no direction, and a variance would become negative;
    - frozen parameters stay as they are, tied ones equal, and variances at least 0.

    Args:
        inner: the strategy, with rounds of Flower's kind.
        layout: of the clients' model; None for anybody's.
    """

    def __init__(self, inner: strategy.Strategy, layout: Layout | None = None) -> None:
        self.inner = inner
        self.layout = layout
        weighing = _weighing(inner)
        self.weight_key: str = getattr(weighing, "weighted_by_key", "num-examples")
        self.arrays_key: str = getattr(weighing, "arrayrecord_key", "arrays")
        self._is_private = weighing is not inner
        self._has_momentum = isinstance(inner, _WITH_MOMENTUM)
        self._parts = [inner] if weighing is inner else [inner, weighing]
        self._control: Control = NoControl()
        self._sent: ArrayRecord | None = None
        self._first: ArrayRecord | None = None  # in the types of the clients' model
        self._asked = 0

    def summary(self) -> None:
        """Logs the inner strategy's configuration."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, with the whole model."""
        self._control = GridView(grid).control
        self._sent = arrays
        if self._first is None:
            self._first = arrays
        floats = self._floats(arrays)
        messages = list(self.inner.configure_train(server_round, floats, config, grid))
        self._asked = len(messages)
        return self._whole(messages, arrays, floats)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what the inner strategy makes of usable replies; no model if it stays."""
        replies = list(replies)
        arrays: ArrayRecord | None = None
        metrics: MetricRecord | None = None
        why_not: NoStep | None = None
        usable, dropped = self._usable(replies)
        entries = self._carried(usable)
        before = [state_of(part) for part in self._parts]
        try:
            self._check_round(usable, dropped)
            floats = [self._reply_of_floats(reply) for reply in usable]
            with np.errstate(all="ignore"):  # seen in the result
                arrays, metrics = self.inner.aggregate_train(server_round, floats)
            if arrays is None:
                raise NoStep(f"{type(self.inner).__name__} makes no model of {len(floats)} replies")
            if bad := not_finite(arrays, self._first) - not_finite(self._sent):
                raise NotFinite(
                    f"{type(self.inner).__name__}: the new model would not be finite, first in "
                    f"{min(bad)!r:.80}; training may have diverged: lower the learning rate"
                )
            arrays = self._completed(arrays, {**entries, **self._statistics(usable)})
        except NoStep as error:
            arrays, why_not = None, error
            for part, state in zip(self._parts, before, strict=True):
                restore(part, state)  # what it made of the step, as momentum, is undone with it
        if self._asked:
            self._control.stepped(server_round, why_not)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, with the whole model."""
        floats = self._floats(arrays)
        messages = list(self.inner.configure_evaluate(server_round, floats, config, grid))
        return self._whole(messages, arrays, floats)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns the inner strategy's metrics of usable replies; None if none weighs anything."""
        replies = list(replies)
        contents = [reply.content for reply in replies if reply.has_content()]
        said = [weight_in(content, self.weight_key) for content in contents]
        if not contents or all(weight is None for weight in said):
            return self.inner.aggregate_evaluate(server_round, replies)  # says what is missing
        if self.layout is not None:
            good = {id(content) for content in averageable(contents, self.weight_key)}
        else:
            weights = [weight_of(weight) for weight in said]
            chosen = [c for c, w in zip(contents, weights, strict=True) if w is not None]
            good = {id(content) for content in chosen} if any(weights) else set()
        if not good:
            return None
        return self.inner.aggregate_evaluate(
            server_round, [r for r in replies if not r.has_content() or id(r.content) in good]
        )

    # ---- what is usable --------------------------------------------------------------------------

    def _usable(self, replies: Sequence[Message]) -> tuple[list[Message], list[Dropped]]:
        """Returns the replies, with errors in the place of those that are unusable, and these."""
        contents = [reply.content for reply in replies if reply.has_content()]
        told = any(weight_in(content, self.weight_key) is not None for content in contents)
        if self.layout is None and not told:
            return list(replies), []  # Flower says what is missing
        form: set[int] | None = None
        if self.layout is not None:
            form = {id(content) for content in alike(contents, self.weight_key)}
        usable, dropped = list(replies), []
        for i, reply in enumerate(replies):
            one = self._dropped(i, reply, form) if reply.has_content() else None
            if one is None:
                continue
            log.warning("node %d left out: %s", reply.metadata.src_node_id, one.reason)
            self._control.rejected(reply.metadata.reply_to_message_id)
            error = Error(ErrorCode.UNKNOWN, one.reason)
            usable[i] = message_of(reply.metadata, error=error)
            dropped.append(one)
        return usable, dropped

    def _dropped(self, index: int, reply: Message, form: set[int] | None) -> Dropped | None:
        """Returns that a reply is left out, and why; None if it can be used."""
        weight = weight_in(reply.content, self.weight_key)
        try:
            if self.layout is not None:
                row = from_record(self.layout, model_in(reply, self.arrays_key), finite=False)
                one = dropped_of(index, row, weight, self.layout.size)
            else:
                one = self._dropped_of_anybody(index, reply, weight)
        except ConfigError as error:
            return Dropped(index, str(error))
        if one is None and form is not None and id(reply.content) not in form:
            fault = "its metrics are not finite numbers with the names that most clients report"
            return Dropped(index, fault)
        return one

    def _dropped_of_anybody(self, index: int, reply: Message, weight: object) -> Dropped | None:
        if (fault := fault_of_weight(weight)) is not None:
            return Dropped(index, fault)
        for record in reply.content.array_records.values():
            for array in record.values():
                read_array(array)
            if bad := not_finite(record) - not_finite(self._sent):
                return Dropped(index, f"its {min(bad)!r:.80} is not finite", diverged=True)
        return None

    def _check_round(self, replies: Sequence[Message], dropped: Sequence[Dropped]) -> None:
        """Raises NoStep if no reply weighs anything, NotFinite if none is finite."""
        contents = [reply.content for reply in replies if reply.has_content()]
        Guard().check(dropped, len(contents) + len(dropped))
        said = [weight_in(content, self.weight_key) for content in contents]
        if any(weight is not None for weight in said):
            check_weights([weight_of(weight) or 0.0 for weight in said])

    # ---- what is no float ------------------------------------------------------------------------

    def _floats(self, arrays: ArrayRecord) -> ArrayRecord:
        """Returns a record without what is kept from the strategy."""
        names = {entry.name for entry in self.layout.carried} if self.layout is not None else set()
        if not names:
            return arrays
        return trusted_record(RowRecord, {k: a for k, a in arrays.items() if k not in names})

    def _whole(
        self, messages: list[Message], arrays: ArrayRecord, floats: ArrayRecord
    ) -> list[Message]:
        """Returns the messages with `arrays` in the place of `floats`; equal contents stay one."""
        if floats is arrays:
            return messages
        contents: dict[int, RecordDict] = {}
        whole = []
        for message in messages:
            content = message.content
            if id(content) not in contents:
                contents[id(content)] = RecordDict({**content, self.arrays_key: arrays})
            whole.append(with_content(message, contents[id(content)]))
        return whole

    def _reply_of_floats(self, reply: Message) -> Message:
        if self.layout is None or not self.layout.carried or not reply.has_content():
            return reply
        floats = self._floats(model_in(reply, self.arrays_key))
        content = RecordDict({**reply.content, self.arrays_key: floats})
        return with_content(reply, content)

    def _carried(self, replies: Sequence[Message]) -> dict[str, Array]:
        if self.layout is None or not self.layout.carried:
            return {}
        if self._is_private and self._sent is not None:  # they would be released without noise
            return carried(self.layout, self._sent)
        models = [model_in(r, self.arrays_key) for r in replies if r.has_content()]
        entries = [carried(self.layout, model) for model in models]
        return median_carried(self.layout, entries) if entries else {}

    def _statistics(self, replies: Sequence[Message]) -> dict[str, Array]:
        layout = self.layout
        if layout is None or not layout.statistics or not self._has_momentum:
            return {}
        contents = [reply for reply in replies if reply.has_content()]
        rows = [from_record(layout, model_in(reply, self.arrays_key)) for reply in contents]
        said = [weight_in(reply.content, self.weight_key) for reply in contents]
        weights = [weight_of(weight) or 0.0 for weight in said]
        means = {}
        for entry in layout.statistics:
            place = slice(entry.offset, entry.offset + entry.size)
            moved = mean(np.stack([row[place] for row in rows]), np.array(weights))
            means[entry.name] = Array(moved.astype(entry.dtype).reshape(entry.shape))
        return means

    def _completed(self, arrays: ArrayRecord, entries: dict[str, Array]) -> ArrayRecord:
        """Returns the new model in the order of the old, with what the strategy did not make."""
        if self.layout is None or self._sent is None:
            return arrays
        made = {**arrays, **entries}
        for entry in self.layout.frozen:
            made[entry.name] = self._sent[entry.name]
        for entry in self.layout.statistics:
            values = read_array(made[entry.name])
            if entry.name.endswith("var") and (values < 0).any():  # of noise for privacy
                made[entry.name] = Array(np.asarray(np.maximum(values, 0)))
        for entry in self.layout.tied:
            made[entry.name] = made[entry.tied_to]
        if all(made[name] is array for name, array in arrays.items()) and len(made) == len(arrays):
            return arrays
        return trusted_record(RowRecord, {name: made[name] for name in self._sent})
