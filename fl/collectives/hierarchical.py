"""Two levels: rings within groups, and rings across them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from fl.checks import at_least, boolean
from fl.collectives.collective import Collective, Network, Ranks, Transfers, step


@dataclass(frozen=True)
class Hierarchical(Collective):
    """Reduce-scatter within each of C groups of q, an all-reduce across, all-gather within.

    With rails, the k-th of every group meet in a ring of their own, q of them side by side:

        seconds = 2 (q - 1) (latency_1 + 8 size / q / bandwidth_1)
                + 2 (C - 1) (latency_2 + 8 size / (q C) / bandwidth_2)

    Otherwise each group's chunks are brought to its first rank, which goes around a ring of C for
    all: 2 (C - 1) (latency_2 + 8 size / C / bandwidth_2), and twice (q - 1) sizes / q to bring
    them there and back. Rails need groups of the same size; if one is short of somebody, as after a
    failure, they go by their first ranks.

    Attributes:
        group_size: q, the ranks of a group, by their order; None makes a group of each site of the
            fleet, and one of all where it has none.
        rails: as above.

    Raises:
        ConfigError: group_size is below 1.
    """

    group_size: int | None = None
    rails: bool = True

    def __post_init__(self) -> None:
        if self.group_size is not None:
            at_least("group_size", self.group_size, 1)
        boolean("rails", self.rails)

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the steps."""
        groups, size = self._groups(network), float(max(sizes))
        by_rails = self.rails and len({len(group) for group in groups}) == 1
        within = [_hops(group, size / len(group), 1) for group in groups]
        yield from _at_once(within)
        if by_rails:
            q = len(groups[0])
            rings = [np.array(rail) for rail in zip(*groups, strict=True)]
            yield from _at_once([_hops(ring, size / q / len(ring), 2) for ring in rings])
        else:
            firsts = np.array([group[0] for group in groups])
            yield from _at_once([_gathered(group, size, back=False) for group in groups])
            yield from _hops(firsts, size / len(firsts), 2)
            yield from _at_once([_gathered(group, size, back=True) for group in groups])
        yield from _at_once([_hops(group, size / len(group), 1) for group in groups])

    def _groups(self, network: Network) -> list[Ranks]:
        m = len(network)
        if self.group_size is not None:
            return [np.arange(k, min(k + self.group_size, m)) for k in range(0, m, self.group_size)]
        return [np.flatnonzero(network.site == site) for site in np.unique(network.site)]


def _hops(ring: Ranks, chunk: float, rounds: int) -> Iterator[Transfers]:
    """Yields the hops of half an all-reduce, or of a whole one, around a ring."""
    for _ in range(rounds * (len(ring) - 1)):
        yield step(ring, np.roll(ring, -1), chunk)


def _gathered(group: Ranks, size: float, *, back: bool) -> Iterator[Transfers]:
    """Yields what brings a group's chunks to its first rank, or back, one after the other."""
    for rank in group[1:]:
        i, j = (group[0], rank) if back else (rank, group[0])
        yield step([i], [j], size / len(group))


def _at_once(parts: Sequence[Iterator[Transfers]]) -> Iterator[Transfers]:
    """Yields the steps of several, side by side."""
    for steps in zip_longest(*parts):
        there = [one for one in steps if one is not None]
        yield Transfers(*(np.concatenate(column) for column in zip(*there, strict=True)))
