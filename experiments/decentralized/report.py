"""Tables and figures: python experiments/decentralized/report.py outputs/decentralized [PART ...].

Reads the runs below the given folder, replaces the tables in README.md between the two `report`
marks, and draws the figures beside it. Parts that were not run are left out.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from fl.errors import ConfigError
from fl.reports import Run, find_runs, plots
from fl.reports.page import replace_tables
from fl.runs.sweep import overrides

HERE = Path(__file__).parent
METHODS = {
    "dpsgd": "D-PSGD",
    "dfedavg": "DFedAvg",
    "gradient_tracking": "gradient tracking",
    "sgp": "SGP",
    "adpsgd": "AD-PSGD",
    "choco": "CHOCO, 8 bits",
    "fedavg": "FedAvg, with a server",
    "dfedavgm": "DFedAvgM",
    "dfedsam": "DFedSAM",
    "dfedsam_mgs": "DFedSAM-MGS",
    "monna": "MoNNA",
}
DATA = {"iid": "IID", "dirichlet": "Dirichlet"}


def value(run: Run, metric: str) -> float | None:
    """Returns a metric of the final model; None if the run has none."""
    found = run.summary["final"].get(metric)
    return None if found is None else float(found)


def shown(runs: Sequence[Run], metric: str, digits: int = 3) -> str:
    """Returns a final metric, mean ± deviation over seeds."""
    values = [v for run in runs if (v := value(run, metric)) is not None]
    if not values:
        return "-"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def total(runs: Sequence[Run], name: str) -> float:
    """Returns the mean of a total."""
    return fmean(float(run.summary["totals"][name]) for run in runs)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *([*row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def completed(folder: Path) -> list[tuple[Mapping[str, str], Run]]:
    """Returns the runs below a folder with the arguments they were started with.

    Raises:
        ConfigError: one was interrupted or failed.
    """
    runs = [(overrides(run), run) for run in find_runs(folder)]
    for _, run in runs:
        if run.summary["status"] != "completed":
            raise ConfigError(f"the run in {run.directory} is {run.summary['status']}: repeat it")
    return runs


def topologies(folder: Path) -> str:
    """Returns the tables of algorithm and topology; draws the figures."""
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Run]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for found, run in completed(folder):
        setting = found["num_clients"], found["partition"]
        groups[setting][found["strategy"], found["topology"]].append(run)
    parts = []
    for (n, partition), cells in sorted(groups.items(), key=lambda item: (int(item[0][0]), item)):
        header = (
            "method",
            "topology",
            "mean model",
            "nodes",
            "worst node",
            "consensus rms",
            "rounds",
            "MB a node",
        )
        rows = [
            (
                METHODS[method],
                f"`{topology}`",
                shown(runs, "accuracy"),
                shown(runs, "node_accuracy"),
                shown(runs, "node_accuracy_min"),
                shown(runs, "consensus_rms", 2),
                f"{fmean(float(run.history[-1]['round']) for run in runs):.0f}",
                f"{total(runs, 'bytes_up') / 1e6 / int(n):.0f}",
            )
            for (method, topology), runs in cells.items()
        ]
        parts.append(f"#### {n} nodes, {DATA[partition]}\n\n{table(header, rows)}")
        chosen = {
            f"{METHODS[method]}, {topology}": runs
            for (method, topology), runs in cells.items()
            if topology in ("ring", "one_peer_exponential", "complete")
            and (method != "sgp" or topology == "one_peer_exponential")
            and method in ("dpsgd", "adpsgd", "choco", "sgp", "gradient_tracking")
            and (topology == "ring" or method in ("dpsgd", "sgp"))
        }
        for metric in ("node_accuracy", "consensus_rms"):
            path = HERE / f"{metric}_{n}_{partition}.png"
            plots.compare(chosen, metric, path, axes=("time_s", "bytes"), confidence=0.5)
    return "\n\n".join(parts)


def sam(folder: Path) -> str:
    """Returns the table of local steps towards flat minima, and draws the figure."""
    cells: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for found, run in completed(folder):
        cells[found["strategy"]][found["partition"]].append(run)
    order = [name for name in METHODS if name in cells]
    header = ["method"]
    for partition in DATA.values():
        header += [f"{partition}: mean model", "nodes", "consensus rms"]
    rows = []
    for name in order:
        row = [METHODS[name]]
        for partition in DATA:
            runs = cells[name].get(partition, [])
            row += [shown(runs, m) for m in ("accuracy", "node_accuracy", "consensus_rms")]
        rows.append(row)
    for partition in DATA:
        chosen = {METHODS[name]: cells[name][partition] for name in order if cells[name][partition]}
        if chosen:
            path = HERE / f"sam_{partition}.png"
            plots.compare(chosen, "accuracy", path, axes=("round", "time_s"), confidence=0.5)
    return table(header, rows)


def monna(folder: Path) -> str:
    """Returns the table of attacks."""
    cells: dict[str, dict[str, Run]] = defaultdict(dict)
    for found, run in completed(folder):
        beta = found.get("client.rule.beta", "0.9")
        name = f"{METHODS[found['strategy']]}, momentum {beta}"
        cells[found.get("attack", "none")][name] = run
    names = sorted({name for row in cells.values() for name in row})
    rows = [
        (
            attack.replace("_", " "),
            *(
                f"{max(float(r['accuracy']) for r in row[name].history):.3f} "
                f"({shown([row[name]], 'node_accuracy_min')})"
                if name in row
                else "-"
                for name in names
            ),
        )
        for attack, row in sorted(cells.items(), key=lambda item: (item[0] != "none", item[0]))
    ]
    return table(["attack", *names], rows)


PARTS = {
    "topologies": ("### Algorithm and topology, 120 virtual seconds", topologies),
    "sam": ("### DFedSAM, DFedAvg and FedAvg, 100 rounds", sam),
    "monna": (
        "### MoNNA under attack: best accuracy of the mean (worst node last)",
        monna,
    ),
}


def main(root: Path, parts: Sequence[str]) -> None:
    """Writes the tables into README.md."""
    made = [
        f"{title}\n\n{report(root / name)}"
        for name, (title, report) in PARTS.items()
        if name in (parts or PARTS) and (root / name).is_dir()
    ]
    replace_tables(HERE / "README.md", "\n\n".join(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
