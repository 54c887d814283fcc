"""TiFL: train clients of similar speed together, and slow tiers no more often than they need.

Chai, Ali, Zawad, Truex, Anwar, Baracaldo, Zhou, Ludwig, Yan, Cheng, "TiFL: A Tier-based Federated
Learning System", arXiv:2001.09249 (HPDC 2020), Algorithm 2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.aggregation import weight_of
from fl.checks import at_least, positive
from fl.errors import SimulationError
from fl.selection.selection import (
    Ask,
    Choice,
    Metrics,
    Opening,
    RoundEnd,
    Selection,
    Trial,
    sample,
)

log = logging.getLogger("fl")


class Tiers(NamedTuple):
    """What TiFL knows.

    Attributes:
        num_rounds: of the run.
        profiled: rounds of profiling that are over.
        latency_s: of each client, every time it was timed, s.
        outdated: whether clients have been timed since the tiers were formed.
        tiers: clients of each, the fastest first.
        current: the tier that was trained last.
        accuracy: of each tier when it was measured last; empty before.
        measured: round before which that was.
        probabilities: of each tier.
        credits: that each tier has left.
    """

    num_rounds: int
    profiled: int = 0
    latency_s: Mapping[int, tuple[float, ...]] = {}
    outdated: bool = False
    tiers: tuple[tuple[int, ...], ...] = ()
    current: int | None = None
    accuracy: tuple[float, ...] = ()
    measured: int = 0
    probabilities: tuple[float, ...] = ()
    credits: tuple[int, ...] = ()


@dataclass(frozen=True)
class TiFL(Selection):
    """Adaptive tier selection, after profiling.

    Profiling: in each of `profiling_rounds` all available clients train the initial model. A client
    that has not answered after `profiling_s` counts with that time, and one that never answers is
    in no tier. The others are sorted by mean latency and split into T tiers of equal size. A client
    that was not there, or that failed, is timed when it is idle, with the current model and beside
    the rounds; then clients are sorted and split again. Clients without a tier are not trained; if
    there is no tier, because all are too slow, the run ends.

    Round r: a tier is drawn by the tiers' probabilities among those with credits and an idle
    client, loses a credit, and N of its clients train. Probabilities are 1/T and credits `credits`
    at first. Every I rounds the tiers' accuracies are measured, on the clients' own data; if that
    of the tier just trained has not improved since the last time, the n tiers with credits get,
    from the least accurate to the most,

        p_j = (n - j) / (n (n + 1) / 2),    j = 0, ..., n - 1.

    When all credits are spent, every tier gets `credits` again. Profiling and measuring take time
    and bytes like everything else; profiling is before round 1 and makes no version of the model.

    Attributes:
        num_tiers: T.
        interval: I, rounds between two measurements of accuracy.
        credits: of each tier; None lets every tier train in ceil(num_rounds / T) rounds at most.
        profiling_rounds: how often every client is timed.
        profiling_s: Tmax, s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    evaluates: ClassVar[bool] = True
    by_accuracy: ClassVar[bool] = True

    num_tiers: int = 5
    interval: int = 10
    credits: int | None = None
    profiling_rounds: int = 1
    profiling_s: float = 120.0

    def __post_init__(self) -> None:
        at_least("num_tiers", self.num_tiers, 1)
        at_least("interval", self.interval, 1)
        at_least("profiling_rounds", self.profiling_rounds, 1)
        positive("profiling_s", self.profiling_s)
        if self.credits is not None:
            at_least("credits", self.credits, 1)

    def init(self, num_rounds: int) -> Tiers:
        """Returns the state before profiling."""
        return Tiers(num_rounds)

    # ---- profiling -------------------------------------------------------------------------------

    def trial(self, state: Tiers, idle: Sequence[int]) -> tuple[Trial | None, Tiers]:
        """Returns all clients while profiling, afterwards those that have not been timed."""
        if state.profiled < self.profiling_rounds:
            return Trial(idle, self.profiling_s, alone=True), state
        if state.outdated:
            state = self._with_tiers(state)
        new = [client for client in idle if not self._is_timed(state, client)]
        return (Trial(new, self.profiling_s, alone=False) if new else None), state

    def learn(self, state: Tiers, end: RoundEnd) -> Tiers:
        """Notes the latencies of clients that were timed; one that failed is timed again.

        Not so if it failed by its silence.
        """
        if not end.trial:
            return state
        silent = [client for client, s in end.failed.items() if s >= self.profiling_s]
        timed = [
            *((client, self.profiling_s) for client in silent),
            *((reply.client, reply.seconds) for reply in end.replies),
            *((client, self.profiling_s) for client in end.missed),
        ]
        latency_s = dict(state.latency_s)
        for client, seconds in timed:
            latency_s[client] = (*latency_s.get(client, ()), min(seconds, self.profiling_s))
        return state._replace(
            profiled=min(state.profiled + 1, self.profiling_rounds),
            latency_s=latency_s,
            outdated=state.outdated or bool(timed),
        )

    def _is_timed(self, state: Tiers, client: int) -> bool:
        return len(state.latency_s.get(client, ())) >= self.profiling_rounds

    def _with_tiers(self, state: Tiers) -> Tiers:
        """Splits the clients by latency.

        Raises:
            SimulationError: clients were timed, and all of them are too slow.
        """
        timed = [client for client in state.latency_s if self._is_timed(state, client)]
        mean = {i: sum(state.latency_s[i]) / self.profiling_rounds for i in timed}
        order = sorted((i for i in timed if mean[i] < self.profiling_s), key=mean.__getitem__)
        if timed and not order:
            raise SimulationError(
                f"none of the {len(timed)} clients that were timed answered within "
                f"selection.profiling_s, {self.profiling_s:g} s, so that none is in a tier: raise "
                "it, and round_timeout_s with it, or wait for faster ones with a larger "
                "strategy.min_available_nodes"
            )
        parts = np.array_split(np.arange(len(order)), self.num_tiers)
        tiers = tuple(tuple(order[i] for i in part.tolist()) for part in parts if len(part))
        log.info("tiers of %s clients", [len(tier) for tier in tiers])
        before, state = len(state.tiers), state._replace(outdated=False, tiers=tiers)
        if len(tiers) == before:
            return state
        state = state._replace(
            current=None, accuracy=(), probabilities=(1 / len(tiers),) * len(tiers)
        )
        return self._refilled(state)

    # ---- tiers -----------------------------------------------------------------------------------

    def _refilled(self, state: Tiers) -> Tiers:
        """Gives every tier its credits."""
        n = len(state.tiers)
        credits = self.credits or math.ceil(state.num_rounds / max(n, 1))
        return state._replace(credits=(credits,) * n)

    def eligible(self, state: Tiers, idle: Sequence[int]) -> Sequence[int]:
        """Returns the idle clients that are in a tier."""
        members = {client for tier in state.tiers for client in tier}
        return [client for client in idle if client in members]

    def select(self, state: Tiers, opening: Opening) -> tuple[Choice, Tiers]:
        """Returns clients of one tier."""
        idle = set(opening.idle)
        members = [[client for client in tier if client in idle] for tier in state.tiers]
        open_tiers = [j for j, tier in enumerate(members) if tier and state.credits[j]]
        if not open_tiers:
            state = self._refilled(state)
            open_tiers = [j for j, tier in enumerate(members) if tier]
        p = np.array([state.probabilities[j] for j in open_tiers])
        p = p / p.sum() if p.any() else np.full(len(p), 1 / len(p))
        current = open_tiers[int(opening.rng("tier").choice(len(p), p=p))]
        left = tuple(credit - (j == current) for j, credit in enumerate(state.credits))
        chosen = sample(opening.rng("clients"), members[current], opening.count)
        return Choice(chosen), state._replace(current=current, credits=left)

    # ---- accuracies ------------------------------------------------------------------------------

    def ask(self, state: Tiers, opening: Opening) -> tuple[Ask | None, Tiers]:
        """Asks all clients that are in a tier for the model's accuracy, every I rounds."""
        trained = opening.server_round - 1
        if not trained or trained % self.interval or state.measured == opening.server_round:
            return None, state
        state = state._replace(measured=opening.server_round)
        here = set(opening.here)
        clients = [client for tier in state.tiers for client in tier if client in here]
        return (Ask("evaluate", clients, self.profiling_s) if clients else None), state

    def refuses(self, ask: Ask, metrics: Metrics) -> str | None:
        """Refuses a client that reports no accuracy."""
        accuracy = metrics.get("accuracy")
        fits = isinstance(accuracy, int | float) and 0 <= accuracy <= 1
        if fits and weight_of(metrics.get("num-examples")) is not None:
            return None
        return "it reports no 'num-examples' and 'accuracy' that are finite numbers"

    def told(self, state: Tiers, ask: Ask, answers: Mapping[int, Metrics]) -> Tiers:
        """Takes in each tier's accuracy, weighted by examples; 0 of a tier nobody answers for.

        The probabilities change unless the tier that was trained last has become more accurate.
        """
        tier_of = {client: j for j, tier in enumerate(state.tiers) for client in tier}
        hits, counts = np.zeros(len(state.tiers)), np.zeros(len(state.tiers))
        for client, metrics in answers.items():
            weight = float(metrics["num-examples"])
            hits[tier_of[client]] += weight * metrics["accuracy"]
            counts[tier_of[client]] += weight
        means = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
        before, accuracy, j = state.accuracy, tuple(means.tolist()), state.current
        state = state._replace(accuracy=accuracy)
        if j is not None and before and accuracy[j] > before[j]:
            return state
        return state._replace(probabilities=change_probabilities(accuracy, state.credits))


def change_probabilities(accuracy: Sequence[float], left: Sequence[int]) -> tuple[float, ...]:
    """Returns ChangeProbs of the paper: (n - j) / (n (n + 1) / 2) for the j-th worst tier.

    Args:
        accuracy: of each tier.
        left: credits of each tier; the n tiers with some share the probability.
    """
    with_credits = [j for j, credit in enumerate(left) if credit > 0]
    n = len(with_credits)
    probabilities = [0.0] * len(left)
    for rank, j in enumerate(sorted(with_credits, key=lambda j: (accuracy[j], j))):
        probabilities[j] = (n - rank) / (n * (n + 1) / 2)
    return tuple(probabilities)
