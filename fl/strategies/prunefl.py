"""PruneFL: pruning at one client, then a model whose size is what makes rounds worth their time.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, "Model Pruning Enables Efficient Federated Learning
on Edge Devices", arXiv:1909.12326 (TNNLS 2022); the authors' code, jiangyuang/PruneFL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.checks import at_least, positive, within_unit
from fl.clients.pruning import SCORES_KEY, SQUARES_KEY
from fl.strategies.round_rule import Updates
from fl.strategies.sparse import Sparse, SparseRule
from fl.submodels import Layer, largest
from fl.vectors.rows import Row


@dataclass(frozen=True)
class PruneFL(SparseRule):
    """Adaptive pruning by squared gradients and time.

    At an adjustment the drop_t h smallest of the h held numbers of each layer, and those that are
    left out, are candidates; the others stay. With g_j^2 the clients' mean squared gradient, a
    candidate adds g_j^2 to what a round gains and `number_s` to what it takes. In the order of
    g_j^2 they are taken in as long as each raises

        Gamma = sum of g_j^2 over what is held / (round_s + number_s times the weights held)

    and the model has at most its density. The first `initial_rounds` rounds are of one client, from
    the whole model on, with an adjustment in each; later ones adjust every DeltaT rounds.

        drop_t = drop 2^(-t / half_life)

    Clients send squared gradients of all numbers in rounds of adjustment, those of that round.

    Attributes:
        adjust_every: DeltaT, rounds, at least 1.
        initial_rounds: at least 0; 0 begins with the largest numbers of each layer.
        drop: in [0, 1].
        half_life: rounds, above 0.
        round_s: s of a round, whatever is held, above 0.
        number_s: s that a round takes for each weight that is held, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    adjust_every: int = 50
    initial_rounds: int = 10
    drop: float = 0.3
    half_life: float = 10_000.0
    round_s: float = 87.0
    number_s: float = 5.6e-6

    def __post_init__(self) -> None:
        at_least("adjust_every", self.adjust_every, 1)
        at_least("initial_rounds", self.initial_rounds, 0)
        within_unit("drop", self.drop)
        for name in ("half_life", "round_s", "number_s"):
            positive(name, getattr(self, name))

    @property
    def alone(self) -> int:
        """Rounds of one client."""
        return self.initial_rounds

    def pruned(self, w: Row, layers: Sequence[Layer]) -> Sparse:
        """Returns the whole model, if one client is to prune it; else what its density allows."""
        if not self.initial_rounds:
            return super().pruned(w, layers)  # type: ignore[no-any-return]
        return Sparse(w, np.ones(len(w), dtype=bool), layers)

    def ratio(self, server_round: int) -> float:
        """Returns drop_t; 0 in rounds without an adjustment."""
        if server_round > self.initial_rounds and server_round % self.adjust_every:
            return 0.0
        return float(self.drop * 0.5 ** (server_round / self.half_life))

    def asked(self, state: Any, server_round: int, ratio: float) -> Mapping[str, Any]:
        """Returns that squared gradients are to be sent."""
        return {SQUARES_KEY: 1.0}

    def adjusted(self, state: Any, updates: Updates, ratio: float) -> Any:
        """Returns the state after an adjustment."""
        squares = updates.placed(updates.extra(SCORES_KEY).mean()).astype(np.float64)
        kept, weights = state.mask.copy(), np.zeros(len(state.mask), dtype=bool)
        for layer in state.layers:
            held, values = state.mask[layer.place], np.abs(state.w[layer.place])
            fewest = math.floor(ratio * held.sum())
            kept[layer.place] &= ~largest(np.where(held, -values, -np.inf), fewest)
            weights[layer.place] = True
        candidates = np.flatnonzero(weights & ~kept)
        candidates = candidates[np.argsort(-squares[candidates], kind="stable")]
        gain, held = squares[kept].sum(), int((weights & kept).sum())
        each = squares[candidates]
        before = np.arange(len(each))
        gains = gain + np.concatenate([[0.0], np.cumsum(each)[:-1]])[: len(each)]
        Gamma = gains / (self.round_s + self.number_s * (held + before))
        worth = np.append(each / self.number_s > Gamma, False)
        most = max(0, sum(layer.held for layer in state.layers) - held)
        mask = kept.copy()
        mask[candidates[: min(int(worth.argmin()), most)]] = True
        return state._replace(w=np.where(mask, state.w, np.float32(0)), mask=mask)
