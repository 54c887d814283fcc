"""Gradient tracking: every node estimates the gradient of all, which takes D-PSGD's bias away.

Di Lorenzo, Scutari, "NEXT", arXiv:1602.00591; Nedic, Olshevsky, Shi, "Achieving Geometric
Convergence for Distributed Optimization over Time-Varying Graphs" (DIGing), arXiv:1607.03218; with
stochastic gradients and in this order Xin, Khan, Kar, arXiv:1909.12583; with both vectors
compressed Liao, Li, Huang, Pu, "A Compressed Gradient Tracking Method for Decentralized
Optimization with Linear Convergence", arXiv:2103.13748.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import positive
from fl.strategies.gossip_rule import GossipRule, LocalTraining
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class Tracking(NamedTuple):
    """Model x_i, estimate y_i of the mean gradient, and the last own gradient g_i, (d,) each."""

    x: Row
    y: Row
    g: Row


@dataclass(frozen=True)
class GradientTracking(GossipRule):
    """Steps along a mixed estimate of the mean gradient.

        y_i <- sum_j W_ij y_j + g_i(x_i) - g_i(x_i before)          (y_i = g_i(x_i) first)
        x_i <- sum_j W_ij (x_j - eta y_j)

    So sum_i y_i = sum_i g_i(x_i) in every round, each gradient on the batch it was drawn on. Nodes
    send gradients (`client=gradient`), and x_i - eta y_i and y_i to their neighbours: twice a
    model.

    A node that is away keeps x, y and its last gradient, and the sums stay equal. A payload that is
    lost breaks that equality for good: who receives it takes its own part twice. A Byzantine node
    forges x_i - eta y_i; its y_i stays true.

    Attributes:
        eta: learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    vectors: ClassVar[int] = 2
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly")
    linear: ClassVar[str] = "sum_i y_i is the sum of all gradients only while W's columns sum to 1"

    eta: float = 0.1

    def __post_init__(self) -> None:
        positive("eta", self.eta)

    def init(self, w: Row) -> Tracking:
        """Returns the initial model; the gradient before the first counts as 0."""
        zero = np.zeros_like(w)
        return Tracking(w, zero, zero)

    def adapt(self, state: Tracking, progress: LocalTraining) -> Tracking:
        """Returns y_i with how the gradient has changed."""
        g = progress.vectors["gradient"]
        return Tracking(state.x, state.y + g - state.g, g)

    def message(self, state: Tracking) -> Row:
        """Returns x_i - eta y_i and y_i, one after the other."""
        return np.concatenate([state.x - np.float32(self.eta) * state.y, state.y])

    def combine(self, state: Tracking, row: Row) -> Tracking:
        """Returns both, taken apart."""
        x, y = np.split(row, 2)
        return state._replace(x=x, y=y)
