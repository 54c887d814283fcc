"""Max-min fair rates of flows that cross several links: progressive filling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple


class Demand(NamedTuple):
    """What a flow asks for.

    Attributes:
        route: links that it crosses, each once.
        cap_bps: the most it can get, positive, may be infinite.
        weight: positive; of a link that is the bottleneck of several flows, each gets in
            proportion to its weight.
    """

    route: Sequence[int]
    cap_bps: float
    weight: float = 1.0


def max_min(demands: Sequence[Demand], capacity_bps: dict[int, float]) -> list[float]:
    """Returns the weighted max-min fair rates of flows, in bit/s.

    The level rises from 0, and with it every flow's rate, weight times level, until it is at its
    cap, or one of its links is full: then it stays as it is, and the level rises for the others.
    So no flow can get more, unless one gets less whose level is not larger (Bertsekas and Gallager,
    Data Networks, section 6.5.2). A flow without links or cap has an infinite rate.

    Cost: O(m log m), with m the crossings of a flow and a link.

    Args:
        demands: of the flows.
        capacity_bps: of each link that is crossed, or what is left of it; changed: what is left in
            the end.
    """
    rates = [0.0] * len(demands)
    open_ = [True] * len(demands)
    weights = dict.fromkeys(capacity_bps, 0.0)  # of the flows on a link that still rise
    crossing: dict[int, list[int]] = {link: [] for link in capacity_bps}
    rising = dict.fromkeys(capacity_bps, 0)
    stops: list[tuple[float, int, int]] = []  # level, 0 for a flow at its cap, 1 for a full link
    for i, (route, cap, weight) in enumerate(demands):
        if cap < math.inf:
            stops.append((cap / weight, 0, i))
        elif not route:
            rates[i], open_[i] = math.inf, False
        for link in route:
            weights[link] += weight
            crossing[link].append(i)
            rising[link] += 1
    stops += [
        (left / weights[link], 1, link) for link, left in capacity_bps.items() if rising[link]
    ]
    heapify(stops)

    def stop(i: int, rate: float) -> None:
        rates[i], open_[i] = rate, False
        for link in demands[i].route:
            capacity_bps[link] = max(0.0, capacity_bps[link] - rate)
            weights[link] -= demands[i].weight
            rising[link] -= 1

    while stops:
        level, kind, which = heappop(stops)
        if kind == 0:
            if open_[which]:
                stop(which, demands[which].cap_bps)
        elif rising[which]:
            # What stopped since then has left more for the others: a link is full at a higher
            # level than was thought, never at a lower one but for rounding.
            full = capacity_bps[which] / weights[which]
            if full > level:
                heappush(stops, (full, 1, which))
                continue
            for i in crossing[which]:
                if open_[i]:
                    stop(i, level * demands[i].weight)
    return rates
