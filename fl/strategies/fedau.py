"""FedAU: weight updates by how rarely their clients take part, without knowing it beforehand.

Wang, Ji, "A Lightweight Method for Tackling Unknown Participation Statistics in Federated
Averaging", arXiv:2306.03401 (ICLR 2024), Algorithms 1 and 2; details as in the authors' code
(IBM/fedau).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, positive, read_if
from fl.errors import ConfigError
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Intervals(NamedTuple):
    """A client's intervals between participations, M_n, until its last one.

    Attributes:
        last: round of its last participation; 0 before the first.
        total: sum of M_n.
        n: length of M_n.
    """

    last: int = 0
    total: int = 0
    n: int = 0

    def at(self, t: int, cutoff: int | None) -> tuple[float, Intervals]:
        """Returns the weight in round t, in which the client takes part, and what follows.

        Args:
            t: round, above `last`.
            cutoff: K; None is infinity.
        """
        away = t - self.last - 1
        cut = 0 if cutoff is None else away // cutoff  # intervals that ended at K meanwhile
        total = self.total + cut * (cutoff or 0)
        n = self.n + cut
        weight = total / n if n else 1.0
        own = t - self.last - cut * (cutoff or 0)
        return weight, Intervals(t, total + own, n + 1)


class ModelAndIntervals(NamedTuple):
    """The model, shape (d,), the round, and the intervals of every client that has taken part."""

    w: Row
    t: int = 0
    intervals: Mapping[int, Intervals] = {}


@read_if(lambda a: a["rates"] is None, "cutoff", only="with {at}rates no interval is counted")
@dataclass(frozen=True)
class FedAU(RoundRule):
    """Adaptive weights for unknown participation.

        w_(t+1) = w_t + eta / N sum_(n in S_t) omega_n (w_n - w_t)

    with omega_n the mean of client n's intervals, in rounds, between one participation and the next
    before round t, an estimate of 1 / p_n; 1 before there is one. The interval that ends with round
    t counts from the next participation on, so that weight and participation are independent. After
    K rounds without participation an interval ends as well: a small K lowers the variance of the
    weights and adds a bias, with K = 1 all weights are 1 and this is the average over all clients,
    those that are away with a change of 0. With known rates, the paper's other baseline, omega_n is
    1 / p_n from the first round on.

    All clients that are there take part (`fraction_train: 1.0`); they weigh the same, whatever
    their number of examples. The server keeps three numbers for each client; in the paper each
    client keeps its own. Rounds in which nothing was learnt do not count.

    Attributes:
        num_clients: N.
        cutoff: K, at least 1; None is infinity.
        eta: server learning rate, above 0.
        rates: p_n of client n, above 0 and at most 1, shape (N,); None if they are not known.

    Raises:
        ConfigError: a hyperparameter is out of range, or a client has no rate.
    """

    folds: ClassVar[bool] = False

    num_clients: int
    cutoff: int | None = 50
    eta: float = 1.0
    rates: Sequence[float] | None = None

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        if self.cutoff is not None:
            at_least("cutoff", self.cutoff, 1)
        positive("eta", self.eta)
        if self.rates is not None:
            p = np.asarray(self.rates, dtype=np.float64)
            if p.shape != (self.num_clients,):
                raise ConfigError(f"rates has shape {p.shape}; it must be ({self.num_clients},)")
            if not ((p > 0) & (p <= 1)).all():
                raise ConfigError(f"rates is {p!r:.80}; every one must be above 0 and at most 1")

    def init(self, w: Row, p: int) -> ModelAndIntervals:
        """Returns the model, and nothing known of any client."""
        return ModelAndIntervals(w)

    def step(self, state: ModelAndIntervals, updates: Updates) -> ModelAndIntervals:
        """Returns model and intervals after a round."""
        t, intervals = state.t + 1, dict(state.intervals)
        omega = np.ones(len(updates))
        for i, client in enumerate(updates.clients):
            if not updates.weights[i] > 0:  # it has done no step
                continue
            if self.rates is not None:
                omega[i] = 1 / self._of(client, self.rates)
            else:
                known = intervals.get(client, Intervals())
                omega[i], intervals[client] = known.at(t, self.cutoff)
        updates = updates.unweighted()
        share = np.float32(self.eta * updates.weights.sum() / self.num_clients)
        return ModelAndIntervals(state.w + share * updates.scaled(omega).mean(), t, intervals)

    @staticmethod
    def _of(node: int, rates: Sequence[float]) -> float:
        from fl.flower.identity import client_of  # a rule loads without Flower

        client = client_of(node)
        if not 0 <= client < len(rates):
            raise ConfigError(
                f"rates is of clients 0 to {len(rates) - 1}, and one is {client}; a grid that "
                "numbers its clients otherwise needs rates of null"
            )
        return float(rates[client])
