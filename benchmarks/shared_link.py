"""The server's shared link beside recomputing every rate at every event, in one run.

    python benchmarks/shared_link.py [--out FILE] [--flows 100 1000 10000] [--seconds 1]

A number of flows is kept in flight: at each completion the flows that ended are popped and as many
are added. Popping a flow and adding one are an operation each. The baseline does the same with
NumPy: it sorts the caps, fills up, and moves every flow to the next completion. Machines differ and
are shared: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fl.simulation.links import SharedLink

CAPACITY_BPS = 1e9

Draw = Callable[[random.Random], float]


def cap_laws(flows: int) -> list[tuple[str, float, Draw]]:
    """Returns (name, capacity, law of the caps).

    Where the caps add up to just about the capacity, few flows are held down and the level jumps
    past the caps of many: the dearest regime.
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


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    root = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", str(root.parent / "fl" / "simulation" / "links.py")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "commit": commit.stdout.strip() or None,
        "changed_since": bool(changed.stdout.strip()),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    """Runs the benchmark, prints a table and writes it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--flows", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a measurement")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results" / "shared_link.json",
        help="JSON file for the numbers",
    )
    arguments = parser.parse_args()
    rows = []
    print(
        f"{'flows':>6}  {'log-normal caps':30} {'operations/s':>14} {'recomputed':>12} {'ratio':>8}"
    )
    for flows in arguments.flows:
        for name, capacity, cap in cap_laws(flows):
            ours = shared_link(flows, capacity, cap, arguments.seconds)
            bare = recomputed(flows, capacity, cap, arguments.seconds)
            rows.append(
                {"flows": flows, "caps": name, "operations_per_s": ours, "recomputed": bare}
            )
            print(
                f"{flows:6}  {name:30} {ours:14,.0f} {bare:12,.0f} {ours / bare:8.1f}", flush=True
            )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
