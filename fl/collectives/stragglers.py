"""Who is slow, by when the members of a periodic collective arrive at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fl.checks import at_least, positive
from fl.errors import ConfigError

Lateness = Mapping[int, tuple[bool, ...]]
"""Of each member whether it was late at its last collectives, the oldest first."""


@dataclass(frozen=True)
class Stragglers:
    """C4's diagnosis of members that compute slowly: late again and again, at collectives alike.

        l_i = t_i - median_j t_j

    with t_i when member i arrives. It is slow if l_i was more than `lateness` periods in `times` of
    its last `last` collectives; a period is the median of the seconds since each went on from the
    one before. Whoever is slow is taken out, and a spare takes its place.

    Dong et al., "Boosting Large-scale Parallel Training Efficiency with C4: A Communication-Driven
    Approach", HPCA 2025, arXiv:2406.04594, which has the kinds of faults; no code of the authors
    was found, and the thresholds are ours. Of its other kinds, members that fall silent are those
    that outer steps lose patience with; slow links are `fl.collectives.SlowLinks`.

    Attributes:
        lateness: in periods, above 0.
        times: at least 1, at most `last`.
        last: collectives that are looked back on.

    Raises:
        ConfigError: an argument is out of its range.
    """

    lateness: float = 0.5
    times: int = 3
    last: int = 5

    def __post_init__(self) -> None:
        positive("lateness", self.lateness)
        at_least("times", self.times, 1)
        if self.last < self.times:
            raise ConfigError(f"last is {self.last}; it must be at least times, {self.times}")

    def step(
        self, state: Lateness, arrivals: Mapping[int, tuple[float, float]]
    ) -> tuple[Lateness, list[int]]:
        """Returns the state after a collective, and who is slow, the slowest first.

        Args:
            state: of the one before, {} before the first; not changed.
            arrivals: of its members, when each has arrived, and how long it took, s.
        """
        if not arrivals:
            return state, []
        middle = median(when for when, _ in arrivals.values())
        period = median(took for _, took in arrivals.values())
        by = {i: when - middle for i, (when, _) in arrivals.items()}
        state = {
            i: (*state.get(i, ()), late > self.lateness * period)[-self.last :]
            for i, late in by.items()
        }
        slow = [i for i, late in state.items() if sum(late) >= self.times]
        return state, sorted(slow, key=lambda i: (-by[i], i))
