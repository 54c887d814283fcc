"""MoNNA: momentum and nearest-neighbour averaging, for networks with Byzantine nodes.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear
Gradient Overhead", arXiv:2209.10931, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fl.aggregation import NearestNeighbourAveraging
from fl.attacks import Scene
from fl.checks import read_if
from fl.errors import ConfigError
from fl.randomness import uniform
from fl.strategies.drivers.events import at_least
from fl.strategies.drivers.gossip import Exchange, Gossip
from fl.strategies.drivers.swarm import Answer
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


@read_if(lambda a: False, "topology.weights", only="MoNNA takes the graph of a topology alone")
class MoNNA(Gossip):
    """Averages the models nearest to the node's own, of those that come first.

        x_i <- x_i - lr m_i,    m_i <- beta m_i + (1 - beta) g_i(x_i)     (`client=momentum`)
        K times: x_i <- mean of the m - 2f vectors nearest to x_i among the first m - f

    where m counts the node and its neighbours (n on the complete graph, which the paper is for),
    and its own vector is one of the m - f. It does not wait for the last f, which may never come.
    Of payloads that arrive at one instant, those of Byzantine nodes come first, which is the worst
    case and what the authors' simulation assumes, and the others in an order drawn from the seed.

    W's weights are not used, only its graph. Who has fewer than 2f + 1 vectors, because others are
    away or their payloads lost, keeps its own. Byzantine nodes mix like honest ones.

    Args:
        f: Byzantine nodes among any node's neighbours; needs m >= 3f + 1.
        gossip_steps: K, at least 1.
        **gossip: arguments of `Gossip`.

    Raises:
        ConfigError: an argument is out of its range, or a node has too few neighbours.
    """

    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly", "rows", "columns")
    shows_rule: ClassVar[bool] = True

    def __init__(self, *, f: int = 1, gossip_steps: int = 1, **gossip: Any) -> None:
        super().__init__(**gossip)
        at_least("f", f, 0)
        at_least("gossip_steps", gossip_steps, 1)
        self.f = f
        self.exchanges = gossip_steps
        self.rule = NearestNeighbourAveraging(f=f)
        for e in range(self.topology.period or 1):
            fewest = min(len(heard) for heard in self.edges(e).heard) + 1
            if fewest < 3 * f + 1:
                raise ConfigError(
                    f"f is {f}, and a node has {fewest} vectors with its own: it needs "
                    f"3 f + 1: set strategy.f={(fewest - 1) // 3}, or use topology=complete"
                )

    def learn(self, i: int, answer: Answer) -> None:
        """Steps along the momentum."""
        self.x[i] = answer.x

    def quorum(self, i: int, heard: int) -> int:
        """Returns m - f - 1: with its own, m - f vectors."""
        return max(0, heard - self.f)

    def order(self, exchange: int, j: int, i: int) -> float:
        """Returns -1 for Byzantine senders, and a number drawn from the seed for others."""
        return (
            -1.0 if j in self.byzantine else uniform(self.seed, "arrival", i * self.n + j, exchange)
        )

    def combine(self, exchange: Exchange, nodes: Sequence[int]) -> list[Row]:
        """Returns the mean of the nearest for each node."""
        return [self._nearest(exchange, i) for i in nodes]

    def mixed(self, i: int, row: Row) -> None:
        """Goes on with the mean."""
        self.x[i] = row

    def scene(self, f: int, honest: Row, rng: np.random.Generator, memory: Any) -> Scene:
        """Returns a scene for attacks that know the rule, seen from the honest nodes' mean."""
        return Scene(f, rng, self.rule, rng, honest.mean(axis=0), memory)

    def _nearest(self, exchange: Exchange, i: int) -> Row:
        own = exchange.own[i] if i in exchange.own else exchange.rows[i]
        first = exchange.arrived.get(i, [])[: self.quorum(i, len(exchange.edges.heard[i]))]
        rows = np.stack([own, *(exchange.rows[arrival.source] for arrival in first)])
        if len(rows) < 2 * self.f + 1:
            return own
        return np.asarray(self.rule(rows, reference=own))
