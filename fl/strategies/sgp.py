"""Stochastic gradient push: SGD with push-sum, for edges that go one way.

Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning",
arXiv:1811.10792, Algorithm 1; push-sum by Kempe, Dobra, Gehrke (FOCS 2003), for optimisation by
Nedic, Olshevsky, arXiv:1406.2075.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl.strategies.drivers.gossip import Gossip, Keeps
from fl.strategies.drivers.swarm import Answer, Swarm
from fl.topologies import Stochasticity
from fl.vectors.rows import Row

_WEIGHT_BYTES = 4


class SGP(Gossip):
    """Mixes models and weights with columns that sum to 1, and divides one by the other.

        x_i <- x_i - lr g_i(z_i)
        x_i <- sum_j P_ij x_j,    w_i <- sum_j P_ij w_j       (P's columns sum to 1; w_i = 1 first)
        z_i <- x_i / w_i

    z_i is the node's model: it trains from it and is evaluated by it. With weights whose rows sum
    to 1 as well, w stays 1 and this is "adapt, then combine" D-PSGD. With more than one local step
    -lr g_i is what all of them have changed.

    sum_i x_i and sum_i w_i are kept whatever happens: a sender keeps the share that is lost or
    whose receiver is away, as a network with acknowledgements would; a node that is away or has
    failed keeps its own, and finds what reached it all the same when it comes back.

    Args:
        **gossip: arguments of `Gossip`.
    """

    keeps: ClassVar[Keeps] = "columns"
    weights: ClassVar[tuple[Stochasticity, ...]] = ("columns", "doubly", "symmetric")
    exchanges_models: ClassVar[bool] = False

    def begin(self, swarm: Swarm) -> None:
        """All begin at the initial model, with weight 1."""
        super().begin(swarm)
        self.w = [1.0] * self.n

    def point(self, i: int) -> Row:
        """Returns z_i."""
        return self.x[i] / np.float32(self.w[i])

    def learn(self, i: int, answer: Answer) -> None:
        """Steps."""
        self.x[i] = self.x[i] + answer.delta

    def message(self, i: int) -> Row:
        """Returns x_i and w_i, one after the other."""
        return np.append(self.x[i], np.float32(self.w[i]))

    def bytes_to(self, j: int, i: int) -> int:
        """Returns the size of a model and a weight."""
        return self.model_bytes + _WEIGHT_BYTES

    def mixed(self, i: int, row: Row) -> None:
        """Takes both apart again."""
        self.x[i], self.w[i] = row[:-1], float(row[-1])
