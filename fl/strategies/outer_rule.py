"""What a rule of outer steps is: what follows on an all-reduce, with explicit state.

M workers, each with its own parameters theta_m, do inner steps. Every H of them, for each fragment
of the parameters, they take the mean of

    Delta_m = theta - theta_m,    theta the outer parameters they hold,

by an all-reduce among themselves, with which an outer optimizer makes new outer parameters. Some
inner steps later (the lag, 0 if the workers wait) they go on from these.

A rule is a frozen dataclass of hyperparameters whose methods map the state of one fragment, and
what is known by then, to the next state. It can be read like its algorithm box, and tested without
a grid:

    state = rule.init(theta)
    state = rule.reduced(state, OuterGradients({0: delta_0, 1: delta_1}))

`fl.strategies.OuterSteps` does everything else: schedule, messages, waiting, who takes part, bytes.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import Mean, check_result
from fl.checks import at_least, share
from fl.clients.schedule import Schedule
from fl.errors import ConfigError
from fl.strategies.outer_optimizers import OuterOptimizer, State, Vector, rounded
from fl.vectors.rows import Row

if TYPE_CHECKING:
    from fl.clients.app.island import Pattern

Combine = Callable[[NDArray[np.float64], NDArray[np.float64]], Vector]
"""F of vectors (M, n) with weights (M,), shape (n,), float64."""


@dataclass(frozen=True, eq=False)
class OuterGradients:
    """Outer gradients of one fragment, by worker.

    Attributes:
        deltas: Delta_m, shape (n,) each, float64; at least one.
        weights: what each weighs, at least 0; None if all weigh the same.
        combine: F, by which they become one: their weighted mean, or an aggregator's result.
        step: inner steps after which the workers took part.
    """

    deltas: Mapping[int, Vector]
    weights: Mapping[int, float] | None = None
    combine: Combine = field(default_factory=Mean)
    step: int = 0

    def __len__(self) -> int:
        """Returns M."""
        return len(self.deltas)

    def mean(self) -> Vector:
        """Returns F(Delta_1, ..., Delta_M), shape (n,).

        Raises:
            NoStep: none of them weighs anything, or F brings no result.
        """
        order = sorted(self.deltas)
        weights = np.array([1.0 if self.weights is None else self.weights[m] for m in order])
        return self.combine(np.stack([self.deltas[m] for m in order]), weights)

    def replacing(self, m: int, delta: Vector, weight: float = 1.0) -> OuterGradients:
        """Returns the same with this one of worker m, who need not have had one."""
        weights = dict.fromkeys(self.deltas, 1.0) if self.weights is None else self.weights
        return replace(self, deltas={**self.deltas, m: delta}, weights={**weights, m: weight})


class Outer(NamedTuple):
    """Outer parameters of a fragment.

    Attributes:
        theta: shape (n,), float32, read-only.
        optimizer: state of the outer optimizer.
        t: outer steps taken.
    """

    theta: Row
    optimizer: State
    t: int = 0


@dataclass(frozen=True, eq=False)
class WorkerView:
    """What worker m knows of a fragment when it goes on.

    Attributes:
        m: the worker.
        present: the workers that take part, in order.
        own: its outer gradient of this step as it was sent, and what it weighs; None if it has sent
            none.
        before: those of the all-reduce that began `overlap` inner steps ago; None if none did.
        is_last: whether workers will not go on from any later all-reduce.
        combine: F, for what is made of other outer gradients than those above.
    """

    m: int
    present: Sequence[int] = ()
    own: tuple[Vector, float] | None = None
    before: OuterGradients | None = None
    is_last: bool = False
    combine: Combine = field(default_factory=Mean)


class OuterRule(ABC):
    """What workers make of their outer gradients.

    By default all of them take the same step:

        theta <- OuterOpt(theta, mean_m Delta_m)

    Attributes:
        inner_steps: H.
        optimizer: OuterOpt.
        fragments: P, which divides H; None is one for every three blocks of the model.
        pattern: how blocks are dealt to fragments.
        overlap: the lag in inner steps, at most H.
        mixing: alpha, share of its own parameters that a worker keeps when it takes over outer
            ones.
        sends_gradients: whether the workers send gradients of the loss.
        own_outer: whether every worker steps for itself, by what it knows, its own outer gradient
            among it.
        whole: whether the optimizer is told of the tensors, see `shaped`.
        why_no_drop: why no outer gradient may be lost, `OuterSteps`' drop; "" if it may.
    """

    inner_steps: int
    optimizer: OuterOptimizer
    fragments: int | None = 1
    pattern: Pattern = "strided"
    overlap: int = 0
    mixing: float = 0.0
    sends_gradients: ClassVar[bool] = False
    own_outer: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    why_no_drop: ClassVar[str] = ""

    def __post_init__(self) -> None:
        at_least("inner_steps", self.inner_steps, 1)
        if self.fragments is not None:
            at_least("fragments", self.fragments, 1)
            check_divides(self.inner_steps, self.fragments)
        if self.pattern not in ("strided", "sequential"):
            raise ConfigError(f"pattern is {self.pattern!r}; it must be strided or sequential")
        at_least("overlap", self.overlap, 0)
        share("mixing", self.mixing)
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None and optimizer.by_tensor and not self.whole:
            raise ConfigError(
                f"optimizer is {type(optimizer).__name__}, which steps tensor by tensor, and "
                f"{type(self).__name__} does not tell it where they end: use it with "
                "strategy=dedloc or data_parallel"
            )

    def shaped(self, sizes: Sequence[Sequence[int]]) -> Self:
        """Returns one whose `init` is for fragments of tensors of these sizes."""
        return self

    def init(self, theta: Row) -> Any:
        """Returns a fragment's state before the first step, of parameters of shape (n,)."""
        return Outer(theta, self.optimizer.init(len(theta)))

    def reduced(self, s: Any, gradients: OuterGradients) -> Any:
        """Returns the state after an all-reduce has finished.

        Args:
            s: not changed.
            gradients: of the workers that took part.

        Raises:
            NoStep: they bring no step.
        """
        return self.stepped(s, gradients.mean())

    def entered(self, s: Any, m: int, present: Sequence[int]) -> Any:
        """Returns the state with a worker that begins.

        Args:
            s: not changed.
            m: the worker.
            present: the others that take part.
        """
        return s

    def beside(self, s: Any) -> int:
        """Returns how many numbers a worker that enters needs beside the outer parameters.

        They are what it takes the same steps with as the others: all else in the state.
        """
        return _numbers(s._replace(theta=None))

    def theta(self, s: Any, m: int) -> Row:
        """Returns the outer parameters that worker m goes on from, shape (n,)."""
        row: Row = s.theta
        return row

    def resumed(self, s: Any, arrival: WorkerView) -> Any:
        """Returns the state when a worker goes on, with the step that it takes for itself.

        Raises:
            NoStep: what is known brings no step.
        """
        return s

    def concluded(self, s: Any, m: int, gradients: OuterGradients) -> Any:
        """Returns the state when all steps are done, with the part of worker m.

        Args:
            s: not changed.
            m: a worker that takes part.
            gradients: of the last all-reduce, finished.

        Raises:
            NoStep: they bring no step.
        """
        return s

    def model(self, s: Any, present: Sequence[int]) -> Row:
        """Returns the outer parameters to evaluate, shape (n,), of the workers that take part."""
        row: Row = s.theta
        return row

    def stepped(self, outer: Outer, delta: Vector) -> Outer:
        """Returns outer parameters after OuterOpt's step by an outer gradient.

        Raises:
            NotFinite: the parameters would not be finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            theta, state = self.optimizer.step(outer.theta, delta, outer.optimizer, outer.t)
        check_result("the outer step", theta)
        return Outer(theta, state, outer.t + 1)


def _numbers(state: Any) -> int:
    """Returns how many numbers the arrays of a state have."""
    if isinstance(state, np.ndarray):
        return state.size
    if isinstance(state, Mapping):
        state = tuple(state.values())
    return sum(map(_numbers, state)) if isinstance(state, tuple) else 0


class OverlappedRule(OuterRule):
    """A rule whose all-reduce has a whole phase of H inner steps to end."""

    @property
    def overlap(self) -> int:  # type: ignore[override]  # no choice here
        """H."""
        return self.inner_steps


def moved(theta: Row, move: Vector) -> Row:
    """Returns theta - move, shape (n,), computed in float64 and rounded once, read-only.

    Raises:
        NotFinite: the parameters would not be finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
        row = rounded(theta - move)
    check_result("the outer step", row)
    return row


def inner_rate(
    gradients: OuterGradients,
    inner_steps: int,
    step_schedule: Schedule | None,
    round_schedule: Schedule | None,
) -> float:
    """Returns the mean inner learning rate of a phase, of which 1 is the one without schedules.

    Args:
        gradients: of the phase's end.
        inner_steps: H.
        step_schedule: factor by the global step; None is 1.
        round_schedule: factor by the phase; None is 1.
    """
    first = max(gradients.step - inner_steps, 0)
    rate = 1.0 if round_schedule is None else round_schedule(first // inner_steps)
    if step_schedule is None:
        return rate
    return rate * sum(map(step_schedule, range(first, first + inner_steps))) / inner_steps


def check_divides(inner_steps: int, fragments: int) -> None:
    """Raises ConfigError unless every fragment can be due at a whole step."""
    if inner_steps % fragments:
        raise ConfigError(
            f"inner_steps is {inner_steps}, which {fragments} fragments do not divide: a fragment "
            f"is due every inner_steps / fragments steps; set it to a multiple of {fragments}"
        )
