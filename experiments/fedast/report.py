"""Tables and figure of this experiment: python experiments/fedast/report.py outputs/fedast.

Reads the runs at or below the given folder, replaces the tables in README.md between the two
`report` marks, and draws test_accuracy.png beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.reports import Run, find_runs
from fl.reports.page import replace_tables
from fl.reports.plots import PALETTE

HERE = Path(__file__).parent
METHODS = (
    "FedAST",
    "FedAST, dynamic",
    "FedBuff, one task after another",
    "Sync-ST, first 15",
    "Sync-ST, all",
    "FedAvg, one task after another, first 15",
)
OURS = METHODS[0]

Found = Mapping[str, Mapping[int, Run]]


def method_of(strategy: Mapping[str, Any]) -> str:
    """Returns the name of what a run's strategy does."""
    if strategy["rule"]["_target_"].endswith("FedAST"):
        if strategy["one_after_another"]:
            return METHODS[2]
        return METHODS[1] if strategy["rule"]["allocation"] == "dynamic" else METHODS[0]
    if strategy["one_after_another"]:
        return METHODS[5]
    return METHODS[3] if strategy["first"] else METHODS[4]


def collect(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    """Returns the runs of each method by seed, in the order of the page.

    Raises:
        ConfigError: a run did not complete, is there twice, or a method lacks a seed.
    """
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.summary["status"] != "completed":
            raise ConfigError(f"the run in {run.directory} is {run.summary['status']}: repeat it")
        seeds = found.setdefault(method_of(run.summary["config"]["strategy"]), {})
        if run.summary["seed"] in seeds:
            raise ConfigError(f"{run.directory} repeats a run: remove one")
        seeds[run.summary["seed"]] = run
    if len({tuple(sorted(seeds)) for seeds in found.values()}) != 1 or OURS not in found:
        raise ConfigError("methods differ in their seeds, or FedAST is missing: run what is")
    return {method: found[method] for method in METHODS if method in found}


def targets(found: Found) -> dict[str, float]:
    """Returns the accuracy at which each task was done."""
    run = next(iter(found[OURS].values()))
    return dict(run.summary["config"]["strategy"]["targets"])


def seconds(runs: Mapping[int, Run], task: str, target: float) -> NDArray[np.float64]:
    """Returns by seed when a task reached its target, in simulated s; NaN where it did not."""
    name = f"accuracy/{task}"
    return np.array(
        [
            next((row["time_s"] for row in runs[s].history if row[name] >= target), np.nan)
            for s in sorted(runs)
        ]
    )


def spread(values: NDArray[np.float64], digits: int = 0) -> str:
    """Returns mean ± sample standard deviation of what there is."""
    there = values[np.isfinite(values)]
    if len(there) < len(values):
        return f"reached by {len(there)} of {len(values)}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def times(found: Found) -> str:
    """Returns a Markdown table of the time to each target and to all, and what FedAST saves."""
    goals = targets(found)
    names = [f"{task} {100 * value:.0f} %, s" for task, value in goals.items()]
    lines = [
        "| method | " + " | ".join(names) + " | all, s | time FedAST saves |",
        "|---|" + "---:|" * (len(goals) + 2),
    ]
    whole = {
        method: np.max([seconds(runs, *goal) for goal in goals.items()], axis=0)
        for method, runs in found.items()
    }
    for method, runs in found.items():
        cells = [spread(seconds(runs, *goal)) for goal in goals.items()]
        saved = 100 * (1 - whole[OURS] / whole[method])
        text = "" if method == OURS else f"{spread(saved, 1)} %"
        lines.append(f"| {method} | {' | '.join(cells)} | {spread(whole[method])} | {text} |")
    return "\n".join(lines)


def costs(found: Found) -> str:
    """Returns a Markdown table of client updates, bytes, staleness and models sent in vain."""
    lines = [
        "| method | client updates | moved, MB | mean staleness | models sent in vain |",
        "|---|---:|---:|---:|---:|",
    ]
    for method, runs in found.items():
        totals = [run.summary["totals"] for run in runs.values()]
        updates = np.array([float(t["client_updates"]) for t in totals])
        moved = np.array([(t["bytes_down"] + t["bytes_up"]) / 1e6 for t in totals])
        taus = [row["staleness"] for r in runs.values() for row in r.history if "staleness" in row]
        sent = np.array([t["bytes_down"] / t["bytes_up"] for t in totals])
        lost = f"{100 * max(0.0, 1 - 1 / sent.mean()):.0f} %"  # the rest is rounding
        lines.append(
            f"| {method} | {spread(updates)} | {spread(moved)} | {np.mean(taus):.1f} | {lost} |"
        )
    return "\n".join(lines)


def tables(found: Found) -> Iterator[str]:
    """Yields the tables with their titles."""
    runs = [run for seeds in found.values() for run in seeds.values()]
    hours = sum(run.summary["totals"]["wall_s"] for run in runs) / 3600
    seeds = ", ".join(map(str, sorted(next(iter(found.values())))))
    yield (
        f"{len(runs)} runs; seeds {seeds}; {hours:.2f} hours, added up over the runs. Numbers are "
        "mean ± sample standard deviation over the seeds; savings are taken seed by seed."
    )
    yield "**Simulated time until the tasks reach their target accuracies**"
    yield times(found)
    yield "**What it cost until then**"
    yield costs(found)


def draw(found: Found, path: Path) -> None:
    """Draws each task's accuracy against simulated time, a line for each seed."""
    goals = targets(found)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, len(goals), squeeze=False)[0]
    for panel, (task, goal) in zip(axes, goals.items(), strict=True):
        for k, (method, runs) in enumerate(found.items()):
            for i, (_, run) in enumerate(sorted(runs.items())):
                panel.plot(
                    [row["time_s"] for row in run.history],
                    [100 * row[f"accuracy/{task}"] for row in run.history],
                    color=PALETTE[k],
                    linewidth=1.2,
                    label=None if i else method,
                )
        panel.axhline(100 * goal, color="#555555", linewidth=0.8, linestyle=":")
        panel.set_title(task, fontsize=11)
        panel.set_xlim(left=0)
        panel.set_ylim(top=100 * goal * 1.04)
        panel.set_xlabel("simulated time (s)")
        panel.set_ylabel("test accuracy (%)")
        panel.grid(color="#D9D9D9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Reads the runs, writes the tables and the figure."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = collect(find_runs(sys.argv[1]))
    replace_tables(HERE / "README.md", "\n\n".join(tables(found)))
    draw(found, HERE / "test_accuracy.png")


if __name__ == "__main__":
    main()
