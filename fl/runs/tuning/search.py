"""The search itself: which point runs when, and what it has come to."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from statistics import fmean

from fl.reports.target import Target
from fl.runs.tuning.halving import Halving
from fl.runs.tuning.space import Point, Space
from fl.runs.tuning.trials import Trials

Say = Callable[[str], None]


@dataclass
class Search:
    """Asynchronous successive halving over a space.

    Points are told to the halving in the order in which they would end if a round took all of them
    the same time, whatever they take on this host, so that the result depends on the number of
    workers and on nothing that happens by chance.

    Attributes:
        space: what is tried; a grid grows while the best point lies at its edge.
        trials: how points run.
        target: whose metric a point is judged by.
        halving: who runs on.
        points: all that have begun or will, in order.
        values: of the metric at the end of each run, by point and rung; NaN of one that diverged.
        failed: why points could not run, by point.
        widened: how often the grid has grown.
    """

    space: Space
    trials: Trials
    target: Target
    halving: Halving
    points: list[Point] = field(default_factory=list)
    values: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    widened: int = 0

    def run(
        self, start: Callable[[Point, int], Future[str]], workers: int, widen: int, say: Say
    ) -> None:
        """Runs points until the best one has run in full, and lies within the grid.

        Args:
            start: begins to run a point to a rung.
            workers: how many run side by side.
            widen: how often the grid may grow.
            say: told what a point has come to.
        """
        now, begun, number = 0.0, 0, 0
        running: list[tuple[float, int, int, int, Future[str]]] = []
        while True:
            while len(running) < workers:
                job = self.halving.promoted()
                if job is None and begun < len(self.points):
                    job, begun = (begun, 0), begun + 1
                if job is None and not running:
                    job = self.halving.unfinished()
                if job is None:
                    break
                point, rung = job
                ends = now + self._cost(rung)
                future = start(self.points[point], rung)
                heapq.heappush(running, (ends, number, point, rung, future))
                number += 1
            if running:
                now, _, point, rung, future = heapq.heappop(running)
                self._tell(point, rung, future.result(), say)
            elif not self._widen(widen, say):
                return

    def _cost(self, rung: int) -> float:
        lengths = self.trials.rungs
        return lengths[rung] - (lengths[rung - 1] if rung else 0)

    def _tell(self, point: int, rung: int, problem: str, say: Say) -> None:
        trials, metric = self.trials, self.target.metric
        named, length = " ".join(self.points[point]), trials.rungs[rung]
        if problem:
            self.failed[point] = problem
            self.halving.tell(point, rung, math.inf)
            say(f"{named}: {problem}")
            return
        runs = [trials.result(self.points[point], seed, rung) for seed in trials.seeds]
        values = [
            math.nan
            if run is None or run.summary["status"] == "diverged"
            else self.target.end(run.history)
            for run in runs
        ]
        self.values[point, rung] = values
        mean = fmean(values)
        loss = math.inf if math.isnan(mean) else -mean if self.target.mode == "max" else mean
        self.halving.tell(point, rung, loss)
        what = "diverged" if math.isnan(mean) else f"{metric} {mean:.4g}"
        say(f"{trials.length}={length} {named}: {what}")

    def _widen(self, most: int, say: Say) -> bool:
        """Adds points beyond the edges that the best one lies at; returns whether there are any."""
        best = self.halving.winner()
        if best is None or self.widened == most:
            return False
        edges = self.space.edges(self.points[best[0]])
        if not edges:
            return False
        self.widened += 1
        self.space, more = self.space.wider(edges)
        self.points += more
        told = " ".join(f"{key}={value}" for key, value in edges.items())
        say(f"the best is at the edge of the grid, which goes on to {told}")
        return True
