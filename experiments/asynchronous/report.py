"""Tables and figures of a sweep over methods, learning rates and seeds, one for each fleet.

    python experiments/asynchronous/report.py outputs/asynchronous experiments/asynchronous

Every method is shown at its best learning rate: the one with the highest accuracy at the time
limit, mean over seeds. The table is Markdown; figures are <fleet>.png in the second folder.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console

from fl.reports import plots
from fl.reports.runs import Run, find_runs
from fl.reports.table import comparison
from fl.runs.sweep import overrides

RATE = "client.rule.lr"
# Keys, and how their panels are called.
FLEETS = {"fleet.speed_spread": "spread_", "fleet/slowdown@fleet.client_slowdown": ""}
# What is the same for all runs of a method, and so does not tell methods apart.
ASIDE = {"seed", RATE, "progress", "views", "time_limit_s", "+experiment", *FLEETS}
FIXED = {"fraction_train", "min_train_nodes", "concurrency", "contacted", "waiting_s", "patience"}


def method(found: Mapping[str, str]) -> str:
    """Returns what a run is called in the table."""
    parts = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in sorted(found.items())
        if key not in ASIDE | {"strategy"} and key.rpartition(".")[2] not in FIXED
    ]
    return f"{found['strategy']} {', '.join(parts)}".rstrip()


def final(run: Run) -> float:
    """Returns the accuracy at the time limit; 0 for a model that is not finite."""
    value = float(run.summary["final"]["accuracy"])
    return value if math.isfinite(value) else 0.0


def main(root: Path, out: Path) -> None:
    """Prints the tables and draws the figures."""
    fleets: dict[str, dict[str, dict[str, list[Run]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for run in find_runs(root):
        found = overrides(run)
        fleet = next((f"{called}{found[k]}" for k, called in FLEETS.items() if k in found), "all")
        fleets[fleet][method(found)][found[RATE]].append(run)
    console = Console(width=240)
    for fleet, methods in sorted(fleets.items()):
        chosen: dict[str, list[Run]] = {}
        rates: dict[str, str] = {}
        for name, by_rate in methods.items():
            rates[name] = max(by_rate, key=lambda rate, runs=by_rate: fmean(map(final, runs[rate])))
            chosen[name] = by_rate[rates[name]]
        best = sorted(chosen, key=lambda name: -fmean(map(final, chosen[name])))
        labelled = {f"{name}, rate {rates[name]}": chosen[name] for name in best}
        table = comparison(labelled)
        table.title, table.box = None, box.MARKDOWN
        console.print(f"\n### {fleet}\n")
        console.print(table)
        target = chosen[best[0]][0].summary["target"]["value"]
        axes = ("time_s", "bytes")
        plots.compare(
            chosen, "accuracy", out / f"{fleet}.png", axes=axes, target=target, confidence=0.5
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
