"""EXTRA: an exact first-order algorithm for decentralised consensus optimisation.

Shi, Ling, Wu, Yin, "EXTRA: An Exact First-Order Algorithm for Decentralized Consensus
Optimization", arXiv:1404.6264, Algorithm 1 with W~ = (I + W) / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import positive
from fl.strategies.gossip_rule import GossipRule, LocalTraining
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class Differenced(NamedTuple):
    """Model x_i, half of what mixing has changed so far s_i, and gradient g_i: shape (d,) each."""

    x: Row
    s: Row
    g: Row


@dataclass(frozen=True)
class EXTRA(GossipRule):
    """D-PSGD whose bias the difference of two rounds takes away.

        X <- (I + W) X - (I + W) / 2 X before - eta (G(X) - G(X before))     (W X - eta G(X) first)

    with the nodes' models and gradients as rows. It is computed as its sum over all rounds is,

        x_i <- sum_j W_ij x_j + s_i - eta g_i(x_i)
        s_i <- s_i + (sum_j W_ij x_j - x_i) / 2                        of the x before this step

    which is the same, and whose rounding errors end when the nodes agree. The fixed point is the
    best model of all at any step size below (1 + the smallest eigenvalue of W) / L, L the
    smoothness of the losses. Nodes send gradients (`client=gradient`), each on the batch it was
    drawn on, and x_i to their neighbours: one model, which travels while the gradient is computed.

    W has to stay. While all s_i sum to 0 the mean model moves by -eta times the mean gradient. A
    node that is away when the round begins keeps its s_i, and they do; a payload that is lost, and
    a node that fails after it has sent, leaves a rest for good, and with it a bias. A Byzantine
    node forges x_i.

    Attributes:
        eta: learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    sends_first: ClassVar[bool] = True
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric",)
    above: ClassVar[float] = -1.0
    linear: ClassVar[str] = "sum_i s_i stays 0 only while W's columns sum to 1"

    eta: float = 0.1

    def __post_init__(self) -> None:
        positive("eta", self.eta)

    def init(self, w: Row) -> Differenced:
        """Returns the initial model, which nothing has changed."""
        zero = np.zeros_like(w)
        return Differenced(w, zero, zero)

    def adapt(self, state: Differenced, progress: LocalTraining) -> Differenced:
        """Returns the state with the gradient."""
        return state._replace(g=progress.vectors["gradient"])

    def combine(self, state: Differenced, row: Row) -> Differenced:
        """Returns the model after the step, and s_i with how mixing has changed it."""
        x, s, g = state
        step = np.float32(self.eta) * g
        return state._replace(x=row + s - step, s=s + np.float32(0.5) * (row - x))
