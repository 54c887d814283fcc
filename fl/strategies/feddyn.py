"""FedDyn: clients whose losses are regularised so that all have the minimum of their sum.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic
Regularization", arXiv:2111.04263 (ICLR 2021), Algorithm 1; authors' code alpemreacar/FedDyn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, positive
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Regularised(NamedTuple):
    """Model, and what the regularisers pull it by, shape (d,) each."""

    w: Row
    h: Row


@dataclass(frozen=True)
class FedDyn(RoundRule):
    """The server of Algorithm 1, with S the clients of a round; `fl.clients.DynamicRegularization`.

        h <- h - alpha / N sum_(i in S) (w_i - w)
        w <- 1 / |S| sum_(i in S) w_i - h / alpha

    After every round h is the mean of all clients' a_i, those that were never asked with 0, unless
    a reply has been lost, left out or too late: its client keeps what the server does not know.
    Nothing travels but the model.

    Departures: clients weigh the same, so what is minimised is the plain mean of their losses (the
    authors' code gives a client of n_i examples alpha N n / n_i); those that did no step, nothing.
    What is evaluated is w, where the authors also report the mean of the w_i.

    Attributes:
        num_clients: N.
        alpha: weight of the regulariser, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    tells: ClassVar[Mapping[str, str]] = {"feddyn-alpha": "alpha"}
    folds: ClassVar[bool] = False

    num_clients: int
    alpha: float = 0.1

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        positive("alpha", self.alpha)

    def init(self, w: Row, p: int) -> Regularised:
        """Returns the model without a pull."""
        return Regularised(w, np.zeros_like(w))

    def configs(
        self, state: Regularised, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns alpha for every client."""
        return [{"feddyn-alpha": self.alpha}] * n

    def step(self, state: Regularised, updates: Updates) -> Regularised:
        """Returns model and pull after a step."""
        updates = updates.unweighted()
        delta = updates.mean()
        share = float(updates.weights.sum()) / self.num_clients
        h: Row = state.h - np.float32(self.alpha * share) * delta
        w: Row = state.w + delta - np.float32(1 / self.alpha) * h
        return Regularised(w, h)
