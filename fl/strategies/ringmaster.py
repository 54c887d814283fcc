"""Ringmaster ASGD: gradients that are too old are ignored.

Maranjyan, Tyurin, Richtarik, "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time
Complexity", arXiv:2501.16168, Algorithm 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least, positive
from fl.strategies.async_sgd import AsyncGradientRule
from fl.strategies.event_rule import Arrival, Arrivals, Decision
from fl.strategies.fedavg import Model


@dataclass(frozen=True)
class RingmasterASGD(AsyncGradientRule):
    """Asynchronous SGD of delays below R.

        w <- w - eta g    if tau < R,    as    w <- w + (x_i - x_0)

    Attributes:
        max_delay: R, at least 1.
        scale: factor on all steps, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    max_delay: int = 10
    scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("max_delay", self.max_delay, 1)
        positive("scale", self.scale)

    def receive(self, state: Model, update: Arrival, tau: int) -> Decision:
        """Ignores gradients of delay R and more."""
        if tau >= self.max_delay:
            return Decision(state, discard=(update,))
        return Decision(state, apply=(update,))

    def step(self, state: Model, updates: Arrivals) -> Model:
        """Returns the state with the next model."""
        return Model(state.w + self.scale * updates.only.delta)
