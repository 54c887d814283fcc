"""CheckFree and CheckFree+: a lost stage is made of its neighbours.

Blagoev, Ersoy, Chen: All is Not Lost: LLM Recovery without Checkpoints, 2025, arXiv:2506.15461; the
rules as in the authors' code, github.com/gensyn-ai/CheckFree.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl.checks import not_negative, positive
from fl.errors import ConfigError, SimulationError
from fl.strategies.outer_optimizers import rounded
from fl.strategies.pipeline_rule import Begin, StageRecovery, StageState, nearest

if TYPE_CHECKING:
    from fl.stages import Cut

_EPS = 1e-4


@dataclass(frozen=True)
class OfNeighbours(StageRecovery):
    """A lost middle stage is made of its neighbours, its twins in shape.

    If a neighbour is lost as well, the nearest that is left stands in for it. The ends of the model
    are like no other, and cannot be recovered so.

    Attributes:
        lr_factor: of the stage from then on, above 0.
        least: how many middle stages there must be.

    Raises:
        ConfigError: an attribute is out of its range.
    """

    lr_factor: float = 1.1
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        positive("lr_factor", self.lr_factor)

    def check(self, cut: Cut) -> None:
        """Raises ConfigError unless there are enough middle stages, and these are alike."""
        name, middle = type(self).__name__, cut.middle
        if len(cut.stages[0].spans) == 1:
            raise ConfigError(
                f"recovery is {name}, which makes a lost stage of others that are like it, and "
                "with ends=apart the first and the last are like no other: set ends=together"
            )
        if len(middle) < self.least:
            raise ConfigError(
                f"recovery is {name}, which needs {self.least} middle stages, and there are "
                f"{len(middle)}: set num_stages to {self.least + 1} or more"
            )
        first = cut.shapes(middle[0])
        for i in middle[1:]:
            if cut.shapes(i) != first:
                raise ConfigError(
                    f"recovery is {name}, which makes a lost stage of others that are like it, and "
                    f"stages {middle[0]} and {i} hold tensors of other shapes: set boundaries so "
                    "that every middle stage has as many blocks, or use "
                    "strategy/recovery=checkpoint"
                )

    def sources(self, i: int, lost: Collection[int], middle: Sequence[int]) -> Sequence[int]:
        """Returns the neighbours; see `StageRecovery.sources`."""
        if i not in middle:
            raise SimulationError(
                f"stage {i}, with the ends of the model, is lost, and {type(self).__name__} has no "
                "copy of it: use strategy/recovery=checkfree_plus, which has one, or checkpoint"
            )
        return nearest(i, lost, middle)


@dataclass(frozen=True)
class CheckFree(OfNeighbours):
    """A lost stage is the mean of its neighbours, weighted by the norms of their gradients.

        W_i <- (omega_{i-1}^p W_{i-1} + omega_{i+1}^p W_{i+1}) / (omega_{i-1}^p + omega_{i+1}^p)

    with omega_j the norm of stage j's last mean gradient, plus 10^-4. The stage's optimizer begins
    anew, and its learning rate is `lr_factor` times the others' from then on, however often it is
    lost. The first and the last middle stage have one neighbour, whose copy they become.

    The authors' code takes norms after they were clipped to 1, which makes most weights equal; that
    is `omega_cap` 1. With p = 0 it is the plain mean.

    Attributes:
        exponent: p, at least 0.
        omega_cap: bound on omega; None has none.
        lr_factor: the authors have 1.1, and 1.2 for 500 million parameters.

    Raises:
        ConfigError: an attribute is out of its range.
    """

    exponent: float = 1.0
    omega_cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("exponent", self.exponent)
        if self.omega_cap is not None:
            positive("omega_cap", self.omega_cap)

    def recovered(
        self, states: Sequence[StageState], i: int, sources: Sequence[int], begin: Begin
    ) -> StageState:
        """Returns the neighbours' weighted mean; see `StageRecovery.recovered`."""
        cap = np.inf if self.omega_cap is None else self.omega_cap
        omega = [(min(states[j].omega, cap) + _EPS) ** self.exponent for j in sources]
        w = np.average([states[j].w for j in sources], axis=0, weights=omega)
        # Until its first gradient, the stage weighs as much as what it was made of.
        norm = float(np.average([states[j].omega for j in sources], weights=omega))
        return begin.fresh(rounded(w))._replace(omega=norm, factor=self.lr_factor)


@dataclass(frozen=True)
class CheckFreePlus(CheckFree):
    """CheckFree whose ends are twins: every other micro-batch swaps them with their neighbours.

    Micro-batches 0, 2, ... run the middle stages 1, 2, 3, ..., S; the others 2, 1, 3, ..., S, S-1.
    So 1 and 2 learn to do each other's work, and S-1 and S: of these, a lost one becomes a copy of
    the other. The machine of stage 1 has a copy of the first stage's parameters, which is sent
    after every step.
    """

    swaps: ClassVar[bool] = True
    shares_ends: ClassVar[bool] = True
    least: ClassVar[int] = 4

    def sources(self, i: int, lost: Collection[int], middle: Sequence[int]) -> Sequence[int]:
        """Returns a twin, the neighbours, or the machine with the copy."""
        if i not in middle:
            if middle[0] in lost:
                raise SimulationError(
                    f"stage {i} is lost together with stage {middle[0]}, whose machine had the "
                    "only copy of it: use strategy/recovery=checkpoint"
                )
            return (middle[0],)
        for a, b in (middle[:2], middle[-2:]):
            twin = {a: b, b: a}.get(i)
            if twin is not None and twin not in lost:
                return (twin,)
        return nearest(i, lost, middle)

    def recovered(
        self, states: Sequence[StageState], i: int, sources: Sequence[int], begin: Begin
    ) -> StageState:
        """Returns a copy, or the mean; see `StageRecovery.recovered`."""
        if len(states[i].w) != len(states[sources[0]].w):  # the ends, of which there is a copy
            return begin.fresh(states[i].w)._replace(omega=states[i].omega, factor=self.lr_factor)
        return super().recovered(states, i, sources, begin)
