"""Stochastic gradient push: SGD with push-sum, for edges that go one way.

Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning",
arXiv:1811.10792, Algorithm 1; push-sum by Kempe, Dobra, Gehrke (FOCS 2003), for optimisation by
Nedic, Olshevsky, arXiv:1406.2075; with compressed messages, and weights that are sent as they are,
Taheri, Mokhtari, Hassani, Pedarsani, arXiv:2002.09964.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.strategies.gossip_rule import GossipRule, Keeps, LocalTraining
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class Pushed(NamedTuple):
    """Biased model x_i, shape (d,), and its weight w_i, above 0."""

    x: Row
    w: float


@dataclass(frozen=True)
class SGP(GossipRule):
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

    A Byzantine node forges z_i, and pushes w_i z_i with its true weight.
    """

    scalars: ClassVar[int] = 1
    keeps: ClassVar[Keeps] = "columns"
    weights: ClassVar[tuple[Stochasticity, ...]] = ("columns", "doubly", "symmetric")
    linear: ClassVar[str] = "x_i / w_i is the average only if all sum x and w with the same weights"

    def init(self, w: Row) -> Pushed:
        """Returns the initial model with weight 1."""
        return Pushed(w, 1.0)

    def model(self, state: Pushed) -> Row:
        """Returns z_i."""
        return state.x / np.float32(state.w)

    def adapt(self, state: Pushed, progress: LocalTraining) -> Pushed:
        """Returns x_i after the step."""
        return state._replace(x=state.x + progress.delta)

    def message(self, state: Pushed) -> Row:
        """Returns x_i and w_i, one after the other."""
        return np.append(state.x, np.float32(state.w))

    def combine(self, state: Pushed, row: Row) -> Pushed:
        """Returns both, taken apart."""
        return Pushed(row[:-1], float(row[-1]))

    def model_in(self, message: Row) -> Row:
        """Returns z_i."""
        return np.asarray(message[:-1] / message[-1])

    def with_model(self, message: Row, x: Row) -> Row:
        """Returns w_i z_i and w_i."""
        return np.append(message[-1] * x, message[-1])
