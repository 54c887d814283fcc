"""FedAsync: the server mixes in every client's model as soon as it arrives.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv:1903.03934, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fl.checks import at_least, fraction
from fl.errors import ConfigError
from fl.strategies.event_rule import Arrival, Arrivals, Decision, EventRule
from fl.strategies.fedavg import Model
from fl.strategies.staleness import Polynomial, StalenessWeight
from fl.vectors.rows import Row


@dataclass(frozen=True)
class FedAsync(EventRule):
    """Algorithm 1 of the paper, with staleness from the clock.

        w <- (1 - a) w + a x_i,    a = alpha s(tau)

    An update older than `max_staleness` is discarded. Clients solve a proximal problem
    (`client/correction=proximal`); its weight rho goes out as "proximal-mu".

    Attributes:
        alpha: mixing weight in (0, 1].
        staleness: s.
        rho: weight of the clients' proximal term, at least 0.
        max_staleness: oldest update that is used; None uses all.
        anchor: "server" mixes models as above, as in the paper; "client" moves along the client's
            change, w <- w + a (x_i - x_0), x_0 the model it was sent.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    alpha: float = 0.6
    staleness: StalenessWeight = field(default_factory=Polynomial)
    rho: float = 0.005
    max_staleness: int | None = None
    anchor: Literal["server", "client"] = "server"

    def __post_init__(self) -> None:
        fraction("alpha", self.alpha)
        if not self.rho >= 0:
            raise ConfigError(f"rho is {self.rho}; it must be at least 0")
        if self.max_staleness is not None:
            at_least("max_staleness", self.max_staleness, 0)
        if self.anchor not in ("server", "client"):
            raise ConfigError(f"anchor is {self.anchor!r}; it must be 'server' or 'client'")

    @property
    def tells(self) -> Mapping[str, str]:
        """What messages say beside the model, by the attribute that it comes from."""
        return {"proximal-mu": "rho"}

    def config(self) -> Mapping[str, Any]:
        """Returns what every message says beside the model."""
        return {"proximal-mu": self.rho}

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial state."""
        return Model(w)

    def receive(self, state: Model, update: Arrival, tau: int) -> Decision:
        """Discards what is too old."""
        if self.max_staleness is not None and tau > self.max_staleness:
            return Decision(state, discard=(update,))
        return Decision(state, apply=(update,))

    def step(self, state: Model, updates: Arrivals) -> Model:
        """Returns the state with the next model."""
        (tau,) = updates.staleness
        a = self.alpha * self.staleness(tau)
        if self.anchor == "server":
            return Model((1 - a) * state.w + a * updates.only.x)
        return Model(state.w + a * updates.only.delta)
