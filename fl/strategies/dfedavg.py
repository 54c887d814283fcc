"""DFedAvg and DFedAvgM: local steps, then gossip; DFedSAM and DFedSAM-MGS with another client rule.

Sun, Li, Wang, "Decentralized Federated Averaging", arXiv:2104.11375, Algorithm 1. Shi, Shen, Wei,
Sun, Yuan, Wang, Tao, "Improving the Model Consistency of Decentralized Federated Learning",
arXiv:2302.04083, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least
from fl.strategies.gossip_rule import GossipRule, LocalTraining, NodeModel
from fl.vectors.rows import Row


@dataclass(frozen=True)
class DFedAvg(GossipRule):
    """Trains locally, then mixes with the neighbours, Q times.

        z_i <- K local steps of the client's rule from x_i
        X   <- W ... W Z                                   (Q products)

    With `client=sgd`, DFedAvg; with momentum, which starts anew in every round, DFedAvgM; with
    `client=sam`, DFedSAM; and with Q > 1, DFedSAM-MGS. Each of the Q steps sends the model to all
    neighbours again, and waits for theirs. With one local step and Q = 1 it is D-PSGD in the order
    "adapt, then combine"; and with a compressor CHOCO-SGD, see `fl.strategies.choco`.

    Attributes:
        gossip_steps: Q, at least 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    gossip_steps: int = 1

    def __post_init__(self) -> None:
        at_least("gossip_steps", self.gossip_steps, 1)

    def init(self, w: Row) -> NodeModel:
        """Returns the initial model."""
        return NodeModel(w)

    def adapt(self, state: NodeModel, progress: LocalTraining) -> NodeModel:
        """Returns z_i."""
        return NodeModel(progress.x)

    def combine(self, state: NodeModel, row: Row) -> NodeModel:
        """Returns the mixed model."""
        return NodeModel(row)
