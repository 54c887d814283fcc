"""Multi-momentum variance reduction: a momentum for each cluster of the data.

Tondji, Kashubin, Cisse, "Variance Reduction in Deep Learning: More Momentum is All You Need",
arXiv:2111.11828. Of the paper only the abstract could be read: it has a momentum for each cluster
of the data, which reduces the variance of the gradients that an existing optimizer is given. The
recursion is written from memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, share
from fl.strategies.fedavg import FedAvg
from fl.strategies.mifa import memorised, recalled
from fl.strategies.round_rule import RoundRule, Updates
from fl.strategies.server_optimizer import check_optimizer, stepped
from fl.vectors.rows import Row


class Momenta(NamedTuple):
    """Model and sum of the momenta, shape (d,) each, these by client, and the optimizer's state."""

    w: Row
    total: Row
    latest: Mapping[int, Row]
    optimizer: Any


@dataclass(frozen=True)
class MultiMomentum(RoundRule):
    """Every client is a cluster c of the data, and S those of a round.

        v <- m + 1 / |S| sum_(c in S) (Delta_c - m_c),    m = 1 / N sum_c m_c
        m_c <- beta m_c + (1 - beta) Delta_c              for those that take part
        w <- the server optimizer's step along v

    m_c is 0 before client c first takes part, and m as it was before the round. With beta = 0 it is
    FedVARP. The larger beta, the less a client's noise is in its control variate, and the older
    that is. The server keeps a model for each client. Clients weigh the same, whatever their number
    of examples.

    Attributes:
        population: N; None are those that come, as in FedVARP.
        beta: decay of the momenta, in [0, 1).
        server_optimizer: what makes a step of v: FedAvg, FedAvgM, FedAdam, ...

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False

    population: int | None = None
    beta: float = 0.9
    server_optimizer: RoundRule = field(default_factory=FedAvg)

    def __post_init__(self) -> None:
        if self.population is not None:
            at_least("population", self.population, 1)
        share("beta", self.beta)
        check_optimizer(self.server_optimizer)

    def init(self, w: Row, p: int) -> Momenta:
        """Returns the model at rest."""
        return Momenta(w, np.zeros_like(w), {}, self.server_optimizer.init(w, p))

    def step(self, state: Momenta, updates: Updates) -> Momenta:
        """Returns model, momenta and the optimizer's state after a round."""
        m, absent = recalled(state, self.population)
        after, change = memorised(state, updates, self.beta, absent)
        optimizer = stepped(self.server_optimizer, state.optimizer._replace(w=state.w), m + change)
        return after._replace(w=optimizer.w, optimizer=optimizer)
