"""Tables of this experiment: python experiments/large_batch/report.py outputs/large_batch.

Reads the runs at or below the given folder and replaces the tables in README.md between the two
`report` marks. With --best DIR it prints the rate of the run there that needs the fewest steps.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

from fl.reports import Run, find_runs

HERE = Path(__file__).parent
CLIENTS = 8
TARGET = 0.3
KNEE = 1.2  # steps of B* over those of perfect scaling


def batch_of(run: Run) -> int:
    """Returns S b, examples of a step."""
    size: int = run.summary["config"]["client"]["batch_size"]
    return CLIENTS * size


def rate_of(run: Run) -> float:
    """Returns the clients' learning rate."""
    rate: float = run.summary["config"]["client"]["rule"]["lr"]
    return rate


def steps_to_target(run: Run, metric: str) -> float:
    """Returns the first of two evaluations in a row at or below the target; infinity without."""
    rows = [row for row in run.history if metric in row]
    for row, after in pairwise(rows):
        if row[metric] <= TARGET and after[metric] <= TARGET:
            return row["round"]
    return math.inf


def noise_scale_at(run: Run, step: float) -> float:
    """Returns B_simple of the averages at the last evaluation up to a step; NaN without."""
    rows = [r for r in run.history if "noise_scale_s" in r and r["round"] <= step]
    if not rows or rows[-1]["noise_scale_g2"] <= 0:
        return math.nan
    return rows[-1]["noise_scale_s"] / rows[-1]["noise_scale_g2"]


def best(runs: list[Run]) -> Run:
    """Returns the run that needs the fewest steps, of equal ones that of the lowest rate."""
    return min(runs, key=lambda run: (steps_to_target(run, "latest_loss"), rate_of(run)))


if __name__ == "__main__":
    if sys.argv[1] == "--best":
        print(rate_of(best(find_runs(sys.argv[2]))))
