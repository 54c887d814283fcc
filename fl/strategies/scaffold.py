"""SCAFFOLD: control variates for client drift.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", arXiv:1910.06378 (ICML 2020), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, positive
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Controlled(NamedTuple):
    """Model, shape (d,), and control variate, shape (p,)."""

    w: Row
    c: Row


@dataclass(frozen=True)
class SCAFFOLD(RoundRule):
    """The server of Algorithm 1, with S the clients of a round; see `fl.clients.ControlVariates`.

        w <- w + eta / |S| sum_(i in S) (w_i - w)
        c <- c + 1 / N sum_(i in S) (c_i+ - c_i)

    c travels beside the model, and the change of c_i beside the reply: twice the bytes of FedAvg.
    After every round c is the mean of all clients' c_i, those that were never asked with 0, unless
    a reply has been lost, left out or too late: its client keeps what the server does not know; or
    a compressor has left out some of the change.
    Clients weigh the same, whatever their number of examples; those that did no step, nothing.

    Attributes:
        num_clients: N.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    carries: ClassVar[tuple[str, ...]] = ("c",)
    needs: ClassVar[tuple[str, ...]] = ("delta_c",)
    folds: ClassVar[bool] = False

    num_clients: int
    eta: float = 1.0

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        positive("eta", self.eta)

    def init(self, w: Row, p: int) -> Controlled:
        """Returns the model without control."""
        return Controlled(w, np.zeros(p, np.float32))

    def broadcast(self, state: Controlled) -> Mapping[str, Row]:
        """Returns c."""
        return {"c": state.c}

    def step(self, state: Controlled, updates: Updates) -> Controlled:
        """Returns model and control variate after a step."""
        updates = updates.unweighted()
        w = state.w + np.float32(self.eta) * updates.mean()
        share = np.float32(updates.weights.sum() / self.num_clients)
        return Controlled(w, state.c + share * updates.extra("delta_c").mean())
