"""q-FedAvg: clients on which the model is bad count more.

Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", arXiv:1905.10497
(ICLR 2020), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import positive
from fl.errors import ConfigError
from fl.strategies.fedavg import Model
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


@dataclass(frozen=True)
class QFedAvg(RoundRule):
    """Algorithm 2, with F_i client i's loss and L = 1 / lr the inverse of the clients' rate.

        dw_i = L (w - w_i);    Delta_i = F_i^q dw_i;    h_i = q F_i^(q-1) |dw_i|^2 + L F_i^q
        w <- w - sum_i Delta_i / sum_i h_i

    over clients that have examples. With q = 0 it is FedAvg with equal weights. F_i is the metric
    "train-loss", which our clients take as the mean over their steps; the paper has the loss before
    them. Losses below 1e-10 count as 1e-10. With an aggregator F, F(Delta_1, ..., Delta_n) is in
    the place of the mean of the Delta_i, and the median of the h_i in that of theirs.

    Attributes:
        q: at least 0; larger is fairer.
        lr: the clients' learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    reads: ClassVar[tuple[str, ...]] = ("train-loss",)
    folds: ClassVar[bool] = False

    q: float = 0.1
    lr: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.q < np.inf:
            raise ConfigError(f"q is {self.q}; it must be at least 0 and finite")
        positive("lr", self.lr)

    @property
    def assumes(self) -> Mapping[str, str]:
        """The clients' learning rate."""
        return {"lr": "lr"}

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial model."""
        return Model(w)

    def step(self, state: Model, updates: Updates) -> Model:
        """Returns the model after a step."""
        updates = updates.unweighted()
        loss = np.maximum(updates.metric("train-loss"), 1e-10)
        powers = loss**self.q
        h = self.q * loss ** (self.q - 1) * updates.squared_norms() / self.lr**2 + powers / self.lr
        direction = updates.scaled(powers / self.lr / updates.typical(h)).mean()
        return Model(state.w + direction)
