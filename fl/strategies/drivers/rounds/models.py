"""The models that rounds begin with: one, a mask's, or several among which clients choose."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from fl.errors import ConfigError
from fl.flower.records import from_record
from fl.strategies.clusters import Clusters
from fl.strategies.drivers.events.server import GlobalModel
from fl.strategies.sparse import SparseRule
from fl.submodels import SparseMask

if TYPE_CHECKING:
    from fl.strategies.drivers.rounds.rounds import Rounds

log = logging.getLogger("fl")


def first_models(strategy: Rounds, model: GlobalModel) -> GlobalModel:
    """Returns version 0 as the rule begins with it, and where clients choose the others beside it.

    Args:
        strategy: whose rule it is; of a sparse one the state is set.
        model: the initial one.

    Raises:
        ConfigError: there are to be several, and nothing draws them.
    """
    rule = strategy.rule
    if isinstance(strategy.sub_models, SparseMask) and isinstance(rule, SparseRule):
        layout = strategy.exchange.layout or model.layout
        strategy.state = rule.pruned(model.w, strategy.sub_models.layers(layout))
        return GlobalModel(model.record_of(strategy.state.w))
    if not rule.clients_choose:
        return model
    k, initial = rule.num_models, strategy.exchange.initial
    if k > 1 and initial is None:
        raise ConfigError(
            f"rule.num_models is {k}, and nothing draws the initial models of {strategy.name} but "
            "the first: run the strategy within an Exchange that has `initial`"
        )
    others = [] if initial is None else [initial(j) for j in range(1, k)]
    rows = [model.w, *(from_record(model.layout, record) for record in others)]
    model.clusters = Clusters(np.stack(rows))
    if k > 1 and all(np.array_equal(row, model.w) for row in rows):
        log.warning(
            "all %d initial models are equal, so that every client will choose the first: use "
            "a model whose initial values are drawn, as mlp's are",
            k,
        )
    return model
