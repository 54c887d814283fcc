"""Tables and figure of this experiment: python experiments/dbw/report.py outputs/dbw.

Reads the runs at or below the given folder, replaces the tables in README.md between the two
`report` marks, and draws time_to_target.png beside it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fl.errors import ConfigError
from fl.metrics import Run, find_runs
from fl.metrics.page import replace_tables
from fl.metrics.plots import PALETTE

HERE = Path(__file__).parent
LAWS = {
    "exponential": "Exp(1)",
    "shifted": "0.8 + 0.2 Exp(1)",
    "measured": "measured",
}


class Setting(NamedTuple):
    """A static number of backup workers and a learning rate; none of the first is DBW."""

    backup: int | None
    eta: float


Found = Mapping[str, Mapping[Setting, Mapping[int, float]]]


def collect(root: Path) -> Found:
    """Returns the seconds to the target by law, setting and seed; NaN where it is not reached."""
    found: dict[str, dict[Setting, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for law in LAWS:
        for run in find_runs(root / law):
            strategy = run.summary["config"]["strategy"]
            dynamic = strategy["_target_"].endswith("DBW")
            setting = Setting(None if dynamic else strategy["backup"], strategy["eta"])
            found[law][setting][run.summary["seed"]] = seconds(run)
    return found


def seconds(run: Run) -> float:
    """Returns the simulated seconds to the target; NaN if the run ended before.

    Raises:
        ConfigError: the run did not complete.
    """
    if run.summary["status"] != "completed":
        raise ConfigError(f"the run in {run.directory} is {run.summary['status']}: repeat it")
    time = run.summary["target"]["time_s"]
    return np.nan if time is None else float(time)


def shown(times: Mapping[int, float] | None) -> str:
    """Returns mean and range over the seeds; how many got there, if not all."""
    if times is None:
        return ""
    values = np.array([time for _, time in sorted(times.items())])
    reached = values[np.isfinite(values)]
    if len(reached) < len(values):
        return f"- ({len(reached)} of {len(values)})"
    return f"{values.mean():.1f} ({values.min():.0f} to {values.max():.0f})"


def table(found: Found, proportional: bool) -> str:
    """Returns a Markdown table: a row for each b, a column for each law."""
    eta = dynamic_rate(found)
    n = 16
    lines = ["| b | " + " | ".join(LAWS.values()) + " |", "|---|" + "---:|" * len(LAWS)]
    backups = sorted({s.backup for law in found.values() for s in law if s.backup is not None})
    for b in backups:
        rate = eta * (n - b) / n if proportional else eta
        cells = [shown(at(found[law], Setting(b, rate))) for law in LAWS]
        lines.append(f"| {b} | " + " | ".join(cells) + " |")
    cells = [shown(found[law].get(Setting(None, eta))) for law in LAWS]
    lines.append("| **DBW** | " + " | ".join(cells) + " |")
    best = [fastest(found[law], eta, proportional) for law in LAWS]
    lines.append("| best b / DBW | " + " | ".join(best) + " |")
    return "\n".join(lines)


def dynamic_rate(found: Found) -> float:
    """Returns DBW's learning rate."""
    return next(s.eta for law in found.values() for s in law if s.backup is None)


def at(runs: Mapping[Setting, Mapping[int, float]], wanted: Setting) -> Mapping[int, float] | None:
    """Returns the runs of a setting, whose rate was written in decimals."""
    for setting, times in runs.items():
        if setting.backup == wanted.backup and abs(setting.eta - wanted.eta) < 1e-9:
            return times
    return None


def fastest(runs: Mapping[Setting, Mapping[int, float]], eta: float, proportional: bool) -> str:
    """Returns the smallest mean time of the static settings, over that of DBW."""
    n = 16
    means = {
        s.backup: np.mean(list(times.values()))
        for s, times in runs.items()
        if s.backup is not None
        and abs(s.eta - (eta * (n - s.backup) / n if proportional else eta)) < 1e-9
    }
    best = min((b for b in means if np.isfinite(means[b])), key=lambda b: means[b])
    ratio = means[best] / np.mean(list(runs[Setting(None, eta)].values()))
    return f"{ratio:.2f} (b = {best})"


def draw(found: Found, path: Path) -> None:
    """Draws the time to the target against b, with DBW as a line."""
    eta = dynamic_rate(found)
    figure = Figure(figsize=(4 * len(LAWS), 3.4), layout="constrained")
    panels = figure.subplots(1, len(LAWS))
    for panel, (law, title) in zip(panels, LAWS.items(), strict=True):
        for color, label, same in zip(
            PALETTE, ("same rate", "rate in proportion to k"), (True, False), strict=False
        ):
            rows = sorted(
                (s.backup, np.mean(list(times.values())))
                for s, times in found[law].items()
                if s.backup is not None and (abs(s.eta - eta) < 1e-9) == same
            )
            panel.plot(*zip(*rows, strict=True), "o-", color=color, label=f"static b, {label}")
        dynamic = np.mean(list(found[law][Setting(None, eta)].values()))
        panel.axhline(dynamic, color="black", linestyle="--", label="DBW")
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("backup workers b")
        panel.set_yscale("log")
        panel.grid(color="#D9D9D9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("simulated seconds to 90 %")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Reads the runs, writes the tables, draws the figure."""
    found = collect(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/dbw"))
    parts = [
        "**Simulated seconds to 90 %, every b at DBW's learning rate: mean (range) of the seeds**",
        table(found, proportional=False),
        "**The same, learning rates of static b in proportion to k = n - b**",
        table(found, proportional=True),
    ]
    replace_tables(HERE / "README.md", "\n\n".join(parts))
    draw(found, HERE / "time_to_target.png")


if __name__ == "__main__":
    main()
