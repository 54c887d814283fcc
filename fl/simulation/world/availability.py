"""When clients are online. Every answer is a pure function of (client, time).

An availability has three methods:

- `online(t)`: bool array, shape (n,), who is online at time t (do not write into it);
- `is_online(client, t)`: the same for one client;
- `next_change(client, t)`: the first time after t at which the client's state changes, infinity if
  never. At that very time the new state holds.

State between calls is a cache only: asking in another order gives the same answers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, positive
from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.world.measurements import Behaviour, read_behaviour

_BLOCK = 65536  # periods that are drawn at a time
_SHORTEST_S = 0.1  # mean time from one online period to the next: a week of them are drawn in 0.5 s


@runtime_checkable
class Availability(Protocol):
    """What the simulator asks of an availability model; see the module's docstring."""

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is online at time t (s), shape (n,)."""
        ...

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether the client is online at time t (s)."""
        ...

    def next_change(self, client: int, t: float) -> float:
        """Returns the first time (s) after t at which the client's state changes."""
        ...


@runtime_checkable
class DistinctChanges(Availability, Protocol):
    """An availability of which no two clients change at the same time, as lengths are drawn.

    Cohorts are simulated as arrays only on these: whose change comes first needs no queue.
    """

    def next_changes(self, clients: NDArray[np.int64], t: float) -> NDArray[np.float64]:
        """Returns `next_change` of several clients, s, shape (n,)."""
        ...


