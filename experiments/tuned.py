"""Methods beside each other, each at the settings at which it was best with other seeds.

    python experiments/tuned.py best FOLDER KEY CASES
    python experiments/tuned.py keep ROOT PAGE
    python experiments/tuned.py report PAGE AGAINST KEY [COST [END ...]]

The first prints the overrides of the best point of a grid, a line for all cases that share it; the
second puts all runs into PAGE/results.parquet, a row for each evaluation (results.py); the third
makes the page's tables from that, and a figure for each case. A case is a value of KEY. The runs of
a method lie in ROOT/METHOD/tune and ROOT/METHOD/final, where tuned.sh puts them. PAGE is the page's
folder, AGAINST the method that the others are compared with seed by seed, and COST (round, or
time_s) what reaching the target is counted in. With an END, such as time_s=4, steps=40 (of a node)
or MB=1.2, a case has a second table, in which every run ends as if it had been given no more.

A run's result is the mean of its target's metric over the last fifth of the evaluations that have
it; a run that diverged has none, and is worse than all that did not. The target is reached at the
first of two evaluations in a row that meet it.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.append(str(Path(__file__).parent))

from results import FILE, keep, kept

import fl
from fl.reports import Run, Target, find_runs
from fl.reports.history import Row
from fl.reports.jobs import overrides
from fl.reports.page import replace_tables

CONFIDENCE = 0.95
COSTS = {"round": "rounds", "time_s": "s", "steps": "steps a node", "MB": "MB"}

Point = tuple[tuple[str, str], ...]
"""Keys of the grid and their values, as overrides have them."""

KEPT = ("round", "time_s", "bytes_down", "bytes_up", "train_steps", "accuracy", "loss")
"""Columns of an evaluation that are kept, beside the target's metric."""

_Key = tuple[str, str, frozenset[tuple[str, str]]]  # of a run: method, part, overrides

AIM = ("metric", "value", "mode")
"""What a target is made of."""

OF_HOST = ("initial_model",)
"""Keys whose values are files."""


@dataclass(frozen=True, repr=False)
class Trial(Run):
    """A run of a comparison.

    Attributes:
        method: its name.
        part: what it is for: "tune" or "final".
        given: its overrides.
    """

    method: str
    part: str
    given: Mapping[str, str]


def trials(folder: Path, method: str, part: str) -> list[Trial]:
    """Returns the runs below a folder."""
    runs = find_runs(folder)
    return [Trial(r.directory, r.summary, r.history, method, part, overrides(r)) for r in runs]


def records(runs: Sequence[Trial]) -> list[dict[str, Any]]:
    """Returns runs as records, one for each evaluation.

    Overrides are all there, but for the file that runs begin with, which lies elsewhere for others.
    """
    found = []
    for run in runs:
        target = run.summary["target"] or {}  # of runs that only take time there is none
        of_run = {
            "method": run.method,
            "part": run.part,
            "seed": run.summary["seed"],
            "overrides": "\n".join(f"{k}={v}" for k, v in run.given.items() if k not in OF_HOST),
            "status": run.summary["status"],
            "configuration": run.summary["config_digest"],
            **{name: target[name] for name in AIM if name in target},
        }
        names = dict.fromkeys((*KEPT, *([target["metric"]] if target else [])))
        found += [of_run | {k: row[k] for k in names if k in row} for row in run.history]
    return found


def of_kept(rows: Sequence[Mapping[str, Any]]) -> Trial:
    """Returns the run of these records."""
    of = rows[0]
    target = {name: of[name] for name in AIM if name in of}
    summary = {"seed": of["seed"], "status": of["status"], "target": target or None}
    given = dict(line.partition("=")[::2] for line in of["overrides"].splitlines())
    return Trial(None, summary, list(rows), of["method"], of["part"], given)


