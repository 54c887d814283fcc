"""Asynchronous FedAvg: one client's change per step, weighted so that speed gives no influence.

Fraboni, Vidal, Kameni, Lorenzi, "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", arXiv:2206.10189 (JMLR 24(110), 2023), section 4; weights as in the
authors' code.
"""

from __future__ import annotations

from typing import Any, Literal

from fl.errors import ConfigError
from fl.strategies.events import EventDriven, Server, Update, positive


class TaskTimes:
    """Mean time of each client's tasks, from sending a message to receiving its answer."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, int]] = {}

    def add(self, node: int, seconds: float) -> None:
        """Counts one task."""
        total, count = self._sums.get(node, (0.0, 0))
        self._sums[node] = (total + seconds, count + 1)

    def mean(self, node: int) -> float:
        """Returns t_i, s, of a client that has answered at least once."""
        total, count = self._sums[node]
        return total / count

    def mean_rate(self) -> float:
        """Returns the mean of 1 / t_i over the clients that have answered, 1/s."""
        return sum(1 / self.mean(node) for node in self._sums) / len(self._sums)


class AsyncFedAvg(EventDriven):
    """FedAvg without rounds.

        w <- w + eta d_i (x_i - x_0),    x_0 the model that client i was sent

    A client that takes t_i seconds a task answers in proportion to 1 / t_i, so with equal weights
    the fast ones decide: the fixed point is that of a loss with importances ~ 1 / t_i. With

        d_i = (sum_j 1 / t_j) t_i / M

    over all M clients, it is that of FedAvg with equal importances 1 / M.

    The authors know t_i; here it is the mean of what was measured, and the sum over clients that
    have not answered yet takes the mean rate of those that have.

    Args:
        num_clients: M.
        weights: "unbiased", as above, or "identical", d_i = 1.
        eta: server learning rate, above 0.
        **events: arguments of `EventDriven`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        num_clients: int,
        weights: Literal["unbiased", "identical"] = "unbiased",
        eta: float = 1.0,
        **events: Any,
    ) -> None:
        super().__init__(**events)
        positive("eta", eta)
        if weights not in ("unbiased", "identical"):
            raise ConfigError(f"weights is {weights!r}; it must be 'unbiased' or 'identical'")
        self.num_clients = num_clients
        self.weights = weights
        self.eta = eta

    def begin(self, server: Server) -> None:
        """Forgets measured times."""
        self.times = TaskTimes()

    def receive(self, server: Server, update: Update) -> None:
        """Moves the model along the client's change."""
        self.times.add(update.node, update.seconds)
        server.step(server.w + self.eta * self._weight(update.node) * update.delta, [update])

    def _weight(self, node: int) -> float:
        if self.weights == "identical":
            return 1.0
        # (sum_j 1 / t_j) / M is the mean rate.
        return self.times.mean_rate() * self.times.mean(node)
