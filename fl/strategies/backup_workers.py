"""Synchronous SGD that waits for the first k of n gradients.

Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed Synchronous SGD", arXiv:1604.00981,
Algorithms 3 and 4.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import at_least, positive
from fl.errors import ConfigError
from fl.strategies.gradient_rule import GradientRule, Gradients
from fl.vectors.rows import Row


class Waited(NamedTuple):
    """The model, shape (d,), k, and the number of workers."""

    w: Row
    k: int
    n: int


@dataclass(frozen=True)
class BackupWorkers(GradientRule):
    """b backup workers.

        w_(t+1) = w_t - eta g,    g = 1 / k sum of the first k gradients at w_t,    k = n - b

    With b = 0 this is synchronous SGD. With an aggregator F, g is F of the k.

    Attributes:
        backup: b, at least 0 and below n.
        eta: learning rate, above 0.

    Raises:
        ConfigError: an argument is out of its range.
    """

    backup: int = 0
    eta: float = 0.1

    def __post_init__(self) -> None:
        at_least("backup", self.backup, 0)
        positive("eta", self.eta)

    def init(self, w: Row, n: int) -> Waited:
        """Returns the state before the first iteration.

        Raises:
            ConfigError: there are no more workers than backup workers.
        """
        return Waited(w, self.first_k(n), n)

    def first_k(self, n: int) -> int:
        """Returns n - b.

        Raises:
            ConfigError: that is less than 1.
        """
        if self.backup >= n:
            raise ConfigError(
                f"strategy.rule.backup is {self.backup}; it must be less than the number of "
                f"workers, {n}"
            )
        return n - self.backup

    def combines(self, n: int) -> int:
        """Returns n - b."""
        return self.first_k(n)

    def enlarged(self, state: Waited, n: int) -> Waited:
        """Notes the workers; k changes with the next iteration."""
        return state._replace(n=n)

    def step(
        self,
        state: Waited,
        version: int,
        gradients: Gradients,
        in_use: Set[int],
    ) -> Waited:
        """Returns the state after a step along g."""
        return Waited(self.moved(state.w, gradients), max(1, state.n - self.backup), state.n)

    def moved(self, w: Row, gradients: Gradients) -> Row:
        """Returns w - eta g."""
        return np.asarray(w - np.float32(self.eta) * gradients.mean())
