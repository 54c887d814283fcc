"""IFCA: k models, and every client trains the one that fits its data best.

Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning",
arXiv:2006.04088 (NeurIPS 2020), Algorithm 1, by the authors' code (jichan3751/ifca).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from fl.checks import at_least, positive
from fl.errors import ConfigError, NoStep
from fl.strategies.clusters import Clusters, one_of
from fl.strategies.round_rule import ManyModels, RoundRule, Updates
from fl.vectors.rows import Row


class ClusterState(NamedTuple):
    """The models of the clusters, and who uses which.

    Attributes:
        w: the model that most of the last round's clients have chosen, shape (d,).
        theta: theta_0, ..., theta_(k-1), shape (k, d).
        chosen: j(i) of every client that has taken part and has examples, by node.
    """

    w: Row
    theta: Row
    chosen: Mapping[int, int]


@dataclass(frozen=True)
class IFCA(RoundRule):
    """Algorithm 1, with averaged models (option II) or averaged gradients (option I).

        j(i) <- argmin_j F_i(theta_j),    by client i, on its training data
        option II:  theta_j <- theta_j + eta sum_{i in S_j} n_i (w_i - theta_j) / sum_{i in S_j} n_i
        option I:   theta_j <- theta_j + eta / M sum_{i in S_j} (w_i - theta_j)

    with S_j the clients of the round that have chosen j, w_i what client i made of theta_j, and M
    the number of all that have answered, not of those in S_j. An aggregator F takes the place of
    the means over S_j. In option I a client does one step with all of its examples, so that
    w_i - theta_j = -gamma g_i: set client.local_epochs=1 and client.batch_size=null. A model that
    nobody has chosen stays as it is, and so does one whose clients are too few for F.

    All k models travel to every client, which is charged, as are the k passes over its examples by
    which it chooses. Statistics of normalisation layers are each cluster's own. The k models begin
    as independent draws, since of equal ones all clients choose the first for ever; a bad draw may
    leave two groups of clients with one model, and the paper restarts.

    Attributes:
        num_models: k.
        averaging: "models" or "gradients".
        eta: server learning rate, above 0; 1 in the paper.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False
    clients_choose: ClassVar[ManyModels] = "one"

    num_models: int = 4
    averaging: Literal["models", "gradients"] = "models"
    eta: float = 1.0

    def __post_init__(self) -> None:
        at_least("num_models", self.num_models, 1)
        positive("eta", self.eta)
        if self.averaging not in ("models", "gradients"):
            raise ConfigError(
                f"averaging is {self.averaging!r}; it must be 'models' or 'gradients'"
            )

    def init(self, w: Row, p: int) -> ClusterState:
        """Returns k times the same model; the driver puts independent draws in their place."""
        return ClusterState(w, np.tile(w, (self.num_models, 1)), {})

    def models(self, state: ClusterState) -> Sequence[Row]:
        """Returns theta_0, ..., theta_(k-1)."""
        return list(state.theta)

    def clusters(self, state: ClusterState) -> Clusters:
        """Returns the models, and which every client has chosen last."""
        k = self.num_models
        return Clusters(state.theta, {i: one_of(k, j) for i, j in state.chosen.items()})

    def step(self, state: ClusterState, updates: Updates) -> ClusterState:
        """Returns the state after a round.

        Raises:
            NoStep: of no model there are clients that have examples, and enough for F.
        """
        theta, sizes = state.theta.copy(), np.zeros(self.num_models, int)
        why = NoStep("no client has examples to learn from")
        M = np.count_nonzero(updates.weights)
        for j in range(self.num_models):
            S_j = updates.of_model(j)
            n = np.count_nonzero(S_j.weights)
            if not n:
                continue
            try:
                change = self._change(S_j, n / M)
            except NoStep as error:
                why = error
                continue
            theta[j] += change
            sizes[j] = n
        if not sizes.any():
            raise why
        who = zip(updates.clients, updates.models, updates.weights, strict=True)
        chosen = {i: j for i, j, weight in who if weight}
        return ClusterState(theta[sizes.argmax()], theta, {**state.chosen, **chosen})

    def _change(self, S_j: Updates, share: float) -> Row:
        """Returns how theta_j changes, shape (d,); share is |S_j| / M."""
        if self.averaging == "models":
            mean, factor = S_j.mean(), self.eta
        else:
            mean, factor = S_j.unweighted().mean(), self.eta * share
        change = np.float32(factor) * mean
        for place in S_j.buffers:  # no directions: not by a rate
            change[place] = mean[place]
        return np.asarray(change)
