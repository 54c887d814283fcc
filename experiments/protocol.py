"""Runs of a page as the protocol of experiments/README.md wants them, in one process.

A page's run.py says what is compared (`Comparison`) and calls `main`:

    FL_DATA_DIR=... python experiments/PAGE/run.py [METHOD ...]
    python experiments/PAGE/run.py tables

Each method has a search of its own, of as many trials as any other's, over a grid of powers of
ten and three times these: next comes the point that has not been tried and is nearest to the best
one so far. So a best point is inside what was tried, unless the trials are used up before. Trials
are of one seed, and judged by training examples that they do not train on. The best point then runs
with other seeds, and is judged by the test examples. Runs are kept with the page (`KeptRuns`); one
that is there is not made again.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import results
from tuned import KeptRuns, Report, Trial, at_edge, loss, of_part, ranked

from fl.reports.page import replace_tables

QUIET = ("executor=serial", "progress=false", "views=false", "checkpoint=off")
HELD_OUT, TUNING = "validation=0.2", 100
CASE = "case"
"""What a run's case is called among its overrides, which is no key of the configuration."""

Rungs = tuple[int, ...]
"""A point of a grid: for each knob, which power of the root of ten."""


@dataclass(frozen=True)
class Method:
    """How a method is run.

    Attributes:
        overrides: of all its runs.
        start: the keys that are searched, and the value of each with which the search begins; one
            of 1 or 3 times a power of ten.
    """

    overrides: tuple[str, ...]
    start: Mapping[str, float]
    most: Mapping[str, float] = field(default_factory=dict)

    def allows(self, point: Rungs) -> bool:
        """Returns whether a point may be tried."""
        of = zip(self.start, point, strict=True)
        return all(value(at) <= self.most.get(key, math.inf) for key, at in of)


@dataclass(frozen=True)
class Comparison:
    """What a page compares.

    Attributes:
        page: its folder.
        common: overrides of all runs.
        cases: overrides of each case, by its name.
        methods: by name.
        against: the method that the others are compared with.
        trials: of every method in every case.
        seeds: of the results.
        tune: more overrides of trials: evaluations that are further apart, for example.
        cost: what reaching the target is counted in.
        beside: methods and points at which they run with the seeds of the results as well, as part
            "beside": what a method is at the best rate of another, for example.
    """

    page: Path
    common: tuple[str, ...]
    cases: Mapping[str, tuple[str, ...]]
    methods: Mapping[str, Method]
    against: str
    trials: int
    seeds: Sequence[int] = (0, 1, 2)
    tune: tuple[str, ...] = ()
    cost: str = "time_s"
    beside: Sequence[tuple[str, Mapping[str, str]]] = ()

    def overrides(self, name: str, case: str, part: str, seed: int) -> tuple[str, ...]:
        """Returns those of a run, but for its point."""
        held_out = (HELD_OUT, *self.tune) if part == "tune" else ()
        of_method = self.methods[name].overrides
        return (*self.common, *self.cases[case], *of_method, *held_out, f"seed={seed}")

    def report(self) -> Report:
        """Returns the report of what is kept with the page."""
        return Report(self.page, self.against, CASE, self.cost)


def value(rung: int) -> float:
    """Returns 1 or 3 times a power of ten: two rungs are a factor of ten."""
    return float(f"{(1, 3)[rung % 2]}e{rung // 2}")


def rung(of: float) -> int:
    """Returns the rung of a value.

    Raises:
        ValueError: it has none.
    """
    for found in range(-20, 20):
        if value(found) == of:
            return found
    raise ValueError(f"{of} is not 1 or 3 times a power of ten")


def next_point(tried: Mapping[Rungs, float], allowed: Callable[[Rungs], bool]) -> Rungs:
    """Returns the point that is nearest to the best one and has not been tried.

    Steps are counted along the axes; of equally near points that which is further up the first axis
    comes first.

    Args:
        tried: points, at least one, and what the best has least of.
        allowed: whether a point is one of the grid.
    """
    best = min(tried, key=lambda point: (tried[point], point))
    steps = range(-len(tried), len(tried) + 1)
    moves = sorted(
        product(steps, repeat=len(best)),
        key=lambda move: (sum(map(abs, move)), [-each for each in move]),
    )
    points = (tuple(a + b for a, b in zip(best, move, strict=True)) for move in moves)
    return next(point for point in points if point not in tried and allowed(point))


class Search:
    """A method's trials and results.

    Args:
        comparison: that they are of.
        kept: the runs that are there.
        name: of the method.
    """

    def __init__(self, comparison: Comparison, kept: KeptRuns, name: str) -> None:
        self.comparison, self.kept, self.name = comparison, kept, name

    def run(self, part: str, seed: int, case: str, point: Mapping[str, str]) -> Trial:
        """Returns a run, which is made if it is not there."""
        given = self.comparison.overrides(self.name, case, part, seed)
        at = (f"{key}={value}" for key, value in point.items())
        return self.kept.run(self.name, part, *given, *at, **{CASE: case})

    def tuned(self, case: str) -> Mapping[str, str]:
        """Returns the best point of a case, after as many trials as there are to be."""
        method = self.comparison.methods[self.name]
        tried: dict[Rungs, float] = {}
        point: Rungs = tuple(map(rung, method.start.values()))
        for _ in range(self.comparison.trials):
            if tried:
                point = next_point(tried, method.allows)
            given = {key: f"{value(at):g}" for key, at in zip(method.start, point, strict=True)}
            tried[point] = loss([self.run("tune", TUNING, case, given)])
        trials = [one for one in self.kept.trials() if one.method == self.name]
        order = ranked(of_part(trials, "tune"), CASE, case)
        if edge := at_edge(order[0][0], [each for each, _ in order]):
            said = f"{self.name}, {case}: at the edge of the grid: {', '.join(edge)}"
            print(said, file=sys.stderr, flush=True)
        return dict(order[0][0])

    def run_case(self, case: str) -> None:
        """Tunes the method in a case, and runs its best point, and those beside it."""
        best = self.tuned(case)
        for seed in self.comparison.seeds:
            self.run("final", seed, case, best)
            for name, point in self.comparison.beside:
                if name == self.name:
                    self.run("beside", seed, case, point)


def main(comparison: Comparison, tables: Callable[[list[dict[str, Any]]], str]) -> None:
    """Does what the command line says: runs methods, or no more than the page's tables and figures.

    Args:
        comparison: what the page compares.
        tables: returns what stands between the marks of the page, made of its records.
    """
    names = sys.argv[1:]
    if names != ["tables"]:
        since = time.process_time()
        runs = KeptRuns(comparison.page, QUIET)
        for case, name in product(comparison.cases, names or comparison.methods):
            Search(comparison, runs, name).run_case(case)
        if not names:
            runs.prune()
        print(f"{(time.process_time() - since) / 60:.1f} min of CPU time")
    comparison.report().figures()
    replace_tables(comparison.page / "README.md", tables(results.kept(comparison.page)))
