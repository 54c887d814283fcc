"""DFedAvg and DFedAvgM: local steps, then gossip; DFedSAM and DFedSAM-MGS with another client rule.

Sun, Li, Wang, "Decentralized Federated Averaging", arXiv:2104.11375, Algorithm 1. Shi, Shen, Wei,
Sun, Yuan, Wang, Tao, "Improving the Model Consistency of Decentralized Federated Learning",
arXiv:2302.04083, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from fl.strategies.drivers.events import at_least
from fl.strategies.drivers.gossip import Gossip
from fl.strategies.drivers.swarm import Answer
from fl.vectors.rows import Row


class DFedAvg(Gossip):
    """Trains locally, then mixes with the neighbours, Q times.

        z_i <- K local steps of the client's rule from x_i
        X   <- W ... W Z                                   (Q products)

    With `client=sgd`, DFedAvg; with momentum, which starts anew in every round, DFedAvgM; with
    `client=sam`, DFedSAM; and with Q > 1, DFedSAM-MGS. Each of the Q steps sends the model to all
    neighbours again, and waits for theirs. With one local step and Q = 1 it is D-PSGD in the order
    "adapt, then combine".

    Args:
        gossip_steps: Q, at least 1.
        **gossip: arguments of `Gossip`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, *, gossip_steps: int = 1, **gossip: Any) -> None:
        super().__init__(**gossip)
        at_least("gossip_steps", gossip_steps, 1)
        self.exchanges = gossip_steps

    def learn(self, i: int, answer: Answer) -> None:
        """Goes on with z_i."""
        self.x[i] = answer.x

    def mixed(self, i: int, row: Row) -> None:
        """Goes on with the mixed model."""
        self.x[i] = row
