"""HierFAVG: edge servers that average often, and a cloud that averages them now and then.

Liu, Zhang, Song, Letaief, "Client-Edge-Cloud Hierarchical Federated Learning", arXiv:1905.06641
(ICC 2020), Algorithm 1, by the authors' code (LuminLiu/HierFL).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class EdgeModels(NamedTuple):
    """The models of cloud and edge servers.

    Attributes:
        w: the cloud's; between its rounds, what it would be: the weighted mean, shape (d,).
        at_edges: the edge servers', shape (E, d).
        k: edge rounds so far.
        examples: of each client that has taken part, by Flower id.
        at: its edge server.
    """

    w: Row
    at_edges: Row
    k: int
    examples: Mapping[int, float]
    at: Mapping[int, int]


@dataclass(frozen=True)
class HierFAVG(RoundRule):
    """A round is one of the edge servers, and every kappa2-th one of the cloud as well.

        w_e <- sum_(i at e) n_i w_i / sum_(i at e) n_i          every round
        w <- sum_e D_e w_e / sum_e D_e,    w_e <- w             every kappa2-th

    where w_i is what client i made of w_e in kappa1 local steps, which its rule counts, and D_e are
    the examples of all clients of e that have ever taken part, as the authors' code weighs the edge
    servers. One without a reply keeps its model. With kappa2 = 1 it is FedAvg. All edge servers
    wait for each other after every round, as in the paper's clock.

    Client i is at edge server i modulo their number, as in `hierarchy=edge`.

    Attributes:
        edges: E, edge servers.
        kappa2: edge rounds for each of the cloud.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False

    edges: int = 5
    kappa2: int = 2
    num_models: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        at_least("edges", self.edges, 1)
        at_least("kappa2", self.kappa2, 1)
        object.__setattr__(self, "num_models", self.edges)

    def init(self, w: Row, p: int) -> EdgeModels:
        """Returns the initial model, everywhere."""
        return EdgeModels(w, np.tile(w, (self.edges, 1)), 0, {}, {})

    def models(self, state: EdgeModels) -> Sequence[Row]:
        """Returns the edge servers' models."""
        return list(state.at_edges)

    def ends_at_edges(self, state: EdgeModels) -> bool:
        """Returns whether the next round is one of the edge servers alone."""
        return (state.k + 1) % self.kappa2 > 0

    def step(self, state: EdgeModels, updates: Updates) -> EdgeModels:
        """Returns the models after a round."""
        at_edges = state.at_edges.copy()
        for e in range(self.edges):
            of_edge = updates.of_model(e)
            if of_edge.weights.any():
                at_edges[e] += of_edge.mean()
        examples = {**state.examples, **dict(zip(updates.clients, updates.weights, strict=True))}
        at = {**state.at, **dict(zip(updates.clients, updates.models, strict=True))}
        D = np.zeros(self.edges)
        for client, n in examples.items():
            D[at[client]] += n
        w = state.w
        if D.any():
            w = ((D / D.sum()).astype(np.float32) @ at_edges).astype(np.float32)
        if not self.ends_at_edges(state):
            at_edges = np.tile(w, (self.edges, 1))
        return EdgeModels(w, at_edges, state.k + 1, examples, at)
