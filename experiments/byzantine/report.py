"""Tables and heat-map of this experiment: python experiments/byzantine/report.py outputs/byzantine.

Reads the runs below the given folder, replaces the tables in README.md between the two `report`
marks, and draws heatmap.png beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fl.errors import ConfigError
from fl.reports import Run, find_runs
from fl.reports.page import replace_tables

HERE = Path(__file__).parent
NO_ATTACK = "none"
# What chooses a member leaves in the configuration: the class, and what the members differ in.
ATTACKS = {
    "none": "none",
    "sign_flip": "sign flip",
    "ipm": "IPM",
    "ipm_optimized": "IPM, opt.",
    "alie": "ALIE",
    "alie_optimized": "ALIE, opt.",
    "mimic": "mimic",
    "min_max": "MinMax",
    "min_sum": "MinSum",
    "gauss": "Gauss",
    "label_flip": "label flip",
}
RULES = {
    "mean": "mean",
    "median": "median",
    "trimmed_mean": "trimmed mean",
    "meamed": "MeaMed",
    "geometric_median": "geometric median",
    "krum": "Krum",
    "multi_krum": "Multi-Krum",
    "bulyan": "Bulyan",
    "caf": "CAF",
    "mda": "MDA",
    "smea": "SMEA",
    "faba": "FABA",
    "norm_clipping": "norm clipping",
    "norm_elimination": "norm elimination",
    "flag": "Flag",
    "monna": "MoNNA's rule *",
    "fltrust": "FLTrust *",
    "bucketing_median": "bucketing, median",
    "nnm_trimmed_mean": "NNM, trimmed mean",
    "nnm_krum": "NNM, Krum",
    "nnm_geometric_median": "NNM, geom. median",
    "arc_nnm_trimmed_mean": "ARC, NNM, trimmed mean",
}
SETTINGS = {
    ("iid", 3): "IID, f = 3",
    ("iid", 5): "IID, f = 5",
    ("dirichlet", 3): "Dirichlet(0.5), f = 3",
    ("dirichlet", 5): "Dirichlet(0.5), f = 5",
}


class Cell(NamedTuple):
    """What a run of the grid was run with."""

    partition: str
    f: int
    attack: str
    rule: str


Accuracies = Mapping[Cell, float]


def chosen(run: Run, group: str) -> str:
    """Returns the member of a group that a run was started with: "none" if there is none."""
    for override in run_overrides(run):
        key, _, value = override.partition("=")
        if key == group:
            return value
    return NO_ATTACK


def run_overrides(run: Run) -> Sequence[str]:
    """Returns the arguments a job of the sweep was started with, which Hydra keeps beside it."""
    if run.directory is None:
        raise ConfigError("a run without a directory has no overrides")
    text = (run.directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
    return [line.removeprefix("- ").strip("'\"") for line in text.splitlines()]


def cell(run: Run) -> Cell:
    """Returns the place of a run in the grid."""
    config: Mapping[str, Any] = run.summary["config"]
    return Cell(
        chosen(run, "partition"),
        config["strategy"]["f"],
        chosen(run, "attack"),
        defence(run),
    )


def defence(run: Run) -> str:
    """Returns a run's aggregation rule, after the pre-aggregations before it, if there are any."""
    before = chosen(run, "preaggregation").strip("[]").split(",")
    return "_".join([*(name for name in before if name != NO_ATTACK), chosen(run, "aggregator")])


def runs_of(folder: Path, *parts: str) -> list[Run]:
    """Returns the completed runs of some sweeps; those that a rule refused are left out.

    Raises:
        ConfigError: there are none, or one was interrupted or failed for another reason.
    """
    runs = [run for part in parts for run in find_runs(folder / part)]
    for run in runs:
        status, error = run.summary["status"], str(run.summary["error"])
        if status != "completed" and "may be Byzantine:" not in error:
            raise ConfigError(f"the run in {run.directory} is {status}: run it again")
    return [run for run in runs if run.summary["status"] == "completed"]


