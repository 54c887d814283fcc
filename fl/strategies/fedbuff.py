"""FedBuff: asynchronous clients, and a server that steps when its buffer is full.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
Asynchronous Aggregation", arXiv:2106.06639 (AISTATS 2022), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fl.checks import at_least
from fl.strategies.event_rule import Arrival, Arrivals, Decision, EventRule
from fl.strategies.fedavg import FedAvg
from fl.strategies.round_rule import RoundRule
from fl.strategies.server_optimizer import check_optimizer, stepped
from fl.strategies.staleness import Polynomial, StalenessWeight
from fl.vectors.rows import Row


class Buffered(NamedTuple):
    """The model, shape (d,), the optimizer's state, and the buffer: updates and their weights."""

    w: Row
    optimizer: Any
    buffer: tuple[Arrival, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class BufferedRule(EventRule):
    """What rules with a buffer share: when it holds K updates, they make a step, and it is empty.

    The step is the server optimizer's along a direction Delta, which is the mean of the buffer's
    changes, weighted by `weight`. What clients change but do not train, as statistics of
    normalisation layers, moves by Delta itself.

    Attributes:
        buffer_size: K.
        server_optimizer: what makes a step of Delta: FedAvg, FedAvgM, FedAdam, ...

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    buffer_size: int = 10
    server_optimizer: RoundRule = field(default_factory=FedAvg)

    def __post_init__(self) -> None:
        at_least("buffer_size", self.buffer_size, 1)
        check_optimizer(self.server_optimizer)

    @property
    def combines(self) -> int:
        """Returns K."""
        return self.buffer_size

    def init(self, w: Row, p: int) -> Any:
        """Returns the initial state."""
        return Buffered(w, self.server_optimizer.init(w, p))

    def weight(self, tau: int) -> float:
        """Returns what an update of staleness tau weighs."""
        return 1.0

    def receive(self, state: Any, update: Arrival, tau: int) -> Decision:
        """Adds the update to the buffer, and steps when it is full."""
        buffer = (*state.buffer, update)
        weights = (*state.weights, self.weight(tau))
        if len(buffer) < self.buffer_size:
            return Decision(state._replace(buffer=buffer, weights=weights))
        return Decision(state._replace(buffer=(), weights=()), apply=buffer, weights=weights)

    def step(self, state: Any, updates: Arrivals) -> Any:
        """Returns the state with the next model."""
        mean = updates.sum(updates.weights) / np.float32(len(updates))
        return self.along(state, mean, updates)

    def scale(self, updates: Arrivals) -> float:
        """Returns a factor on the step that updates make."""
        return 1.0

    def along(self, state: Any, delta: Row, updates: Arrivals) -> Any:
        """Returns the state after the server optimizer's step.

        Args:
            state: before.
            delta: the direction, shape (d,).
            updates: that it was made of.

        Raises:
            NotFinite: see `stepped`.
        """
        optimizer = stepped(self.server_optimizer, state.optimizer._replace(w=state.w), delta)
        w, scale = optimizer.w, self.scale(updates)
        if scale != 1:
            w = state.w + np.float32(scale) * (w - state.w)
        if updates.statistics:
            w = w.copy()
            for place in updates.statistics:
                w[place] = state.w[place] + delta[place]
        return state._replace(w=w, optimizer=optimizer)


@dataclass(frozen=True)
class FedBuff(BufferedRule):
    """Algorithm 1 of the paper.

        on an update:      S <- S + s(tau) (x_i - x_0),    k <- k + 1
        when k = K:        w <- w + eta S / K,    S <- 0,    k <- 0

    with x_0 the model that client i was sent, and tau counted when the update arrives. The paper's
    Delta is x_0 - x_i, whence its minus. With an aggregator F, S is K F(s_1 Delta_1, ...). eta is
    the server optimizer's; with another than FedAvg, S / K is what that steps along.

    Attributes:
        staleness: s.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    staleness: StalenessWeight = field(default_factory=Polynomial)

    def weight(self, tau: int) -> float:
        """Returns s(tau)."""
        return self.staleness(tau)
