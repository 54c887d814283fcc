"""Oort: prefer clients whose data the model is bad at, and that answer in time.

Lai, Zhu, Madhyastha, Chowdhury, "Oort: Efficient Federated Learning via Guided Participant
Selection", arXiv:2010.06081 (OSDI 2021), Algorithm 1, with the scores of the authors' code
(SymbioticLab/FedScale, thirdparty/oort).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import MOST_WEIGHT, weight_of
from fl.errors import ConfigError
from fl.randomness import generator
from fl.strategies.drivers.events import Server, Update, at_least
from fl.strategies.drivers.rounds import Rounds

log = logging.getLogger("fl")

_LEAST_RANGE = 1e-4  # of utilities, as in the authors' code


@dataclass(slots=True)
class Record:
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


class Oort(Rounds):
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

    Args:
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
        **rounds: arguments of `Rounds`; the authors select 1.3 times as many as they keep.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        loss_key: str = "train-loss",
        alpha: float = 2.0,
        epsilon: float = 0.9,
        least_epsilon: float = 0.3,
        decay: float = 0.98,
        percentile: float = 30.0,
        pacer_step: int = 20,
        pacer_delta: float = 5.0,
        clip: float = 0.9,
        cut_off: float = 0.95,
        window: float = 5.0,
        max_times: int | None = None,
        **rounds: Any,
    ) -> None:
        super().__init__(**rounds)
        for name, value, low, high in (
            ("alpha", alpha, 0.0, math.inf),
            ("epsilon", epsilon, 0.0, 1.0),
            ("least_epsilon", least_epsilon, 0.0, 1.0),
            ("decay", decay, 0.0, 1.0),
            ("percentile", percentile, 1e-9, 100.0),
            ("pacer_delta", pacer_delta, 0.0, 100.0),
            ("clip", clip, 1e-9, 1.0),
            ("cut_off", cut_off, 0.0, 1.0),
            ("window", window, 1.0, math.inf),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
        at_least("pacer_step", pacer_step, 1)
        if max_times is not None:
            at_least("max_times", max_times, 1)
        self.loss_key = loss_key
        self.alpha = alpha
        self.epsilon = epsilon
        self.least_epsilon = least_epsilon
        self.decay = decay
        self.percentile = percentile
        self.pacer_step = pacer_step
        self.pacer_delta = pacer_delta
        self.clip = clip
        self.cut_off = cut_off
        self.window = window
        self.max_times = max_times

    def begin(self, server: Server) -> None:
        """Forgets all clients."""
        super().begin(server)
        self.known: dict[int, Record] = {}
        self.share = self.epsilon
        self.limit = self.percentile
        self.exploited: set[int] = set()
        self.utilities: list[float] = []  # mean utility of the exploited clients, by round

    # ---- what clients tell -----------------------------------------------------------------------

    def unusable(self, update: Update) -> str | None:
        """Refuses a client that reports no loss, or no number of examples."""
        loss = update.metrics.get(self.loss_key)
        known = isinstance(loss, int | float) and -MOST_WEIGHT <= loss <= MOST_WEIGHT
        if not known or weight_of(update.metrics.get(self.weighted_by_key)) is None:
            return (
                f"it reports no '{self.loss_key}' and '{self.weighted_by_key}' that are finite "
                "numbers: Oort needs both, set strategy.loss_key"
            )
        return None

    def ended(self, server: Server, replies: Sequence[Update], missed: Sequence[int]) -> None:
        """Notes utilities and times, and lets the pacer look."""
        for update in replies:
            self.note(server, update)
        for node in missed:
            record = self.known.setdefault(node, Record())
            record.seconds = max(record.seconds or 0.0, server.now - self.round_began)
        used = [update.node for update in replies if update.node in self.exploited]
        known = [self.known[node].utility or 0.0 for node in used]
        self.utilities.append(sum(known) / len(known) if known else 0.0)
        self.pace(len(self.utilities))

    def late(self, server: Server, update: Update) -> None:
        """Notes how long a client took that was too late."""
        self.known.setdefault(update.node, Record()).seconds = update.seconds

    def note(self, server: Server, update: Update) -> None:
        """Notes what a reply says."""
        loss, examples = update.metrics[self.loss_key], update.metrics[self.weighted_by_key]
        record = self.known.setdefault(update.node, Record())
        utility = examples * abs(loss)
        record.utility = utility if math.isfinite(utility) else 0.0
        record.seconds = update.seconds
        record.last_round = server.version + 1
        record.times += 1

    def pace(self, server_round: int) -> None:
        """Relaxes the limit on times when utility has become flat, tightens it after a jump."""
        step = self.pacer_step
        if server_round < 2 * step or server_round % step:
            return
        before, now = sum(self.utilities[-2 * step : -step]), sum(self.utilities[-step:])
        if abs(now - before) <= 0.1 * before:
            self.limit = min(100.0, self.limit + self.pacer_delta)
        elif abs(now - before) >= 5 * before:
            self.limit = max(self.pacer_delta, self.limit - self.pacer_delta)

    # ---- who is selected -------------------------------------------------------------------------

    def select(self, server: Server, idle: Sequence[int], count: int) -> list[int]:
        """Returns clients to exploit and to explore."""
        rng = generator(self.seed, "oort", server.version)
        self.share = max(self.share * self.decay, self.least_epsilon)
        tried = [n for n in idle if n in self.known and self.known[n].utility is not None]
        fresh = [n for n in idle if n not in self.known or self.known[n].utility is None]
        if self.max_times is not None:
            tried = [n for n in tried if self.known[n].times <= self.max_times] or tried
        limit_s = self.preferred_seconds()
        explored = min(int(count * self.share), len(fresh))
        exploited = min(count - explored, len(tried))
        explored = min(count - exploited, len(fresh))
        chosen = self.exploit(rng, tried, exploited, server.version + 1, limit_s)
        self.exploited = set(chosen)
        return chosen + self.explore(rng, fresh, explored, limit_s)

    def preferred_seconds(self) -> float:
        """Returns T, s."""
        times = sorted(r.seconds for r in self.known.values() if r.seconds is not None)
        if self.limit >= 100 or not times:
            return math.inf
        return times[min(int(len(times) * self.limit / 100), len(times) - 1)]

    def penalty(self, node: int, limit_s: float) -> float:
        """Returns (T / t)^alpha for a client that is known to be slower than T, else 1."""
        record = self.known.get(node)
        if record is None or record.seconds is None or record.seconds <= limit_s:
            return 1.0
        return float((limit_s / record.seconds) ** self.alpha)

    def scores(
        self, nodes: Sequence[int], server_round: int, limit_s: float
    ) -> NDArray[np.float64]:
        """Returns the scores of clients that have replied, shape (len(nodes),)."""
        utility = np.array([self.known[node].utility for node in nodes], dtype=np.float64)
        last = np.array([self.known[node].last_round for node in nodes], dtype=np.float64)
        ascending = np.sort(utility)
        u_clip = ascending[min(int(len(nodes) * self.clip), len(nodes) - 1)]
        u_min, u_max = 0.999 * ascending[0], ascending[-1]
        value = (np.minimum(utility, u_clip) - u_min) / max(u_max - u_min, _LEAST_RANGE)
        bonus = np.sqrt(0.1 * math.log(server_round) / np.maximum(last, 1))
        penalties = np.array([self.penalty(node, limit_s) for node in nodes])
        return np.asarray((value + bonus) * penalties)

    def exploit(
        self,
        rng: np.random.Generator,
        nodes: Sequence[int],
        count: int,
        server_round: int,
        limit_s: float,
    ) -> list[int]:
        """Returns clients drawn by their scores among those that are good enough."""
        if not count:
            return []
        scores = self.scores(nodes, server_round, limit_s)
        threshold = self.cut_off * np.sort(scores)[-count]
        pool = np.flatnonzero(scores >= threshold)
        return [nodes[i] for i in _draw(rng, pool, scores[pool], count)]

    def explore(
        self, rng: np.random.Generator, nodes: Sequence[int], count: int, limit_s: float
    ) -> list[int]:
        """Returns clients that have never replied."""
        if not count:
            return []
        weights = np.array([self.penalty(node, limit_s) for node in nodes])
        order = rng.permutation(len(nodes))  # so that ties are broken at random
        order = order[np.argsort(-weights[order], kind="stable")]
        pool = order[: max(count, int(self.window * count))]
        return [nodes[i] for i in _draw(rng, pool, weights[pool], count)]


def _draw(
    rng: np.random.Generator, pool: NDArray[np.intp], weights: NDArray[np.float64], count: int
) -> list[int]:
    """Returns `count` of the pool without replacement, in proportion to weights."""
    # A weight of 0 can be drawn as well, after all others: the pool may hold no more than needed.
    p = np.maximum(weights, 1e-12 * max(float(weights.max()), 1e-300))
    return [int(i) for i in rng.choice(pool, size=count, replace=False, p=p / p.sum())]
