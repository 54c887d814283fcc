"""FedHyper: learning rates that rise while successive updates agree, and fall when they do not.

Wang, Wang, Li, "FedHyper: A Universal and Robust Learning Rate Scheduler for Federated Learning
with Hypergradient Descent", arXiv:2310.03156 (ICLR 2024); authors' code ATP-1010/FedHyper. The
paper itself could not be had: the rules are those that its code, and what others have written of
its equations 16, 18 and 20, agree upon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import positive
from fl.clients.hypergradient import bound_of_rate
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Scheduled(NamedTuple):
    """Model, shape (d,), the last mean change of what clients train, shape (p,), and the rate."""

    w: Row
    delta: Row
    alpha: float


@dataclass(frozen=True)
class FedHyperG(RoundRule):
    """FedHyper-G, the global scheduler, with Delta_t the mean of the clients' changes in round t.

        alpha_t = clip(alpha_(t-1) + <Delta_t, Delta_(t-1)>, 1 / gamma_a, gamma_a),   alpha_(-1) = 1
        w_(t+1) = w_t + alpha_t Delta_t

    Delta_(-1) is 0, so that the first round is FedAvg's. The product is that of what clients train,
    and no cosine: twice the changes are four times the product, so how fast alpha moves depends on
    the clients' learning rate. With gamma_a = 1 this is FedAvg, bit for bit.

    The authors' code has alpha in [0.2, 5], and a variant with server momentum, which is not here.

    Attributes:
        gamma_a: bound on alpha and 1 / alpha, at least 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    gamma_a: float = 3.0

    def __post_init__(self) -> None:
        bound_of_rate("gamma_a", self.gamma_a)

    def init(self, w: Row, p: int) -> Any:
        """Returns the model, and a rate of 1."""
        return Scheduled(w, np.zeros(p, np.float32), 1.0)

    def step(self, state: Any, updates: Updates) -> Any:
        """Returns model, change and rate after a round."""
        mean = updates.mean()
        delta = updates.of_trained(mean)
        product = hypergradient(delta, state.delta)
        alpha = clip(state.alpha + product, 1 / self.gamma_a, self.gamma_a)
        w = state.w + np.float32(alpha) * mean
        return state._replace(w=w, delta=delta, alpha=alpha)


class LocallyScheduled(NamedTuple):
    """As `Scheduled`, and the rate that clients are told."""

    w: Row
    delta: Row
    alpha: float
    beta: float


@dataclass(frozen=True)
class FedHyperSL(FedHyperG):
    """FedHyper-SL, the server's scheduler of the local rate, which all clients of a round are told.

        beta_(t+1) = clip(beta_t + <Delta_t, Delta_(t-1)>, beta_0 / gamma_b, beta_0 gamma_b)

    w as in FedHyper-G, whose rate stays 1 unless gamma_a is above 1. With gamma_b = 1 the clients'
    rate stays beta_0. In the authors' code the rate falls back to beta_0 before it is used.

    Attributes:
        gamma_b: bound on beta / beta_0 and beta_0 / beta, at least 1.
        lr: beta_0, the clients' first learning rate, above 0; in the place of their own.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    tells: ClassVar[Mapping[str, str]] = {"lr": "lr"}

    gamma_a: float = 1.0
    gamma_b: float = 10.0
    lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        bound_of_rate("gamma_b", self.gamma_b)
        positive("lr", self.lr)

    def init(self, w: Row, p: int) -> LocallyScheduled:
        """Returns the model, a global rate of 1, and beta_0."""
        return LocallyScheduled(w, np.zeros(p, np.float32), 1.0, float(self.lr))

    def configs(
        self, state: LocallyScheduled, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns beta, for every client."""
        return [{"lr": state.beta}] * n

    def step(self, state: LocallyScheduled, updates: Updates) -> Any:
        """Returns model, change and rates after a round."""
        after = super().step(state, updates)
        product = hypergradient(after.delta, state.delta)
        beta = clip(state.beta + product, self.lr / self.gamma_b, self.lr * self.gamma_b)
        return after._replace(beta=beta)


@dataclass(frozen=True)
class FedHyperCL(FedHyperG):
    """The server of FedHyper-CL, whose clients schedule their rate; `fl.clients.Hypergradient`.

    Delta_(t-1), 0 in the first round, travels beside the model. w as in FedHyper-G, whose rate
    stays 1 unless gamma_a is above 1.
    """

    carries: ClassVar[tuple[str, ...]] = ("last_update",)

    gamma_a: float = 1.0

    def broadcast(self, state: Scheduled) -> Mapping[str, Row]:
        """Returns Delta_(t-1)."""
        return {"last_update": state.delta}


def hypergradient(delta: Row, last: Row) -> float:
    """Returns <Delta_t, Delta_(t-1)>, summed in float64: minus the loss's slope in the rate."""
    return float(np.einsum("p,p->", delta, last, dtype=np.float64))


def clip(rate: float, least: float, most: float) -> float:
    """Returns a rate within its bounds; NaN stays what it is, and is seen in the model."""
    return max(least, min(most, rate)) if rate == rate else rate
