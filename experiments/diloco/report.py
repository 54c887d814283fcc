"""Table and figures of the runs of run.sh, at three bandwidths.

    FL_DATA_DIR=... python experiments/diloco/report.py outputs/diloco experiments/diloco

Losses against rounds are those of the runs, at one bandwidth; times at the others are those of
times.py. Every method is shown at its best learning rate: the least final loss, mean over seeds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from times import GBPS, METHODS, at, timed

from fl.reports.runs import Run, find_runs

CURVE = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # Gbit/s, of which GBPS are some


def rate(run: Run) -> float:
    """Returns the learning rate of a run's gradients."""
    config = run.summary["config"]
    rule = config["client"]["rule"]
    return float(rule["lr"] if "lr" in rule else config["strategy"]["optimizer"]["lr"])


def final(run: Run) -> float:
    """Returns the loss of a run's last model."""
    return float(run.summary["final"]["loss"])


def chosen(root: Path, name: str) -> list[Run]:
    """Returns the runs of a method at its best learning rate; none if there are none."""
    by_rate: dict[float, list[Run]] = defaultdict(list)
    for run in find_runs(root / name) if (root / name).exists() else []:
        by_rate[rate(run)].append(run)
    if not by_rate:
        return []
    for value, runs in sorted(by_rate.items()):
        losses = ", ".join(f"{final(run):.3f}" for run in runs)
        print(f"{name}, rate {value:g}: {losses}")
    return by_rate[min(by_rate, key=lambda value: fmean(map(final, by_rate[value])))]


def main(root: Path, out: Path) -> None:
    """Prints the table and draws the figures."""
    times = {(m, g): timed([*METHODS[m], at(g)]) for m in METHODS for g in CURVE}
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), sharey=True, layout="constrained")
    lines = [
        "| method | rate | seeds | final loss | sent by an island | "
        + " | ".join(f"{g:g} Gbit/s" for g in GBPS)
        + " |",
        "| --- " * (5 + len(GBPS)) + "|",
    ]
    extra = sorted(
        path.name for path in root.iterdir() if path.is_dir() and path.name not in METHODS
    )
    for name in [*METHODS, *extra]:
        runs = chosen(root, name)
        if not runs:
            continue
        losses = [final(run) for run in runs]
        spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
        mb = runs[0].summary["totals"]["bytes_up"] / 4e6
        cells = [name, f"{rate(runs[0]):g}", str(len(runs)), f"{fmean(losses):.3f}{spread}"]
        cells.append(f"{mb:.2f} MB")
        # Not the first: it cost nothing, which a logarithmic axis cannot show.
        histories = [list(run.history)[1:] for run in runs]
        rounds = [int(row["round"]) for row in histories[0]]
        loss = np.mean([[row["loss"] for row in history] for history in histories], axis=0)
        for gbps, axis in zip(GBPS, axes[:3], strict=True):
            if name not in METHODS:
                cells.append("")
                continue
            found = times[name, gbps]
            share = found.run.summary["totals"]["utilisation"]
            cells.append(f"{found.times[-1]:.0f} s, {100 * share:.1f} %")
            axis.plot([found.times[r] for r in rounds], loss, "o-", ms=3, label=name)
        if name in METHODS:
            sent = [row["bytes_up"] / 4e6 for row in histories[0]]
            axes[3].plot(sent, loss, "o-", ms=3, label=name)
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(["", *lines]))
    for gbps, axis in zip(GBPS, axes[:3], strict=True):
        axis.set(xscale="log", xlabel="simulated time, s", title=f"{gbps:g} Gbit/s")
    axes[3].set(xscale="log", xlabel="MB sent by an island", title="bytes")
    axes[0].set_ylabel("held-out loss")
    axes[3].legend(fontsize="x-small")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(out / "loss.png", dpi=110)

    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for name in METHODS:
        shares = [100 * times[name, g].run.summary["totals"]["utilisation"] for g in CURVE]
        axis.semilogx(CURVE, shares, "o-", ms=3, label=name)
    axis.set(xlabel="Gbit/s", ylabel="computing, %", title="four islands, H = 30, 0.1 s a step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    figure.savefig(out / "bandwidth.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
