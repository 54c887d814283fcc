"""The page's table, from what the runs of run.sh have left.

    python experiments/petals/report.py outputs/petals    keeps their numbers first
    python experiments/petals/report.py tables            makes it of what was kept

Rates are those of a run's last session or batch, which is like the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from results import main

from fl.reports import find_runs
from fl.reports.jobs import overrides

RATES = ("prompt_s", "steps_per_s", "tokens_per_s")


def read() -> list[dict[str, Any]]:
    """Returns a record for each session and batch of each run."""
    found = []
    for work in ("inference", "tuning"):
        for run in find_runs(Path(sys.argv[1]) / work):
            given = overrides(run)
            of = {
                "work": work,
                "latency_s": float(given["fleet.latency_s"]),
                "bps": float(given["fleet.up_bps"]),
                "configuration": run.summary["config_digest"],
            }
            names = ("round", "time_s", *RATES)
            found += [of | {k: row[k] for k in names if k in row} for row in run.history]
    return found


def lines(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table."""
    yield (
        "| network, each way | one way, ms | prompt, s | steps a second | "
        "batches: tokens a second |"
    )
    yield "|---|---:|---:|---:|---:|"
    networks = {(one["latency_s"], -one["bps"]) for one in records}
    for latency_s, bps in sorted(networks):
        of = {"latency_s": latency_s, "bps": -bps}.items()
        last: dict[str, float] = {}
        for one in records:
            if of <= one.items():
                last |= {k: one[k] for k in RATES if k in one}
        network = "1 Gbit/s" if bps == -1e9 else f"{-bps / 1e6:g} Mbit/s"
        cells = f"{last['prompt_s']:.2f} | {last['steps_per_s']:.2f} | {last['tokens_per_s']:.1f}"
        yield f"| {network} | {2000 * latency_s:g} | {cells} |"


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the table."""
    return "\n".join(lines(records))


if __name__ == "__main__":
    main(__file__, read, tables)
