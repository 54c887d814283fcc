"""Tables of this experiment: python experiments/large_batch/report.py outputs/large_batch.

Reads the runs at or below the given folder and replaces the tables in README.md between the two
`report` marks. With --best DIR it prints the rate of the run there that needs the fewest steps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from fl.reports import Run, find_runs
from fl.reports.page import replace_tables

HERE = Path(__file__).parent
CLIENTS = 8
TARGET = 0.3
KNEE = 1.2  # steps of B* over those of perfect scaling
LATEST, MEAN = "latest_loss", "loss"


def batch_of(run: Run) -> int:
    """Returns S b, examples of a step."""
    size: int = run.summary["config"]["client"]["batch_size"]
    return CLIENTS * size


def rate_of(run: Run) -> float:
    """Returns the clients' learning rate."""
    rate: float = run.summary["config"]["client"]["rule"]["lr"]
    return rate


def steps_to_target(run: Run, metric: str = LATEST) -> float:
    """Returns the first of two evaluations in a row at or below the target; infinity without."""
    rows = [row for row in run.history if metric in row]
    for row, after in pairwise(rows):
        if row[metric] <= TARGET and after[metric] <= TARGET:
            return row["round"]
    return math.inf


def noise_scale(run: Run, step: float) -> float:
    """Returns B_simple of the averages at the last evaluation up to a step; NaN without."""
    rows = [row for row in run.history if "noise_scale_s" in row and row["round"] <= step]
    if not rows or rows[-1]["noise_scale_g2"] <= 0:
        return math.nan
    return rows[-1]["noise_scale_s"] / rows[-1]["noise_scale_g2"]


def best(runs: Sequence[Run]) -> Run:
    """Returns the run that needs the fewest steps, of equal ones that of the lowest rate."""
    return min(runs, key=lambda run: (steps_to_target(run), rate_of(run)))


def by_batch(root: Path) -> dict[int, list[Run]]:
    """Returns the runs of each batch."""
    found: dict[int, list[Run]] = {}
    for run in find_runs(root):
        found.setdefault(batch_of(run), []).append(run)
    return dict(sorted(found.items()))


def spread(values: Sequence[float]) -> str:
    """Returns the median, with the least and the greatest."""
    shown = [f"{x:.0f}" if math.isfinite(x) else "-" for x in (median(values), *values)]
    return f"{shown[0]} ({', '.join(shown[1:])})"


def knee(batches: Sequence[int], steps: Sequence[float]) -> float | None:
    """Returns B*, where steps are 1.2 times those of perfect scaling; None beyond the batches."""
    excess = [t * b / (steps[0] * batches[0]) for b, t in zip(batches, steps, strict=True)]
    for (b, x), (c, y) in pairwise(zip(batches, excess, strict=True)):
        if x < KNEE <= y:
            share = math.log(KNEE / x) / math.log(y / x)
            return math.exp(math.log(b) + share * math.log(c / b))
    return None


def fitted(batches: Sequence[int], steps: Sequence[float]) -> tuple[float, float]:
    """Returns T_min and B_c of T = T_min (1 + B_c / B), by least squares of the logarithms."""
    b, t = np.array(batches, float), np.log(steps)
    scales = np.exp(np.linspace(0, math.log(1e5), 4000))
    law = np.log1p(scales[:, None] / b)
    offsets = (t - law).mean(axis=1)
    errors = ((t - law - offsets[:, None]) ** 2).sum(axis=1)
    i = int(errors.argmin())
    return float(np.exp(offsets[i])), float(scales[i])


def tuning(runs: dict[int, list[Run]]) -> str:
    """Returns the table of steps to the target by batch and rate."""
    rates = sorted({rate_of(run) for of_batch in runs.values() for run in of_batch})
    lines = ["| S b | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    for batch, of_batch in runs.items():
        steps = {rate_of(run): steps_to_target(run) for run in of_batch}
        least = rate_of(best(of_batch))
        cells = [f"{steps[r]:.0f}" if math.isfinite(steps.get(r, math.inf)) else "-" for r in rates]
        cells = [f"**{x}**" if r == least else x for r, x in zip(rates, cells, strict=True)]
        lines.append(f"| {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def results(runs: dict[int, list[Run]]) -> str:
    """Returns the table of the final runs, and what follows from their medians."""
    lines = [
        "| S b | rate | steps | examples | steps of the mean | saved | B_simple there |",
        "|---|---|---|---|---|---|---|",
    ]
    batches, medians, saved, scales = [], [], [], []
    for batch, of_batch in runs.items():
        latest = [steps_to_target(run) for run in of_batch]
        mean = [steps_to_target(run, MEAN) for run in of_batch]
        scale = median(noise_scale(run, t) for run, t in zip(of_batch, latest, strict=True))
        less = [1 - m / t for m, t in zip(mean, latest, strict=True)]
        batches.append(batch)
        medians.append(median(latest))
        saved.append(median(less))
        scales.append(scale)
        lines.append(
            f"| {batch} | {rate_of(of_batch[0]):g} | {spread(latest)} | "
            f"{median(latest) * batch:,.0f} | {spread(mean)} | {median(less):.0%} | {scale:.0f} |"
        )
    least, critical = fitted(batches, medians)
    star = knee(batches, medians)
    found = f"about {star:.0f}" if star is not None else f"above {batches[-1]}"
    lines += [
        "",
        f"Knee B*, where steps are {KNEE} times those of perfect scaling from S b = {batches[0]}: "
        f"{found}. Fit of T = T_min (1 + B_c / B): T_min = {least:.0f}, B_c = {critical:.0f}, by "
        f"which B* would be 0.2 B_c + 1.2 B_0 = {0.2 * critical + 1.2 * batches[0]:.0f}. B_simple "
        f"at the target: {min(scales):.0f} to {max(scales):.0f}, median {median(scales):.0f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "--best":
        print(rate_of(best(find_runs(sys.argv[2]))))
    else:
        root = Path(sys.argv[1])
        parts = [tuning(by_batch(root / "tune")), results(by_batch(root / "final"))]
        replace_tables(HERE / "README.md", "\n\n".join(parts))
