"""How often a job that fails should write checkpoints, by how it writes them: nothing is trained.

    python experiments/checkpoints/intervals.py          measures, and replaces the page's tables
    python experiments/checkpoints/intervals.py tables   makes them of what was kept

The clock is that of runs with `fleet/checkpointing` (fl.simulation.world.checkpointing.JobTime).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from results import main

from fl.simulation.world.checkpoint_interval import daly, exact, expected_s, young
from fl.simulation.world.checkpointing import Checkpointing, JobTime

SIZE = {"state_bytes": 20e9, "host_bandwidth": 10e9, "storage_bandwidth": 1e9, "restart_s": 300.0}
KINDS: dict[str, dict[str, float]] = {
    "blocking": {},
    "asynchronous": {"buffer_bytes": 40e9},
    "lazy": {"buffer_bytes": 40e9, "overlap_s": 1.5},
}
STALL_S = {"blocking": 20.0, "asynchronous": 2.0, "lazy": 0.5}  # a checkpoint, storage permitting
MTBF_S = (600.0, 3600.0, 86400.0)
FACTORS = [2 ** (k / 4) for k in range(-6, 7)]  # of Young's interval
SEEDS = range(5)
FAILURES = 300  # of a job, on the average
STEP_S = 4.5  # of training, for checkpoints every so many steps
EVERY = (1, 2, 4, 8, 16, 64)


def job(kind: str, interval_s: float, mtbf_s: float | None, seed: int, job_s: float) -> float:
    """Returns what the clock shows at the end of a job, over its work."""
    by = Checkpointing(interval_s, **SIZE, **KINDS[kind], mtbf_s=mtbf_s)
    return JobTime(by, seed).elapsed(job_s) / job_s


def measure() -> list[dict[str, Any]]:
    """Returns a record for each job."""
    found = []
    for kind, stall_s in STALL_S.items():
        for mtbf_s in MTBF_S:
            for factor in FACTORS:
                interval_s = factor * young(stall_s, mtbf_s)
                for seed in SEEDS:
                    over = job(kind, interval_s, mtbf_s, seed, FAILURES * mtbf_s)
                    of = {"kind": kind, "mtbf_s": mtbf_s, "factor": factor, "seed": seed}
                    found.append(of | {"interval_s": interval_s, "over_work": over})
    for kind in KINDS:
        for steps in EVERY:
            over = job(kind, steps * STEP_S, None, 0, 1000 * steps * STEP_S)
            found.append({"kind": kind, "every_steps": steps, "over_work": over})
    return found


Means = dict[float, list[float]]
"""Intervals of one kind and MTBF, s, and times over work, by seed."""


def by_interval(records: list[dict[str, Any]], kind: str, mtbf_s: float) -> Means:
    """Returns what was measured of one kind of job."""
    found: Means = {}
    for one in records:
        if one["kind"] == kind and one.get("mtbf_s") == mtbf_s:
            found.setdefault(one["interval_s"], []).append(one["over_work"])
    return found


def hours(mtbf_s: float) -> str:
    """Returns a time in words."""
    return f"{mtbf_s / 60:g} min" if mtbf_s < 3600 else f"{mtbf_s / 3600:g} h"


def optima(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of best intervals."""
    heads = ("checkpoints", "MTBF", "stall, s", "Young, s", "Daly, s", "exact, s")
    yield f"| {' | '.join(heads)} | best of the sweep, s | time over work there | closed form |"
    yield "|---|---|" + "---:|" * 7
    for kind, c in STALL_S.items():
        for m in MTBF_S:
            times = by_interval(records, kind, m)
            best = min(times, key=lambda tau: fmean(times[tau]))
            edge = r" \*" if best in (min(times), max(times)) else ""
            form = expected_s(best, c, SIZE["restart_s"], m) / best
            yield (
                f"| {kind} | {hours(m)} | {c:g} | {young(c, m):.1f} | {daly(c, m):.1f} | "
                f"{exact(c, m):.1f} | {best:.1f}{edge} | {fmean(times[best]):.4f} ± "
                f"{stdev(times[best]):.4f} | {form:.4f} |"
            )


def sweep(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of all intervals: mean times over work."""
    columns = [(kind, m) for m in MTBF_S for kind in KINDS]
    heads = " | ".join(f"{kind}, {hours(m)}" for kind, m in columns)
    yield f"| interval over Young's | {heads} |"
    yield "|---:|" + "---:|" * len(columns)
    times = [by_interval(records, *column) for column in columns]
    for k, factor in enumerate(FACTORS):
        yield (
            f"| {factor:.2f} | "
            + " | ".join(f"{fmean(list(each.values())[k]):.3f}" for each in times)
            + " |"
        )


def engines(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of jobs that do not fail, with checkpoints every so many steps."""
    over = {(r["kind"], r["every_steps"]): r["over_work"] for r in records if "every_steps" in r}
    yield (
        "| a checkpoint every | "
        + " | ".join(f"{kind}: time over work" for kind in KINDS)
        + (" | blocking over lazy |")
    )
    yield "|---:|" + "---:|" * (len(KINDS) + 1)
    for steps in EVERY:
        each = [over[kind, steps] for kind in KINDS]
        cells = " | ".join(f"{value:.3f}" for value in each)
        yield f"| {steps} steps | {cells} | {each[0] / each[-1]:.2f} |"


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's tables."""
    return "\n\n".join("\n".join(each(records)) for each in (optima, sweep, engines))


if __name__ == "__main__":
    main(__file__, measure, tables)
