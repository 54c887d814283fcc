"""Asynchronous FedAvg: one client's change per step, weighted so that speed gives no influence.

Fraboni, Vidal, Kameni, Lorenzi, "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", arXiv:2206.10189 (JMLR 24(110), 2023), section 4.
"""

from __future__ import annotations

from typing import Any, Literal

from fl.errors import ConfigError
from fl.strategies.drivers.contributions import Contributions
from fl.strategies.drivers.events import EventDriven, Server, Update, at_least, positive


class AsyncFedAvg(EventDriven):
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

    Args:
        num_clients: M.
        weights: "unbiased", as above, or "identical", d_i = 1.
        eta: server learning rate, above 0; None is 1 / C, with C the concurrency or else M: in the
            time in which every slot brings one change, the model moves by their mean, as FedAvg
            does in a round.
        **events: arguments of `EventDriven`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        num_clients: int,
        weights: Literal["unbiased", "identical"] = "unbiased",
        eta: float | None = None,
        **events: Any,
    ) -> None:
        super().__init__(**events)
        at_least("num_clients", num_clients, 1)
        if weights not in ("unbiased", "identical"):
            raise ConfigError(f"weights is {weights!r}; it must be 'unbiased' or 'identical'")
        if eta is None:
            eta = 1 / min(self.concurrency or num_clients, num_clients)
        positive("eta", eta)
        self.num_clients = num_clients
        self.weights = weights
        self.eta = eta

    def begin(self, server: Server) -> None:
        """Forgets who has contributed."""
        self.contributions = Contributions()

    def dispatch(self, server: Server) -> None:
        """Fills the free slots, and notes who could be asked."""
        self.contributions.available(server.tasks.nodes(), server.now)
        super().dispatch(server)

    def receive(self, server: Server, update: Update) -> None:
        """Moves the model along the client's change."""
        self.contributions.add(update.node, server.now)
        server.step(server.w + self.eta * self._weight(update.node) * update.delta, [update])

    def _weight(self, node: int) -> float:
        mean = self.contributions.mean_interval()
        if self.weights == "identical" or not mean:  # tasks that take no time are all equal
            return 1.0
        return self.contributions.interval(node) / mean
