"""Asynchronous FedAvg: one client's change per step, weighted so that speed gives no influence.

Fraboni, Vidal, Kameni, Lorenzi, "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", arXiv:2206.10189 (JMLR 24(110), 2023), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.checks import at_least, positive
from fl.errors import ConfigError
from fl.strategies.event_rule import Arrivals, EventRule
from fl.strategies.fedavg import Model
from fl.vectors.rows import Row


@dataclass(frozen=True)
class AsyncFedAvg(EventRule):
    """FedAvg without rounds.

        w <- w + eta d_i (x_i - x_0),    x_0 the model that client i was sent

    With equal weights those that answer often decide: the fixed point is that of a loss with
    importances ~ f_i, client i's contributions per second. With

        d_i = I_i / I

    it is that of FedAvg with equal importances 1 / M: I_i is the mean interval between client i's
    contributions, 1 / f_i, and I the mean client's, both as `Contributions` measures them.

    In the paper all clients work all the time, none fails, and the task times t_i are known; then
    I_i = t_i, 1 / I = sum_j (1 / t_j) / M, and d_i is its weight (sum_j 1 / t_j) t_i p_i with
    p_i = 1 / M. With fewer slots than clients, or losses, weights by t_i are biased towards clients
    that are slow or do not fail; these are not.

    Attributes:
        num_clients: M.
        weights: "unbiased", as above, or "identical", d_i = 1.
        eta: server learning rate, above 0; None is 1 / C, with C the concurrency or else M: in the
            time in which every slot brings one change, the model moves by their mean, as FedAvg
            does in a round.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    measures: ClassVar[bool] = True

    num_clients: int
    weights: Literal["unbiased", "identical"] = "unbiased"
    eta: float | None = None

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        if self.weights not in ("unbiased", "identical"):
            raise ConfigError(f"weights is {self.weights!r}; it must be 'unbiased' or 'identical'")
        if self.eta is not None:
            positive("eta", self.eta)

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial state."""
        return Model(w)

    def step(self, state: Model, updates: Arrivals) -> Model:
        """Returns the state with the next model."""
        c = min(updates.concurrency or self.num_clients, self.num_clients)
        eta = 1 / c if self.eta is None else self.eta
        return Model(state.w + eta * self._d(updates) * updates.only.delta)

    def _d(self, updates: Arrivals) -> float:
        if self.weights == "identical" or not updates.mean_interval:  # or tasks take no time
            return 1.0
        (interval,) = updates.intervals
        return interval / updates.mean_interval
