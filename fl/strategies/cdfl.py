"""CDFL: clients contact the server when they want, and get one model made for their mixture.

Li, Zhu, "Client-driven federated learning", arXiv:2405.15407 (2024), and its predecessor
"Client-centric federated learning under dynamic mixtures of distributions" (OpenReview, ICLR 2024).
No code of the authors was found, and the paper could not be had: the structure is that of its
abstract and of the public reviews; the formulas are put together from these, see `CDFL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, fraction, not_negative, positive
from fl.errors import ConfigError
from fl.strategies.clusters import Clusters, Mixture
from fl.strategies.event_rule import Arrivals, EventRule
from fl.strategies.staleness import Polynomial, StalenessWeight
from fl.vectors.rows import Row

_TINY = 1e-12  # a client that is exactly at a cluster's model is all of that cluster


class CDFLState(NamedTuple):
    """The models of the clusters, and the mixtures of the clients.

    Attributes:
        w: their mean, what a client is sent of whom nothing is known, shape (d,).
        models: w_1, ..., w_K, shape (K, d).
        stamps: t_k, the contact after which each was last changed, shape (K,).
        t: contacts so far.
        mixtures: u of every client that has been in contact, by node.
        latest: the last of them, and the model x that it came with.
    """

    w: Row
    models: Row
    stamps: NDArray[np.int64]
    t: int
    mixtures: Mapping[int, Mixture]
    latest: tuple[int, Row] | None = None


@dataclass(frozen=True)
class CDFL(EventRule):
    """A server that clients contact, each at its own times.

    Client m trains from the model a_m that it was sent last, with a proximal term rho/2 |x - a_m|^2
    (`client/correction=proximal`), and contacts the server when it has done its local work; how
    long that takes is up to its device. The server has a labelled proxy set D_k for each cluster.

        l_k = L(x_m; D_k),  d1_k = |L(x_m; D_k) - L(w_k; D_k)|,  d2_k = |x_m - w_k|^2
        g_k = c1 l_k / sum l + c2 d1_k / sum d1 + (1 - c1 - c2) d2_k / sum d2
        u_k = g_k^-p / sum_j g_j^-p
        w_k <- (1 - b_k) w_k + b_k x_m,   b_k = alpha_0 u_k s(t_k - tau_m),   if t - tau_m <= tau_0
        a_m <- sum_k u_k w_k

    with t the contacts so far, tau_m as many as there were when the client was sent its model, and
    t_k when w_k was last changed; w_k that have not changed since then are not stale. Terms are
    normalised so that u is a mixture, which a reviewer says the paper's own need not be: that, and
    how g becomes u, with p, are ours. All clusters begin with one model, and with a small p they
    stay alike: models of clients that have learnt little are similar to all. Each contact is a
    version of the server's model, whether or not it changes it. With one cluster it is FedAsync.

    The estimation takes forward passes over 2 K |D| examples, which keep the server busy for so
    long as `server_flops` makes of them; clients that contact it meanwhile wait.

    Attributes:
        num_clusters: K, those of the data, or 1.
        alpha_0: largest mixing weight, above 0 and at most 1.
        c1, c2: weights of the loss and of the difference of losses, at least 0, together at most 1.
        sharpness: p, above 0.
        staleness: s.
        tau_0: largest staleness with which a model changes clusters, in contacts; None is any.
        rho: weight of the clients' proximal term, at least 0.
        proxy_examples: |D_k|, at least 1.
        server_flops: of the server, FLOP/s; None estimates in no time.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    num_clusters: int = 4
    alpha_0: float = 1.0
    c1: float = 0.9
    c2: float = 0.0
    sharpness: float = 16.0
    staleness: StalenessWeight = field(default_factory=Polynomial)
    tau_0: int | None = None
    rho: float = 0.005
    proxy_examples: int = 100
    server_flops: float | None = None

    def __post_init__(self) -> None:
        at_least("num_clusters", self.num_clusters, 1)
        at_least("proxy_examples", self.proxy_examples, 1)
        positive("sharpness", self.sharpness)
        for name in ("c1", "c2", "rho"):
            not_negative(name, getattr(self, name))
        fraction("alpha_0", self.alpha_0)
        if self.c1 + self.c2 > 1 + 1e-12:
            raise ConfigError(
                f"c1 is {self.c1} and c2 is {self.c2}; together they must be at most 1"
            )
        if self.tau_0 is not None:
            at_least("tau_0", self.tau_0, 0)
        if self.server_flops is not None and not self.server_flops > 0:
            raise ConfigError(f"server_flops is {self.server_flops}; it must be above 0, or null")

    @property
    def tells(self) -> Mapping[str, str]:
        """What messages say beside the model, by the attribute that it comes from."""
        return {"proximal-mu": "rho"}

    def config(self) -> Mapping[str, Any]:
        """Returns what every message says beside the model."""
        return {"proximal-mu": self.rho}

    @property
    def proxies(self) -> tuple[int, int]:
        """Proxy sets that the server has, and examples of each."""
        return self.num_clusters, self.proxy_examples

    def init(self, w: Row, p: int) -> CDFLState:
        """Returns the same model for all clusters: their proxy sets tell them apart."""
        k = self.num_clusters
        return CDFLState(w, np.tile(w, (k, 1)), np.zeros(k, np.int64), 0, {})

    def clusters(self, state: CDFLState) -> Clusters:
        """Returns the models, and the mixtures as they were estimated last."""
        return Clusters(state.models, state.mixtures, named=True, mixes=True, latest=state.latest)

    def model_for(self, state: CDFLState, node: int) -> Row:
        """Returns a_m = sum_k u_k w_k, shape (d,), of a client's last u, or of equal shares."""
        if node not in state.mixtures:
            return state.w
        return Clusters(state.models).of(state.mixtures[node])

    def step(self, state: CDFLState, updates: Arrivals) -> CDFLState:
        """Returns the state after a contact."""
        (tau,) = updates.staleness
        x, u = updates.only.x, self.mixture(state, updates)
        models, stamps, t = state.models.copy(), state.stamps.copy(), state.t
        if self.tau_0 is None or tau <= self.tau_0:
            for k, u_k in enumerate(u.tolist()):
                b = self.alpha_0 * u_k * self.staleness(max(0, int(stamps[k]) - (t - tau)))
                old = models[k].copy()
                models[k] = (1 - b) * old + b * x
                for place in updates.statistics:  # no directions: not by a rate
                    models[k][place] = (1 - u_k) * old[place] + u_k * x[place]
                stamps[k] = t + 1
        mixtures = {**state.mixtures, updates.only.node: u}
        mean = Clusters(models).of(np.full(len(models), 1 / len(models)))
        return CDFLState(mean, models, stamps, t + 1, mixtures, (updates.only.node, x))

    def mixture(self, state: CDFLState, updates: Arrivals) -> Mixture:
        """Returns u of the client whose model has arrived, shape (K,)."""
        x = updates.only.x
        losses = updates.proxy_losses(x)
        own = np.array([updates.proxy_losses(w)[k] for k, w in enumerate(state.models)])
        d2 = np.array([_squared(x - w) for w in state.models])
        return self.mixture_of(losses, np.abs(losses - own), d2)

    def mixture_of(self, losses: Mixture, d1: Mixture, d2: Mixture) -> Mixture:
        """Returns u of l, differences of losses and squared distances, shape (K,) each."""
        c3 = max(0.0, 1 - self.c1 - self.c2)
        g = self.c1 * _share(losses) + self.c2 * _share(d1) + c3 * _share(d2)
        g = np.maximum(g, _TINY)
        similarity = (g.min() / g) ** self.sharpness
        return np.asarray(similarity / similarity.sum())


def _share(values: Mixture) -> Mixture:
    """Returns values divided by their sum; equal shares of what is 0 throughout, or no number."""
    total = values.sum()
    if not 0 < total < np.inf:
        return np.full(len(values), 1 / len(values))
    return np.asarray(values / total)


def _squared(x: Row) -> float:
    return float(np.einsum("d,d->", x, x, dtype=np.float64))
