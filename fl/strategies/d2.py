"""D2: decentralised training that data which differ from node to node do not bias.

Tang, Lian, Yan, Zhang, Liu, "D2: Decentralized Training over Decentralized Data", arXiv:1803.07068,
Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import positive
from fl.strategies.gossip_rule import GossipRule, LocalTraining
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class SummedDisagreement(NamedTuple):
    """Model x_i, what mixing has changed so far s_i, and the step z_i: shape (d,) each."""

    x: Row
    s: Row
    z: Row


@dataclass(frozen=True)
class D2(GossipRule):
    """Steps by how model and gradient have changed, and mixes.

        z_i <- 2 x_i - x_i before - eta (g_i(x_i) - g_i(x_i) before)      (x_i - eta g_i first)
        x_i <- sum_j W_ij z_j

    What a node's gradient has of its own cancels, so the fixed point is the best model of all at
    any step size. Nodes send gradients (`client=gradient`), each on the batch it was drawn on, and
    z_i to their neighbours: one model. It is computed as

        z_i <- x_i + s_i - eta g_i(x_i),    x_i <- sum_j W_ij z_j,    s_i <- s_i + x_i - z_i

    which is the same, as s_i = x_i - x_i before + eta g_i before, and whose rounding errors end
    when the nodes agree, where those of differences add up.

    W has to stay, and its smallest eigenvalue has to be above -1/3; half a step, `gamma` 0.5, has
    none below 0.

    While all s_i sum to 0 the mean model moves by -eta times the mean gradient. A node that is away
    keeps its s_i, and they do; a payload that is lost leaves a rest for good, and with it a bias. A
    Byzantine node forges z_i.

    Attributes:
        eta: learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric",)
    above: ClassVar[float] = -1 / 3
    linear: ClassVar[str] = "sum_i s_i stays 0 only while W's columns sum to 1"

    eta: float = 0.1

    def __post_init__(self) -> None:
        positive("eta", self.eta)

    def init(self, w: Row) -> SummedDisagreement:
        """Returns the initial model, which nothing has changed."""
        return SummedDisagreement(w, np.zeros_like(w), w)

    def adapt(self, state: SummedDisagreement, progress: LocalTraining) -> SummedDisagreement:
        """Returns the state with z_i."""
        g = progress.vectors["gradient"]
        return state._replace(z=state.x + state.s - np.float32(self.eta) * g)

    def message(self, state: SummedDisagreement) -> Row:
        """Returns z_i."""
        return state.z

    def combine(self, state: SummedDisagreement, row: Row) -> SummedDisagreement:
        """Returns the mixed model, and s_i with how mixing has changed it."""
        return state._replace(x=row, s=state.s + (row - state.z))
