"""BEER: gradient tracking with compressed messages, as fast as without.

Zhao, Li, Li, Richtarik, Chi, "BEER: Fast O(1/T) Rate for Decentralized Nonconvex Optimization with
Communication Compression", arXiv:2201.13320, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import positive
from fl.strategies.gossip_rule import GossipRule, LocalTraining
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class TrackedGradient(NamedTuple):
    """What a node keeps, shape (d,) each.

    Attributes:
        x: model x_i.
        v: estimate v_i of the mean gradient.
        g: last gradient g_i.
        mixed_x: x_i + gamma sum_j W_ij (h_j - h_i).
        mixed_v: v_i + gamma sum_j W_ij (z_j - z_i).
        steps: how many have been taken.
    """

    x: Row
    v: Row
    g: Row
    mixed_x: Row
    mixed_v: Row
    steps: int


@dataclass(frozen=True)
class BEER(GossipRule):
    """Gradient tracking whose steps are mixed by what neighbours had a round ago.

        v_i <- v_i + gamma sum_j W_ij (z_j - z_i) + g_i(x_i) - g_i(x_i) before    (v_i = g_i first)
        x_i <- x_i + gamma sum_j W_ij (h_j - h_i) - eta v_i
        h_i <- h_i + C(x_i - h_i),    z_i <- z_i + C(v_i - z_i)                 sent to all

    C is the compressor, h and z the copies of `fl.strategies.choco`, gamma that of the strategy.
    z stays 0 in the first round.
    Without a compressor and with gamma = 1 it is DIGing: x_i <- sum_j W_ij x_j - eta v_i. Against
    `GradientTracking` under a compressor, steps are not mixed in the round they are taken in.
    Copies of models begin at the initial model, which all know, in the paper at 0.

    The mean of all v_i is that of all g_i, whatever C leaves out. Nodes send gradients
    (`client=gradient`). A node that is away keeps x, v and its last gradient, and the sums stay
    equal; a payload that is lost breaks that for good. A Byzantine node forges x_i; its v_i stays
    true.

    Attributes:
        eta: learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    vectors: ClassVar[int] = 2
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly")
    linear: ClassVar[str] = "sum_i v_i is the sum of all gradients only while W's columns sum to 1"

    eta: float = 0.05

    def __post_init__(self) -> None:
        positive("eta", self.eta)

    def init(self, w: Row) -> TrackedGradient:
        """Returns the initial model; the gradient before the first counts as 0."""
        zero = np.zeros_like(w)
        return TrackedGradient(w, zero, zero, w, zero, 0)

    def adapt(self, state: TrackedGradient, progress: LocalTraining) -> TrackedGradient:
        """Returns v_i with how the gradient has changed, and x_i after the step along it."""
        g = progress.vectors["gradient"]
        v: Row = state.mixed_v + (g - state.g)
        x: Row = state.mixed_x - np.float32(self.eta) * v
        return TrackedGradient(x, v, g, x, v, state.steps + 1)

    def message(self, state: TrackedGradient) -> Row:
        """Returns x_i and v_i, one after the other; 0 for the first v_i."""
        v = state.v if state.steps > 1 else np.zeros_like(state.v)
        return np.concatenate([state.x, v])

    def combine(self, state: TrackedGradient, row: Row) -> TrackedGradient:
        """Returns the state with both as mixed, for the next round."""
        mixed_x, mixed_v = np.split(row, 2)
        return state._replace(mixed_x=mixed_x, mixed_v=mixed_v if state.steps > 1 else state.v)
