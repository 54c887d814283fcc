"""CHOCO-SGD: gossip of compressed differences.

Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with
Compressed Communication", arXiv:1902.00340, Algorithm 2; with more than one local step Koloskova,
Lin, Stich, Jaggi, arXiv:1907.09356.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fl.compression import Shapes
from fl.compression.compressor import Compressor, State
from fl.errors import ConfigError
from fl.randomness import generator
from fl.strategies.drivers.events import positive
from fl.strategies.drivers.gossip import Gossip
from fl.strategies.drivers.swarm import Answer, Swarm
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


class CHOCO(Gossip):
    """Nodes keep copies of their neighbours' models, which compressed messages keep up to date.

        x_i    <- local step from x_i
        q_i    <- Q(x_i - xhat_i)                                   sent to all neighbours
        xhat_j <- xhat_j + q_j                                      for j = i and all neighbours
        x_i    <- x_i + gamma sum_j W_ij (xhat_j - xhat_i)

    Whatever Q leaves out is sent later, so any compressor that shrinks errors will do; gamma has to
    be the smaller, the more it leaves out. With Q the identity and gamma = 1 it is "adapt, then
    combine" D-PSGD. sum_i x_i is kept exactly.

    The copies begin at the initial model, which all nodes know; in the paper at 0. All that hold
    a copy of xhat_j apply the same q_j. Who has missed one (it was lost, or the node was away) gets
    xhat_j itself with the next, at the size of a model.

    Args:
        compressor: Q.
        gamma: consensus step size, in (0, 1].
        **gossip: arguments of `Gossip`.

    Raises:
        ConfigError: an argument is out of its range; the compressor has a memory of its own at the
            receiver; the graph changes, so that nodes would hold no copies. At the start: the
            compressor is unbiased with a variance of 1 or more, so that copies would run away.
    """

    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric",)
    exchanges_models: ClassVar[bool] = False

    def __init__(self, *, compressor: Compressor, gamma: float = 0.5, **gossip: Any) -> None:
        super().__init__(**gossip)
        positive("gamma", gamma)
        if gamma > 1:
            raise ConfigError(f"gamma is {gamma}; it must be at most 1")
        if not isinstance(compressor, Compressor):
            raise ConfigError(
                f"compressor is {type(compressor).__name__}, which keeps what it leaves "
                "out, as CHOCO does itself: use one without a memory, such as "
                "compressor@strategy.compressor=topk"
            )
        if self.topology.period != 1:
            raise ConfigError(
                "CHOCO needs a graph that stays, since nodes hold copies of their neighbours' "
                f"models, and {type(self.topology).__name__} changes: use topology=ring, torus, "
                "exponential (topology.directed=false) or random_regular"
            )
        self.compressor = compressor
        self.gamma = gamma

    def begin(self, swarm: Swarm) -> None:
        """All begin at the initial model, and so do their copies."""
        super().begin(swarm)
        self.shapes = Shapes.of(swarm.layout)
        omega = self.compressor.variance(self.shapes)
        if omega is not None and omega >= 1:
            raise ConfigError(
                f"strategy.compressor {type(self.compressor).__name__} has variance {omega:.3g} on "
                "this model; CHOCO's copies follow only if it is below 1: keep more (levels, "
                "density, a bucket), or use compressor@strategy.compressor=topk or shrunk_randk"
            )
        self.hat: list[Row] = [swarm.w] * self.n
        self.states: list[State] = [self.compressor.init(self.shapes)] * self.n
        self.sent = [0] * self.n  # messages so far
        self.size = [0] * self.n  # of the last one, bytes
        self.behind: set[tuple[int, int]] = set()  # (i, j): i's copy of xhat_j is out of date

    def learn(self, i: int, answer: Answer) -> None:
        """Steps."""
        self.x[i] = answer.x

    def message(self, i: int) -> Row:
        """Sends q_i; returns xhat_i after it, which all that get q_i have then."""
        rng = generator(self.seed, "compression", i, self.sent[i])
        difference = self.x[i] - self.hat[i]
        payload, self.states[i] = self.compressor.encode(
            difference, self.shapes, self.states[i], rng
        )
        self.sent[i] += 1
        self.size[i] = len(payload)
        self.hat[i] = self.hat[i] + self.compressor.decode(payload, self.shapes)
        return self.hat[i]

    def bytes_to(self, j: int, i: int) -> int:
        """Returns the size of q_j, or of xhat_j for a node whose copy is out of date."""
        if (i, j) not in self.behind:
            return self.size[j]
        self.behind.discard((i, j))
        return self.model_bytes

    def lost(self, j: int, i: int) -> None:
        """Notes that a copy is out of date from now on."""
        self.behind.add((i, j))

    def mixed(self, i: int, row: Row) -> None:
        """Moves towards the neighbours' copies; `row` is sum_j W_ij xhat_j."""
        self.x[i] = self.x[i] + np.float32(self.gamma) * (row - self.hat[i])
