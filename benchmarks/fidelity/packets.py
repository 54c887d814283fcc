"""When TCP transfers over a bottleneck end: ours beside ns-3's packets.

    python benchmarks/fidelity/packets.py --ns3 PYTHON

Every flow has links of its own on both sides of the bottleneck, and a delay of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows import ends_of

from fl.simulation.kernel.shared_network import SharedNetwork
from fl.simulation.world.networks import Tcp

SHARE = 1448 / (1500 + 2)
"""Of a packet on the wire that is payload."""

WAYS = {
    "equal shares": Tcp(),
    "and slow start": Tcp(initial_window_bytes=14480),
    "and shares by 1 / RTT": Tcp(initial_window_bytes=14480, rtt_fairness=True),
}


def scenarios() -> Iterator[dict[str, Any]]:
    """Yields what both run: sizes from 100 kB to 10 MB, one-way delays from 2 to 50 ms."""
    for queue in ("ns3::FqCoDelQueueDisc", "ns3::FifoQueueDisc"):
        for n in (2, 5, 20):
            rng = random.Random(n)
            flows = [
                (round(10 ** rng.uniform(5, 7)), round(rng.uniform(0.001, 0.049), 4), 0.0)
                for _ in range(n)
            ]
            yield {"queue": queue, "bps": 20e6, "delay_s": 0.001, "flows": flows}


def ours(scenario: dict[str, Any], tcp: Tcp) -> list[float]:
    """Returns when each flow of a scenario ends, s; it begins with a handshake."""
    bps = scenario["bps"] * SHARE
    network, coming = SharedNetwork([bps]), []
    for k, (size, delay_s, start) in enumerate(scenario["flows"]):
        one_way = delay_s + scenario["delay_s"]
        begins = start + 3 * one_way + tcp.ramp_s(size, bps, 2 * one_way)
        weight = 1 / one_way if tcp.rtt_fairness else 1.0
        coming.append((begins, k, 8.0 * size, math.inf, (0,), weight))
    return ends_of(network, coming)


def ns3(python: str, asked: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Returns ns-3's ends of the flows of each scenario."""
    script = Path(__file__).with_name("ns3_flows.py")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ends.json"
        done = subprocess.run(
            [python, str(script), str(path)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
        )
        if not path.exists():
            raise SystemExit(done.stderr[-4000:])
        found: list[list[float]] = json.loads(path.read_text("utf-8"))
    return found


def main() -> None:
    """Runs both, and prints the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ns3", default="python3", help="a Python that has ns3")
    arguments = parser.parse_args()
    asked = list(scenarios())
    theirs = ns3(arguments.ns3, asked)
    print("Relative errors of the ends of flows: median and worst; of the last flow.\n")
    print("| queue | flows | " + " | ".join(WAYS) + " |\n|---|---|" + "---|" * len(WAYS))
    for scenario, ends in zip(asked, theirs, strict=True):
        cells = []
        for tcp in WAYS.values():
            found = ours(scenario, tcp)
            errors = [abs(a - b) / b for a, b in zip(found, ends, strict=True)]
            last = abs(max(found) - max(ends)) / max(ends)
            cells.append(
                f"{100 * statistics.median(errors):.1f} % and {100 * max(errors):.0f} %; "
                f"{100 * last:.1f} %"
            )
        name = scenario["queue"].removeprefix("ns3::").removesuffix("QueueDisc")
        print(f"| {name} | {len(ends)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
