"""When volunteers and preemptible machines are online: long and short sessions, removals in groups.

Both are as those of `fl.simulation.world.availability`.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from fl.checks import at_least, positive
from fl.errors import ConfigError
from fl.randomness import generator, uniforms
from fl.simulation.world.availability import Alternating, TraceAvailability, share_online
from fl.simulation.world.measurements import read_preemptions


class WeibullSessions(Alternating):
    """Sessions of Weibull length, many short and a few very long, with exponential gaps between.

        P(session > t) = exp(-(t / scale)^shape),    scale = mean_on_s / Gamma(1 + 1 / shape)

    With a shape below 1, whoever has been there for long will be there for long. The process is
    stationary: what is left at time 0 of a session has the law of that, a uniform share of a
    session drawn in proportion to its length. With shape 1 it is `ExponentialOnOff` in law.

    Args:
        num_clients: n.
        seed: root seed of the run.
        mean_on_s: mean length of a session in s.
        mean_off_s: mean length of a gap in s.
        shape: above 0.

    Raises:
        ConfigError: the shape is not positive and finite; and see `share_online`.
    """

    def __init__(
        self,
        num_clients: int,
        seed: int,
        mean_on_s: float = 7200.0,
        mean_off_s: float = 3600.0,
        shape: float = 0.5,
    ) -> None:
        at_least("num_clients", num_clients, 1)
        online = share_online(mean_on_s, mean_off_s)
        positive("shape", shape)
        self._shape, self._mean_off = shape, mean_off_s
        self._scale = mean_on_s / math.gamma(1 + 1 / shape)
        super().__init__(num_clients, seed, online)

    def _lengths(
        self, clients: NDArray[np.integer], period: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        on, u = self._draws(clients, period)
        lengths = np.where(on, self._scale * (-np.log1p(-u)) ** (1 / self._shape), 0.0)
        first = on & (period == 0)
        if first.any():  # t f(t) of a Weibull f is that of scale G^(1/shape), G ~ Gamma(1+1/shape)
            whole = self._scale * gammaincinv(1 + 1 / self._shape, u) ** (1 / self._shape)
            left = uniforms(self._seed, "availability-left", clients)
            lengths = np.where(first, (1.0 - left) * whole, lengths)
        return np.asarray(np.where(on, lengths, -np.log1p(-u) * self._mean_off), np.float64)


class Preemptions:
    """Machines that their owner takes away, several at once.

    Removals come at random, `mean_gap_s` apart on average (Poisson). Each takes a group of machines
    that are there, whichever; those come back together, after an exponential time. The size of a
    group is geometric up to `most`:

        P(g) proportional to (1 - p)^g,    g = 1 ... most,    p such that its mean is `mean_group`.

    The defaults give the figures of a trace of 32 V100 spot instances over 11.4 h
    (uclasystem/bamboo, traces/p3-trace.csv): 79 removals of 2.11 machines on average and 6 at most,
    half of them of one, and 24 machines there on average, which says how long they are away. The
    state at time 0 is that after a long time. Who is taken depends on all others: with another
    number of clients, all of it is another.

    Args:
        num_clients: n.
        seed: root seed of the run.
        mean_gap_s: between removals, s.
        mean_group: machines that a removal takes, above 1 and below (1 + most) / 2; 1 with most 1.
        most: of them.
        mean_away_s: until they are back, s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        num_clients: int,
        seed: int,
        mean_gap_s: float = 516.0,
        mean_group: float = 2.1,
        most: int = 6,
        mean_away_s: float = 1966.0,
    ) -> None:
        at_least("num_clients", num_clients, 1)
        at_least("most", most, 1)
        positive("mean_gap_s", mean_gap_s)
        positive("mean_away_s", mean_away_s)
        self._gap, self._away = mean_gap_s, mean_away_s
        self._law = _geometric(mean_group, most)
        self._rng = generator(seed, "preemptions")
        self._there = list(range(num_clients))
        self._back: list[tuple[float, int, list[int]]] = []  # (when, number, who)
        self._removals = 0
        # In the past: nobody sees it, but what is away at time 0 is away since then.
        self._next = -20 * (mean_gap_s + mean_away_s)
        self._edges: list[list[float]] = [[] for _ in range(num_clients)]
        self._advance(0.0)
        self._first = np.zeros(num_clients, dtype=np.bool_)
        self._first[self._there] = True
        self._edges = [[] for _ in range(num_clients)]
        self._until = 0.0

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is online at time t (s), shape (n,)."""
        self._see(t)
        odd = np.array([bisect_right(edges, t) & 1 for edges in self._edges], dtype=np.bool_)
        return self._first ^ odd

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether the client is online at time t (s)."""
        self._see(t)
        return bool(self._first[client]) ^ bool(bisect_right(self._edges[client], t) & 1)

    def next_change(self, client: int, t: float) -> float:
        """Returns when the client is taken away or comes back for the first time after t, s."""
        self._see(t)
        edges = self._edges[client]
        while not edges or edges[-1] <= t:
            self._see(self._until + self._gap)
        return edges[bisect_right(edges, t)]

    def _see(self, t: float) -> None:
        if t > self._until:
            self._advance(t)
            self._until = t

    def _advance(self, t: float) -> None:
        """Draws what happens up to time t; draws follow each other in time, whoever asks."""
        rng = self._rng
        while True:
            back = self._back[0][0] if self._back else math.inf
            if min(back, self._next) > t:
                return
            if back <= self._next:
                _, _, who = heapq.heappop(self._back)
                self._there += who
                when = back
            else:
                when = self._next
                size = 1 + int(np.searchsorted(self._law, rng.random(), side="right"))
                drawn = rng.permutation(len(self._there))[:size]
                who = sorted(self._there[k] for k in drawn)
                for client in who:
                    self._there.remove(client)
                self._removals += 1
                heapq.heappush(
                    self._back, (when + rng.exponential(self._away), self._removals, who)
                )
                self._next = when + rng.exponential(self._gap)
            for client in who:
                self._edges[client].append(when)


def _geometric(mean: float, most: int) -> NDArray[np.float64]:
    """Returns P(g <= 1), ..., P(g <= most - 1) of a geometric law up to `most` with a mean."""
    sizes = np.arange(1, most + 1)
    if most == 1 and mean == 1:
        return np.zeros(0)
    if not 1 < mean < (1 + most) / 2:
        raise ConfigError(
            f"mean_group is {mean} and most is {most}; the mean size of a group must be above 1 "
            "and below (1 + most) / 2, or both 1"
        )

    def law(p: float) -> NDArray[np.float64]:
        weights = (1 - p) ** sizes.astype(np.float64)
        return np.asarray(weights / weights.sum())

    from scipy.optimize import brentq  # heavy, and few come here

    p = brentq(lambda p: float(law(p) @ sizes) - mean, 1e-9, 1 - 1e-9)
    return np.asarray(np.cumsum(law(p))[:-1])


def preemption_trace(num_clients: int, path: str) -> TraceAvailability:
    """Returns the behaviour of a recorded pool of machines, repeated without end.

    Client i is slot i modulo the slots of the pool; see `read_preemptions`.

    Args:
        num_clients: n.
        path: of the file.

    Raises:
        ConfigError: the file cannot be read, or is not such a file.
    """
    return TraceAvailability(num_clients, read_preemptions(path))
