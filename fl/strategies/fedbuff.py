"""FedBuff: asynchronous clients, and a server that steps when its buffer is full.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
Asynchronous Aggregation", arXiv:2106.06639 (AISTATS 2022), Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl.strategies.drivers.events import EventDriven, Server, Update, at_least, positive, share
from fl.strategies.staleness import Polynomial, StalenessWeight


class FedBuff(EventDriven):
    """Algorithm 1 of the paper.

        on an update:      S <- S + s(tau) (x_i - x_0),    k <- k + 1
        when k = K:        w <- w + eta S / K,    S <- 0,    k <- 0

    with x_0 the model that client i was sent, and tau counted when the update arrives. The paper's
    Delta is x_0 - x_i, whence its minus.

    Args:
        buffer_size: K.
        eta: server learning rate, above 0.
        momentum: beta in [0, 1) of the server's heavy ball, u <- beta u + S / K, w <- w + eta u.
        staleness: s.
        **events: arguments of `EventDriven`; `concurrency` is the paper's C.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        buffer_size: int = 10,
        eta: float = 1.0,
        momentum: float = 0.0,
        staleness: StalenessWeight | None = None,
        **events: Any,
    ) -> None:
        super().__init__(**events)
        at_least("buffer_size", buffer_size, 1)
        positive("eta", eta)
        share("momentum", momentum)
        self.buffer_size = buffer_size
        self.eta = eta
        self.momentum = momentum
        self.staleness = staleness or Polynomial(0.5)

    def begin(self, server: Server) -> None:
        """Empties the buffer."""
        self.sum = np.zeros_like(server.w)
        self.velocity = np.zeros_like(server.w)
        self.buffered: list[Update] = []

    def receive(self, server: Server, update: Update) -> None:
        """Adds the update to the buffer, and steps when it is full."""
        self.sum += np.float32(self.staleness(server.staleness(update))) * update.delta
        self.buffered.append(update)
        if len(self.buffered) < self.buffer_size:
            return
        mean = self.sum / np.float32(len(self.buffered))
        velocity = np.asarray(np.float32(self.momentum) * self.velocity + mean, dtype=np.float32)
        contributors = self.buffered
        self.sum, self.buffered = np.zeros_like(server.w), []
        if server.step(server.w + np.float32(self.eta) * velocity, contributors):
            self.velocity = velocity