def accuracies(runs: Sequence[Run]) -> dict[Cell, float]:
    """Returns the final test accuracy of each cell, in percent."""
    found: dict[Cell, float] = {}
    for run in runs:
        place = cell(run)
        if place in found:
            raise ConfigError(f"{run.directory} repeats {place}: remove one")
        found[place] = 100 * run.summary["final"]["accuracy"]
    return found


# ---- the grid ------------------------------------------------------------------------------------


def matrix(found: Accuracies, partition: str, f: int) -> np.ndarray:
    """Returns accuracies by rule and attack, NaN where the rule refuses f.

    Raises:
        ConfigError: a run is missing.
    """
    rows = []
    for rule in RULES:
        row = [found.get(Cell(partition, f, attack, rule), np.nan) for attack in ATTACKS]
        if np.isnan(row).any() and not np.isnan(row).all():
            missing = [a for a, value in zip(ATTACKS, row, strict=True) if np.isnan(value)]
            raise ConfigError(f"{partition}, f={f}, {rule}: no runs with {', '.join(missing)}")
        rows.append(row)
    return np.array(rows)


def worst(values: np.ndarray) -> np.ndarray:
    """Returns each rule's accuracy under the attack that is worst for it."""
    return values[:, 1:].min(axis=1)


def draw(found: Accuracies, path: Path) -> None:
    """Draws a heat-map for each setting: a row for each rule, a column for each attack."""
    figure = Figure(figsize=(15, 14.5), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for i, (panel, ((partition, f), title)) in enumerate(
        zip(panels, SETTINGS.items(), strict=True)
    ):
        values = matrix(found, partition, f)
        shown = np.column_stack([values, np.full(len(values), np.nan), worst(values)])
        image = panel.imshow(shown, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (r, c), value in np.ndenumerate(shown):
            if np.isfinite(value):
                colour = "white" if value < 60 else "black"
                panel.text(c, r, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
            elif c == 0:
                panel.text(0, r, "  needs a larger n", va="center", color="#555555", fontsize=8)
        columns = [*ATTACKS.values(), "", "worst"]
        panel.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=9)
        panel.tick_params(length=0)
        panel.set_yticks(range(len(RULES)), RULES.values() if i % 2 == 0 else [], fontsize=9)
        panel.set_title(title, fontsize=12)
        panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.5, location="bottom", pad=0.02)
    bar.set_label("test accuracy after the last round (%)")
    figure.savefig(path, dpi=80, metadata={"Software": None})


def worst_table(found: Accuracies) -> str:
    """Returns the worst case of each rule in each setting, and what it costs without an attack."""
    lines = [
        "| rule | "
        + " | ".join(f"{title}: none | worst, by" for title in SETTINGS.values())
        + " |",
        "|---|" + "---:|---|" * len(SETTINGS),
    ]
    for r, label in enumerate(RULES.values()):
        cells = []
        for partition, f in SETTINGS:
            values = matrix(found, partition, f)[r]
            if np.isnan(values).all():
                cells.append(" | refused")
                continue
            attack = list(ATTACKS.values())[1 + int(values[1:].argmin())]
            cells.append(f"{values[0]:.1f} | {values[1:].min():.1f}, {attack}")
        lines.append(f"| {label.replace('*', chr(92) + '*')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---- the other comparisons -----------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Returns a Markdown table of percentages; NaN is empty."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for label, values in rows:
        numbers = [f"{v:.1f}" if np.isfinite(v) else "" for v in values]
        lines.append(f"| {label} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def start_table(folder: Path, found: Accuracies) -> str:
    """Returns accuracies of the geometric median from either start, beside the mean's."""
    attacks = ("alie_optimized", "ipm_optimized", "min_max")
    places = [(partition, 5, attack) for partition in ("iid", "dirichlet") for attack in attacks]
    rfa = accuracies(runs_of(folder, "rfa"))
    rows = [
        ("mean", [found[Cell(*place, "mean")] for place in places]),
        ("start=mean", [rfa.get(Cell(*place, "geometric_median"), np.nan) for place in places]),
        ("start=half", [found[Cell(*place, "geometric_median")] for place in places]),
    ]
    names = [f"{'IID' if p == 'iid' else 'Dirichlet'}: {ATTACKS[a]}" for p, _, a in places]
    return table(["geometric median", *names], rows)


MONNA_ATTACKS = ("none", "alie_optimized", "ipm_optimized", "sign_flip", "label_flip")


def monna_table(runs: Sequence[Run]) -> str:
    """Returns accuracies by rule, with and without momentum, and attack."""
    found = {}
    for run in runs:
        beta = run.summary["config"]["client"]["rule"]["beta"]
        key = chosen(run, "aggregator"), beta, chosen(run, "attack")
        found[key] = 100 * run.summary["final"]["accuracy"]
    methods = [
        ("mean", 0.99, "mean, momentum"),
        ("monna", 0.99, "MoNNA's rule, momentum"),
        ("trimmed_mean", 0.99, "trimmed mean, momentum"),
        ("geometric_median", 0.99, "geometric median, momentum"),
        ("centered_clipping", 0.99, "centered clipping, momentum"),
        ("monna", 0.0, "MoNNA's rule, no momentum"),
        ("trimmed_mean", 0.0, "trimmed mean, no momentum"),
    ]
    rows = [
        (label, [found.get((rule, beta, attack), np.nan) for attack in MONNA_ATTACKS])
        for rule, beta, label in methods
    ]
    return table(["rule", *(ATTACKS[a] for a in MONNA_ATTACKS)], rows)


FLAG_RULES = {
    "paper": "Flag, form=paper",
    "repo": "Flag, form=repo",
    "bulyan": "Bulyan",
    "multi_krum": "Multi-Krum",
    "median": "median",
    "meamed": "MeaMed",
    "trimmed_mean": "trimmed mean",
    "mean": "mean",
}


def flag_table(runs: Sequence[Run]) -> str:
    """Returns accuracies by rule and f."""
    found = {
        (
            run.summary["config"]["aggregator"].get("form") or chosen(run, "aggregator"),
            run.summary["config"]["num_byzantine"],
        ): 100 * run.summary["final"]["accuracy"]
        for run in runs
    }
    rows = [
        (label, [found.get((rule, f), np.nan) for f in (0, 3)])
        for rule, label in FLAG_RULES.items()
    ]
    return table(["rule", "no attack", "uniform noise of 3 workers"], rows)


def report(folder: Path, found: Accuracies, grid: Sequence[Run]) -> Iterator[str]:
    """Yields the tables with their titles."""
    rounds = grid[0].summary["config"]["num_rounds"]
    refused = len(find_runs(folder / "grid")) - len(runs_of(folder, "grid"))
    hours = sum(run.summary["totals"]["wall_s"] for run in grid) / 3600
    yield (
        f"{len(grid)} runs of {rounds} rounds, seed {grid[0].summary['seed']}; {hours:.1f} hours, "
        f"added up over the runs; {refused} jobs more were refused, since the rule needs a larger "
        "n. Test accuracy after the last round, in percent."
    )
    yield "**Without an attack, and under the attack that is worst for the rule**"
    yield worst_table(found)
    yield "**Geometric median, f = 5**"
    yield start_table(folder, found)
    monna = runs_of(folder, "monna", "monna_median", "monna_clipping", "monna_plain", "monna_none")
    yield "**MoNNA's comparison, n = 26, f = 5**"
    yield monna_table(monna)
    yield "**The Flag Aggregator's comparison, n = 15, CIFAR-10**"
    yield flag_table(runs_of(folder, "flag", "flag_repo", "flag_none", "flag_repo_none"))


def main() -> None:
    """Reads the runs, writes the tables and the heat-map."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    grid = runs_of(folder, "grid", "none")
    found = accuracies(grid)
    replace_tables(HERE / "README.md", "\n\n".join(report(folder, found, grid)))
    draw(found, HERE / "heatmap.png")


if __name__ == "__main__":
    main()
