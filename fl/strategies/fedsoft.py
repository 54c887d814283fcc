"""FedSoft: clients are mixtures of clusters, and one local training serves all of them.

Ruan, Joe-Wong, "FedSoft: Soft Clustered Federated Learning with Proximal Local Updating",
arXiv:2112.06053 (AAAI 2022), by the authors' code (ycruan/FedSoft).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, not_negative, positive
from fl.errors import NoStep
from fl.strategies.clusters import Clusters, Mixture
from fl.strategies.round_rule import ManyModels, RoundRule, Updates
from fl.vectors.rows import Row


class FedSoftState(NamedTuple):
    """The models of the clusters, and the mixtures of the clients.

    Attributes:
        w: the model that most of the last round's examples are of, shape (d,).
        theta: c_1, ..., c_k, shape (k, d).
        mixtures: u_i of every client that has taken part and has examples, by node.
        estimated: the round in which it was found, from 0, by node.
        t: rounds so far.
    """

    w: Row
    theta: Row
    mixtures: Mapping[int, Mixture]
    estimated: Mapping[int, int]
    t: int


@dataclass(frozen=True)
class FedSoft(RoundRule):
    """Importance weights, proximal local updates, and the average of each cluster.

        u_is <- share of client i's examples on which c_s has the lowest loss, sigma if none
        w_i <- local training of f_i(w) + lambda/2 sum_s u_is |w - c_s|^2, from client i's last w_i
        c_s <- sum_i v_is w_i,    v_is = u_is n_i / sum_j u_js n_j

    A client finds its u_i anew when it is asked and the last is tau rounds old or older: then all k
    models travel to it, and it takes k forward passes over its examples. Otherwise it is sent
    m_i = sum_s u_is c_s alone, which gives the same gradient, since u_i adds up to 1: the authors'
    code leaves it slightly above where sigma counts. That clients begin at their last w_i, and only
    the pull holds them together, is the clients' (`client/correction=proximal_own`); with
    `proximal` each begins at its m_i.

    With all clients in every round it is the authors' code without selection. There, a round
    otherwise draws clients for each cluster with probabilities v_is, of estimates that all clients
    make, and takes their plain mean; here any selection says who takes part, and v weighs them.

    An aggregator F that does not read weights combines, for cluster s, the clients whose largest
    share is s; a cluster that has too few of them stays as it is. The clusters begin as independent
    draws, and statistics of normalisation layers are each cluster's own.

    With one model it is FedProx with clients that go on from their own models.

    Attributes:
        num_models: k.
        lam: lambda, at least 0; 0 is local training.
        tau: rounds for which a client's u is used, at least 1.
        sigma: the share of a cluster that none of a client's examples is nearest to, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False
    clients_choose: ClassVar[ManyModels] = "mixture"
    tells: ClassVar[Mapping[str, str]] = {"proximal-mu": "lam", "mixture-smoothing": "sigma"}

    num_models: int = 4
    lam: float = 0.1
    tau: int = 2
    sigma: float = 1e-4

    def __post_init__(self) -> None:
        at_least("num_models", self.num_models, 1)
        not_negative("lam", self.lam)
        at_least("tau", self.tau, 1)
        positive("sigma", self.sigma)

    def init(self, w: Row, p: int) -> FedSoftState:
        """Returns k times the same model; the driver puts independent draws in their place."""
        return FedSoftState(w, np.tile(w, (self.num_models, 1)), {}, {}, 0)

    def configs(
        self, state: FedSoftState, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any]]:
        """Returns lambda and sigma, the same for all."""
        return [{key: getattr(self, name) for key, name in self.tells.items()}] * n

    def models(self, state: FedSoftState) -> Sequence[Row]:
        """Returns c_1, ..., c_k."""
        return list(state.theta)

    def mixture_for(self, state: FedSoftState, node: int) -> Mixture | None:
        """Returns u_i, if it is not too old."""
        found = state.estimated.get(node)
        if found is None or self.num_models == 1 or state.t - found >= self.tau:
            return None
        return state.mixtures[node]

    def clusters(self, state: FedSoftState) -> Clusters:
        """Returns the models, and the mixtures as they were found last."""
        return Clusters(state.theta, state.mixtures, mixes=True)

    def step(self, state: FedSoftState, updates: Updates) -> FedSoftState:
        """Returns the state after a round.

        Raises:
            NoStep: of no cluster there are clients that have examples, and enough for F.
        """
        theta, examples = state.theta.copy(), np.zeros(self.num_models)
        why = NoStep("no client has examples to learn from")
        u = np.stack([self._mixture(state, updates, i) for i in range(len(updates))])
        for s in range(self.num_models):
            if updates.weighs:
                of = replace(updates, weights=updates.weights * u[:, s], name=f"model {s}")
            else:
                of = updates.some(np.flatnonzero(u.argmax(axis=1) == s).tolist(), f"model {s}")
            if not of.weights.any():
                continue
            try:
                theta[s] += of.less(state.theta[s] - of.starts).mean()  # of w_i - c_s
            except NoStep as error:
                why = error
                continue
            examples[s] = updates.weights @ u[:, s]
        if not examples.any():
            raise why
        mixtures, estimated = dict(state.mixtures), dict(state.estimated)
        for i, node in enumerate(updates.clients):
            if updates.weights[i] and (updates.mixtures[i] is not None or self.num_models == 1):
                mixtures[node], estimated[node] = u[i], state.t
        return FedSoftState(theta[examples.argmax()], theta, mixtures, estimated, state.t + 1)

    def _mixture(self, state: FedSoftState, updates: Updates, i: int) -> Mixture:
        """Returns u_i as it was found now, or last, shape (k,)."""
        if self.num_models == 1:
            return np.ones(1)
        found = updates.mixtures[i]
        return state.mixtures[updates.clients[i]] if found is None else found
