"""Tables and figures of this experiment: python experiments/fedprox/report.py outputs/fedprox.

Reads the runs at or below the given folder, replaces the tables in README.md between the two
`report` marks, and draws training_loss.png and test_accuracy.png beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.reports import Run, find_runs
from fl.reports.page import replace_tables
from fl.reports.plots import PALETTE

HERE = Path(__file__).parent
DATA = ("Synthetic-IID", "Synthetic(0, 0)", "Synthetic(0.5, 0.5)", "Synthetic(1, 1)")
STRAGGLERS = (0.0, 0.5, 0.9)
LOOKS = {
    "FedAvg": (PALETTE[1], ":"),
    "FedProx, mu = 0": (PALETTE[3], "--"),
    "FedProx, mu = 1": (PALETTE[0], "-"),
}
METHODS = tuple(LOOKS)
LAST = 10  # rounds that the second table averages over

Curves = NDArray[np.float64]


class Cell(NamedTuple):
    """What one curve of the figure was run with."""

    data: str
    stragglers: float
    method: str


Found = Mapping[Cell, Mapping[int, Run]]


def cells(run: Run) -> list[Cell]:
    """Returns what a run shows: FedAvg without stragglers is FedProx with mu = 0 without them."""
    config = run.summary["config"]
    data, strategy = config["data"], config["strategy"]
    name = DATA[0]
    if "alpha" in data:
        name = f"Synthetic({data['alpha']:g}, {data['beta']:g})"
    s, mu = strategy["straggler_fraction"], strategy["proximal_mu"]
    methods = ["FedAvg"] if strategy["drop_stragglers"] else [f"FedProx, mu = {mu:g}"]
    if s == 0 and mu == 0 and not strategy["drop_stragglers"]:
        methods.append("FedAvg")
    return [Cell(name, s, method) for method in methods]


def collect(runs: Iterable[Run]) -> dict[Cell, dict[int, Run]]:
    """Returns the runs of each cell by seed.

    Raises:
        ConfigError: a run did not complete, is there twice, or is missing.
    """
    found: dict[Cell, dict[int, Run]] = {}
    for run in runs:
        if run.summary["status"] != "completed":
            raise ConfigError(
                f"the run in {run.directory} is {run.summary['status']}: run it again"
            )
        for cell in cells(run):
            seeds = found.setdefault(cell, {})
            seed = run.summary["seed"]
            if seed in seeds:
                raise ConfigError(f"{run.directory} repeats {seeds[seed].directory}: remove one")
            seeds[seed] = run
    wanted = {Cell(d, s, m) for d in DATA for s in STRAGGLERS for m in METHODS}
    if set(found) != wanted:
        raise ConfigError(
            f"missing runs: {sorted(wanted - set(found))}; runs of something else: "
            f"{sorted(set(found) - wanted)}"
        )
    lengths = {
        (tuple(sorted(seeds)), len(run.history))
        for seeds in found.values()
        for run in seeds.values()
    }
    if len(lengths) != 1:
        raise ConfigError(f"runs differ in seeds or in evaluations: {sorted(lengths)}")
    return found


def curves(runs: Mapping[int, Run], metric: str) -> Curves:
    """Returns a metric by seed and round, from round 0: shape (seeds, rounds + 1)."""
    return np.array([[row[metric] for row in runs[seed].history] for seed in sorted(runs)])


# ---- tables --------------------------------------------------------------------------------------


def spread(values: Curves, digits: int) -> str:
    """Returns mean ± sample standard deviation."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def table(found: Found, metric: str, digits: int, value: Callable[[Curves], Curves]) -> str:
    """Returns a Markdown table: a row for each panel of the figure, a column for each method."""
    lines = ["| data | stragglers | " + " | ".join(METHODS) + " |", "|---|---:|" + "---:|" * 3]
    for data in DATA:
        for s in STRAGGLERS:
            numbers = [
                spread(value(curves(found[Cell(data, s, m)], metric)), digits) for m in METHODS
            ]
            lines.append(f"| {data} | {100 * s:.0f} % | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def orderings(found: Found) -> str:
    """Returns a Markdown table: in how many seeds the paper's order of final losses holds."""
    lines = [
        "| data | stragglers | FedAvg > mu = 0 | mu = 0 > mu = 1 | both |",
        "|---|---:|---:|---:|---:|",
    ]
    for data in DATA:
        for s in STRAGGLERS[1:]:
            fedavg, partial, proximal = (
                curves(found[Cell(data, s, m)], "train_objective")[:, -1] for m in METHODS
            )
            first, second = fedavg > partial, partial > proximal
            counts = " | ".join(f"{c.sum()} of {len(c)}" for c in (first, second, first & second))
            lines.append(f"| {data} | {100 * s:.0f} % | {counts} |")
    return "\n".join(lines)


def tables(found: Found) -> Iterator[str]:
    """Yields the tables with their titles."""
    seeds = next(iter(found.values()))
    rounds = len(next(iter(seeds.values())).history) - 1
    hours = sum(r.summary["totals"]["wall_s"] for r in unique(found)) / 3600
    numbers = ", ".join(map(str, sorted(seeds)))
    yield (
        f"{len(unique(found))} runs of {rounds} rounds; seeds {numbers}; {hours:.1f} hours, added "
        "up over the runs. Numbers are mean ± sample standard deviation over the seeds."
    )
    yield f"**Training loss f(w) after round {rounds}**"
    yield table(found, "train_objective", 3, lambda c: c[:, -1])
    yield f"**Training loss, mean of the last {LAST} rounds**"
    yield table(found, "train_objective", 3, lambda c: c[:, -LAST:].mean(axis=1))
    yield f"**Test accuracy after round {rounds}, in %**"
    yield table(found, "accuracy", 1, lambda c: 100 * c[:, -1])
    yield "**Instability: sum of all rises of the training loss from one round to the next**"
    yield table(found, "train_objective", 2, lambda c: np.maximum(np.diff(c), 0).sum(axis=1))
    yield f"**Dissimilarity, mean of the last {LAST} rounds**"
    yield table(found, "dissimilarity", 2, lambda c: c[:, -LAST:].mean(axis=1))
    yield f"**Seeds in which the paper's order of training losses holds after round {rounds}**"
    yield orderings(found)


def unique(found: Found) -> list[Run]:
    """Returns every run once."""
    return list({run.directory: run for seeds in found.values() for run in seeds.values()}.values())


# ---- figure --------------------------------------------------------------------------------------


def draw(found: Found, metric: str, label: str, factor: float, path: Path) -> None:
    """Draws a metric against rounds: a column for each data set, a row for each straggler level.

    Lines are means over seeds, bands one sample standard deviation to either side.
    """
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(len(STRAGGLERS), len(DATA), sharex=True, sharey="col")
    for r, s in enumerate(STRAGGLERS):
        for c, data in enumerate(DATA):
            panel = axes[r][c]
            for method, (colour, dash) in LOOKS.items():
                values = factor * curves(found[Cell(data, s, method)], metric)
                rounds = np.arange(values.shape[1])
                mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
                low, high = mean - deviation, mean + deviation
                panel.plot(rounds, mean, dash, color=colour, label=method, linewidth=1.8)
                panel.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.grid(color="#D9D9D9", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_xlim(0, rounds[-1])
            if r == 0:
                panel.set_title(data, fontsize=11)
            if r == len(STRAGGLERS) - 1:
                panel.set_xlabel("round")
            if c == 0:
                panel.set_ylabel(f"{100 * s:.0f} % stragglers\n{label}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Reads the runs, writes the tables and the figures."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = collect(find_runs(sys.argv[1]))
    replace_tables(HERE / "README.md", "\n\n".join(tables(found)))
    draw(found, "train_objective", "training loss", 1.0, HERE / "training_loss.png")
    draw(found, "accuracy", "test accuracy (%)", 100.0, HERE / "test_accuracy.png")


if __name__ == "__main__":
    main()
