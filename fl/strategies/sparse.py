"""A sparse model whose mask is adjusted while it is trained: what FedMef and its kin share.

Clients of a round train the numbers that a mask has, one mask for all. Every so many rounds the
server takes some of each layer's numbers out, the smallest, and as many others in. The schedule is
that of Evci and others, arXiv:1911.11134 (ICML 2020), as FedPruning/FedPruning has it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, within_unit
from fl.clients.pruning import SCORES_KEY
from fl.strategies.round_rule import RoundRule, Updates
from fl.submodels import Layer, Mask, by_magnitude, largest
from fl.vectors.rows import Row

RATIO_KEY = "mask-ratio"
"""Key of messages of rounds of adjustment: the share of each layer's numbers that is replaced."""


class Sparse(NamedTuple):
    """The model, shape (d,), 0 where the mask, shape (d,), has nothing, and the layers it masks."""

    w: Row
    mask: Mask
    layers: Sequence[Layer] = ()


class SparseRule(RoundRule):
    """FedAvg of a sparse model, whose mask a subclass adjusts after some of the rounds.

        w <- w + sum_i n_i (w_i - w) / sum_i n_i

    Clients of a round hold the numbers that the mask has, and train nothing else.
    """

    needs: ClassVar[tuple[str, ...]] = (SCORES_KEY,)
    folds: ClassVar[bool] = False
    prunes: ClassVar[bool] = True

    def init(self, w: Row, p: int) -> Any:
        """Returns the whole model."""
        return self.pruned(w, ())

    def pruned(self, w: Row, layers: Sequence[Layer]) -> Any:
        """Returns the state before the first round, of an initial model of shape (d,).

        The mask has the largest numbers of each layer.
        """
        mask = by_magnitude(layers, w)
        return Sparse(np.where(mask, w, np.float32(0)), mask, layers)

    @abstractmethod
    def ratio(self, server_round: int) -> float:
        """Returns what share of each layer's numbers a round replaces, 0 if it adjusts nothing.

        Args:
            server_round: t, from 1.
        """

    def asked(self, state: Any, server_round: int, ratio: float) -> Mapping[str, Any]:
        """Returns what the messages of a round of adjustment say; see `fl.clients.Pruning`."""
        return {}

    def configs(
        self, state: Any, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns the share that is replaced after the round, and what that takes of clients."""
        ratio = self.ratio(server_round)
        if not ratio:
            return [{}] * n
        return [{RATIO_KEY: ratio, **self.asked(state, server_round, ratio)}] * n

    def step(self, state: Any, updates: Updates) -> Any:
        """Returns the model after a round, and the mask that it has then."""
        averaged = state._replace(w=state.w + updates.mean())
        ratio = updates.told[0].get(RATIO_KEY, 0.0) if updates.told else 0.0
        return self.adjusted(averaged, updates, float(ratio)) if ratio else averaged

    def adjusted(self, state: Any, updates: Updates, ratio: float) -> Any:
        """Returns the state after an adjustment: the largest mean gradients give what is grown.

        Args:
            state: after the mean.
            updates: of the round.
            ratio: alpha_t.
        """
        return moved(state, self.growth(updates), ratio, state.layers)

    def growth(self, updates: Updates) -> Row:
        """Returns |mean of the gradients that clients sent|, shape (d,)."""
        return np.abs(updates.placed(updates.extra(SCORES_KEY).mean()))


@dataclass(frozen=True)
class CosineSparseRule(SparseRule):
    """A sparse model of which ever fewer numbers are replaced.

    After round t, if t mod DeltaT = 0 and t <= T_end, floor(alpha_t h) of the h held numbers of
    each layer are:

        alpha_t = alpha / 2 (1 + cos(pi t / T_end))

    Attributes:
        adjust_every: DeltaT, rounds, at least 1.
        adjust_until: T_end, rounds, at least 1.
        alpha: in [0, 1]; 0 keeps the first mask.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    adjust_every: int = 10
    adjust_until: int = 300
    alpha: float = 0.2

    def __post_init__(self) -> None:
        at_least("adjust_every", self.adjust_every, 1)
        at_least("adjust_until", self.adjust_until, 1)
        within_unit("alpha", self.alpha)

    def ratio(self, server_round: int) -> float:
        """Returns alpha_t; 0 in rounds without an adjustment."""
        if server_round % self.adjust_every or server_round > self.adjust_until:
            return 0.0
        return self.alpha / 2 * (1 + math.cos(math.pi * server_round / self.adjust_until))

    def configs(
        self, state: Any, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns what a round of adjustment asks, if there is anything to take in."""
        if state.mask.all():
            return [{}] * n
        return super().configs(state, server_round, n, rng)


def moved(state: Any, growth: Row, ratio: float, layers: Sequence[Layer]) -> Any:
    """Returns a state whose mask has lost the smallest numbers, and has as many others.

    Args:
        state: not changed.
        growth: by which numbers that are left out are taken in, largest first, shape (d,); they
            begin at 0.
        ratio: share of each layer's held numbers.
        layers: which of the layers.
    """
    w, mask = state.w.copy(), state.mask.copy()
    for layer in layers:
        held, values = state.mask[layer.place], state.w[layer.place]
        k = min(math.floor(ratio * held.sum()), int((~held).sum()))
        drop = largest(np.where(held, -np.abs(values), -np.inf), k)
        grow = largest(np.where(held, -np.inf, growth[layer.place]), k)
        mask[layer.place] = (held & ~drop) | grow
        w[layer.place][drop] = 0
    return state._replace(w=w, mask=mask)
