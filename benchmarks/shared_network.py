"""Links shared along routes beside finding all rates anew at every event, in one run.

    python benchmarks/shared_network.py [--quick] [--out FILE] [--flows 100 1000] [--seconds 1]

A number of flows is kept in flight: at each completion the flows that ended are popped and as many
are added, an operation each. "sites" are flows of clients at sites of 20, on two links each, whose
server is never full, so a change concerns one site; in "sites, server full" it concerns everybody.
"tree" has three links on every route. The baseline calls `max_min` for all flows at every event.
One link is `SharedLink`, the path of fleets without a network, beside the same on this one.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import report

from fl.simulation.kernel.max_min import Demand, max_min
from fl.simulation.kernel.shared_link import SharedLink
from fl.simulation.kernel.shared_network import SharedNetwork

SITE = 20
"""Flows of a site."""


class Setting(NamedTuple):
    """Links, and the route of a flow.

    Attributes:
        name: for the table.
        capacity: of each link, bit/s.
        route: of the flow in the k-th place.
    """

    name: str
    capacity: list[float]
    route: Callable[[int], tuple[int, ...]]


def settings(flows: int) -> list[Setting]:
    """Returns what is measured with so many flows."""
    sites = math.ceil(flows / SITE)
    uplinks = [1e8] * sites
    regions = max(1, sites // 5)
    return [
        Setting("sites", [2e8 * sites, *uplinks], lambda k: (1 + k // SITE, 0)),
        Setting("sites, server full", [2e7 * sites, *uplinks], lambda k: (1 + k // SITE, 0)),
        Setting(
            "tree",
            [2e8 * sites, *uplinks, *([2e8] * regions)],
            lambda k: (1 + k // SITE, 1 + sites + k // SITE % regions, 0),
        ),
        Setting("one link", [1e6 * flows], lambda k: (0,)),
    ]


def drawn(rng: random.Random) -> tuple[float, float]:
    """Returns bits and a cap."""
    return rng.uniform(1e6, 1e7), 1e7 * rng.lognormvariate(0, 0.5)


def network(setting: Setting, flows: int, seconds: float) -> float:
    """Returns the operations per second of `SharedNetwork`."""
    rng, shared = random.Random(0), SharedNetwork(setting.capacity)
    place = {}
    for flow in range(flows):
        place[flow] = flow
        shared.add(0.0, flow, *drawn(rng), setting.route(flow))
    flow, operations, start = flows, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        now = shared.next_completion()
        for ended in shared.pop_completed(now):
            place[flow] = place.pop(ended)
            shared.add(now, flow, *drawn(rng), setting.route(place[flow]))
            flow += 1
            operations += 2
    return operations / (time.perf_counter() - start)


def anew(setting: Setting, flows: int, seconds: float) -> float:
    """Returns the operations per second of `max_min` of all flows at every event."""
    rng = random.Random(0)
    left, demands = [], []
    for k in range(flows):
        size, cap = drawn(rng)
        left.append(size)
        demands.append(Demand(setting.route(k), cap))
    operations, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        rates = max_min(demands, dict(enumerate(setting.capacity)))
        ends = [size / rate for size, rate in zip(left, rates, strict=True)]
        step = min(ends)
        for k, (end, rate) in enumerate(zip(ends, rates, strict=True)):
            left[k] -= rate * step
            if end <= step:
                size, cap = drawn(rng)
                left[k], demands[k] = size, Demand(setting.route(k), cap)
                operations += 2
    return operations / (time.perf_counter() - start)


def link(setting: Setting, flows: int, seconds: float) -> float:
    """Returns the operations per second of `SharedLink`, for a setting of one link."""
    rng, shared = random.Random(0), SharedLink(setting.capacity[0])
    for flow in range(flows):
        shared.add(0.0, flow, *drawn(rng))
    flow, operations, start = flows, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        now = shared.next_completion()
        for _ in shared.pop_completed(now):
            shared.add(now, flow, *drawn(rng))
            flow += 1
            operations += 2
    return operations / (time.perf_counter() - start)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row for each setting and number of flows."""
    seconds = 0.3 if arguments.quick else arguments.seconds
    rows = []
    for flows in [1_000] if arguments.quick else arguments.flows:
        for setting in settings(flows):
            ours = network(setting, flows, seconds)
            bare = anew(setting, flows, seconds)
            alone = link(setting, flows, seconds) if len(setting.capacity) == 1 else None
            rows.append(
                {
                    "flows": flows,
                    "links": len(setting.capacity),
                    "setting": setting.name,
                    "operations_per_s": ours,
                    "anew": bare,
                    "ratio": ours / bare,
                    "shared_link": alone,
                }
            )
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("shared_network", __doc__)
    parser.add_argument("--flows", type=int, nargs="+", default=[100, 1_000, 5_000])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a measurement")
    arguments = parser.parse_args()
    about = report.machine()
    rows = measure(arguments)
    report.table(
        "Operations per second on links that routes share",
        ("", "flows", "links", "operations/s", "anew", "ratio", "SharedLink"),
        (
            (
                row["setting"],
                row["flows"],
                row["links"],
                f"{row['operations_per_s']:,.0f}",
                f"{row['anew']:,.0f}",
                f"{row['ratio']:.1f}",
                "" if row["shared_link"] is None else f"{row['shared_link']:,.0f}",
            )
            for row in rows
        ),
    )
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
