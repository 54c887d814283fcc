"""Which links are slow, by how long the transfers on each take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from fl.checks import at_least, positive
from fl.errors import ConfigError

Edge = tuple[int, int]
"""Who sends, and who receives."""
Slowness = Mapping[Edge, tuple[bool, ...]]
"""Of each edge whether it was slow at the last collectives that used it, the oldest first."""


class SlowParts(NamedTuple):
    """What is found slow.

    Attributes:
        senders: members whose transfers to all others are.
        receivers: members, the transfers to whom from all others are.
        links: edges that are by themselves.
    """

    senders: list[int]
    receivers: list[int]
    links: list[Edge]


@dataclass(frozen=True)
class SlowLinks:
    """C4's diagnosis of slow communication: by the matrix of the delays on each edge.

        d_ij > (1 + slowness) median_kl d_kl

    with d_ij the seconds that a byte takes from i to j, of that transfer alone: in a ring a slow
    edge holds up all who come after it, so that ends of steps tell nothing. An edge is slow if this
    held at `times` of the last `last` collectives that used it. If all edges from a member are that
    have been used as often, two at least, its sending side is slow (a row of the matrix); if all
    edges to it are, its receiving side (a column); what is left are slow links (cells). A ring has
    one edge in each row and column: what it finds at first is a link, and once that is avoided, the
    edges used instead tell whether it was its end.

    Dong et al., "Boosting Large-scale Parallel Training Efficiency with C4: A Communication-Driven
    Approach", HPCA 2025, arXiv:2406.04594, which has rows, columns and cells (second-hand: no code
    of the authors was found); the thresholds are ours.

    Attributes:
        slowness: above 0.
        times: at least 1, at most `last`.
        last: uses of an edge that are looked back on.

    Raises:
        ConfigError: an argument is out of its range.
    """

    slowness: float = 0.5
    times: int = 3
    last: int = 5

    def __post_init__(self) -> None:
        positive("slowness", self.slowness)
        at_least("times", self.times, 1)
        if self.last < self.times:
            raise ConfigError(f"last is {self.last}; it must be at least times, {self.times}")

    def step(self, state: Slowness, delays: Mapping[Edge, float]) -> tuple[Slowness, SlowParts]:
        """Returns the state after a collective, and what is slow, in the order of numbers.

        Args:
            state: of the one before, {} before the first; not changed.
            delays: d_ij of the edges that it used.
        """
        if not delays:
            return state, SlowParts([], [], [])
        bound = (1 + self.slowness) * median(delays.values())
        seen = {edge: (*state.get(edge, ()), d > bound)[-self.last :] for edge, d in delays.items()}
        state = {**state, **seen}
        used = [edge for edge, flags in state.items() if len(flags) >= self.times]
        slow = {edge for edge in used if sum(state[edge]) >= self.times}
        ends = [
            [
                i
                for i in sorted({edge[end] for edge in slow})
                if _all_slow([edge for edge in used if edge[end] == i], slow)
            ]
            for end in (0, 1)
        ]
        links = [e for e in sorted(slow) if e[0] not in ends[0] and e[1] not in ends[1]]
        return state, SlowParts(ends[0], ends[1], links)


def _all_slow(edges: Sequence[Edge], slow: set[Edge]) -> bool:
    return len(edges) > 1 and slow.issuperset(edges)
