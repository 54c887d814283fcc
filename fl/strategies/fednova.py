"""FedNova: clients that do more steps do not count more.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", arXiv:2007.07481 (NeurIPS 2020), equation 9; the recursions of a_i as in
the authors' code, JYWa/FedNova.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import check_weights
from fl.checks import positive, share
from fl.errors import ConfigError
from fl.strategies.fedavg import Model
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row

_MOST_STEPS = 10**9


@dataclass(frozen=True)
class FedNova(RoundRule):
    """Equation 9, with p_i client i's share of the examples and tau_i its number of steps.

        w <- w + eta tau_eff sum_i p_i (w_i - w) / |a_i|_1,    tau_eff = sum_i p_i |a_i|_1

    |a_i|_1 is how much of its gradients a client's local solver has added up:

        SGD                   tau
        with momentum rho     (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
        proximal with mu      (1 - (1 - lr mu)^tau) / (lr mu)

    With the proximal solver, tau_eff is sum_i p_i tau_i, as in the authors' code. Where all clients
    do the same number of steps of SGD it is FedAvg. tau_i is the metric "steps"; a client that did
    none is left out. It is believed, so with an aggregator other than the mean tau_eff is a median.

    Attributes:
        momentum: rho of the clients, in [0, 1).
        mu: of the clients' proximal term, at least 0; with one of the two.
        lr: the clients' learning rate, above 0, read with mu only.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    reads: ClassVar[tuple[str, ...]] = ("steps",)
    folds: ClassVar[bool] = False

    momentum: float = 0.0
    mu: float = 0.0
    lr: float = 0.1
    eta: float = 1.0

    def __post_init__(self) -> None:
        share("momentum", self.momentum)
        positive("lr", self.lr)
        positive("eta", self.eta)
        if not 0 <= self.mu < 1 / self.lr:
            raise ConfigError(f"mu is {self.mu}; it must be at least 0 and below 1 / lr")
        if self.momentum and self.mu:
            raise ConfigError(
                f"momentum is {self.momentum} and mu is {self.mu}; local solvers have one of them"
            )

    @property
    def assumes(self) -> Mapping[str, str]:
        """The clients' proximal term, and their learning rate where it is read."""
        return {"proximal-mu": "mu", **({"lr": "lr"} if self.mu else {})}

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial model."""
        return Model(w)

    def step(self, state: Model, updates: Updates) -> Model:
        """Returns the model after a step."""
        tau = updates.metric("steps")
        norms = self.norms(tau)
        worked = norms > 0
        weights = updates.weights * worked
        check_weights(weights)
        updates = replace(updates, weights=weights)
        tau_eff = updates.typical(tau if self.mu else norms)
        mean = updates.scaled(1 / np.where(worked, norms, np.inf)).mean()
        return Model(state.w + np.float32(self.eta * tau_eff) * mean)

    def refuses(self, metrics: Mapping[str, Any]) -> str | None:
        """Refuses numbers of steps that nobody can have done."""
        return refused_steps(metrics)

    def norms(self, tau: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns |a_i|_1 of clients that did `tau` steps, shape (n,)."""
        if self.mu:
            return np.asarray((1 - (1 - self.lr * self.mu) ** tau) / (self.lr * self.mu))
        rho = self.momentum
        return np.asarray((tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho))


def refused_steps(metrics: Mapping[str, Any]) -> str | None:
    """Returns why the metric "steps", a finite number, is none that a client can have done."""
    steps = metrics["steps"]
    if steps != int(steps) or not 0 <= steps <= _MOST_STEPS:
        return f"its 'steps' are {steps!r:.40}, no number of steps"
    return None
