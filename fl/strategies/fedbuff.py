"""FedBuff: asynchronous clients, and a server that steps when its buffer is full.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
Asynchronous Aggregation", arXiv:2106.06639 (AISTATS 2022), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fl.checks import at_least, positive, share
from fl.strategies.event_rule import Arrival, Arrivals, Decision, EventRule
from fl.strategies.staleness import Polynomial, StalenessWeight
from fl.vectors.rows import Row


class Buffered(NamedTuple):
    """Model and velocity, shape (d,) each, and the buffer: updates and their weights."""

    w: Row
    u: Row
    buffer: tuple[Arrival, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class FedBuff(EventRule):
    """Algorithm 1 of the paper.

        on an update:      S <- S + s(tau) (x_i - x_0),    k <- k + 1
        when k = K:        w <- w + eta S / K,    S <- 0,    k <- 0

    with x_0 the model that client i was sent, and tau counted when the update arrives. The paper's
    Delta is x_0 - x_i, whence its minus. With an aggregator F, S is K F(s_1 Delta_1, ...).

    Attributes:
        buffer_size: K.
        eta: server learning rate, above 0.
        momentum: beta in [0, 1) of the server's heavy ball, u <- beta u + S / K, w <- w + eta u.
        staleness: s.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    buffer_size: int = 10
    eta: float = 1.0
    momentum: float = 0.0
    staleness: StalenessWeight = field(default_factory=Polynomial)

    def __post_init__(self) -> None:
        at_least("buffer_size", self.buffer_size, 1)
        positive("eta", self.eta)
        share("momentum", self.momentum)

    @property
    def combines(self) -> int:
        """Returns K."""
        return self.buffer_size

    def init(self, w: Row, p: int) -> Buffered:
        """Returns the initial state."""
        return Buffered(w, np.zeros_like(w))

    def receive(self, state: Buffered, update: Arrival, tau: int) -> Decision:
        """Adds the update to the buffer, and steps when it is full."""
        buffer = (*state.buffer, update)
        weights = (*state.weights, self.staleness(tau))
        if len(buffer) < self.buffer_size:
            return Decision(state._replace(buffer=buffer, weights=weights))
        return Decision(Buffered(state.w, state.u), apply=buffer, weights=weights)

    def step(self, state: Buffered, updates: Arrivals) -> Buffered:
        """Returns the state with the next model."""
        mean = updates.sum(updates.weights) / np.float32(len(updates))
        u: Row = np.asarray(np.float32(self.momentum) * state.u + mean, dtype=np.float32)
        return state._replace(w=state.w + np.float32(self.eta) * u, u=u)
