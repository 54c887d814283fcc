"""The server's shared link beside recomputing every rate at every event, in one run.

    python benchmarks/shared_link.py [--quick] [--out FILE] [--flows 100 1000 10000] [--seconds 1]

A number of flows is kept in flight: at each completion the flows that ended are popped and as many
are added. Popping a flow and adding one are an operation each. The baseline does the same with
NumPy: it sorts the caps, fills up, and moves every flow to the next completion. The target is
20,000 operations/s with 10,000 flows. --quick measures 10,000 flows alone, for a shorter time.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import report

from fl.simulation.links import SharedLink

CAPACITY_BPS = 1e9

Draw = Callable[[random.Random], float]


def cap_laws(flows: int) -> list[tuple[str, float, Draw]]:
    """Returns (name, capacity, law of the caps).

    Where the caps are nearly equal and add up to little more than the capacity, few flows are held
    down and the level jumps past the caps of many at every event: the dearest regime.
    """
    share = CAPACITY_BPS / flows

    def spread(load: float, sigma: float) -> Draw:
        median = load * share / math.exp(sigma**2 / 2)
        return lambda rng: median * rng.lognormvariate(0, sigma)

    return [
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


def shared_link(flows: int, capacity: float, cap: Draw, seconds: float) -> float:
    """Returns the operations per second of `SharedLink`."""
    rng, link = random.Random(0), SharedLink(capacity)
    for flow in range(flows):
        link.add(0.0, flow, rng.uniform(1e6, 1e7), cap(rng))
    flow, operations, start = flows, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        now = link.next_completion()
        ended = link.pop_completed(now)
        for _ in ended:
            link.add(now, flow, rng.uniform(1e6, 1e7), cap(rng))
            flow += 1
        operations += 2 * len(ended)
    return operations / (time.perf_counter() - start)


def recomputed(flows: int, capacity: float, cap: Draw, seconds: float) -> float:
    """Returns the operations per second of recomputing every rate at every event."""
    rng = random.Random(0)
    left = np.array([rng.uniform(1e6, 1e7) for _ in range(flows)])
    caps = np.minimum([cap(rng) for _ in range(flows)], capacity)
    operations, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        ordered = np.sort(caps)
        spare = capacity - np.concatenate(([0.0], np.cumsum(ordered)[:-1]))
        levels = spare / np.arange(flows, 0, -1)  # if the caps before this one are all free
        held = np.flatnonzero(ordered > levels)
        rates = np.minimum(caps, levels[held[0]] if len(held) else math.inf)
        times = left / rates
        step = times.min()
        left = left - rates * step
        ended = np.flatnonzero(times <= step)
        left[ended] = [rng.uniform(1e6, 1e7) for _ in ended]
        caps[ended] = np.minimum([cap(rng) for _ in ended], capacity)
        operations += 2 * len(ended)
    return operations / (time.perf_counter() - start)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row for each number of flows and law of the caps."""
    seconds = 0.3 if arguments.quick else arguments.seconds
    rows = []
    for flows in [10_000] if arguments.quick else arguments.flows:
        for name, capacity, cap in cap_laws(flows):
            ours = shared_link(flows, capacity, cap, seconds)
            bare = recomputed(flows, capacity, cap, seconds)
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
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
