"""RelaySGD: sums that are relayed along a tree, so that every node counts everybody once.

Vogels, He, Koloskova, Lin, Stich, Jaggi, "RelaySum for Decentralized Deep Learning on Heterogeneous
Data", arXiv:2110.04175, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.strategies.gossip_rule import LocalTraining, TreeRule
from fl.vectors.rows import Row


class Relaying(NamedTuple):
    """Model x_i, shape (d,), and the neighbours' last sums m_ji with counts, shape (d + 1,)."""

    x: Row
    heard: Mapping[int, Row]


@dataclass(frozen=True)
class RelaySGD(TreeRule):
    """Sends each neighbour the sum of what it has not got from there, and how many are in it.

        x_i  <- x_i - lr g_i(x_i)
        m_ij <- x_i + sum_k m_ki before,    c_ij <- 1 + sum_k c_ki before      (neighbours k not j)
        x_i  <- ((n - sum_j c_ji) x_i + sum_j m_ji) / n

    So a node averages everybody's model, each as old as its distance, with no weights to choose:
    the fixed point is the best model of all at any step size, whatever the data. The node's own
    model stands for those of whom it has not heard. With more than one local step -lr g_i is what
    all of them have changed.

    A message is a model and its count. What is lost, or comes from a node that is away, is missing
    in the sums of the next rounds, and in their counts: nothing is biased for good. A node that is
    away goes on from the sums that it had. Compressed messages could not be told from those that
    others relay: it does not go with a compressor. A Byzantine node forges its own part of all its
    messages, and relays truly what others have sent.
    """

    scalars: ClassVar[int] = 1
    linear: ClassVar[str] = "sums are relayed, in which single models cannot be seen"

    def init(self, w: Row) -> Relaying:
        """Returns the initial model; nothing has been heard."""
        return Relaying(w, {})

    def adapt(self, state: Relaying, progress: LocalTraining) -> Relaying:
        """Returns the state with the model after the step."""
        return state._replace(x=progress.x)

    def message(self, state: Relaying) -> Row:
        """Returns x_i and the count 1, one after the other."""
        return np.append(state.x, np.float32(1))

    def to(self, state: Relaying, message: Row, k: int) -> Row:
        """Returns m_ik and c_ik, one after the other."""
        return np.asarray(sum((row for j, row in state.heard.items() if j != k), message))

    def hear(self, state: Relaying, heard: Mapping[int, Row]) -> Relaying:
        """Returns the state with what neighbours have sent; of others there is nothing."""
        return state._replace(heard=dict(sorted(heard.items())))

    def mixed(self, state: Relaying, n: int) -> Row:
        """Returns the mean of all n nodes, and 1."""
        total = sum(state.heard.values(), np.zeros_like(self.message(state)))
        own = np.float32(n) - total[-1]
        return np.asarray((own * self.message(state) + total) / np.float32(n))

    def combine(self, state: Relaying, row: Row) -> Relaying:
        """Returns the averaged model."""
        return state._replace(x=row[:-1])
