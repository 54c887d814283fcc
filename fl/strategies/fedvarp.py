"""FedVARP: the last update of every client takes the variance out of who takes part.

Jhunjhunwala, Sharma, Nagarkatti, Joshi, "FedVARP: Tackling the Variance Due to Partial Client
Participation in Federated Learning", arXiv:2207.14130 (UAI 2022), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import at_least, positive
from fl.strategies.mifa import Memorised, memorised, recalled
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


@dataclass(frozen=True)
class FedVARP(RoundRule):
    """SAGA's estimate of the mean update, where MIFA's is SAG's.

        v <- 1 / N sum_j y_j + 1 / |S| sum_(i in S) (Delta_i - y_i)    y as before the round
        y_i <- Delta_i = w_i - w                                       for those that take part
        w <- w + eta v

    v is the mean update of all clients on average, if those of S are drawn uniformly; once all y_j
    are up to date it is so whoever takes part. y_j is 0 before client j first takes part. With
    everybody there it is FedAvg with equal weights, as MIFA is. The server keeps a model for each
    client. Clients weigh the same, whatever their number of examples.

    In a fleet of which some never come, v would be short by their zeros. Without N it is the number
    of clients that have come so far, and y_j of one that comes for the first time is their mean: v
    is then right on average over those that do come. Once all have, the two are the same.

    Attributes:
        population: N; None are those that come.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False

    population: int | None = None
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.population is not None:
            at_least("population", self.population, 1)
        positive("eta", self.eta)

    def init(self, w: Row, p: int) -> Memorised:
        """Returns the model, and nothing memorised."""
        return Memorised(w, np.zeros_like(w), {})

    def step(self, state: Memorised, updates: Updates) -> Memorised:
        """Returns model and memory after a round."""
        y, absent = recalled(state, self.population)
        after, change = memorised(state, updates, absent=absent)
        return after._replace(w=state.w + np.float32(self.eta) * (y + change))
