"""Oort: prefer clients whose data the model is bad at, and that answer in time.

Lai, Zhu, Madhyastha, Chowdhury, "Oort: Efficient Federated Learning via Guided Participant
Selection", arXiv:2010.06081 (OSDI 2021), Algorithm 1, with the scores of the authors' code
(SymbioticLab/FedScale, thirdparty/oort).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.errors import ConfigError
from fl.selection.selection import Choice, Opening, RoundEnd, Selection

_LEAST_RANGE = 1e-4  # of utilities, as in the authors' code


class Record(NamedTuple):
    """What the server knows of a client.

    Attributes:
        utility: U, from its last reply; None if it has never replied.
        seconds: how long its last task took, or at least took if it was too late.
        last_round: of its last reply.
        times: how often its replies were in time.
    """

    utility: float | None = None
    seconds: float | None = None
    last_round: int = 0
    times: int = 0


class Known(NamedTuple):
    """What Oort knows.

    Attributes:
        epsilon: share of clients explored in the last round.
        percentile: of times, as the pacer has it now.
        records: by client.
        exploited: clients of the last round that were exploited.
        utilities: mean utility of the exploited clients, by round.
    """

    epsilon: float
    percentile: float
    records: Mapping[int, Record] = {}
    exploited: frozenset[int] = frozenset()
    utilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Oort(Selection):
    """Guided selection of clients.

    A reply's utility is U = n sqrt(mean of loss^2); `loss_key` names the metric taken for the
    root, by default the mean loss "train-loss", which is all that clients report. In round R:

    - T is the `percentile` of the clients' known times, and no limit at 100.
    - A client that has replied has the score

          ((min(U, U_clip) - U_min) / (U_max - U_min) + sqrt(0.1 ln R / R_i)) (T / t_i)^alpha,

      the last factor only if its time t_i > T; R_i is the round of its last reply. As in the
      authors' code U_max is the largest utility, not clipped, U_min 0.999 times the smallest, and
      U_clip the utility at place floor(`clip` n) of n in ascending order: one client that is far
      above the others makes their differences small beside the second term.
    - epsilon <- max(decay epsilon, least). floor(epsilon m) of m clients are explored, the others
      exploited: drawn in proportion to their scores among those with at least `cut_off` times the
      score of the last client that fits in (the authors' code takes the first that does not; in
      FedScale it adds others, to ten times as many as are drawn).
    - Explored are clients that have never replied, first the `window` times as many with the
      largest (T / t)^alpha (t is known of those that were too late), then drawn in proportion to
      that.
    - The pacer: every `pacer_step` rounds, if the sum of the exploited clients' mean utilities over
      the last `pacer_step` rounds differs from that over those before by at most 10 % of it, the
      percentile rises by `pacer_delta`; if by at least 500 %, it falls.

    Attributes:
        loss_key: metric of the replies.
        alpha: weight of the penalty, at least 0.
        epsilon: share explored at first, in [0, 1].
        least_epsilon: in the end.
        decay: of epsilon.
        percentile: of times, in (0, 100].
        pacer_step: rounds.
        pacer_delta: in percent.
        clip: quantile of utilities, in (0, 1].
        cut_off: share of the last score that is good enough, in [0, 1].
        window: at least 1.
        max_times: clients with more replies are not selected any more; None sets no limit.

    Raises:
        ConfigError: an argument is out of its range.
    """

    loss_key: str = "train-loss"
    alpha: float = 2.0
    epsilon: float = 0.9
    least_epsilon: float = 0.3
    decay: float = 0.98
    percentile: float = 30.0
    pacer_step: int = 20
    pacer_delta: float = 5.0
    clip: float = 0.9
    cut_off: float = 0.95
    window: float = 5.0
    max_times: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("alpha", 0.0, math.inf),
            ("epsilon", 0.0, 1.0),
            ("least_epsilon", 0.0, 1.0),
            ("decay", 0.0, 1.0),
            ("percentile", 1e-9, 100.0),
            ("pacer_delta", 0.0, 100.0),
            ("clip", 1e-9, 1.0),
            ("cut_off", 0.0, 1.0),
            ("window", 1.0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
        at_least("pacer_step", self.pacer_step, 1)
        if self.max_times is not None:
            at_least("max_times", self.max_times, 1)

    @property
    def reads(self) -> Sequence[str]:
        """The loss."""
        return (self.loss_key,)

    def init(self, num_rounds: int) -> Known:
        """Returns the state in which nothing is known of any client."""
        return Known(self.epsilon, self.percentile)

    # ---- what clients tell -----------------------------------------------------------------------

    def learn(self, state: Known, end: RoundEnd) -> Known:
        """Notes utilities and times, and lets the pacer look."""
        records = dict(state.records)
        for reply in end.replies:
            utility = reply.examples * abs(reply.metrics[self.loss_key])
            records[reply.client] = Record(
                utility if math.isfinite(utility) else 0.0,
                reply.seconds,
                end.server_round,
                records.get(reply.client, Record()).times + 1,
            )
        for client, seconds in end.missed.items():
            record = records.get(client, Record())
            records[client] = record._replace(seconds=max(record.seconds or 0.0, seconds))
        used = [reply.client for reply in end.replies if reply.client in state.exploited]
        known = [records[client].utility or 0.0 for client in used]
        utilities = (*state.utilities, sum(known) / len(known) if known else 0.0)
        return self.paced(state._replace(records=records, utilities=utilities))

    def late(self, state: Known, client: int, seconds: float) -> Known:
        """Notes how long a client took that was too late."""
        record = state.records.get(client, Record())._replace(seconds=seconds)
        return state._replace(records={**state.records, client: record})

    def paced(self, state: Known) -> Known:
        """Relaxes the limit on times when utility has become flat, tightens it after a jump."""
        step, rounds = self.pacer_step, len(state.utilities)
        if rounds < 2 * step or rounds % step:
            return state
        before, now = sum(state.utilities[-2 * step : -step]), sum(state.utilities[-step:])
        percentile = state.percentile
        if abs(now - before) <= 0.1 * before:
            percentile = min(100.0, percentile + self.pacer_delta)
        elif abs(now - before) >= 5 * before:
            percentile = max(self.pacer_delta, percentile - self.pacer_delta)
        return state._replace(percentile=percentile)

    # ---- who is selected -------------------------------------------------------------------------

    def select(self, state: Known, opening: Opening) -> tuple[Choice, Known]:
        """Returns clients to exploit and to explore."""
        rng, idle, count = opening.rng("oort"), opening.idle, opening.count
        epsilon = max(state.epsilon * self.decay, self.least_epsilon)
        utility = {i: record.utility for i, record in state.records.items()}
        tried = [i for i in idle if utility.get(i) is not None]
        fresh = [i for i in idle if utility.get(i) is None]
        if self.max_times is not None:
            tried = [i for i in tried if state.records[i].times <= self.max_times] or tried
        limit_s = preferred_seconds(state)
        explored = min(int(count * epsilon), len(fresh))
        exploited = min(count - explored, len(tried))
        explored = min(count - exploited, len(fresh))
        best = self._exploit(rng, state, tried, exploited, opening.server_round, limit_s)
        chosen = best + self._explore(rng, state, fresh, explored, limit_s)
        return Choice(chosen), state._replace(epsilon=epsilon, exploited=frozenset(best))

    def penalty(self, state: Known, client: int, limit_s: float) -> float:
        """Returns (T / t)^alpha for a client that is known to be slower than T, else 1."""
        record = state.records.get(client)
        if record is None or record.seconds is None or record.seconds <= limit_s:
            return 1.0
        return float((limit_s / record.seconds) ** self.alpha)

    def scores(
        self, state: Known, clients: Sequence[int], server_round: int, limit_s: float
    ) -> NDArray[np.float64]:
        """Returns the scores of clients that have replied, shape (len(clients),)."""
        utility = np.array([state.records[i].utility for i in clients], dtype=np.float64)
        last = np.array([state.records[i].last_round for i in clients], dtype=np.float64)
        ascending = np.sort(utility)
        u_clip = ascending[min(int(len(clients) * self.clip), len(clients) - 1)]
        u_min, u_max = 0.999 * ascending[0], ascending[-1]
        value = (np.minimum(utility, u_clip) - u_min) / max(u_max - u_min, _LEAST_RANGE)
        bonus = np.sqrt(0.1 * math.log(server_round) / np.maximum(last, 1))
        penalties = np.array([self.penalty(state, i, limit_s) for i in clients])
        return np.asarray((value + bonus) * penalties)

    def _exploit(
        self,
        rng: np.random.Generator,
        state: Known,
        clients: Sequence[int],
        count: int,
        server_round: int,
        limit_s: float,
    ) -> list[int]:
        """Returns clients drawn by their scores among those that are good enough."""
        if not count:
            return []
        scores = self.scores(state, clients, server_round, limit_s)
        threshold = self.cut_off * np.sort(scores)[-count]
        pool = np.flatnonzero(scores >= threshold)
        return [clients[i] for i in _draw(rng, pool, scores[pool], count)]

    def _explore(
        self,
        rng: np.random.Generator,
        state: Known,
        clients: Sequence[int],
        count: int,
        limit_s: float,
    ) -> list[int]:
        """Returns clients that have never replied."""
        if not count:
            return []
        weights = np.array([self.penalty(state, i, limit_s) for i in clients])
        order = rng.permutation(len(clients))  # so that ties are broken at random
        order = order[np.argsort(-weights[order], kind="stable")]
        pool = order[: max(count, int(self.window * count))]
        return [clients[i] for i in _draw(rng, pool, weights[pool], count)]


def preferred_seconds(state: Known) -> float:
    """Returns T, s."""
    times = sorted(r.seconds for r in state.records.values() if r.seconds is not None)
    if state.percentile >= 100 or not times:
        return math.inf
    return times[min(int(len(times) * state.percentile / 100), len(times) - 1)]


def _draw(
    rng: np.random.Generator, pool: NDArray[np.intp], weights: NDArray[np.float64], count: int
) -> list[int]:
    """Returns `count` of the pool without replacement, in proportion to weights."""
    # A weight of 0 can be drawn as well, after all others: the pool may hold no more than needed.
    p = np.maximum(weights, 1e-12 * max(float(weights.max()), 1e-300))
    return [int(i) for i in rng.choice(pool, size=count, replace=False, p=p / p.sum())]
