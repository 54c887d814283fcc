"""Rennala SGD: asynchronous workers make minibatches of gradients of one model.

Tyurin, Richtarik, "Optimal Time Complexities of Parallel Stochastic Optimization Methods Under a
Fixed Computation Model", arXiv:2305.12387, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import at_least, positive
from fl.strategies.async_sgd import AsyncGradientRule
from fl.strategies.event_rule import Arrival, Arrivals, Decision
from fl.vectors.rows import Row


class GradientBatch(NamedTuple):
    """The model, shape (d,), and what has come of the present version."""

    w: Row
    gathered: tuple[Arrival, ...] = ()


@dataclass(frozen=True)
class RennalaSGD(AsyncGradientRule):
    """One version for B gradients of the current model; those of others are ignored.

        w <- w - eta / B sum_i g_i    as    w <- w + 1 / B sum_i (x_i - w)

    Attributes:
        batch: B, at least 1.
        scale: factor on all steps, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    batch: int = 10
    scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("batch", self.batch, 1)
        positive("scale", self.scale)

    @property
    def combines(self) -> int:
        """Returns B."""
        return self.batch

    def init(self, w: Row, p: int) -> GradientBatch:
        """Returns the initial state."""
        return GradientBatch(w)

    def receive(self, state: GradientBatch, update: Arrival, tau: int) -> Decision:
        """Ignores gradients of other models; steps with the B-th of this one."""
        if tau > 0:
            return Decision(state, discard=(update,))
        gathered = (*state.gathered, update)
        if len(gathered) < self.batch:
            return Decision(GradientBatch(state.w, gathered))
        return Decision(GradientBatch(state.w), apply=gathered)

    def step(self, state: GradientBatch, updates: Arrivals) -> GradientBatch:
        """Returns the state with the next model."""
        total = updates.sum(np.ones(len(updates)))
        return GradientBatch(state.w + total * np.float32(self.scale / self.batch))
