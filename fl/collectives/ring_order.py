"""The ring whose slowest edge is as fast as can be: the bottleneck travelling salesman."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_EXACT = 12  # ranks up to which all rings are looked through, by subsets
_STARTS = 32  # greedy rings
_PASSES = 64  # moves that improve one


def widest_ring(rates: NDArray[np.float64]) -> list[int]:
    """Returns a ring through all ranks with the largest smallest edge, from rank 0.

    PRIME measures the bandwidth of all pairs and chooses such a ring (arXiv:2412.01152); how it
    solves for it is not said. Up to 12 ranks this is exact, by dynamic programming over subsets
    (Held and Karp). Beyond, rings that begin greedily at each of the first ranks are improved by
    moving the ranks at the ends of their slowest edge, and the given order as well; the best of
    these is taken.

    Args:
        rates: from rank i to rank j, shape (M, M); M is 2 at least. The diagonal is not read.

    Returns:
        The ranks, each handing on to the next one, and the last to the first.
    """
    m = len(rates)
    if m <= _EXACT:
        return _exact(rates)
    begun = [list(range(m)), *(_greedy(rates, first) for first in range(min(m, _STARTS)))]
    rings = [_improved(rates, ring) for ring in begun]
    best = max(rings, key=lambda ring: slowest(rates, ring))  # the first of equals
    at = best.index(0)
    return best[at:] + best[:at]


def slowest(rates: NDArray[np.float64], ring: list[int]) -> float:
    """Returns the smallest edge of a ring."""
    return float(rates[ring, [*ring[1:], ring[0]]].min())


def _exact(rates: NDArray[np.float64]) -> list[int]:
    """widest[S, j]: of the paths from rank 0 through all of S that end at j, the widest."""
    m = len(rates)
    if m == 1:
        return [0]
    widest = np.full((1 << m, m), -np.inf)
    before = np.zeros((1 << m, m), dtype=np.int8)
    widest[1, 0] = np.inf
    for subset in range(1, 1 << m, 2):  # with rank 0 in them
        ends = np.flatnonzero(widest[subset] > -np.inf)
        for j in range(1, m):
            if subset >> j & 1 or not len(ends):
                continue
            through = np.minimum(widest[subset, ends], rates[ends, j])
            k = int(through.argmax())
            larger = subset | 1 << j
            if through[k] > widest[larger, j]:
                widest[larger, j], before[larger, j] = through[k], ends[k]
    everybody = (1 << m) - 1
    j = int(np.minimum(widest[everybody, 1:], rates[1:, 0]).argmax()) + 1
    ring = []
    subset = everybody
    while subset != 1:
        ring.append(j)
        subset, j = subset & ~(1 << j), int(before[subset, j])
    return [0, *reversed(ring)]


def _greedy(rates: NDArray[np.float64], first: int) -> list[int]:
    left = np.ones(len(rates), dtype=bool)
    ring = [first]
    left[first] = False
    while left.any():
        ring.append(int(np.where(left, rates[ring[-1]], -np.inf).argmax()))
        left[ring[-1]] = False
    return ring


def _improved(rates: NDArray[np.float64], ring: list[int]) -> list[int]:
    """Moves a rank at an end of the slowest edge to where the ring gains most, again and again."""
    for _ in range(_PASSES):
        at = int(rates[ring, [*ring[1:], ring[0]]].argmin())
        now, better = slowest(rates, ring), ring
        for rank in (ring[at], ring[(at + 1) % len(ring)]):
            rest = np.array([r for r in ring if r != rank])
            after = np.roll(rest, -1)
            edges = rates[rest, after]
            first, second = np.partition(edges, 1)[:2]
            others = np.where(np.arange(len(rest)) == edges.argmin(), second, first)
            wide = np.minimum(others, np.minimum(rates[rest, rank], rates[rank, after]))
            k = int(wide.argmax())
            if wide[k] > now:
                now, better = float(wide[k]), [*rest[: k + 1].tolist(), rank, *rest[k + 1 :]]
        if better is ring:
            break
        ring = [int(rank) for rank in better]
    return ring
