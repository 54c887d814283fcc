"""D-PSGD: decentralised parallel SGD.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent", arXiv:1705.09056,
Algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from fl.strategies.drivers.gossip import Gossip
from fl.strategies.drivers.swarm import Answer, Swarm
from fl.vectors.rows import Row


class DPSGD(Gossip):
    """Mixes the neighbours' models and steps along the own gradient.

        x_i <- sum_j W_ij x_j - lr g_i(x_i)

    The gradient is taken at the node's own model before mixing ("combine, then adapt"), so models
    travel while gradients are computed, and a round takes the longer of the two. Nodes do one SGD
    step (`client.local_steps=1`); with more, -lr g_i is what all of them have changed. The order
    "adapt, then combine", x_i <- sum_j W_ij (x_j - lr g_j), is `DFedAvg` with one local step: the
    two have different fixed points.

    A node that fails after it has sent keeps its model, while its neighbours have mixed it in.

    Args:
        **gossip: arguments of `Gossip`.
    """

    sends_first: ClassVar[bool] = True

    def begin(self, swarm: Swarm) -> None:
        """All begin at the initial model."""
        super().begin(swarm)
        self.step: list[Row] = [swarm.w] * self.n

    def learn(self, i: int, answer: Answer) -> None:
        """Keeps -lr g_i(x_i)."""
        self.step[i] = answer.delta

    def mixed(self, i: int, row: Row) -> None:
        """Steps."""
        self.x[i] = row + self.step[i]
