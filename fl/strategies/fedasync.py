"""FedAsync: the server mixes in every client's model as soon as it arrives.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv:1903.03934, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fl.errors import ConfigError
from fl.strategies.drivers.events import EventDriven, Server, Update, at_least
from fl.strategies.staleness import Polynomial, StalenessWeight


class FedAsync(EventDriven):
    """Algorithm 1 of the paper, with staleness from the clock.

        w <- (1 - a) w + a x_i,    a = alpha s(tau)

    An update older than `max_staleness` is discarded. Clients solve a proximal problem
    (`client/correction=proximal`); its weight rho goes out as "proximal-mu".

    Args:
        alpha: mixing weight in (0, 1].
        staleness: s.
        rho: weight of the clients' proximal term, at least 0.
        max_staleness: oldest update that is used; None uses all.
        anchor: "server" mixes models as above, as in the paper; "client" moves along the client's
            change, w <- w + a (x_i - x_0), x_0 the model it was sent.
        **events: arguments of `EventDriven`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.6,
        staleness: StalenessWeight | None = None,
        rho: float = 0.005,
        max_staleness: int | None = None,
        anchor: Literal["server", "client"] = "server",
        **events: Any,
    ) -> None:
        super().__init__(**events)
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; it must be above 0 and at most 1")
        if not rho >= 0:
            raise ConfigError(f"rho is {rho}; it must be at least 0")
        if max_staleness is not None:
            at_least("max_staleness", max_staleness, 0)
        if anchor not in ("server", "client"):
            raise ConfigError(f"anchor is {anchor!r}; it must be 'server' or 'client'")
        self.alpha = alpha
        self.staleness = staleness or Polynomial(0.5)
        self.rho = rho
        self.max_staleness = max_staleness
        self.anchor = anchor

    @property
    def tells(self) -> Mapping[str, str]:
        """What every message says beside the model, by the argument that it comes from."""
        return {"proximal-mu": "rho"} if self.rho else {}

    def config(self) -> Mapping[str, Any]:
        """Returns rho, for the clients' proximal term."""
        return {"proximal-mu": self.rho} if self.rho else {}

    def receive(self, server: Server, update: Update) -> None:
        """Mixes the client's model into the server's."""
        tau = server.staleness(update)
        if self.max_staleness is not None and tau > self.max_staleness:
            server.discard(update)
            return
        a = self.alpha * self.staleness(tau)
        if self.anchor == "server":
            server.step((1 - a) * server.w + a * update.x, [update])
        else:
            server.step(server.w + a * update.delta, [update])
