"""CA2FL: a buffer of updates, calibrated by the last update of every client.

Wang, Cao, Wu, Chen, Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with
Cached Update Calibration", ICLR 2024 (openreview.net/forum?id=4aywmeb97I).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fl.checks import at_least
from fl.strategies.event_rule import Arrival, Arrivals, added
from fl.strategies.fedbuff import BufferedRule
from fl.strategies.mifa import recalled
from fl.vectors.rows import Row


class Calibrated(NamedTuple):
    """The state of `Buffered`, with the cache.

    Attributes:
        total: N h, the sum of what is cached, shape (d,).
        latest: h_i, shape (d,) each, by client.
    """

    w: Row
    optimizer: Any
    total: Row
    latest: Mapping[int, Row]
    buffer: tuple[Arrival, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class CA2FL(BufferedRule):
    """Cache-aided asynchronous federated learning.

    When K updates Delta_i = x_i - x_0 are in the buffer, with x_0 the model that client i was sent,

        v <- h + 1 / K sum_i (Delta_i - h_i),    h = 1 / N sum_j h_j    over all clients
        h_i <- Delta_i                                                  for those of the buffer
        w <- w + eta v

    so that clients that answer often do not pull the model to their data. h_i is 0 until client i's
    first update; of a client that is twice in a buffer, the second is calibrated by the first.
    Staleness does not weigh. With an aggregator F, the mean of the differences is F(Delta_i - h_i),
    and N h changes by K times that.

    The server keeps a model for each client. It is FedVARP with a buffer in the place of a round.

    Attributes:
        population: N; None are those that come: then h_i of a client that comes for the first time
            is h, as in FedVARP.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population is not None:
            at_least("population", self.population, 1)

    def init(self, w: Row, p: int) -> Calibrated:
        """Returns the model, and nothing cached."""
        return Calibrated(w, self.server_optimizer.init(w, p), np.zeros_like(w), {})

    def step(self, state: Calibrated, updates: Arrivals) -> Any:
        """Returns the state with the next model."""
        h, absent = recalled(state, self.population)
        latest, differences = dict(state.latest), []
        for update in updates:
            change = update.delta
            differences.append(change - latest.get(update.node, absent))
            latest[update.node] = updates.without_statistics(change)
        n, fresh = np.float32(len(updates)), np.float32(len(latest) - len(state.latest))
        mean = added(np.zeros_like(h), differences, updates) / n
        total = state.total + n * updates.without_statistics(mean) + fresh * absent
        return self.along(state._replace(total=total, latest=latest), h + mean, updates)
