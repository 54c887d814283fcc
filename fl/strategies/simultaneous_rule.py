"""What a server rule of several models is: what becomes of each, and how requests are dealt out.

The models are those of *learning tasks* that share a pool of clients. Their drivers are
`fl.strategies.SimultaneousEvents`, in which clients answer requests at any time, and
`fl.strategies.SimultaneousRounds`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.checks import positive
from fl.strategies.event_rule import Arrivals
from fl.strategies.fedavg import Model
from fl.vectors.rows import Row


class SimultaneousRule(ABC):
    """What a server does with the updates of several models."""

    @property
    def reallocates(self) -> bool:
        """Whether requests move between tasks; then the rule is shown every update."""
        return False

    def buffer(self, requests: int) -> int:
        """Returns how many updates make a version of a task with so many requests in flight.

        Rounds do not ask: there all that come do.
        """
        return requests

    def init(self, tasks: Sequence[str], total: int) -> Any:
        """Returns the state before the first request.

        Args:
            tasks: their names.
            total: requests in flight, of all together.
        """
        return None

    def observe(self, state: Any, task: str, delta: Row, steps: float) -> Any:
        """Returns the state after an update has arrived.

        Args:
            state: before; not changed.
            task: whose update it is.
            delta: the client's change of the model, without biases.
            steps: local steps of the client, 1 if it did not say.
        """
        return state

    def realloc(
        self, state: Any, total: int, versions: Mapping[str, int]
    ) -> tuple[Any, Mapping[str, int] | None]:
        """Returns the state, and how many requests each task is to have; None if as before.

        Args:
            state: before; not changed.
            total: requests in flight, of all together.
            versions: of the models of the tasks that are not done, by name.
        """
        return state, None

    @abstractmethod
    def step(self, state: Model, updates: Arrivals) -> Model:
        """Returns a task's next model.

        Args:
            state: its present one.
            updates: of the task, at least one.
        """


@dataclass(frozen=True)
class Averaged(SimultaneousRule):
    """Base of rules that move each model along the mean change.

        w_m <- w_m + eta / n sum_i (x_i - x_0,i)

    with x_0,i the model that client i was sent; with an aggregator F, w_m + eta F(...).

    Attributes:
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        positive("eta", self.eta)

    def step(self, state: Model, updates: Arrivals) -> Model:
        """Returns the model moved along the mean change."""
        total = updates.sum(np.ones(len(updates)))
        return Model(state.w + np.float32(self.eta / len(updates)) * total)
