"""The page's table, from what the runs of run.sh have left.

    python experiments/dimat/report.py outputs/dimat    keeps their numbers first
    python experiments/dimat/report.py tables           makes it of what was kept

Accuracy is the mean over all nodes' own models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from results import main

from fl.reports import find_runs
from fl.reports.jobs import overrides

BY = ("activations", "weights", "order")
COLUMNS = {1: ("activations",), 2: BY, 7: BY}  # rounds: alone; after the first merger; after six


def read() -> list[dict[str, Any]]:
    """Returns a record for each evaluation of each run."""
    found = []
    for run in find_runs(Path(sys.argv[1])):
        given = overrides(run)
        of = {
            "topology": given["topology"],
            "nodes": int(given["num_clients"]),
            "by": given["strategy.rule.by"],
            "seed": run.summary["seed"],
            "configuration": run.summary["config_digest"],
        }
        names = ("round", "time_s", "node_accuracy", "accuracy")
        found += [of | {name: row[name] for name in names} for row in run.history]
    return found


def lines(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table."""
    yield "| graph | nodes | alone | | one round after the first merger | | | after 6 | |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    heads = " | ".join(" | ".join(by if k > 1 else ("",)) for k, by in COLUMNS.items())
    yield f"| | | {heads} |"
    for topology in ("ring", "complete"):
        mine = [one for one in records if one["topology"] == topology]
        for nodes in sorted({one["nodes"] for one in mine}):
            cells = []
            for k, ways in COLUMNS.items():
                for by in ways:
                    of = {"nodes": nodes, "round": k, "by": by}.items()
                    ends = [100 * one["node_accuracy"] for one in mine if of <= one.items()]
                    cells.append(f"{fmean(ends):.1f} ± {stdev(ends):.1f}")
            yield f"| {topology} | {nodes} | {' | '.join(cells)} |"


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the table."""
    return "\n".join(lines(records))


if __name__ == "__main__":
    main(__file__, read, tables)