class Always:
    """All clients are online all the time.

    Args:
        num_clients: n.
    """

    def __init__(self, num_clients: int) -> None:
        at_least("num_clients", num_clients, 1)
        self._online = np.broadcast_to(np.True_, (num_clients,))

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns n times True."""
        return self._online

    def is_online(self, client: int, t: float) -> bool:
        """Returns True."""
        return True

    def next_change(self, client: int, t: float) -> float:
        """Returns infinity."""
        return math.inf

    def next_changes(self, clients: NDArray[np.int64], t: float) -> NDArray[np.float64]:
        """Returns infinity for each."""
        return np.full(len(clients), math.inf)


class Alternating(ABC):
    """Each client alternates between online and offline periods of random lengths.

    What is left at time 0 of a client's first period must have the law of a whole one. Period k of
    client i is drawn from (seed, i, k) alone.

    Args:
        num_clients: n.
        seed: root seed of the run.
        share: probability that a client is online at time 0, a number or shape (n,).
    """

    def __init__(self, num_clients: int, seed: int, share: float | NDArray[np.float64]) -> None:
        self._seed = seed
        clients = np.arange(num_clients)
        self._first = uniforms(seed, "availability-first", clients) < share
        # The period each client is in at the last time asked for: a cache, 20 bytes a client.
        self._period = np.zeros(num_clients, dtype=np.int32)
        self._begin = np.zeros(num_clients)
        self._end = self._lengths(clients, self._period)

    @abstractmethod
    def _lengths(
        self, clients: NDArray[np.integer], period: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """Returns the lengths of periods in s, shape (len(clients),)."""

    def _draws(
        self, clients: NDArray[np.integer], period: NDArray[np.int32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Returns whether clients are online in periods, and a number in [0, 1) for each."""
        on = self._first[clients] ^ (period & 1).astype(np.bool_)
        return on, uniforms(self._seed, "availability", clients, period)

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is online at time t (s), shape (n,)."""
        self._rewind(np.flatnonzero(self._begin > t))
        self._catch_up(np.flatnonzero(self._end <= t), t)
        return self._first ^ (self._period & 1).astype(np.bool_)

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether the client is online at time t (s)."""
        self._seek(client, t)
        return bool(self._first[client]) ^ bool(self._period[client] & 1)

    def next_change(self, client: int, t: float) -> float:
        """Returns the end of the client's period at time t (s)."""
        self._seek(client, t)
        return float(self._end[client])

    def next_changes(self, clients: NDArray[np.int64], t: float) -> NDArray[np.float64]:
        """Returns `next_change` of several clients, shape (n,)."""
        self.online(t)  # brings every client to its period
        return self._end[clients]

    def _seek(self, client: int, t: float) -> None:
        if self._begin[client] > t:
            self._rewind(np.array([client]))
        if self._end[client] <= t:
            self._catch_up(np.array([client]), t)

    def _catch_up(self, late: NDArray[np.integer], t: float) -> None:
        """Moves clients whose period is over at time t (s) on to the one that they are in then.

        Draws ahead in growing blocks, for there may be a million periods of a hundredth of a second
        between two questions. Sums run from left to right, whatever the blocks.
        """
        block = 1
        while len(late):
            rows = np.arange(len(late))
            periods: NDArray[np.int32] = self._period[late][:, np.newaxis] + np.arange(
                1, block + 1, dtype=np.int32
            )
            lengths = self._lengths(np.repeat(late, block), periods.ravel())
            ends = np.cumsum(
                np.column_stack((self._end[late], lengths.reshape(periods.shape))), axis=1
            )
            passed = np.minimum(np.count_nonzero(ends[:, 1:] <= t, axis=1), block - 1)
            self._period[late] = periods[rows, passed]
            self._begin[late], self._end[late] = ends[rows, passed], ends[rows, passed + 1]
            late = late[self._end[late] <= t]
            block = min(2 * block, max(1, _BLOCK // max(1, len(late))))

    def _rewind(self, clients: NDArray[np.integer]) -> None:
        if len(clients):
            self._period[clients] = 0
            self._begin[clients] = 0.0
            self._end[clients] = self._lengths(clients, self._period[clients])


def share_online(mean_on_s: float, mean_off_s: float) -> float:
    """Returns the share of the time that a client is online, by the mean lengths of its periods.

    Raises:
        ConfigError: a mean is not positive and finite, or both together are below 0.1 s: a run that
            waits for clients would draw periods for ever.
    """
    for name, mean in (("mean_on_s", mean_on_s), ("mean_off_s", mean_off_s)):
        if not (math.isfinite(mean) and mean > 0):
            raise ConfigError(
                f"{name} is {mean}; the mean length of a period must be positive and finite. "
                "For clients that never leave use fl.simulation.world.availability.Always."
            )
    if mean_on_s + mean_off_s < _SHORTEST_S:
        raise ConfigError(
            f"mean_on_s is {mean_on_s} and mean_off_s {mean_off_s}; together they must be at least "
            f"{_SHORTEST_S}. A link that loses messages is fleet.faults.message_loss"
        )
    return mean_on_s / (mean_on_s + mean_off_s)


class ExponentialOnOff(Alternating):
    """Each client alternates between online and offline periods of exponential length.

    The process is stationary: at time 0 a client is online with probability
    mean_on_s / (mean_on_s + mean_off_s), and because the law has no memory, what is left of that
    period is exponential as well. Period k of client i is drawn from (seed, i, k) alone.

    Args:
        num_clients: n.
        seed: root seed of the run.
        mean_on_s: mean length of an online period in s.
        mean_off_s: mean length of an offline period in s.

    Raises:
        ConfigError: see `share_online`.
    """

    def __init__(self, num_clients: int, seed: int, mean_on_s: float, mean_off_s: float) -> None:
        at_least("num_clients", num_clients, 1)
        online = share_online(mean_on_s, mean_off_s)
        self._mean_on, self._mean_off = mean_on_s, mean_off_s
        super().__init__(num_clients, seed, online)

    def _lengths(
        self, clients: NDArray[np.integer], period: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        on, u = self._draws(clients, period)
        lengths = -np.log1p(-u) * np.where(on, self._mean_on, self._mean_off)
        return np.asarray(lengths, dtype=np.float64)


class Diurnal:
    """Each client is online once per period, and more clients are at one hour than at another.

    Rule: client i is online during the window [s_i + k P, s_i + k P + f P) for every integer k.
    The windows' middles m_i are drawn from the density (1 + a cos(2 pi (m - peak) / P)) / P, hence
    the expected fraction of clients online at time t is

        f + a sin(pi f) / pi cos(2 pi (t - peak) / P),

    a sine between `low` and `high` for f = (low + high) / 2 and
    a = pi (high - low) / (2 sin(pi f)).

    Source: the sine law of the number of nodes online is that of the decentralized-learning
    simulator of EPFL (sacs-epfl/decentralized-learning-simulator), which ranks all nodes by a sine
    with a phase of their own. Here the windows are drawn, so that a client's state needs no other
    client's and its next change has a closed form. That phones come and go daily, with four times
    as many at the peak as at the low, is reported by Bonawitz et al., MLSys 2019,
    arXiv:1902.01046, appendix A (figure from memory, not checked again). The default range, 5% to
    25%, is our choice.

    Args:
        num_clients: n.
        seed: root seed of the run.
        low: smallest expected fraction online, in (0, high].
        high: largest expected fraction online, in [low, 1).
        period_s: P in s; a day.
        peak_s: time in s of the largest fraction; time 0 is midnight if the default, 3 h, is to
            mean that phones charge at night.

    Raises:
        ConfigError: an argument is outside its range, or no density gives the range asked for:
            it takes (high - low) / 2 <= sin(pi f) / pi, which is 0.318 at most.
    """

    def __init__(
        self,
        num_clients: int,
        seed: int,
        low: float = 0.05,
        high: float = 0.25,
        period_s: float = 86400.0,
        peak_s: float = 10800.0,
    ) -> None:
        at_least("num_clients", num_clients, 1)
        positive("period_s", period_s)
        if not math.isfinite(peak_s):
            raise ConfigError(f"peak_s is {peak_s}; it must be finite.")
        if not 0 < low <= high < 1:
            raise ConfigError(
                f"low is {low} and high is {high}; they are the smallest and the largest fraction "
                "of clients online and must satisfy 0 < low <= high < 1."
            )
        duty = (low + high) / 2
        swing, limit = (high - low) / 2, math.sin(math.pi * duty) / math.pi
        if swing > limit:
            raise ConfigError(
                f"low {low} and high {high} are too far apart: with {duty:.3g} online on average, "
                f"(high - low) / 2 is {swing:.3g} and can be {limit:.3g} at most. Raise low to "
                f"{duty - limit:.3g} and lower high to {duty + limit:.3g}, or choose between."
            )
        clients = np.arange(num_clients)
        phase = uniforms(seed, "availability-phase", clients)
        # A uniform phase, moved by half a period with probability (1 - a cos) / 2, has the density
        # 1 + a cos exactly.
        keep = (1 + swing / limit * np.cos(2 * np.pi * phase)) / 2
        far = uniforms(seed, "availability-side", clients) >= keep
        middle = peak_s + (phase + 0.5 * far) * period_s
        self._period = float(period_s)
        self._window = duty * period_s
        self._start = np.mod(middle - self._window / 2, period_s)

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is online at time t (s), shape (n,)."""
        start, period = self._start, self._period
        k = np.floor((t - start) / period)
        # Compare with the very numbers that next_change returns, whatever floor made of rounding.
        k += start + (k + 1) * period <= t
        k -= start + k * period > t
        return np.asarray(t < start + k * period + self._window, dtype=np.bool_)

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether the client is online at time t (s)."""
        on, _ = self._edges(client, t)
        return t < on + self._window

    def next_change(self, client: int, t: float) -> float:
        """Returns the end of the client's window, or the beginning of its next one, in s."""
        on, next_on = self._edges(client, t)
        off = on + self._window
        return off if t < off else next_on

    def next_changes(self, clients: NDArray[np.int64], t: float) -> NDArray[np.float64]:
        """Returns `next_change` of several clients, shape (n,)."""
        start, period = self._start[clients], self._period
        k = np.floor((t - start) / period)
        k += start + (k + 1) * period <= t
        k -= start + k * period > t
        off = start + k * period + self._window
        return np.where(t < off, off, start + (k + 1) * period)

    def _edges(self, client: int, t: float) -> tuple[float, float]:
        """Returns the beginnings of the last window begun by t and of the one after it."""
        start, period = float(self._start[client]), self._period
        k = math.floor((t - start) / period)
        if start + (k + 1) * period <= t:
            k += 1
        if start + k * period > t:
            k -= 1
        return start + k * period, start + (k + 1) * period


class TraceAvailability:
    """Recorded behaviour of devices, repeated without end.

    Client i follows record i modulo their number. A record gives online intervals within a period;
    time is taken modulo the period. Intervals are closed on the left and open on the right, so that
    the state at a change is the new one (FedScale has them closed on both sides).

    Args:
        num_clients: n.
        records: at least one record.

    Raises:
        ConfigError: there is no record.
    """

    def __init__(self, num_clients: int, records: Sequence[Behaviour]) -> None:
        at_least("num_clients", num_clients, 1)
        if not records:
            raise ConfigError("the behaviour trace has no record; it needs at least one device.")
        edges, initial = zip(*(_toggles(record) for record in records), strict=True)
        self._edges: tuple[list[float], ...] = edges
        self._initial = np.array(initial, dtype=np.bool_)
        self._period = np.array([record.period_s for record in records])
        self._flat = np.concatenate([np.asarray(e, dtype=np.float64) for e in edges])
        self._offset = np.concatenate(([0], np.cumsum([len(e) for e in edges])))
        self._record = np.arange(num_clients) % len(records)

    @classmethod
    def from_file(cls, num_clients: int, path: str) -> TraceAvailability:
        """Reads a behaviour file of FedScale or FLASH.

        Args:
            num_clients: n.
            path: see `fl.simulation.world.measurements.read_behaviour`.

        Raises:
            ConfigError: the file cannot be read, or is not such a file.
        """
        return cls(num_clients, read_behaviour(path))

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is online at time t (s), shape (n,)."""
        period = self._period
        k = np.floor(t / period)
        k += (k + 1) * period <= t
        k -= k * period > t
        base = k * period
        # Binary search in all records at once: how many edges are at or before t.
        low, high = self._offset[:-1].copy(), self._offset[1:].copy()
        while True:
            open_ = np.flatnonzero(low < high)
            if len(open_) == 0:
                break
            middle = (low[open_] + high[open_]) // 2
            passed = base[open_] + self._flat[middle] <= t
            low[open_[passed]] = middle[passed] + 1
            high[open_[~passed]] = middle[~passed]
        odd = ((low - self._offset[:-1]) & 1).astype(np.bool_)
        return np.asarray((self._initial ^ odd)[self._record], dtype=np.bool_)

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether the client is online at time t (s)."""
        record = int(self._record[client])
        _, passed = self._locate(record, t)
        return bool(self._initial[record]) ^ bool(passed & 1)

    def next_change(self, client: int, t: float) -> float:
        """Returns the first edge of the client's record after t (s), infinity if it has none."""
        record = int(self._record[client])
        edges = self._edges[record]
        if not edges:
            return math.inf
        k, passed = self._locate(record, t)
        period = float(self._period[record])
        if passed < len(edges):
            return k * period + edges[passed]
        return (k + 1) * period + edges[0]

    def _locate(self, record: int, t: float) -> tuple[int, int]:
        """Returns the number of the period at t and how many of its edges are passed."""
        period, edges = float(self._period[record]), self._edges[record]
        k = math.floor(t / period)
        if (k + 1) * period <= t:
            k += 1
        if k * period > t:
            k -= 1
        base = k * period
        passed = bisect_right(edges, t - base)
        # The subtraction rounds; what counts is the sum, which is what next_change returns.
        while passed < len(edges) and base + edges[passed] <= t:
            passed += 1
        while passed > 0 and base + edges[passed - 1] > t:
            passed -= 1
        return k, passed


def _toggles(record: Behaviour) -> tuple[list[float], bool]:
    """Returns the times in [0, period) at which the state changes, and the state before them.

    Intervals that touch or overlap are one; so are the last and the first if they touch across the
    end of the period.
    """
    merged: list[list[float]] = []
    for begin, end in sorted(record.intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    edges = [edge for interval in merged for edge in interval]
    across = bool(edges) and edges[-1] >= record.period_s
    if across:
        edges.pop()
        if edges[0] == 0.0:
            edges.pop(0)
        else:
            # On until the period ends, off when it begins again: an edge at 0.
            edges.insert(0, 0.0)
    return edges, across
