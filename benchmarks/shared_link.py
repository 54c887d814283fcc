"""The server's shared link beside recomputing every rate at every event, in one run.

    python benchmarks/shared_link.py [--quick] [--out FILE] [--flows 100 1000 10000] [--seconds 1]

A number of flows is kept in flight: at each completion the flows that ended are popped and as many
are added, at once or each after a pause, in which others end. Popping a flow and adding one are an
operation each. The baseline does the same with NumPy: it sorts the caps, fills up, and moves every
flow to the next event. The target is 50,000 operations/s under each law. --quick measures 10,000
flows alone, for a shorter time.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import numpy as np
import report

from fl.simulation.kernel.shared_link import SharedLink

CAPACITY_BPS = 1e9

PAUSE_S = 0.01
"""Mean time until the next flow comes in the place of one that ended; two end in that time."""

Draw = Callable[[random.Random], float]

LEAST = 50_000.0  # starts and ends a second


def cap_laws(flows: int) -> list[tuple[str, float, Draw, float]]:
    """Returns (name, capacity, law of the caps, mean pause).

    Where the caps are nearly equal and add up to little more than the capacity, the level jumps
    past the caps of many at every event: the dearest regime, unless a flow of much the same cap
    comes at the instant at which one ends.
    """
    share = CAPACITY_BPS / flows

    def spread(load: float, sigma: float) -> Draw:
        median = load * share / math.exp(sigma**2 / 2)
        return lambda rng: median * rng.lognormvariate(0, sigma)

    laws = [
        ("none", CAPACITY_BPS, lambda rng: math.inf),
        ("equal, link just full", CAPACITY_BPS, lambda rng: share),
        ("sigma 0.5, link overloaded 3 x", CAPACITY_BPS, spread(3.0, 0.5)),
        ("sigma 0.1, link overloaded 3 x", CAPACITY_BPS, spread(3.0, 0.1)),
        ("sigma 0.5, link just full", CAPACITY_BPS, spread(1.0, 0.5)),
        ("sigma 0.1, link just full", CAPACITY_BPS, spread(1.0, 0.1)),
        ("sigma 0.1, link overloaded by 1 %", CAPACITY_BPS, spread(1.01, 0.1)),
        ("sigma 0.02, link overloaded by 0.5 %", CAPACITY_BPS, spread(1.005, 0.02)),
        ("sigma 0.005, link overloaded by 0.2 %", CAPACITY_BPS, spread(1.002, 0.005)),
        ("sigma 0.5, infinite capacity", math.inf, spread(1.0, 0.5)),
    ]
    crowded = ("sigma 0.001, link overloaded by 0.04 %", CAPACITY_BPS, spread(1.0004, 0.001))
    paused = [laws[2], laws[4], *laws[6:9], crowded]
    return [
        *((*law, 0.0) for law in laws),
        *((f"{name}, with pauses", rate, law, PAUSE_S) for name, rate, law in paused),
    ]


def shared_link(flows: int, capacity: float, cap: Draw, pause: float, seconds: float) -> float:
    """Returns the operations per second of `SharedLink`."""
    rng, link = random.Random(0), SharedLink(capacity)
    for flow in range(flows):
        link.add(0.0, flow, rng.uniform(1e6, 1e7), cap(rng))
    arrivals: list[float] = []
    flow, operations, start = flows, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        now = link.next_completion()
        if arrivals and arrivals[0] < now:
            now, coming = heappop(arrivals), 1
        else:
            coming = len(link.pop_completed(now))
            operations += coming
            if pause:
                for _ in range(coming):
                    heappush(arrivals, now + rng.uniform(0.0, 2 * pause))
                continue
        for _ in range(coming):
            link.add(now, flow, rng.uniform(1e6, 1e7), cap(rng))
            flow += 1
        operations += coming
    return operations / (time.perf_counter() - start)


def recomputed(flows: int, capacity: float, cap: Draw, pause: float, seconds: float) -> float:
    """Returns the operations per second of recomputing every rate at every event."""
    rng = random.Random(0)
    left = np.array([rng.uniform(1e6, 1e7) for _ in range(flows)])
    caps = np.minimum([cap(rng) for _ in range(flows)], capacity)
    arrivals: list[tuple[float, int]] = []  # (time, place in the arrays)
    now, operations, start = 0.0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        ordered = np.sort(caps)
        spare = capacity - np.concatenate(([0.0], np.cumsum(ordered)[:-1]))
        levels = spare / np.arange(flows, 0, -1)  # if the caps before this one are all free
        held = np.flatnonzero(ordered > levels)
        rates = np.minimum(caps, levels[held[0]] if len(held) else math.inf)
        times = left / rates
        step = times.min()
        if arrivals and arrivals[0][0] < now + step:
            at, place = heappop(arrivals)
            coming = np.array([place])
            left = left - rates * (at - now)
            now = at
        else:
            left = left - rates * step
            now += step
            coming = np.flatnonzero(times <= step)
            operations += len(coming)
            if pause:
                for place in coming.tolist():
                    heappush(arrivals, (now + rng.uniform(0.0, 2 * pause), place))
                left[coming], caps[coming] = math.inf, 0.0  # nobody there, who never ends
                continue
        left[coming] = [rng.uniform(1e6, 1e7) for _ in coming]
        caps[coming] = np.minimum([cap(rng) for _ in coming], capacity)
        operations += len(coming)
    return operations / (time.perf_counter() - start)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row for each number of flows and law of the caps."""
    seconds = 0.3 if arguments.quick else arguments.seconds
    rows = []
    for flows in [10_000] if arguments.quick else arguments.flows:
        for name, capacity, cap, pause in cap_laws(flows):
            ours = shared_link(flows, capacity, cap, pause, seconds)
            bare = recomputed(flows, capacity, cap, pause, seconds)
            rows.append(
                {
                    "flows": flows,
                    "caps": name,
                    "operations_per_s": ours,
                    "recomputed": bare,
                    "ratio": ours / bare,
                }
            )
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("shared_link", __doc__)
    parser.add_argument("--flows", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a measurement")
    arguments = parser.parse_args()
    about = report.machine()
    rows = measure(arguments)
    report.table(
        "Operations per second on one link, log-normal caps",
        ("", "flows", "operations/s", "recomputed", "ratio"),
        (
            (
                row["caps"],
                row["flows"],
                f"{row['operations_per_s']:,.0f}",
                f"{row['recomputed']:,.0f}",
                f"{row['ratio']:.1f}",
            )
            for row in rows
        ),
    )
    slowest = min(row["operations_per_s"] for row in rows)
    goals = [report.Goal("slowest law, starts and ends a second", slowest, LEAST)]
    report.publish(arguments.out, rows, arguments, about, goals)


if __name__ == "__main__":
    main()
