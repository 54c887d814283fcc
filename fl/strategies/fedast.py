"""FedAST: several models trained at once, each asynchronously with a buffer.

Askin, Sharma, Joe-Wong, Joshi, "FedAST: Federated Asynchronous Simultaneous Training",
arXiv:2406.00302 (UAI 2024), Algorithms 1 and 2; where the paper leaves things open, the rules are
those of the authors' code (askinb/FedAST).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from fl.checks import at_least, positive, read_if
from fl.errors import ConfigError
from fl.strategies.simultaneous_rule import Averaged
from fl.vectors.rows import Row


class Estimate(NamedTuple):
    """The spread of a task's updates around their mean.

    Attributes:
        deltas: the last W updates, shape (d',) each.
        ratios: mean_k ||Delta_k - mean||**2 / ||mean||**2, one for every update since Realloc.
        steps: K of the latest update, 1 if its client did not say.
    """

    deltas: tuple[Row, ...] = ()
    ratios: tuple[float, ...] = ()
    steps: float = 1.0


class TaskEstimates(NamedTuple):
    """Of every task, and the updates of all since Realloc."""

    of: Mapping[str, Estimate]
    since_realloc: int = 0


@read_if(
    lambda a: a["buffer_size"] is None or a["allocation"] == "dynamic",
    "ratio",
    only="{at}buffer_size counts instead",
)
@read_if(
    lambda a: a["allocation"] == "dynamic",
    "window",
    "client_lr",
    only="only {at}allocation=dynamic reads it",
)
@dataclass(frozen=True)
class FedAST(Averaged):
    """Algorithm 1 of the paper.

    Of task m, R_m requests are in flight. When b_m updates of the task are there,

        w_m <- w_m + eta / b_m sum_i (x_i - x_0,i)

    with x_0,i the model that was sent. Staleness is not weighted.

    With `allocation="dynamic"` (the paper's Realloc), after every 0.75 R M updates, M the number of
    tasks that are not done, R is dealt anew in proportion to V_m: the mean, since the last time, of

        eta_m eta / (eta_m K_m)**2 * mean_k ||Delta_k - mean(Delta)||**2 / ||mean(Delta)||**2

    over the last W updates of the task, without biases; eta_m is the client learning rate and K_m
    the number of local steps. R moves in blocks of `ratio` requests; every task keeps one.

    Attributes:
        buffer_size: b of every task; None keeps b_m = ceil(R_m / ratio), with the requests in
            flight for R_m.
        ratio: R_m / b_m, and the block in which requests move.
        allocation: "static" or "dynamic".
        window: W, at least 2.
        client_lr: eta_m of each task; None takes 1 for all. Of no effect if they are equal.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    buffer_size: int | None = None
    ratio: int = 32
    allocation: Literal["static", "dynamic"] = "static"
    window: int = 7
    client_lr: Mapping[str, float] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer_size is not None:
            at_least("buffer_size", self.buffer_size, 1)
        at_least("ratio", self.ratio, 1)
        at_least("window", self.window, 2)
        for name, rate in (self.client_lr or {}).items():
            positive(f"client_lr.{name}", rate)
        if self.allocation not in ("static", "dynamic"):
            raise ConfigError(
                f"allocation is {self.allocation!r}; it must be 'static' or 'dynamic'"
            )

    @property
    def reallocates(self) -> bool:
        """Whether R is dealt anew."""
        return self.allocation == "dynamic"

    def buffer(self, requests: int) -> int:
        """Returns b_m of a task with so many requests in flight."""
        return self.buffer_size or max(1, math.ceil(requests / self.ratio))

    def init(self, tasks: Sequence[str], total: int) -> TaskEstimates:
        """Returns the state before anything is estimated.

        Raises:
            ConfigError: there are not enough requests for a block of each task.
        """
        if self.reallocates and total < self.ratio * len(tasks):
            raise ConfigError(
                f"strategy.concurrency is {total}; with allocation=dynamic it must be at least "
                f"ratio times tasks, {self.ratio} x {len(tasks)}, as every task keeps a block"
            )
        return TaskEstimates(dict.fromkeys(tasks, Estimate()))

    def observe(self, state: TaskEstimates, task: str, delta: Row, steps: float) -> TaskEstimates:
        """Takes an update into its task's window."""
        deltas, ratios, _ = state.of[task]
        deltas = (*deltas, delta)[-self.window :]
        if len(deltas) == self.window:
            x = np.stack(deltas).astype(np.float64)
            mean = x.mean(axis=0)
            size = float(mean @ mean)
            if size > 0:
                ratios = (*ratios, float(((x - mean) ** 2).sum(axis=1).mean()) / size)
        of = {**state.of, task: Estimate(deltas, ratios, steps)}
        return TaskEstimates(of, state.since_realloc + 1)

    def realloc(
        self, state: TaskEstimates, total: int, versions: Mapping[str, int]
    ) -> tuple[TaskEstimates, Mapping[str, int] | None]:
        """Algorithm 2: deals R anew by the variance of updates, once enough are known.

        Args:
            state: before.
            total: sum of all R.
            versions: of the models of the tasks that are not done.

        Returns:
            The state, and R of each task; None leaves it as it is.
        """
        due = 0.75 * total * len(versions)
        if state.since_realloc < due or min(versions.values()) <= self.window + 1:
            return state, None
        values = {task: self.variance(task, state.of[task]) for task in versions}
        known = [v for v in values.values() if v is not None]
        if len(known) < len(versions) or not sum(known) > 0:
            return state, None
        requests = dict.fromkeys(values, self.ratio)
        quota = {
            task: math.floor(total * (v or 0.0) / sum(known)) - self.ratio
            for task, v in values.items()
        }
        rest = total - sum(requests.values())
        while rest > 0:
            task = max(quota, key=quota.__getitem__)
            block = min(self.ratio, rest)
            requests[task] += block
            quota[task] -= block
            rest -= block
        of = {**state.of, **{task: state.of[task]._replace(ratios=()) for task in versions}}
        return TaskEstimates(of), requests

    def variance(self, task: str, estimate: Estimate) -> float | None:
        """Returns V_m; None if nothing is known yet."""
        if not estimate.ratios:
            return None
        eta_m = (self.client_lr or {}).get(task, 1.0)
        scale = eta_m * self.eta / (eta_m * estimate.steps) ** 2
        return scale * sum(estimate.ratios) / len(estimate.ratios)
