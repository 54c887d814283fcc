"""How every benchmark says what it measured: a table on standard output and a JSON file.

A script makes its rows (one dictionary per line of the table), and ends with `publish`. The file
holds the rows, the settings and what the numbers depend on: commit, cores, versions, date. Machines
differ and are shared, so what counts are ratios of figures measured side by side in one run.

    python benchmarks/report.py [FOLDER]

prints one table of all files in a folder: each figure that has a goal, the goal, and what is left.
It adds the figures to FOLDER/history.csv, a line for each commit, and writes FOLDER/history.md with
those of the latest commits side by side. `make bench` ends with it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "outputs" / "benchmarks"
HISTORY = "history.csv"
_COLUMNS = ("commit", "date", "quick", "benchmark", "what", "figure", "goal")
_SHOWN = 8  # commits of a page


@dataclass(frozen=True)
class Goal:
    """What a figure is to be.

    Attributes:
        what: is measured, with its unit.
        figure: that was measured.
        bound: of it.
        most: whether the bound is the most it may be; otherwise, the least.
    """

    what: str
    figure: float
    bound: float
    most: bool = False

    @property
    def left(self) -> float:
        """By which factor the figure has to become better; at most 1 if the goal is reached."""
        better, worse = (self.bound, self.figure) if self.most else (self.figure, self.bound)
        return worse / better if better else float("inf")


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options all benchmarks have: --quick and --out."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="smaller and less exact")
    made.add_argument(
        "--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file to write"
    )
    return made


def host_s() -> float:
    """Returns the host's time in s, also within a simulation, where clocks of `time` show its own.

    What a strategy calls from outside of `fl`, as an `evaluate_fn`, is somebody's app to it, see
    `fl.execution.virtual_time`.
    """
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def cpu_s() -> float:
    """Returns the CPU time of this process in s, also within a simulation."""
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--", "fl", "benchmarks")),
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "numpy", "flwr", "ray")},
    }


def publish(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: argparse.Namespace,
    about: Mapping[str, Any],
    goals: Sequence[Goal] = (),
) -> None:
    """Writes rows, settings, machine and goals to `out`.

    Args:
        out: the JSON file; its folder is made.
        rows: what was measured.
        settings: parsed arguments of the script.
        about: `machine()`, taken before measuring, so that `load` is that of the others.
        goals: figures among the rows that have one.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {key: str(v) if isinstance(v, Path) else v for key, v in vars(settings).items()}
    record = {"machine": dict(about), "settings": arguments, "rows": list(rows)}
    record["goals"] = [asdict(goal) for goal in goals]
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    commit = _commit(about)
    print(f"\ncommit {commit}, {about['cores']} cores, {about['date']}: {out}", flush=True)


def summarise(folder: Path) -> int:
    """Prints one table of all results in a folder, and adds them to its history.

    Returns:
        How many goals are not reached.
    """
    lines: list[tuple[str, Mapping[str, Any], Goal]] = []
    quick: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["settings"].get("quick"):
            quick.add(path.stem)
        lines += [(path.stem, record["machine"], Goal(**g)) for g in record.get("goals", ())]
    table(
        f"{len(lines)} goals; * measured with --quick",
        ("benchmark", "what", "figure", "goal", "left", "commit"),
        [
            (
                name + "*" * (name in quick),
                goal.what,
                f"{goal.figure:.3g}",
                f"{'<=' if goal.most else '>='} {goal.bound:g}",
                "reached" if goal.left <= 1 else f"{goal.left:.2f} x",
                _commit(about),
            )
            for name, about, goal in lines
        ],
    )
    rows = [
        {
            "commit": _commit(about),
            "date": about["date"],
            "quick": name in quick,
            "benchmark": name,
            "what": goal.what,
            "figure": goal.figure,
            "goal": goal.bound,
        }
        for name, about, goal in lines
    ]
    _write_history(folder, rows)
    return sum(goal.left > 1 for _, _, goal in lines)


def _write_history(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds figures to a folder's history, in place of those of the same commit, and its page."""
    path = folder / HISTORY
    names = ("commit", "quick", "benchmark", "what")
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                kept[tuple(row[name] for name in names)] = row
    for each in rows:
        row = {name: str(each[name]) for name in _COLUMNS}
        kept[tuple(row[name] for name in names)] = row
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(kept.values())
    commits = list(dict.fromkeys(row["commit"] for row in kept.values()))[-_SHOWN:]
    of: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in kept.values():
        name = row["benchmark"] + "*" * (row["quick"] == "True")
        line = of.setdefault((name, row["what"], row["goal"]), {})
        line[row["commit"]] = f"{float(row['figure']):.3g}"
    page = ["# Figures by commit", "", "The latest to the right; * measured with --quick.", ""]
    page.append(f"| | | {' | '.join(commits)} | goal |")
    page.append("|---" * (len(commits) + 3) + "|")
    page += [
        f"| {name} | {what} | {' | '.join(line.get(c, '') for c in commits)} | {float(goal):g} |"
        for (name, what, goal), line in of.items()
    ]
    (folder / "history.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def _commit(about: Mapping[str, Any]) -> str:
    """Returns a short name of the commit, with "+" if the code had changed since."""
    return str(about["commit"] or "unknown")[:12] + ("+" if about["changed_since"] else "")


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        first = row[0].ljust(widths[0])
        print("  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))
    sys.stdout.flush()


def peak_bytes() -> int:
    """Returns the most memory this process has had resident so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git(*arguments: str) -> str | None:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    summarise(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