def by_run(records: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Returns records as they are kept with a page, those of a run together."""
    identity = ("method", "part", "seed", "configuration", "overrides")
    runs = groupby(records, key=lambda row: [row[name] for name in identity])
    return [list(rows) for _, rows in runs]


def read_trials(page: Path) -> list[Trial]:
    """Returns the runs that are kept with a page."""
    return [of_kept(rows) for rows in by_run(kept(page))]


class KeptRuns:
    """The runs of a page whose script makes them: those that are there are not made again.

    Args:
        page: its folder, with results.parquet or without.
        common: overrides of all runs that are not kept, such as executor=serial.
    """

    def __init__(self, page: Path, common: Sequence[str] = ()) -> None:
        self.page, self.common = page, common
        there = by_run(kept(page)) if (page / FILE).exists() else []
        self.there = {self._key(of_kept(rows)): rows for rows in there}
        self.wanted: dict[_Key, None] = {}

    def run(self, method: str, part: str, *given: str, **labels: str) -> Trial:
        """Returns a run: the one with these overrides that is there, or one that is made now.

        Of a key that is given twice, the last value counts. Labels are kept among the overrides,
        and are no keys of the configuration.
        """
        said = {key: value for key, _, value in (each.partition("=") for each in given)}
        shown = labels | {key.removeprefix("+"): value for key, value in said.items()}
        key = (method, part, frozenset((k, v) for k, v in shown.items() if k not in OF_HOST))
        self.wanted[key] = None
        if key not in self.there:
            made = fl.run(*(f"{k}={v}" for k, v in said.items()), *self.common)
            trial = Trial(made.directory, made.summary, made.history, method, part, shown)
            self.there[key] = records([trial])
            self._write(self.there)
            print(method, part, *given[-3:], flush=True)
        return of_kept(self.there[key])

    def trials(self) -> list[Trial]:
        """Returns all runs that are there."""
        return [of_kept(rows) for rows in self.there.values()]

    def prune(self) -> None:
        """Keeps no other runs than those that have been asked for."""
        self._write(self.wanted)

    def _write(self, keys: Iterable[_Key]) -> None:
        keep(self.page, [row for key in keys for row in self.there[key]])

    @staticmethod
    def _key(run: Trial) -> _Key:
        return run.method, run.part, frozenset(run.given.items())


def target_of(run: Run) -> Target:
    """Returns the metric that a run is judged by, and its value that is to be reached."""
    found = run.summary["target"]
    return Target(found["metric"], found["value"], found["mode"])


def result(run: Run) -> float:
    """Returns the metric at the end; NaN if the run diverged."""
    diverged = run.summary["status"] == "diverged"
    return math.nan if diverged else target_of(run).end(run.history)


def reached(run: Run) -> Row | None:
    """Returns the first of two evaluations in a row that meet the target."""
    target = target_of(run)
    rows, met = [row for row in run.history if target.metric in row], target.met_by
    return next((row for row, after in pairwise(rows) if met(row) and met(after)), None)


def spent(row: Row, cost: str) -> float:
    """Returns what a run has cost until an evaluation."""
    if cost == "steps":
        return row["round"] * row.get("train_steps", 0)
    if cost == "MB":
        return (row["bytes_down"] + row["bytes_up"]) / 1e6
    return row[cost]


def until(run: Run, cost: str, most: float) -> Run:
    """Returns a run as if it had ended before it cost more than that.

    Raises:
        ValueError: it has ended before it cost as much.
    """
    if spent(run.history[-1], cost) < most:
        raise ValueError(f"{run.directory} has ended before {most:g} {COSTS[cost]}")
    return replace(run, history=[row for row in run.history if spent(row, cost) <= most])


def loss(runs: Sequence[Run]) -> float:
    """Returns what the best point has least of: the mean result, or its negative."""
    value = fmean(map(result, runs))
    if not math.isfinite(value):
        return math.inf
    return -value if target_of(runs[0]).mode == "max" else value


def by_point(runs: Sequence[Trial], case_key: str) -> dict[Point, list[Trial]]:
    """Returns the runs of a grid by the overrides in which they differ, seed and case apart."""
    given = [run.given for run in runs]
    keys = sorted({key for each in given for key in each} - {"seed", case_key})
    keys = [key for key in keys if len({each.get(key) for each in given}) > 1]
    points: dict[Point, list[Trial]] = {}
    for run, each in zip(runs, given, strict=True):
        points.setdefault(tuple((key, each[key]) for key in keys if key in each), []).append(run)
    return points


def ranked(runs: Sequence[Trial], key: str, case: str) -> list[tuple[Point, list[Trial]]]:
    """Returns the points of a grid, the best one first: by the runs of a case, if it was tuned."""
    own = [run for run in runs if run.given.get(key) == case]
    points = by_point(own or runs, key)
    return sorted(points.items(), key=lambda item: (loss(item[1]), item[0]))


def at_edge(best: Point, points: Sequence[Point]) -> list[str]:
    """Returns the keys of numbers whose best value is the least or the largest that was tried."""
    found = []
    for key, value in best:
        tried = {v for point in points for k, v in point if k == key}
        try:
            numbers = sorted(map(float, tried))
        except ValueError:  # names
            continue
        if float(value) in (numbers[0], numbers[-1]):
            found.append(key)
    return found


def short_key(key: str) -> str:
    """Returns the last part of a key."""
    return re.split(r"[./]", key)[-1]


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns the last part of each key, or the last two of keys that it does not tell apart."""
    last = {key: short_key(key) for key in keys}
    alike = Counter(last.values())
    return {k: v if alike[v] == 1 else ".".join(k.split(".")[-2:]) for k, v in last.items()}


def short(point: Point, edge: Sequence[str] = ()) -> str:
    """Returns a point as a cell of a table; a star stands at what is at the edge of its grid."""
    star, names = {key: r" \*" for key in edge}, short_keys(key for key, _ in point)
    return ", ".join(f"{names[key]} {v}{star.get(key, '')}" for key, v in point)


def shown(value: float, metric: str, apart: float = 0.0) -> str:
    """Returns a value as the tables have it, accuracies in %.

    Args:
        value: to be shown.
        metric: what it is of.
        apart: how far values are apart: others than accuracies show two digits of that.
    """
    if metric == "accuracy":
        return f"{100 * value:.1f}"
    if not 1e-6 < apart < math.inf:
        return f"{value:.3g}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(apart)))}f}"


def spread(values: Sequence[float], metric: str) -> str:
    """Returns mean and sample standard deviation."""
    if len(values) < 2:
        return shown(fmean(values), metric)
    mean, apart = fmean(values), stdev(values)
    return f"{shown(mean, metric, apart)} ± {shown(apart, metric, apart)}"


def interval(differences: Sequence[float], metric: str) -> str:
    """Returns the mean of paired differences and its confidence interval, by Student's t."""
    from scipy import stats  # slow to load, and not for `best`

    n, mean = len(differences), fmean(differences)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    middle, low, high = (shown(x, metric, half) for x in (mean, mean - half, mean + half))
    return f"{middle} ({low} to {high}){'' if abs(mean) > half else ', undecided'}"


def by_seed(runs: Sequence[Run]) -> dict[int, float]:
    """Returns the runs' results."""
    return {run.summary["seed"]: result(run) for run in runs}


def paired(ends: Mapping[int, float], base: Mapping[int, float], metric: str) -> str:
    """Returns the interval of the results less those of the same seeds; "" if fewer than two."""
    pairs = [ends[seed] - base[seed] for seed in sorted(ends) if seed in base]
    pairs = [pair for pair in pairs if not math.isnan(pair)]
    return interval(pairs, metric) if len(pairs) > 1 else ""


def of_part(runs: Sequence[Trial], part: str) -> list[Trial]:
    """Returns those that are for this."""
    return [run for run in runs if run.part == part]


def final_runs(runs: Sequence[Trial], key: str, case: str) -> list[Trial]:
    """Returns a method's runs of a case at its best point, in order of their seeds."""
    order = ranked(of_part(runs, "tune"), key, case)
    best = dict.fromkeys(k for point, _ in order for k, _ in point) | dict(order[0][0])
    chosen = []
    for run in of_part(runs, "final"):
        if run.given.get(key) == case and all(run.given.get(k) == v for k, v in best.items()):
            chosen.append(run)
    return sorted(chosen, key=lambda run: run.summary["seed"])


def results(methods: Mapping[str, Sequence[Run]], against: str, cost: str) -> str:
    """Returns the table of one setting, the best method first."""
    target = target_of(next(iter(methods.values()))[0])
    metric = target.metric
    named = f"{metric} (%)" if metric == "accuracy" else metric
    to = f"{COSTS[cost]} to {target.value:g}"
    lines = [
        f"| method | seeds | {named} | less {against} | {to} | MB to it |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = by_seed(methods[against])
    for name, runs in sorted(methods.items(), key=lambda item: loss(item[1])):
        ends = by_seed(runs)
        whole = [value for value in ends.values() if not math.isnan(value)]
        seeds = str(len(ends)) if len(whole) == len(ends) else f"{len(whole)} of {len(ends)}"
        less = "" if name == against else paired(ends, base, metric)
        rows = [reached(run) for run in runs]
        costs = ", ".join(f"{spent(row, cost):g}" if row else "–" for row in rows)  # noqa: RUF001
        sizes = [spent(row, "MB") for row in rows if row]
        size = f"{median(sizes):.3g}" if len(sizes) == len(rows) else ""
        ending = spread(whole, metric) if whole else "diverged"
        lines.append(f"| {name} | {seeds} | {ending} | {less} | {costs} | {size} |")
    return "\n".join(lines)


def at_ends(
    methods: Mapping[str, Sequence[Run]], against: str, ends: Sequence[tuple[str, float]]
) -> str:
    """Returns the table of one setting in which all runs end by the same cost, of several kinds."""
    metric = target_of(methods[against][0]).metric
    heads = [f"{most:g} {COSTS[cost]} | less {against}" for cost, most in ends]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * 2 * len(ends)]
    for name in methods:
        cells = []
        for cost, most in ends:
            mine, base = (
                by_seed([until(run, cost, most) for run in methods[each]])
                for each in (name, against)
            )
            cells.append(spread(list(mine.values()), metric))
            cells.append("" if name == against else paired(mine, base, metric))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuning(methods: Mapping[str, Sequence[Trial]], key: str, cases: Sequence[str]) -> str:
    """Returns the table of what was tried, of the best point, and of the next one."""
    lines = [f"| {short_key(key)} | method | tried | best | next |", "|---|---|---|---|---|"]
    for case in cases:
        for name, runs in methods.items():
            order = ranked(of_part(runs, "tune"), key, case)
            metric, points = target_of(order[0][1][0]).metric, [point for point, _ in order]
            values: dict[str, dict[str, None]] = {}
            names = short_keys({k for point in points for k, _ in point})
            for k, value in sorted((item for point in points for item in point), key=_number):
                values.setdefault(names[k], {})[value] = None
            grid = "; ".join(f"{k} {', '.join(each)}" for k, each in values.items())
            edge = at_edge(points[0], points)
            cells = [
                f"{short(point, edge if point == points[0] else [])}: "
                f"{spread([result(run) for run in tried], metric)}"
                for point, tried in order[:2]
            ]
            lines.append(f"| {case} | {name} | {grid} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(item: tuple[str, str]) -> tuple[str, float, str]:
    key, value = item
    try:
        return key, float(value), value
    except ValueError:
        return key, math.inf, value


class Report:
    """A page's tables and figures, from the runs that are kept with it.

    Args:
        page: its folder.
        against: the method that the others are compared with.
        key: whose values are the cases.
        cost: what reaching the target is counted in.
        ends: KIND=COST, by which runs end in a second table.
    """

    def __init__(self, page: Path, against: str, key: str, cost: str = "round", *ends: str) -> None:
        self.page, self.against, self.key, self.cost = page, against, key, cost
        self.ends = [(k, float(most)) for k, _, most in (end.partition("=") for end in ends)]
        self.methods: dict[str, list[Trial]] = {}
        for run in sorted(read_trials(page), key=lambda run: run.method):
            self.methods.setdefault(run.method, []).append(run)
        counted = of_part(self.methods[against], "final")
        self.cases = list(dict.fromkeys(run.given[key] for run in counted))

    def of_case(self, case: str) -> dict[str, list[Trial]]:
        """Returns the runs of the methods that have some."""
        found = {name: final_runs(runs, self.key, case) for name, runs in self.methods.items()}
        return {name: runs for name, runs in found.items() if runs}

    def figure(self, case: str) -> Path:
        """Returns where the figure of a case is."""
        return self.page / f"{re.sub(r'[^0-9a-z]+', '_', case.lower()).strip('_')}.png"

    def tables(self) -> str:
        """Returns what stands between the marks of the page."""
        parts = []
        for case in self.cases:
            runs = self.of_case(case)
            metric = target_of(runs[self.against][0]).metric
            table = results(runs, self.against, self.cost)
            if self.ends:
                table += f"\n\n{at_ends(runs, self.against, self.ends)}"
            title = f"{short_key(self.key)} {case}"
            shows = f"![{metric}, {title}]({self.figure(case).name})"
            parts.append(f"### {title}\n\n{table}\n\n{shows}")
        parts.append(f"### Tuning\n\n{tuning(self.methods, self.key, self.cases)}")
        return "\n\n".join(parts)

    def figures(self) -> None:
        """Draws the figure of every case."""
        from fl.reports.plots import compare  # slow to load, and not for `best`

        axes = ("time_s", "bytes") if "MB" in dict(self.ends) else (self.cost,)
        for case in self.cases:
            runs = self.of_case(case)
            target = target_of(runs[self.against][0])
            compare(runs, target.metric, self.figure(case), axes=axes, target=target.value)

    def write(self) -> None:
        """Replaces the page's tables, and its figures."""
        self.figures()
        replace_tables(self.page / "README.md", self.tables())


def keep_runs(root: Path, page: Path) -> None:
    """Keeps all runs of a comparison with its page."""
    found = []
    for folder in sorted(path for path in root.iterdir() if (path / "final").is_dir()):
        for part in ("tune", "final"):
            found += trials(folder / part, folder.name, part)
    keep(page, records(found))


def print_best(folder: Path, key: str, cases: str) -> None:
    """Prints overrides: a line for the cases that have the same best point."""
    runs = trials(folder, folder.parent.name, folder.name)
    alike: dict[Point, list[str]] = {}
    for case in re.split(r",(?![^\[]*\])", cases):  # those of a list do not part cases
        order = ranked(runs, key, case)
        best = order[0][0]
        alike.setdefault(best, []).append(case)
        if edge := at_edge(best, [point for point, _ in order]):
            said = f"{folder}, {key}={case}: at the edge of the grid: {short(best, edge)}"
            print(said, file=sys.stderr)
    for best, found in alike.items():
        print(f"{key}={','.join(found)}", *(f"{k}={value}" for k, value in best))


if __name__ == "__main__":
    task, folder, *others = sys.argv[1:]
    if task == "best":
        print_best(Path(folder), *others)
    elif task == "keep":
        keep_runs(Path(folder), Path(*others))
    else:
        Report(Path(folder), *others).write()
