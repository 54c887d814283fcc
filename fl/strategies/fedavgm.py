"""Server momentum.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import positive, share
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class ServerMomentum(NamedTuple):
    """Model and momentum, shape (d,) each."""

    w: Row
    v: Row


@dataclass(frozen=True)
class FedAvgM(RoundRule):
    """FedAvg with momentum on the server, with Delta the mean of the clients' changes.

        v <- beta v + Delta;    w <- w + eta v

    Delta has the clients' rate in it, so that v is corrected where `Rounds.lr_schedule` changes it:
    v <- lr_new / lr_old v. eta is outside of v, and a change of it needs no correction.

    Attributes:
        eta: server learning rate, above 0. With momentum the steps are up to 1 / (1 - beta) times
            as long.
        beta: momentum, in [0, 1).

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    eta: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        share("beta", self.beta)

    def init(self, w: Row, p: int) -> ServerMomentum:
        """Returns the model at rest."""
        return ServerMomentum(w, np.zeros_like(w))

    def at_rate(self, state: ServerMomentum, ratio: float) -> ServerMomentum:
        """Returns the momentum of changes that are `ratio` times as long."""
        return state._replace(v=np.float32(ratio) * state.v)

    def step(self, state: ServerMomentum, updates: Updates) -> ServerMomentum:
        """Returns model and momentum after a step."""
        v = np.float32(self.beta) * state.v + updates.mean()
        return ServerMomentum(state.w + np.float32(self.eta) * v, v)
