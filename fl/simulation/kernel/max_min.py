"""Max-min fair rates of flows that cross several links: progressive filling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
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
    rising = [True] * len(demands)
    weights = dict.fromkeys(capacity_bps, 0.0)  # of the flows on a link that rise
    crossing: dict[int, list[int]] = {link: [] for link in capacity_bps}
    caps = []  # (level, flow)
    for i, (route, cap, weight) in enumerate(demands):
        if cap < math.inf:
            caps.append((cap / weight, i))
        elif not route:
            rates[i], rising[i] = math.inf, False
        for link in route:
            weights[link] += weight
            crossing[link].append(i)
    caps.sort(reverse=True)
    counts = {link: len(flows) for link, flows in crossing.items()}  # that rise
    full = [(left / weights[link], link) for link, left in capacity_bps.items() if counts[link]]
    heapify(full)

    def stop(i: int, rate: float) -> None:
        rates[i], rising[i] = rate, False
        weight = demands[i].weight
        for link in demands[i].route:
            capacity_bps[link] -= rate
            weights[link] -= weight
            counts[link] -= 1

    while caps or full:
        if full:
            level, link = full[0]
            if not counts[link]:
                heappop(full)
                continue
            # What stopped since then has left more for the others: a link is full at a higher
            # level than was thought, never at a lower one but for rounding.
            now = max(0.0, capacity_bps[link]) / weights[link]
            if now > level:
                heapreplace(full, (now, link))
                continue
        if caps and (not full or caps[-1][0] <= level):
            i = caps.pop()[1]
            if rising[i]:
                stop(i, demands[i].cap_bps)
        else:
            heappop(full)
            for i in crossing[link]:
                if rising[i]:
                    stop(i, level * demands[i].weight)
    return rates
