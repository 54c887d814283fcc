"""What training through pipeline stages is, with explicit state: a step of every stage, recovery.

A model of S stages is trained by P pipelines side by side. Every step, each pipeline sends M
micro-batches through its stages and back; stage i has then the mean gradient g_i of its parameters,
over micro-batches and pipelines, and steps:

    omega_i = |g_i|;    w_i <- OuterOpt(w_i, clip(g_i))

Nothing depends on where the stages lie: all stages together take the step of one machine, but for
clipping, which is each stage's own. When a stage is lost, with no other pipeline that has it, a
`StageRecovery` says what it goes on from.

The driver is `fl.strategies.Pipeline`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from fl.aggregation import check_result
from fl.checks import is_a, positive
from fl.errors import SimulationError
from fl.strategies.outer_optimizers import OuterAdam, OuterOptimizer, State, Vector, rounded
from fl.vectors.rows import Row

if TYPE_CHECKING:
    from fl.stages import Cut


class StageState(NamedTuple):
    """A stage of the model.

    Attributes:
        w: parameters, shape (d_i,), float32, read-only.
        moments: of the optimizer.
        t: steps of the optimizer since it began.
        omega: 2-norm of the last mean gradient, before it was clipped; 1 before the first.
        factor: on the learning rate.
    """

    w: Row
    moments: State
    t: int = 0
    omega: float = 1.0
    factor: float = 1.0


class Begin(NamedTuple):
    """What a stage may begin with.

    Attributes:
        fresh: returns the state of parameters with an optimizer that knows nothing.
        drawn: returns the parameters of a stage of another initial model.
    """

    fresh: Callable[[Row], StageState]
    drawn: Callable[[int], Row]


class StageRecovery(ABC):
    """What a lost stage goes on from.

    Attributes:
        swaps: every other micro-batch runs the first two middle stages, and the last two, in each
            other's place.
        shares_ends: the machine of the first middle stage has a copy of the first stage.
        redundant: every machine also computes its successor's forward pass.
        every: steps between two checkpoints; None keeps none.
    """

    swaps: ClassVar[bool] = False
    shares_ends: ClassVar[bool] = False
    redundant: ClassVar[bool] = False
    every: int | None = None

    def check(self, cut: Cut) -> None:
        """Raises ConfigError if stages that are cut so cannot be recovered; any can by default."""
        return

    def sources(self, i: int, lost: Collection[int], middle: Sequence[int]) -> Sequence[int]:
        """Returns the stages whose machines send something to the new machine of stage i.

        Args:
            i: the stage.
            lost: all that are lost at this time.
            middle: the stages that are alike, between the ends, in order.

        Raises:
            SimulationError: what is left is not enough to recover the stage.
        """
        return ()

    def sends_moments(self) -> bool:
        """Returns whether what is sent has the optimizer's moments, beside the parameters."""
        return False

    @abstractmethod
    def recovered(
        self, states: Sequence[StageState], i: int, sources: Sequence[int], begin: Begin
    ) -> StageState:
        """Returns the state of a lost stage.

        Args:
            states: of all stages before, those of lost ones as they were lost; at the last
                checkpoint, if all go back to that.
            i: the stage.
            sources: as the method of this name gave them.
            begin: what it may begin with.
        """

    def rolls_back(self) -> bool:
        """Returns whether all stages go back to the last checkpoint instead."""
        return False


@dataclass(frozen=True)
class PipelineTraining:
    """A step of every stage.

    Attributes:
        optimizer: of the parameters.
        recovery: what a lost stage goes on from.
        clip_norm: bound on the 2-norm of each stage's mean gradient; None does not clip.

    Raises:
        ConfigError: clip_norm is not above 0, or a part is of another kind.
    """

    recovery: StageRecovery
    optimizer: OuterOptimizer = field(
        default_factory=partial(OuterAdam, lr=4e-4, beta1=0.9, beta2=0.999)
    )
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        is_a("recovery", self.recovery, StageRecovery)
        is_a("optimizer", self.optimizer, OuterOptimizer)
        if self.clip_norm is not None:
            positive("clip_norm", self.clip_norm)

    def init(self, w: Row) -> StageState:
        """Returns a stage's state before the first step, of parameters of shape (d_i,)."""
        return StageState(w, self.optimizer.init(len(w)))

    def step(self, s: StageState, g: Vector) -> StageState:
        """Returns a stage's state after a step.

        Args:
            s: not changed.
            g: mean gradient, shape (d_i,), float64.

        Raises:
            NotFinite: the parameters would not be finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            omega = float(np.linalg.norm(g))
            if self.clip_norm is not None and omega > self.clip_norm:
                g = g * (self.clip_norm / omega)
            w, moments = self.optimizer.step(s.w, g, s.moments, s.t)
            if s.factor != 1.0:  # the step of an optimizer is proportional to its learning rate
                w = rounded(s.w + s.factor * (w.astype(np.float64) - s.w))
        check_result("the step of a stage", w)
        return StageState(w, moments, s.t + 1, omega, s.factor)

    def recover(
        self,
        states: Sequence[StageState],
        lost: Collection[int],
        middle: Sequence[int],
        drawn: Callable[[int], Row],
    ) -> list[StageState]:
        """Returns the states of all stages after those that were lost have been recovered.

        Args:
            states: before.
            lost: the stages that are lost.
            middle: the stages that are alike, between the ends, in order.
            drawn: as of `Begin`.

        Raises:
            SimulationError: what is left is not enough.
        """
        begin, after = Begin(self.init, drawn), list(states)
        for i in sorted(lost):
            sources = self.recovery.sources(i, lost, middle)
            after[i] = self.recovery.recovered(states, i, sources, begin)
        return after


def nearest(i: int, lost: Collection[int], middle: Sequence[int]) -> list[int]:
    """Returns the nearest middle stages before and after stage i that are not lost.

    Raises:
        SimulationError: there is none.
    """
    before = [j for j in middle if j < i and j not in lost]
    after = [j for j in middle if j > i and j not in lost]
    found = [*before[-1:], *after[:1]]
    if not found:
        raise SimulationError(
            f"stage {i} is lost, and no stage that is like it is left: use more stages, or "
            "strategy/recovery=checkpoint"
        )
    return found
