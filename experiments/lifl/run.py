"""LIFL's mechanisms, switched on one after the other, and off one by one.

    python experiments/lifl/run.py

Rounds of 20, 60 and 100 updates of 44 MB (ResNet-18, float32) and 232 MB (ResNet-152) on five nodes
that take 20 of a round each. Time alone: updates come at drawn times, and what runs on a hierarchy
use adds them up (`fl.simulation.summation`). All constants are those of hierarchy=lifl: nothing is
fitted. Writes the tables of README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from fl.randomness import generator
from fl.reports.page import replace_tables
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.events import EventQueue
from fl.simulation.kernel.trace import Trace
from fl.simulation.summation import SimSummation
from fl.simulation.world.fleets import uniform
from fl.simulation.world.hierarchies import Hierarchy

HERE = Path(__file__).parent
SIZES = {"ResNet-18, 44 MB": 44_000_000, "ResNet-152, 232 MB": 232_000_000}
COUNTS = (20, 60, 100)
ROUNDS, SEEDS, EVERY_S = 10, 5, 120.0
SWITCHES = ("shared_memory", "locality", "planned", "reuse", "eager")
ARRIVALS: Mapping[str, Callable[[np.random.Generator, int], Any]] = {
    "at once": lambda rng, n: np.zeros(n),
    "within 60 s": lambda rng, n: np.sort(rng.uniform(0.0, 60.0, n)),
}


def configured(*overrides: str) -> Hierarchy:
    """Returns hierarchy=lifl with overrides."""
    with initialize_config_module("fl.conf", version_base=None):
        made: Hierarchy = instantiate(compose("config", ["hierarchy=lifl", *overrides]).hierarchy)
    return made


def switched(on: Sequence[str], *overrides: str) -> Hierarchy:
    """Returns it with these mechanisms, and without the others."""
    return configured(*(f"hierarchy.{s}={str(s in on).lower()}" for s in SWITCHES), *overrides)


def measured(hierarchy: Hierarchy, size: int, n: int, arrivals: str, seed: int) -> dict[str, Any]:
    """Returns what the summary of a run would say, of rounds of n updates."""
    queue = EventQueue()

    def advance(until: float) -> None:
        while queue.advance(until):
            pass

    fleet = uniform(n, seed)
    summation = SimSummation(hierarchy, fleet, queue, Trace(), queue.advance, advance)
    for number in range(ROUNDS):
        began = max(number * EVERY_S, queue.now)
        advance(began)
        summation.begin(size // 4)
        rng = generator(seed, "arrivals", number)
        for client, time in enumerate(ARRIVALS[arrivals](rng, n).tolist()):
            advance(began + time)
            reply = Dispatch.__new__(Dispatch)  # of which nothing else is read
            reply.name, reply.size_up = f"{client}.{number}", size
            summation.weigh([reply])
            summation.add(reply.name)
        summation.close()
    return summation.report()


def row(name: str, hierarchy: Hierarchy, size: int, n: int, arrivals: str) -> str:
    """Returns a row of a table: means over seeds, with deviations where these differ."""
    drawn = SEEDS if arrivals != "at once" else 1
    found = [measured(hierarchy, size, n, arrivals, seed) for seed in range(drawn)]

    def mean(key: str, scale: float = 1.0) -> str:
        values = [each[key] * scale for each in found]
        spread = f" ± {stdev(values):.2g}" if drawn > 1 and stdev(values) > 0 else ""
        return f"{fmean(values):.3g}{spread}"

    cells = [
        mean("completion_s"),
        mean("cpu_s", 1 / ROUNDS),
        mean("bytes_between", 1e-6 / ROUNDS),
        mean("machines_used"),
        mean("cold_starts"),
        mean("energy_j", 1e-3 / ROUNDS),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def table(size: int, n: int, arrivals: str, *overrides: str) -> str:
    """Returns a table: mechanisms one after the other, then each of them missing."""
    head = "| mechanisms | s to the sum | CPU-s | MB between nodes | nodes | cold starts | kJ |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    for k in range(len(SWITCHES) + 1):
        name = "none" if k == 0 else f"+ {SWITCHES[k - 1]}"
        lines.append(row(name, switched(SWITCHES[:k], *overrides), size, n, arrivals))
    for missing in SWITCHES[:-1]:
        kept = [switch for switch in SWITCHES if switch != missing]
        lines.append(row(f"all but {missing}", switched(kept, *overrides), size, n, arrivals))
    return "\n".join(lines)


def main() -> None:
    """Writes the page's tables."""
    parts = []
    for what, size in SIZES.items():
        for n in COUNTS:
            parts += [f"### {what}, {n} updates at once", table(size, n, "at once")]
        parts += [f"### {what}, 60 updates within 60 s", table(size, 60, "within 60 s")]
    cold = "hierarchy.machine.keep_alive_s=30"
    what, size = "ResNet-152, 232 MB", SIZES["ResNet-152, 232 MB"]
    parts += [
        f"### {what}, 60 updates within 60 s, idle processes end after 30 s",
        table(size, 60, "within 60 s", cold),
    ]
    replace_tables(HERE / "README.md", "\n\n".join(parts))


if __name__ == "__main__":
    main()
