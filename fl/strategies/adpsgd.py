"""AD-PSGD: asynchronous decentralised parallel SGD, in pairs.

Lian, Zhang, Zhang, Liu, "Asynchronous Decentralized Parallel Stochastic Gradient Descent",
arXiv:1710.06952, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.strategies.gossip_rule import LocalTraining, NodeModel, PairRule
from fl.vectors.rows import Row


@dataclass(frozen=True)
class ADPSGD(PairRule):
    """Every node, at its own pace: a gradient, an average with one neighbour, a step.

        g    <- g_i(x_i)                          at a snapshot of the model
        j    <- a neighbour drawn uniformly
        x_i, x_j <- (x_i + x_j) / 2               at once for both
        x_i  <- x_i - lr g                        on the model there is then

    `fl.strategies.Pairs` says when.
    """

    def init(self, w: Row) -> NodeModel:
        """Returns the initial model."""
        return NodeModel(w)

    def adapt(self, state: NodeModel, progress: LocalTraining) -> NodeModel:
        """Returns the model there is, after the step."""
        return NodeModel(state.x + progress.delta)

    def combine(self, state: NodeModel, row: Row) -> NodeModel:
        """Returns the average of the pair."""
        return NodeModel(row)
