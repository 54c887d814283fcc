"""Tables and figure of this experiment: python experiments/dbw/report.py outputs/dbw.

Reads the runs at or below the given folder, replaces the tables in README.md between the two
`report` marks, and draws time_to_target.png beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.reports import Run, find_runs
from fl.reports.page import replace_tables
from fl.reports.plots import PALETTE

HERE = Path(__file__).parent
LAWS = {
    "exponential": "Exp(1)",
    "exponential_500": "Exp(1), batches of 500",
    "shifted": "0.8 + 0.2 Exp(1)",
    "measured": "measured",
}
N, ETA = 16, 0.2  # workers, and DBW's learning rate
RATES: Mapping[str, Callable[[int], float]] = {
    "the same rate": lambda b: ETA,
    "a rate in proportion to k = n - b": lambda b: ETA * (N - b) / N,
}
Times = NDArray[np.float64]
"""Simulated seconds to the target, one for each seed; NaN where it is not reached."""


def times(runs: list[Run]) -> Times:
    """Returns the runs' times in the order of their seeds.

    Raises:
        ConfigError: a run did not complete.
    """
    for run in runs:
        if run.summary["status"] != "completed":
            raise ConfigError(f"the run in {run.directory} is {run.summary['status']}: repeat it")
    seconds = {run.summary["seed"]: run.summary["target"]["time_s"] for run in runs}
    return np.array([np.nan if seconds[s] is None else seconds[s] for s in sorted(seconds)])


def dynamic(root: Path, law: str) -> Times:
    """Returns the times of DBW."""
    return times(find_runs(root / law / "dbw"))


def static(root: Path, law: str, rate: Callable[[int], float]) -> dict[int, Times]:
    """Returns the times of every static b at its learning rate."""
    found: dict[int, list[Run]] = {}
    for run in find_runs(root / law):
        strategy = run.summary["config"]["strategy"]["rule"]
        if strategy["_target_"].endswith("DBW"):
            continue
        b = strategy["backup"]
        if abs(strategy["eta"] - rate(b)) < 1e-9:
            found.setdefault(b, []).append(run)
    return {b: times(found[b]) for b in sorted(found)}


def shown(values: Times) -> str:
    """Returns mean and range over the seeds, or how many got there if not all."""
    reached = int(np.isfinite(values).sum())
    if reached < len(values):
        return f"- ({reached} of {len(values)})"
    return f"{values.mean():.0f} ({values.min():.0f} to {values.max():.0f})"


def table(root: Path, rate: Callable[[int], float]) -> str:
    """Returns a Markdown table: a row for each b, a column for each law."""
    columns = {law: static(root, law, rate) for law in LAWS}
    lines = ["| b | " + " | ".join(LAWS.values()) + " |", "|---|" + "---:|" * len(LAWS)]
    for b in next(iter(columns.values())):
        lines.append(f"| {b} | " + " | ".join(shown(columns[law][b]) for law in LAWS) + " |")
    lines.append("| **DBW** | " + " | ".join(shown(dynamic(root, law)) for law in LAWS) + " |")
    ratios = []
    for law, found in columns.items():
        means = {b: values.mean() for b, values in found.items() if np.isfinite(values).all()}
        best = min(means, key=means.__getitem__)
        ratios.append(f"{means[best] / dynamic(root, law).mean():.2f} (b = {best})")
    return "\n".join([*lines, "| best b / DBW | " + " | ".join(ratios) + " |"])


def draw(root: Path, path: Path) -> None:
    """Draws the time to the target against b, with DBW as a line."""
    figure = Figure(figsize=(3.4 * len(LAWS), 3.4), layout="constrained")
    panels = figure.subplots(1, len(LAWS))
    for panel, (law, title) in zip(panels, LAWS.items(), strict=True):
        for color, (label, rate) in zip(PALETTE, RATES.items(), strict=False):
            found = static(root, law, rate)
            means = [values.mean() for values in found.values()]
            panel.plot(list(found), means, "o-", color=color, label=f"static b, {label}")
        mean = dynamic(root, law).mean()
        panel.axhline(mean, color="black", linestyle="--", label="DBW")
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("backup workers b")
        panel.set_ylim(0, 150)
        panel.grid(color="#D9D9D9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("simulated seconds to 90 %")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Reads the runs, writes the tables, draws the figure."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/dbw")
    parts = []
    for label, rate in RATES.items():
        parts += [f"**Simulated seconds to 90 %, static b at {label}: mean (range)**"]
        parts += [table(root, rate)]
    replace_tables(HERE / "README.md", "\n\n".join(parts))
    draw(root, HERE / "time_to_target.png")


if __name__ == "__main__":
    main()
