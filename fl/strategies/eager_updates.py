"""Eager updates: the all-reduce takes a whole phase, and workers use what they know already.

Kale, Douillard, Donchev, "Eager Updates For Overlapped Communication and Computation in DiLoCo",
2025, arXiv:2502.12996.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from fl.checks import read_if
from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd, Vector
from fl.strategies.outer_rule import Outer, OuterGradients, OverlappedRule, WorkerView
from fl.vectors.rows import Row

if TYPE_CHECKING:
    from fl.clients.app.island import Pattern


@read_if(
    lambda a: a["fragments"] != 1,
    "pattern",
    only="it deals blocks to several fragments, and {at}fragments is 1",
)
@dataclass(frozen=True)
class DelayedUpdates(OverlappedRule):
    """DiLoCo whose all-reduce has a whole phase of H inner steps to end.

    After phase r worker m begins the all-reduce of Delta_m^r, and takes its outer step with the one
    that it began a phase before:

        theta <- OuterOpt(theta, mean_m Delta_m^{r-1});    theta_m <- theta

    This is the paper's naive delayed update; it wants a lower outer learning rate. After phase 1
    nothing has come: the workers go back to theta.

    Attributes:
        inner_steps: H.
        optimizer: OuterOpt; Nesterov with rate 0.4 and momentum 0.9.
        fragments: P, which divides H.
        pattern: how blocks are dealt to fragments.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    inner_steps: int = 30
    optimizer: OuterOptimizer = field(default_factory=partial(OuterSgd, lr=0.4))
    fragments: int | None = 1
    pattern: Pattern = "strided"


class Eager(NamedTuple):
    """State of a fragment.

    Attributes:
        initial: outer parameters before anybody took part.
        own: outer parameters of every worker.
        early: of a worker's last phase, its outer parameters before the step, and the part of the
            step that was the others'.
    """

    initial: Outer
    own: Mapping[int, Outer]
    early: Mapping[int, tuple[Outer, Vector]]


@dataclass(frozen=True)
class EagerUpdates(DelayedUpdates):
    """Delayed updates in which every worker replaces its own part of the mean by the newest.

    After phase r worker m begins the all-reduce of Delta_m^r and takes its outer step at once with

        Delta~_m = mean_m' Delta_m'^{r-1} + (Delta_m^r - Delta_m^{r-1}) / M
                 = (Delta_m^r + sum_{m' != m} Delta_m'^{r-1}) / M

    on outer parameters of its own, with an optimizer state of its own: workers differ by what they
    know of the last phase. With M = 1 it is DiLoCo. The Deltas are as they were sent, after the
    compressor. The model that is evaluated is the mean of the workers' outer parameters. With an
    aggregator F it is F(Delta_1^{r-1}, ..., Delta_m^r, ..., Delta_M^{r-1}).

    After phase 1 the others' Deltas count as 0 (the paper's formula needs a phase before; the
    choice is ours). The mean is over the workers of phase r-1 and worker m, so that M is theirs. A
    worker that enters takes the mean of the others' parameters and states.

    After the last phase R nothing is left to hide an all-reduce behind. Workers wait for it, and
    their last outer step takes in all that is outstanding,

        Delta~_m = mean_m' Delta_m'^R + sum_{m' != m} Delta_m'^{R-1} / M,

    so that every Delta is in the final model once, by every worker's account (the choice is ours;
    fragments whose last outer step was before that take it again). With R = 1 it is DiLoCo.

    Attributes: see `DelayedUpdates`.
    """

    own_outer: ClassVar[bool] = True
    why_no_drop: ClassVar[str] = "workers use their own outer gradient at once, lost or not"

    def init(self, theta: Row) -> Eager:
        """Returns the initial parameters, of nobody yet."""
        return Eager(super().init(theta), {}, {})

    def reduced(self, s: Eager, gradients: OuterGradients) -> Eager:
        """Waits for the workers: each takes the step for itself."""
        return s

    def entered(self, s: Eager, m: int, present: Sequence[int]) -> Eager:
        """Returns the state with the mean of the others' outer parameters for worker m."""
        early = {k: step for k, step in s.early.items() if k != m}
        return s._replace(own={**s.own, m: self._mean(s, present)}, early=early)

    def beside(self, s: Eager) -> int:
        """Returns the numbers of one optimizer state: of the mean of the others'."""
        return super().beside(s.initial)

    def theta(self, s: Eager, m: int) -> Row:
        """Returns worker m's own."""
        return s.own[m].theta

    def resumed(self, s: Eager, arrival: WorkerView) -> Eager:
        """Takes worker m's step on its own outer parameters."""
        assert arrival.own is not None  # with an overlap of H it has just sent one
        m, (newest, weight) = arrival.m, arrival.own
        nothing, outer, before = np.zeros_like(newest), s.own[m], arrival.before
        if before is None:
            others = dict.fromkeys(arrival.present, nothing)
            before = OuterGradients(others, dict.fromkeys(others, weight), arrival.combine)
        stepped = self.stepped(outer, before.replacing(m, newest, weight).mean())
        early = s.early
        if arrival.is_last:
            early = {**early, m: (outer, before.replacing(m, nothing, weight).mean())}
        return s._replace(own={**s.own, m: stepped}, early=early)

    def concluded(self, s: Eager, m: int, gradients: OuterGradients) -> Eager:
        """Takes worker m's last step again, with the all-reduce that has finished since."""
        if m not in s.early:
            return s
        outer, others = s.early[m]
        return s._replace(own={**s.own, m: self.stepped(outer, others + gradients.mean())})

    def model(self, s: Eager, present: Sequence[int]) -> Row:
        """Returns the mean of the workers' outer parameters."""
        return self._mean(s, present).theta

    def _mean(self, s: Eager, present: Sequence[int]) -> Outer:
        """Returns the mean over those who take part; if nobody does, over who came furthest."""
        outers = [s.own[m] for m in sorted(present)]
        if not outers and s.own:
            furthest = max(outer.t for outer in s.own.values())
            outers = [outer for outer in s.own.values() if outer.t == furthest]
        return mean_outer(outers) if outers else s.initial


def mean_outer(outers: Sequence[Outer]) -> Outer:
    """Returns the mean of outer parameters and of optimizer states; steps are the first's."""
    first = outers[0]
    theta = first.theta
    if len(outers) > 1:
        stacked = np.stack([outer.theta for outer in outers])
        theta = np.asarray(stacked.mean(axis=0, dtype=np.float64), dtype=np.float32)
        theta.flags.writeable = False
    names = first.optimizer
    state = {name: np.mean([outer.optimizer[name] for outer in outers], axis=0) for name in names}
    return Outer(theta, state, first.t)
