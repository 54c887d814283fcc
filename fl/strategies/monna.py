"""MoNNA: momentum and nearest-neighbour averaging, for networks with Byzantine nodes.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear
Gradient Overhead", arXiv:2209.10931, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.aggregation import Aggregator, NearestNeighbourAveraging
from fl.checks import at_least
from fl.strategies.gossip_rule import GossipRule, LocalTraining, NodeModel
from fl.topologies import Stochasticity
from fl.vectors.rows import Row


@dataclass(frozen=True)
class MoNNA(GossipRule):
    """Averages the models nearest to the node's own, of those that come first.

        x_i <- x_i - lr m_i,    m_i <- beta m_i + (1 - beta) g_i(x_i)     (`client=momentum`)
        K times: x_i <- mean of the m - 2f vectors nearest to x_i among the first m - f

    where m counts the node and its neighbours (n on the complete graph, which the paper is for),
    and its own vector is one of the m - f. It does not wait for the last f, which may never come.

    W's weights are not used, only its graph. Who has fewer than 2f + 1 vectors, because others are
    away or their payloads lost, keeps its own. Byzantine nodes mix like honest ones.

    Attributes:
        f: Byzantine nodes among any node's neighbours; needs m >= 3f + 1.
        gossip_steps: K, at least 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly", "rows", "columns")

    f: int = 1
    gossip_steps: int = 1

    def __post_init__(self) -> None:
        at_least("f", self.f, 0)
        at_least("gossip_steps", self.gossip_steps, 1)

    @property
    def aggregator(self) -> Aggregator:
        """The mean of all but the f vectors that are farthest from the own."""
        return NearestNeighbourAveraging(f=self.f)

    def waits_for(self, heard: int) -> int:
        """Returns m - f - 1: with its own, m - f vectors."""
        return max(0, heard - self.f)

    def init(self, w: Row) -> NodeModel:
        """Returns the initial model."""
        return NodeModel(w)

    def adapt(self, state: NodeModel, progress: LocalTraining) -> NodeModel:
        """Returns the model after the steps along the momentum."""
        return NodeModel(progress.x)

    def combine(self, state: NodeModel, row: Row) -> NodeModel:
        """Returns the mean of the nearest."""
        return NodeModel(row)
