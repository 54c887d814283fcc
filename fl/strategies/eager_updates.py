"""Eager updates: the all-reduce takes a whole phase, and workers use what they know already.

Kale, Douillard, Donchev, "Eager Updates For Overlapped Communication and Computation in DiLoCo",
2025, arXiv:2502.12996.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl.aggregation import check_weights
from fl.errors import ConfigError, NoStep
from fl.strategies.drivers.outer import (
    EarlyStep,
    Outer,
    OuterSteps,
    Reduction,
    Run,
    Worker,
    mean_of,
)
from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd, State
from fl.vectors.rows import Row


class DelayedUpdates(OuterSteps):
    """DiLoCo whose all-reduce has a whole phase of H inner steps to end.

    After phase r worker m begins the all-reduce of Delta_m^r, and takes its outer step with the one
    that it began a phase before:

        theta <- OuterOpt(theta, mean_m Delta_m^{r-1});    theta_m <- theta

    This is the paper's naive delayed update; it wants a lower outer learning rate. After phase 1
    nothing has come: the workers go back to theta.

    Args:
        inner_steps: H.
        optimizer: OuterOpt; None is Nesterov with rate 0.4 and momentum 0.9.
        **outer: arguments of `OuterSteps` but `overlap` and `mixing`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self, *, inner_steps: int, optimizer: OuterOptimizer | None = None, **outer: Any
    ) -> None:
        super().__init__(
            inner_steps=inner_steps,
            optimizer=optimizer or OuterSgd(lr=0.4),
            overlap=inner_steps,
            **outer,
        )


class EagerUpdates(DelayedUpdates):
    """Delayed updates in which every worker replaces its own part of the mean by the newest.

    After phase r worker m begins the all-reduce of Delta_m^r and takes its outer step at once with

        Delta~_m = mean_m' Delta_m'^{r-1} + (Delta_m^r - Delta_m^{r-1}) / M
                 = (Delta_m^r + sum_{m' != m} Delta_m'^{r-1}) / M

    on outer parameters of its own, with an optimizer state of its own: workers differ by what they
    know of the last phase. With M = 1 it is DiLoCo. The Deltas are as they were sent, after the
    quantiser. The model that is evaluated is the mean of the workers' outer parameters.

    After phase 1 the others' Deltas count as 0 (the paper's formula needs a phase before; the
    choice is ours). The mean is over the workers of phase r-1 and worker m, so that M is theirs. A
    worker that enters takes the mean of the others' parameters and states.

    After the last phase R nothing is left to hide an all-reduce behind. Workers wait for it, and
    their last outer step takes in all that is outstanding,

        Delta~_m = mean_m' Delta_m'^R + sum_{m' != m} Delta_m'^{R-1} / M,

    so that every Delta is in the final model once, by every worker's account (the choice is ours;
    fragments whose last outer step was before that take it again). With R = 1 it is DiLoCo.

    Args:
        **delayed: arguments of `DelayedUpdates` but `drop`: a worker knows its own Delta.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, **delayed: Any) -> None:
        super().__init__(**delayed)
        if self.drop:
            raise ConfigError(
                f"drop is {self.drop}, but eager updates use a worker's own outer "
                "gradient at once, lost or not: leave it out"
            )

    def reduced(self, run: Run, reduction: Reduction) -> None:
        """Waits for the workers: each takes the step for itself."""

    def joined(self, run: Run, worker: Worker) -> Sequence[Row]:
        """Returns the mean of the others' outer parameters, with the mean of their states."""
        run.copies[worker.node] = self._mean(run)
        for p in range(len(run.cut)):
            run.last.pop((worker.node, p), None)
        return run.copies[worker.node].theta

    def continued(self, run: Run, worker: Worker, p: int, reduction: Reduction | None) -> Row:
        """Takes worker m's step on its own outer parameters."""
        node, outer = worker.node, run.copies[worker.node]
        own = run.reductions[p, worker.step]
        weights = {node: own.weights[node]}
        if reduction is None:
            others, newest = np.zeros_like(own.gradients[node]), 1 / len(run.workers)
        else:
            nothing = np.zeros_like(own.gradients[node])
            weights = {**reduction.weights, **weights}
            others = mean_of({**reduction.gradients, node: nothing}, weights)
            newest = own.weights[node] / max(sum(weights.values()), math.ulp(0.0))
        early = EarlyStep(worker.step, outer.theta[p], outer.state[p], others)
        try:
            check_weights(list(weights.values()))
            outer.step(self.optimizer, p, others + newest * own.gradients[node])
        except NoStep as error:
            run.tasks.control.stepped(run.version + 1, error)
        else:
            if worker.step + self.inner_steps > run.last_step:
                run.last[node, p] = early
        return outer.theta[p]

    def conclude(self, run: Run) -> None:
        """Takes every worker's last steps again, with the all-reduces that have finished since."""
        for (node, p), early in run.last.items():
            if node in run.workers:
                outer = run.copies[node]
                outer.theta[p], outer.state[p] = early.theta, early.state
                outer.steps[p] -= 1
                try:
                    newest = run.reductions[p, early.step].mean()
                    outer.step(self.optimizer, p, early.others + newest)
                except NoStep as error:
                    run.tasks.control.stepped(run.version, error)

    def rounds_done(self, run: Run) -> int:
        """Returns how many phases all workers have gone on from."""
        passed = [worker.passed for worker in run.workers.values()]
        return min(passed, default=run.version * self.inner_steps) // self.inner_steps

    def evaluated(self, run: Run) -> Row:
        """Returns the mean of the workers' outer parameters."""
        return run.row(self._mean(run).theta)

    def _mean(self, run: Run) -> Outer:
        """Returns the mean over those who take part; if nobody does, over who came furthest."""
        present = [run.copies[node] for node in sorted(run.workers)]
        if not present and run.copies:
            furthest = max(sum(copy.steps) for copy in run.copies.values())
            present = [copy for copy in run.copies.values() if sum(copy.steps) == furthest]
        return mean_outer(present) if present else run.outer.copy()


def mean_outer(copies: Sequence[Outer]) -> Outer:
    """Returns the mean of outer parameters and of optimizer states; steps are the first's."""
    first = copies[0]
    theta: list[Row] = []
    state: list[State] = []
    for p, row in enumerate(first.theta):
        theta.append(row)
        if len(copies) > 1:
            stacked = np.stack([copy.theta[p] for copy in copies])
            theta[p] = np.asarray(stacked.mean(axis=0, dtype=np.float64), dtype=np.float32)
            theta[p].flags.writeable = False
        state.append(
            {
                name: np.mean([copy.state[p][name] for copy in copies], axis=0)
                for name in first.state[p]
            }
        )
    return Outer(theta, state, list(first.steps))
