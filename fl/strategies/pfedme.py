"""pFedMe: the server of clients with personal models on a Moreau envelope.

Dinh, Tran, Nguyen: Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020,
arXiv:2006.08848, Algorithm 1; authors' code CharlieDinh/pFedMe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import positive
from fl.clients.pfedme import MoreauEnvelope
from fl.clients.rule import Rule
from fl.strategies.fedavg import Model
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


@dataclass(frozen=True)
class PFedMe(RoundRule):
    """The server of Algorithm 1, with S the clients of a round; `fl.clients.MoreauEnvelope`.

        w <- (1 - beta) w + beta / |S| sum_(i in S) w_i

    Clients weigh the same, as in the paper; the authors' code weighs them by examples, and has all
    clients train, of which the server uses S.

    Attributes:
        beta: above 0; 1 is the plain mean, and above 1 is allowed.

    Raises:
        ConfigError: beta is out of range.
    """

    client_rule: ClassVar[type[Rule] | None] = MoreauEnvelope

    beta: float = 1.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial model."""
        return Model(w)

    def step(self, state: Model, updates: Updates) -> Model:
        """Returns the model moved towards the mean of the clients'."""
        return Model(state.w + np.float32(self.beta) * updates.unweighted().mean())
