"""What a round's replies become: the clients' changes, combined, and the rule's next model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.aggregation import Admitted, Dropped, Fold, Guard, Mean, check_result, weight_of
from fl.errors import ConfigError, NoStep
from fl.flower.grid_view import Summed
from fl.strategies.drivers.events.server import Server, Update
from fl.strategies.drivers.rounds.parts import held
from fl.strategies.round_rule import HasModel, Updates, check_state
from fl.submodels import SubModels
from fl.vectors.layout import Layout
from fl.vectors.rows import Row
from fl.vectors.sum_tree import mean_of_tree

if TYPE_CHECKING:
    from fl.strategies.drivers.rounds.rounds import Rounds

_FOLDED = np.empty(0, np.float32)  # in place of a model that has been added up


class RoundStep:
    """Makes the next model of what a round has brought.

    Args:
        strategy: whose rounds they are.
        layout: of the server's model.
        known: of the clients' models, if they are ours.

    Attributes:
        buffers: places in a model's vector that clients change and do not train.
        places: of what they train.
        trained: length of that.
        weights: of the round's clients, by node, instead of their examples; None is their examples.
        refused: why further replies of the round are none.
    """

    def __init__(self, strategy: Rounds, layout: Layout, known: Layout | None) -> None:
        self._strategy = strategy
        moving = layout.statistics if known is None else known.moving_buffers
        self.buffers = [slice(entry.offset, entry.offset + entry.size) for entry in moving]
        still = {entry.name for entry in moving}
        trained = [entry for entry in layout.floats if entry.name not in still]
        trained = trained if known is None else list(known.trainable)
        self.places = [slice(entry.offset, entry.offset + entry.size) for entry in trained]
        self.trained = sum(entry.size for entry in trained)
        self.weights: dict[int, float] | None = None
        self.refused: list[str] = []
        self._folded: Fold | None = None
        self._summed: Summed | None = None  # in which order a hierarchy's machines have added

    def begin(self, weights: dict[int, float] | None) -> None:
        """Forgets the last round; `weights` as the attribute."""
        self.weights, self.refused = weights, []

    def weight(self, update: Update) -> float:
        """Returns what a usable update weighs; nothing, if its client has learnt from nothing."""
        said = weight_of(update.metrics.get(self._strategy.weighted_by_key)) or 0.0
        return said if self.weights is None or not said else self.weights[update.node]

    # ---- large models ----------------------------------------------------------------------------

    def fold(self, server: Server) -> None:
        """Has models added up as they come, if they need not be held all at once."""
        strategy, layout = self._strategy, server.model.layout
        at_once = server.forging is not None or strategy.selection.keeps_changes
        at_once = at_once or strategy.noise.needs_all or strategy.messages.division.divides
        at_once = at_once or (strategy.summation is not None and strategy.summation.may_lose)
        if not layout.is_large or not strategy.rule.folds or at_once:
            self._folded = None
        else:
            self._folded = strategy.aggregator.fold(layout.size)

    def kept(self, server: Server, update: Update) -> Update:
        """Returns what is kept of a reply until the round ends: without a model that is added."""
        if self._folded is None:
            return update
        self._strategy.noise.fold(update, server.w)
        self._folded.add(update.x, self.weight(update))
        return replace(update, x=_FOLDED)

    # ---- the step --------------------------------------------------------------------------------

    def next(
        self,
        server: Server,
        replies: Sequence[Update],
        usable: list[Update],
        summed: Summed | None,
    ) -> HasModel:
        """Returns the rule's next state; takes from `usable` what it is not made of.

        Args:
            server: has the present model.
            replies: of the round, by node.
            usable: the same.
            summed: what a hierarchy's machines have added up; None without one.

        Raises:
            NoStep: what has come brings no step.
            ConfigError: the aggregator or the rule cannot work with it.
        """
        strategy, self._summed = self._strategy, summed
        said = [self.weight(update) for update in replies]

        def leave_out(dropped: Sequence[Dropped]) -> None:
            for one in dropped:
                server.reject(replies[one.index])
                usable.remove(replies[one.index])

        strategy.latest = {}
        w = server.w
        if self._folded is not None:
            rows = np.empty((len(replies), 0), np.float32)
        else:
            rows = np.stack([update.x for update in replies])
        refused = [Dropped(len(replies) + i, why) for i, why in enumerate(self.refused)]
        f = strategy.aggregator.tolerates(len(replies) + len(refused))
        admitted = Guard(f)(rows, rows.shape[1], said, left_out=leave_out, before=refused)
        if self._folded is not None:
            mean = self._folded.result() - w
            updates = self.updates_of_mean(rows, np.asarray(admitted.weights), mean)
        else:
            updates = self._updates(server, admitted, usable)
        clients = strategy.wanted if strategy.noise.grows_clients else strategy.waits_for
        strategy.noise.measure(server, updates, usable, strategy.aggregator, clients)
        return self.stepped(server, updates, strategy.rates.of(server.version, strategy.waits_for))

    def updates_of_mean(self, rows: Row, weights: Any, mean: Row) -> Updates:
        """Returns updates of which only the mean is known, shape (d,)."""
        return Updates(
            rows,
            weights,
            combine=lambda *_: mean,
            buffers=self.buffers,
            trained=self.places if self.trained < mean.size else (),
            public=self._strategy.exchange.public,
        )

    def stepped(self, server: Server, updates: Updates, rates: Mapping[str, float]) -> HasModel:
        """Returns what the rule makes of the clients' updates."""
        strategy = self._strategy
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            state = strategy.rates.step(strategy.state, updates, rates)
            new = self._with_buffers(server, state.w, updates)
        new = server.model.layout.rounded(np.ascontiguousarray(new, dtype=np.float32))
        check_result("the server", new)
        check_state(strategy.rule, state)
        return state._replace(w=new)

    def _updates(self, server: Server, admitted: Admitted, usable: Sequence[Update]) -> Updates:
        strategy = self._strategy
        rule, robust, division = strategy.rule, strategy.robust, strategy.messages.division
        F = strategy.aggregator.tolerating(admitted.f)

        def combine(x: Row, weights: Any, name: str) -> Row:
            if robust and not weights.all() and weights.any():  # no examples, no vote
                x, weights = x[weights > 0], weights[weights > 0]
            if robust and len(x) < len(usable):
                try:
                    F.check(len(x))
                except ConfigError as error:
                    raise NoStep(f"{len(x)} of {len(usable)} have examples: {error}") from error
            if self._summed is not None:
                return self._added(x, weights, usable, name)
            return strategy.aggregate(server, F, x, weights, name)

        holds = None
        if division.divides:
            holds = held(usable, server.w.size)
            server.tasks.control.measured(division.measured(server.w, holds, self.places))
            holds = None if holds.all() else holds
        mixes = rule.clients_choose == "mixture"
        with np.errstate(over="ignore"):  # seen in what is made of it
            if rule.num_models == 1 and not rule.resizes:
                deltas = admitted.x - server.w
            else:
                deltas = np.stack([update.delta for update in usable])
        updates = Updates(
            deltas,
            np.asarray(admitted.weights),
            [update.metrics for update in usable],
            {name: np.stack([u.extras[name] for u in usable]) for name in rule.needs},
            combine,
            buffers=self.buffers,
            trained=self.places if self.trained < admitted.x.shape[1] else (),
            robust=robust,
            clients=[update.node for update in usable],
            told=[update.config for update in usable],
            as_selected=self.weights is not None,
            models=[update.model for update in usable],
            holds=holds,
            starts=np.stack([update.start for update in usable]) if mixes else None,
            mixtures=[update.mixture for update in usable] if mixes else (),
            weighs=isinstance(F, Mean) and F.weighted,
            public=strategy.exchange.public,
        )
        if not isinstance(strategy.sub_models, SubModels) or strategy.sub_models.weighted:
            return updates
        return updates.unweighted()

    def _added(self, x: Row, weights: Any, usable: Sequence[Update], name: str) -> Row:
        """Returns the mean of vectors, as the machines of a hierarchy have added them up."""
        strategy = self._strategy
        assert self._summed is not None
        if not (isinstance(strategy.aggregator, Mean) and strategy.aggregator.weighted):
            weights = np.ones(len(x))
        ids = [update.task.message_id for update in usable]
        if strategy.rule.edges and name.startswith("model "):  # one edge server's, see `of_model`
            edge = int(name.removeprefix("model "))
            ids = [update.task.message_id for update in usable if update.model == edge]
        places = {message_id: i for i, message_id in enumerate(ids)}
        strategy.latest[name] = mean = mean_of_tree(self._summed.tree, x, weights, places)
        check_result("the hierarchy", mean)
        return mean

    def _with_buffers(self, server: Server, w: Row, updates: Updates) -> Row:
        if not self.buffers or self._strategy.rule.clients_choose:
            return w
        w = w.copy()
        for place in self.buffers:
            w[place] = server.w[place] + updates.mean()[place]
        return w
