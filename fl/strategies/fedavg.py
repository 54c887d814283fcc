"""Federated averaging.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", arXiv:1602.05629 (AISTATS 2017), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import positive
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Model(NamedTuple):
    """The model, shape (d,)."""

    w: Row


@dataclass(frozen=True)
class FedAvg(RoundRule):
    """Algorithm 1, with a server learning rate.

        w <- w + eta sum_i n_i (w_i - w) / sum_i n_i

    where w_i is what client i made of w and n_i its number of examples. With an aggregator F it is
    w <- w + eta F(w_1 - w, ..., w_n - w).

    Attributes:
        eta: server learning rate, above 0; 1 replaces the model.

    Raises:
        ConfigError: eta is out of range.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        positive("eta", self.eta)

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial model."""
        return Model(w)

    def step(self, state: Model, updates: Updates) -> Model:
        """Returns the model moved along the mean change."""
        return Model(state.w + np.float32(self.eta) * updates.mean())
