"""Tables and figure: python experiments/compression/report.py outputs/compression.

Reads the runs below the given folder, replaces the tables in README.md between the two `report`
marks, and draws accuracy_bytes.png beside it. quadratics.py prints the table of the quadratics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl.errors import ConfigError
from fl.reports import Run, find_runs
from fl.reports.page import replace_tables
from fl.reports.plots import PALETTE

HERE = Path(__file__).parent
# The others are too close to each other in the figure.
LABELLED = ("count_sketch", "dct_topk", "demo", "ef21", "ef_topk", "ef_topk_int8", "none")
LABELLED += ("powersgd", "qsgd", "randk", "spsa_byte", "terngrad", "topk")
LABELLED += ("sign feedback=ef", "sign compressor.scale=none", "topk compressor@then=int8")
BELOW = ("demo", "ef21", "qsgd")


def written(run: Run, group: str = "compressor") -> str:
    """Returns what a run's command line says of a compressor: `topk feedback=ef`, or "none"."""
    if run.directory is None:
        raise ConfigError("the run was not written to a directory")
    text = (run.directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
    given = [line.removeprefix("- ").strip("'\"") for line in text.splitlines()]
    beside = (f"{group.rpartition('@')[2]}.", f"{group}.")
    if group == "compressor":
        beside += ("compressor@compressor.", "compressor@then", "then.", "feedback")
    said = [o.removeprefix(f"{group}=") for o in given if o.startswith((f"{group}=", *beside))]
    return " ".join(said) or "none"


def in_sweep(root: Path, *names: str) -> list[Run]:
    """Returns the runs of sweeps by their folders' names."""
    return [run for name in names for run in find_runs(root / name)]


def up(run: Run) -> float:
    """Returns the bytes that clients sent."""
    return float(run.summary["totals"]["bytes_up"])


def down(run: Run) -> float:
    """Returns the bytes that clients received."""
    return float(run.summary["totals"]["bytes_down"])


def final(run: Run, metric: str) -> float:
    """Returns a metric's last value; infinity where it is not finite."""
    value = run.summary["final"].get(metric)
    return float("inf") if value is None else float(value)


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def ratio(value: float) -> str:
    """Returns a factor with three digits or so."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def by_bytes(runs: Sequence[Run], group: str = "compressor") -> str:
    """Returns a table of single runs, the most bytes first."""
    base = next(up(run) for run in runs if written(run, group) == "none")
    body = [
        [
            f"`{written(run, group)}`",
            f"{up(run) / 1e6:.3g}",
            ratio(base / up(run)),
            f"{100 * final(run, 'accuracy'):.1f}",
            f"{final(run, 'loss'):.3g}",
        ]
        for run in sorted(runs, key=up, reverse=True)
    ]
    return rows(["compressor", "MB up", "less by", "accuracy, %", "test loss"], body)


def named(run: Run) -> str:
    """Returns a compressor's name with its rank or density."""
    config: Mapping[str, Any] = run.summary["config"]["compressor"]
    inner = config.get("compressor") or {}
    name = f"`{written(run).split()[0]}`" if inner else f"`{written(run)}`"
    if "rank" in inner:
        name += f", rank {inner['rank']}"
    if "density" in inner:
        name += f", {100 * inner['density']:g} %"
    return name


def steps(runs: Sequence[Run]) -> str:
    """Returns a table of data-parallel runs."""
    base = next(up(run) for run in runs if written(run) == "none")
    body = [
        [
            named(run),
            ratio(base / up(run)),
            f"{32 * up(run) / base:.2f}",
            f"{100 * final(run, 'accuracy'):.2f}",
            f"{final(run, 'loss'):.4f}",
        ]
        for run in runs
    ]
    return rows(["compressor", "less by", "bits an entry", "accuracy, %", "test loss"], body)


def directions(runs: Sequence[Run]) -> str:
    """Returns a table of runs that differ in both directions."""
    body = [
        [
            f"`{written(run)}` up, `{written(run, 'compressor@downlink')}` down",
            f"{up(run) / 1e6:.2f}",
            f"{down(run) / 1e6:.2f}",
            f"{100 * final(run, 'accuracy'):.1f}",
        ]
        for run in runs
    ]
    return rows(["channels", "MB up", "MB down", "accuracy, %"], body)


def language(runs: Sequence[Run]) -> str:
    """Returns the table of the language model: what workers send and receive, and the loss."""
    dense = next(r for r in runs if rule(r).get("warmup", 0) >= rounds(r))
    body = []
    for run in runs:
        values = rule(run)
        if values.get("warmup", 0) >= rounds(run):
            name = "Adam"
        elif "warmup" in values:
            name = f"1-bit Adam, warm-up {values['warmup']} of {rounds(run)}"
        elif "beta" in values:
            name = f"DeMo, k = {values['compressor']['k']}"
        else:
            name = f"Just One Byte, {values['compressor']['samples']} a worker"
        body.append(
            [
                f"{name}, lr {values['lr']:g}",
                f"{up(run) / 1e6:.4g}",
                ratio(up(dense) / up(run)),
                f"{down(run) / 1e6:.4g}",
                ratio(down(dense) / down(run)),
                f"{final(run, 'loss'):.3f}",
            ]
        )
    return rows(["method", "MB up", "less by", "MB down", "less by", "test loss"], body)


def rule(run: Run) -> Mapping[str, Any]:
    """Returns the configuration of the rule of replicas."""
    values: Mapping[str, Any] = run.summary["config"]["strategy"]["rule"]
    return values


def rounds(run: Run) -> int:
    """Returns the number of rounds."""
    return int(run.summary["config"]["num_rounds"])


def logistic(runs: Sequence[Run]) -> str:
    """Returns the table of heterogeneous logistic regression: the global training objective."""
    rates = sorted({run.summary["config"]["client"]["rule"]["lr"] for run in runs})
    found = {(written(r), r.summary["config"]["client"]["rule"]["lr"]): r for r in runs}
    body = []
    for name in dict.fromkeys(written(run) for run in runs):
        cells = []
        for lr in rates:
            values = [
                row["train_objective"]
                for row in found[name, lr].history
                if row.get("train_objective") is not None
            ]
            cells += [f"{values[-1]:.3f}", f"{np.maximum(np.diff(values), 0).sum():.2f}"]
        body.append([f"`{name}`", *cells])
    header = [x for lr in rates for x in (f"f, lr {lr:g}", f"rises, lr {lr:g}")]
    return rows(["compressor", *header], body)


def tables(root: Path) -> Iterator[str]:
    """Yields the tables with their titles, and last the parts that have not been run."""
    missing = []
    for part, (title, sweeps, body) in PARTS.items():
        if all(any((root / sweep).rglob("summary.json")) for sweep in sweeps):
            yield f"**{title}**"
            yield body(in_sweep(root, *sweeps))
        else:
            missing.append(part)
    if missing:
        yield f"Not run on this page: {', '.join(missing)}."


PARTS: Mapping[str, tuple[str, Sequence[str], Callable[[Sequence[Run]], str]]] = {
    "mnist": (
        "MNIST, every member of the group and its variants, 30 rounds, seed 0",
        ["mnist", "mnist_signs"],
        by_bytes,
    ),
    "downlink": (
        "MNIST, both directions: all 10 clients, 30 rounds",
        ["downlink_all", "downlink_int8", "downlink_signs"],
        directions,
    ),
    "downlink, 3 of 10": (
        "MNIST, both directions: 3 of 10 clients a round, 60 rounds",
        ["downlink_some"],
        directions,
    ),
    "sgd": (
        "MNIST, data-parallel SGD, 200 steps, seed 0",
        ["sgd", "sgd_terngrad", "sgd_signs", "sgd_powersgd", "sgd_topk"],
        steps,
    ),
    "cifar": (
        "CIFAR-10, CNN, 10 rounds of 5 steps, seed 0",
        ["cifar", "cifar_signs"],
        by_bytes,
    ),
    "cifar, both directions": ("CIFAR-10, both directions", ["cifar_downlink"], directions),
    "adam, demo, byte": (
        "Character-level GPT, 0.11 million parameters, 8 workers, 150 steps, seed 0",
        ["adam", "demo", "byte_1"],
        language,
    ),
    "adam_small, byte_32": ("The same, more settings", ["adam_small", "byte_32"], language),
    "logistic": (
        "Synthetic(1, 1), logistic regression, full gradients, 1,000 rounds: f, and its rises",
        ["logistic", "logistic_econtrol"],
        logistic,
    ),
}


def draw(root: Path, path: Path) -> None:
    """Draws final accuracy against the bytes that clients sent, on MNIST and, if run, CIFAR-10."""
    panels = {"mnist": 80.0, "cifar": None}
    shown = {
        name: least for name, least in panels.items() if any((root / name).rglob("summary.json"))
    }
    figure = Figure(figsize=(6 * len(shown), 5), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, least) in zip(axes, shown.items(), strict=True):
        title, sweeps, _ = PARTS[name]
        scatter(panel, in_sweep(root, *sweeps), title, least)
        panel.set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=150)


def scatter(panel: Axes, runs: Sequence[Run], title: str, least: float | None) -> None:
    """Draws a point for each run; accuracies below `least` are drawn at it, with their number."""
    for run in runs:
        name, accuracy = written(run), 100 * final(run, "accuracy")
        shown = accuracy if least is None else max(accuracy, least)
        below = shown != accuracy
        panel.plot(up(run) / 1e6, shown, "v" if below else "o", color=PALETTE[0], alpha=0.8)
        if name in LABELLED:
            label = f"{name} {accuracy:.0f} %" if below else name
            panel.annotate(
                label,
                (up(run) / 1e6, shown),
                xytext=(4, -10) if name in BELOW else (3, 4),
                textcoords="offset points",
                fontsize=7,
                rotation=-20 if name in BELOW else 30,
            )
    panel.set_xscale("log")
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("MB sent by all clients")
    panel.grid(color="#D9D9D9", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Reads the runs, writes the tables, draws the figure."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/compression")
    replace_tables(HERE / "README.md", "\n\n".join(tables(root)))
    draw(root, HERE / "accuracy_bytes.png")


if __name__ == "__main__":
    main()
