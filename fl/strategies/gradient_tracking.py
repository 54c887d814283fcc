"""Gradient tracking: every node estimates the gradient of all, which takes D-PSGD's bias away.

Di Lorenzo, Scutari, "NEXT", arXiv:1602.00591; Nedic, Olshevsky, Shi, "Achieving Geometric
Convergence for Distributed Optimization over Time-Varying Graphs" (DIGing), arXiv:1607.03218; with
stochastic gradients and in this order Xin, Khan, Kar, arXiv:1909.12583.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events import positive
from fl.strategies.drivers.gossip import Gossip
from fl.strategies.drivers.swarm import Answer, Swarm
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class GradientTracking(Gossip):
    """Steps along a mixed estimate of the mean gradient.

        y_i <- sum_j W_ij y_j + g_i(x_i) - g_i(x_i before)          (y_i = g_i(x_i) first)
        x_i <- sum_j W_ij (x_j - eta y_j)

    So sum_i y_i = sum_i g_i(x_i) in every round, each gradient on the batch it was drawn on. Nodes
    send gradients (`client=gradient`), and x_i - eta y_i and y_i to their neighbours: twice a
    model.

    A node that is away keeps x, y and its last gradient, and the sums stay equal. A payload that is
    lost breaks that equality for good: who receives it takes its own part twice.

    Args:
        eta: learning rate.
        **gossip: arguments of `Gossip`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly")
    exchanges_models: ClassVar[bool] = False

    def __init__(self, *, eta: float = 0.1, **gossip: Any) -> None:
        super().__init__(**gossip)
        positive("eta", eta)
        self.eta = eta

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, sends="gradient")

    def begin(self, swarm: Swarm) -> None:
        """All begin at the initial model; the gradient before the first counts as 0."""
        super().begin(swarm)
        zero = np.zeros_like(swarm.w)
        self.y: list[Row] = [zero] * self.n
        self.g: list[Row] = [zero] * self.n

    def learn(self, i: int, answer: Answer) -> None:
        """Adds how the gradient has changed."""
        g = answer.vectors["gradient"]
        self.y[i] = self.y[i] + g - self.g[i]
        self.g[i] = g

    def message(self, i: int) -> Row:
        """Returns x_i - eta y_i and y_i, one after the other."""
        y = self.y[i]
        return np.concatenate([self.x[i] - np.float32(self.eta) * y, y])

    def bytes_to(self, j: int, i: int) -> int:
        """Returns the size of two models."""
        return 2 * self.model_bytes

    def mixed(self, i: int, row: Row) -> None:
        """Takes both apart again."""
        self.x[i], self.y[i] = np.split(row, 2)
