"""FedFix: clients work at their own pace, the server steps at fixed times.

Fraboni, Vidal, Kameni, Lorenzi, "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", arXiv:2206.10189 (JMLR 24(110), 2023), section 4.4; schedule as in
the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from fl.checks import at_least, positive
from fl.strategies.event_rule import Arrival, Arrivals, Decision, EventRule
from fl.vectors.rows import Row


class Interval(NamedTuple):
    """The model, shape (d,), and what has arrived since the last tick."""

    w: Row
    answered: tuple[Arrival, ...] = ()


@dataclass(frozen=True)
class FedFix(EventRule):
    """Every dt seconds, the server takes in what has arrived since.

        w <- w + eta sum_{i in A} n_i p (x_i - x_0),    p = 1 / M

    A holds the clients that have answered since the last tick, x_0 is the model they were sent, and
    n_i is how many ticks pass from one contribution of client i to the next: it takes part in one
    of n_i steps, so this weight makes its mean influence p. The new model goes to A only, and to
    clients without work; who has answered waits for the tick. A tick without answers leaves the
    model, but is a version, as long as somebody is at work.

    n_i is what `Contributions` measures, in ticks. In the paper all clients work all the time, none
    fails, and the task times t_i are known; then n_i is its weight, ceil(t_i / dt), and with random
    times E[ceil(t_i / dt)]. That would count a client the less, the more of its tasks are lost.

    With an aggregator F, the sum is |A| F(n_1 p Delta_1, ...).

    Attributes:
        num_clients: M.
        interval_s: dt, s.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    measures: ClassVar[bool] = True

    num_clients: int
    interval_s: float
    eta: float = 1.0

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        positive("interval_s", self.interval_s)
        positive("eta", self.eta)

    @property
    def combines(self) -> int:
        """Returns M."""
        return self.num_clients

    @property
    def period(self) -> float:
        """Returns dt."""
        return self.interval_s

    def init(self, w: Row, p: int) -> Interval:
        """Returns the initial state."""
        return Interval(w)

    def receive(self, state: Interval, update: Arrival, tau: int) -> Decision:
        """Keeps the update until the tick."""
        return Decision(Interval(state.w, (*state.answered, update)))

    def tick(self, state: Interval, now: float) -> Decision:
        """Steps with what has arrived since the last tick."""
        return Decision(Interval(state.w), apply=state.answered)

    def step(self, state: Interval, updates: Arrivals) -> Interval:
        """Returns the state with the next model."""
        a = [self.eta * n / self.num_clients for n in updates.intervals]
        return Interval(updates.sum(a, start=state.w))
