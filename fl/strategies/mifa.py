"""MIFA: the last update of every client stands in for those that are away.

Gu, Huang, Zhang, Huang, "Fast Federated Learning in the Presence of Arbitrary Device
Unavailability", arXiv:2106.04159 (NeurIPS 2021), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from fl.checks import at_least, positive
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class HasMemory(Protocol):
    """A state with updates of clients."""

    @property
    def total(self) -> Row:
        """Their sum, shape (d,)."""

    @property
    def latest(self) -> Mapping[int, Row]:
        """Each, shape (d,), by client."""


Memory = TypeVar("Memory", bound=HasMemory)


class Memorised(NamedTuple):
    """The model and the sum of what is memorised, shape (d,) each, and that by client."""

    w: Row
    total: Row
    latest: Mapping[int, Row]


@dataclass(frozen=True)
class MIFA(RoundRule):
    """Memory-augmented impatient federated averaging.

        G_n <- w_n - w_t                      for the clients that take part
        w_(t+1) = w_t + eta / N sum_n G_n     over all clients

    A client that has not taken part yet counts with G_n = 0, as in the code of FedAU's authors; in
    the paper all take part in the first round. The paper memorises G_n divided by the clients'
    learning rate, which is the same where that stays. The server keeps a model for each client.
    All clients that are there take part; they weigh the same, whatever their number of examples.

    Attributes:
        num_clients: N.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False

    num_clients: int
    eta: float = 1.0

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        positive("eta", self.eta)

    def init(self, w: Row, p: int) -> Memorised:
        """Returns the model, and nothing memorised."""
        return Memorised(w, np.zeros_like(w), {})

    def step(self, state: Memorised, updates: Updates) -> Memorised:
        """Returns model and memory after a round."""
        state, _ = memorised(state, updates)
        share = np.float32(self.eta / self.num_clients)
        return state._replace(w=state.w + share * state.total)


def recalled(state: HasMemory, population: int | None = None) -> tuple[Row, Row | float]:
    """Returns what is in memory on average, and for a client that comes for the first time.

    That is 1 / N sum_n G_n, shape (d,), and 0; None for N takes the clients that are in memory, and
    their mean for both.
    """
    mean = state.total / np.float32(population or max(1, len(state.latest)))
    return mean, mean if population is None else 0.0


def memorised(
    state: Memory, updates: Updates, beta: float = 0.0, absent: Row | float = 0.0
) -> tuple[Memory, Row]:
    """Returns the state with the clients' updates in memory, and by what these are new.

        G_n <- beta G_n + (1 - beta) Delta_n

    Args:
        state: before, a named tuple with what `HasMemory` has.
        updates: Delta_n of the clients that take part.
        beta: what is kept of the memory.
        absent: G_n of a client that takes part for the first time, shape (d,).

    Returns:
        The state, and F(Delta_n - G_n), G_n as it was, shape (d,): the mean over clients, which all
        weigh the same, or the aggregator's.
    """
    latest, old = dict(state.latest), np.zeros(updates.deltas.shape, np.float32)
    kept, new, fresh = np.float32(beta), np.float32(1 - beta), 0
    for i, client in enumerate(updates.clients):
        old[i] = latest.get(client, absent)
        if updates.weights[i] > 0:  # it has done a step
            fresh += client not in latest
            latest[client] = (
                updates.deltas[i] if not beta else kept * old[i] + new * updates.deltas[i]
            )
    updates = updates.unweighted()
    taking_part = np.float32(updates.weights.sum())
    change = updates.less(old).mean()
    total: Row = state.total + new * taking_part * change + np.float32(fresh) * absent
    after: Any = state
    return after._replace(total=total, latest=latest), change
