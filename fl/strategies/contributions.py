"""How often clients contribute, by which methods weigh out speed, losses and absence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Contributions:
    """The interval between a client's contributions, measured.

    Let client i contribute f_i times a second in the long run, each time the change D_i of its own
    data, weighted by d_i. Around its fixed point the model moves along

        sum_i f_i d_i E[D_i],

    so that clients count equally if d_i is proportional to 1 / f_i, whatever makes f_i small: slow
    devices, slots that others hold, lost messages, crashes, time offline. A weight by the time of a
    task misses all of these but the first. 1 / f_i is the mean interval between contributions,

        I_i = (T_i + I) / (N_i + 1),    I = sum_j T_j / sum_j N_j,

    N_i how often the client has contributed and T_i the time since it could first have been asked,
    up to its last contribution; the sums are over the clients that have contributed. The 1 and I
    are one contribution after a mean interval, as if it had been seen before: clients begin equal,
    and one that joins late begins as the others did, where T_i / N_i would give it a weight by the
    time of its first task alone. What is left of that is O(1 / N_i).

    Who contributes seldom therefore weighs much when it does, without a bound: a step by it, the
    server's rate times d_i, should stay near or below 1.

    Time is in any unit: seconds, or ticks of a server.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._times: dict[int, float] = {}  # T_i
        self._counts: Counter[int] = Counter()  # N_i
        self._time = 0.0  # of all together
        self._count = 0

    def available(self, nodes: Iterable[int], now: float) -> None:
        """Notes that clients can be asked, if it is the first time."""
        for node in nodes:
            self._since.setdefault(node, now)

    def add(self, node: int, now: float) -> None:
        """Counts a contribution of a client that was noted before."""
        time = now - self._since[node]
        self._time += time - self._times.get(node, 0.0)
        self._times[node] = time
        self._counts[node] += 1
        self._count += 1

    def interval(self, node: int) -> float:
        """Returns I_i of a client that has contributed."""
        return (self._times[node] + self.mean_interval()) / (self._counts[node] + 1)

    def mean_interval(self) -> float:
        """Returns I; needs a contribution of any client."""
        return self._time / self._count
