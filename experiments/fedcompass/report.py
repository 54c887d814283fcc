"""Tables and figure of this experiment: python experiments/fedcompass/report.py outputs/fedcompass.

Reads the runs at or below the given folder, replaces the tables in README.md between the two
`report` marks, and draws test_accuracy.png beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fl.errors import ConfigError
from fl.reports import Run, find_runs
from fl.reports.page import replace_tables
from fl.reports.plots import PALETTE

HERE = Path(__file__).parent
METHODS = {
    "FedCompass": "FedCompass",
    "FedAvg": "FedAvg",
    "FedAsync": "FedAsync",
    "FedBuff": "FedBuff, K = 3",
}
LAWS = {"Constant": "homogeneous", "Normal": "normal", "Exponential": "exponential"}
TARGETS = (0.85, 0.9)


class Cell(NamedTuple):
    """What one line of the figure was run with."""

    clients: int
    law: str
    method: str


Found = Mapping[Cell, Mapping[int, Run]]


def collect(runs: Iterable[Run]) -> dict[Cell, dict[int, Run]]:
    """Returns the runs of each cell by seed.

    Raises:
        ConfigError: a run did not complete, is there twice, or a method lacks a seed.
    """
    found: dict[Cell, dict[int, Run]] = {}
    for run in runs:
        if run.summary["status"] != "completed":
            raise ConfigError(f"the run in {run.directory} is {run.summary['status']}: repeat it")
        config = run.summary["config"]
        law = config["fleet"]["client_slowdown"]["_target_"].rpartition(".")[2]
        method = config["strategy"]["rule"]["_target_"].rpartition(".")[2]
        seeds = found.setdefault(Cell(config["num_clients"], LAWS[law], METHODS[method]), {})
        if run.summary["seed"] in seeds:
            raise ConfigError(f"{run.directory} repeats a run: remove one")
        seeds[run.summary["seed"]] = run
    if len({tuple(sorted(seeds)) for seeds in found.values()}) != 1:
        raise ConfigError("methods differ in their seeds: run what is missing")
    settings = {(cell.clients, cell.law) for cell in found}
    if len(found) != len(settings) * len(METHODS):
        raise ConfigError("a method is missing somewhere: run it")
    return found


def settings(found: Found) -> list[tuple[int, str]]:
    """Returns the numbers of clients and the laws that were run, in the order of the page."""
    order = list(LAWS.values())
    return sorted({(c.clients, c.law) for c in found}, key=lambda s: (s[0], order.index(s[1])))


def seconds_to(run: Run, target: float) -> float:
    """Returns the simulated seconds at the first evaluation that meets a target; NaN if none."""
    return next((row["time_s"] for row in run.history if row["accuracy"] >= target), np.nan)


def accuracy_at(run: Run, time_s: float) -> float:
    """Returns the accuracy of the last evaluation not later than a time."""
    return [row["accuracy"] for row in run.history if row["time_s"] <= time_s][-1]


# ---- tables --------------------------------------------------------------------------------------


def relative(found: Found, target: float) -> str:
    """Returns a Markdown table of time to a target, relative to FedCompass with the same seed."""
    lines = [
        "| clients | paces | FedCompass, s | " + " | ".join(METHODS.values()) + " |",
        "|---:|---|---:|" + "---:|" * len(METHODS),
    ]
    for clients, law in settings(found):
        times = {
            m: np.array(
                [seconds_to(run, target) for _, run in sorted(found[clients, law, m].items())]
            )
            for m in METHODS.values()
        }
        base = times["FedCompass"]
        cells = [ratio(times[m], base) for m in METHODS.values()]
        lines.append(f"| {clients} | {law} | {spread(base, 0)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(values: np.ndarray, base: np.ndarray) -> str:
    """Returns mean ± deviation of the ratios there are, and how many seeds got there if not all."""
    ratios = (values / base)[np.isfinite(values / base)]
    reached = np.isfinite(values).sum()
    text = "-" if not len(ratios) else f"{ratios.mean():.2f}"
    if len(ratios) > 1:
        text += f" ± {ratios.std(ddof=1):.2f}"
    return text if reached == len(values) else f"{text} ({reached} of {len(values)})"


def spread(values: np.ndarray, digits: int) -> str:
    """Returns mean ± sample standard deviation."""
    if not np.isfinite(values).all():
        return "not reached by all"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def accuracies(found: Found) -> str:
    """Returns a Markdown table of the accuracy when the first of the methods' runs ends."""
    lines = [
        "| clients | paces | at, s | " + " | ".join(METHODS.values()) + " |",
        "|---:|---|---:|" + "---:|" * len(METHODS),
    ]
    for clients, law in settings(found):
        runs = {m: [r for _, r in sorted(found[clients, law, m].items())] for m in METHODS.values()}
        ends = [
            min(run.history[-1]["time_s"] for run in same)
            for same in zip(*runs.values(), strict=True)
        ]
        values = [
            spread(np.array([100 * accuracy_at(r, t) for r, t in zip(rs, ends, strict=True)]), 1)
            for rs in runs.values()
        ]
        lines.append(f"| {clients} | {law} | {np.mean(ends):.0f} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def staleness(found: Found) -> str:
    """Returns a Markdown table of mean staleness and of the share of time that clients compute."""
    lines = [
        "| clients | paces | "
        + " | ".join(f"{m}: staleness, busy" for m in METHODS.values())
        + " |",
        "|---:|---|" + "---:|" * len(METHODS),
    ]
    for clients, law in settings(found):
        cells = []
        for m in METHODS.values():
            runs = list(found[clients, law, m].values())
            taus = [row["staleness"] for r in runs for row in r.history if "staleness" in row]
            tau = f"{np.mean(taus):.1f}" if taus else "0"
            cells.append(f"{tau}, {100 * np.mean([busy(r, clients) for r in runs]):.0f} %")
        lines.append(f"| {clients} | {law} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def busy(run: Run, clients: int) -> float:
    """Returns the share of the clients' time in which they computed."""
    totals, fleet = run.summary["totals"], run.summary["config"]["fleet"]
    return float(
        totals["energy_j"]["compute"] / fleet["compute_w"] / (clients * totals["virtual_s"])
    )


def tables(found: Found) -> Iterator[str]:
    """Yields the tables with their titles."""
    runs = [run for seeds in found.values() for run in seeds.values()]
    hours = sum(run.summary["totals"]["wall_s"] for run in runs) / 3600
    seeds = ", ".join(map(str, sorted(next(iter(found.values())))))
    yield (
        f"{len(runs)} runs; seeds {seeds}; {hours:.1f} hours, added up over the runs. Numbers are "
        "mean ± sample standard deviation over the seeds. A ratio is taken seed by seed, where "
        "both methods got there; *(2 of 3)* says in how many seeds the method itself did before "
        "its run ended."
    )
    for target in TARGETS:
        yield f"**Simulated time to {100 * target:.0f} % test accuracy, FedCompass = 1**"
        yield relative(found, target)
    yield "**Test accuracy in %, when the first of the four methods' runs ends**"
    yield accuracies(found)
    yield "**Mean staleness in versions, and share of the clients' time spent computing**"
    yield staleness(found)


# ---- figure --------------------------------------------------------------------------------------


def draw(found: Found, path: Path) -> None:
    """Draws accuracy against simulated time: a panel for each setting, a line for each seed."""
    chosen = settings(found)
    columns = 3
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(11, 0.6 + 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (clients, law) in zip(axes, chosen, strict=False):
        ends = []
        for k, method in enumerate(METHODS.values()):
            for seed, run in sorted(found[clients, law, method].items()):
                times = [row["time_s"] for row in run.history]
                label = method if seed == 0 else None
                panel.plot(
                    times,
                    [100 * row["accuracy"] for row in run.history],
                    color=PALETTE[k],
                    linewidth=1.2,
                    label=label,
                )
                ends.append(times[-1])
        panel.set_title(f"{clients} clients, {law}", fontsize=11)
        panel.set_xlim(0, float(np.median(ends)))
        panel.set_ylim(40, 96)
        panel.set_xlabel("simulated time (s)")
        panel.set_ylabel("test accuracy (%)")
        panel.grid(color="#D9D9D9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[len(chosen) :]:
        panel.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), frameon=False)
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
