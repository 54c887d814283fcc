"""FedFix: clients work at their own pace, the server steps at fixed times.

Fraboni, Vidal, Kameni, Lorenzi, "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", arXiv:2206.10189 (JMLR 24(110), 2023), section 4.4; schedule as in
the authors' code.
"""

from __future__ import annotations

from typing import Any

from fl.strategies.drivers.contributions import Contributions
from fl.strategies.drivers.events import EventDriven, Server, Update, at_least, positive


class FedFix(EventDriven):
    """Every dt seconds, the server takes in what has arrived since.

        w <- w + eta sum_{i in A} n_i p (x_i - x_0),    p = 1 / M

    A holds the clients that have answered since the last tick, x_0 is the model they were sent, and
    A holds the clients that have answered since the last tick, x_0 is the model they were sent, and
    n_i is how many ticks pass from one contribution of client i to the next: it takes part in one
    of n_i steps, so this weight makes its mean influence p. The new model goes to A only, and to
    clients without work; who has answered waits for the tick. A tick without answers leaves the
    model, but is a version, as long as somebody is at work.

    n_i is what `Contributions` measures, in ticks. In the paper all clients work all the time, none
    fails, and the task times t_i are known; then n_i is its weight, ceil(t_i / dt), and with random
    times E[ceil(t_i / dt)]. That would count a client the less, the more of its tasks are lost.

    Args:
        num_clients: M.
        interval_s: dt, s.
        eta: server learning rate, above 0.
        **events: arguments of `EventDriven`; in the paper `concurrency` is null, all clients work.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self, *, num_clients: int, interval_s: float, eta: float = 1.0, **events: Any
    ) -> None:
        super().__init__(**events)
        at_least("num_clients", num_clients, 1)
        positive("interval_s", interval_s)
        positive("eta", eta)
        self.num_clients = num_clients
        self.interval_s = interval_s
        self.eta = eta

    def begin(self, server: Server) -> None:
        """Starts the timer."""
        self.began_s = server.now
        self.ticks = 0
        self.answered: list[Update] = []
        self.contributions = Contributions()
        self.sends = True

    def receive(self, server: Server, update: Update) -> None:
        """Keeps the update until the tick."""
        self.answered.append(update)

    def timer(self, server: Server) -> float:
        """Returns the time of the next tick."""
        return self.began_s + (self.ticks + 1) * self.interval_s

    def tick(self, server: Server) -> None:
        """Steps with what has arrived since the last tick."""
        self.ticks += 1
        for update in self.answered:
            self.contributions.add(update.node, self.ticks)
        self.sends = True
        if not self.answered and not server.tasks.any_open:
            return  # nobody is there: time passes, and the server does not count it
        w = server.w
        for update in self.answered:
            n = self.contributions.interval(update.node)
            w = w + self.eta * n / self.num_clients * update.delta
        contributors, self.answered = self.answered, []
        server.step(w, contributors)

    def free_slots(self, server: Server) -> int:
        """Returns how many clients may be sent the model: none between ticks."""
        return super().free_slots(server) if self.sends else 0

    def dispatch(self, server: Server) -> None:
        """Sends the model after a tick, to the clients that are not at work."""
        if self.sends:
            self.contributions.available(server.tasks.nodes(), self.ticks)
        super().dispatch(server)
        self.sends = False
