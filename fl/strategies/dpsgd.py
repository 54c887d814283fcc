"""D-PSGD: decentralised parallel SGD.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent", arXiv:1705.09056,
Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.strategies.gossip_rule import GossipRule, LocalTraining
from fl.vectors.rows import Row


class Stepping(NamedTuple):
    """Model x_i and the step -lr g_i(x_i) that is yet to be taken, shape (d,) each."""

    x: Row
    step: Row


@dataclass(frozen=True)
class DPSGD(GossipRule):
    """Mixes the neighbours' models and steps along the own gradient.

        x_i <- sum_j W_ij x_j - lr g_i(x_i)

    The gradient is taken at the node's own model before mixing ("combine, then adapt"), so models
    travel while gradients are computed, and a round takes the longer of the two. Nodes do one SGD
    step (`client.local_steps=1`); with more, -lr g_i is what all of them have changed. The order
    "adapt, then combine", x_i <- sum_j W_ij (x_j - lr g_j), is `DFedAvg` with one local step: the
    two have different fixed points.

    A node that fails after it has sent keeps its model, while its neighbours have mixed it in.
    """

    sends_first: ClassVar[bool] = True

    def init(self, w: Row) -> Stepping:
        """Returns the initial model, and no step."""
        return Stepping(w, np.zeros_like(w))

    def adapt(self, state: Stepping, progress: LocalTraining) -> Stepping:
        """Returns the state with -lr g_i(x_i)."""
        return state._replace(step=progress.delta)

    def combine(self, state: Stepping, row: Row) -> Stepping:
        """Returns the mixed model after the step."""
        return state._replace(x=row + state.step)
