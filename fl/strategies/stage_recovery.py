"""What a lost stage goes on from without CheckFree: checkpoints, redundancy, copies, chance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fl.checks import at_least, positive
from fl.errors import SimulationError
from fl.strategies.checkfree import OfNeighbours
from fl.strategies.pipeline_rule import Begin, StageRecovery, StageState


@dataclass(frozen=True)
class KeptStage(StageRecovery):
    """Another machine has the stage, and the moments of its optimizer."""

    def sends_moments(self) -> bool:
        """Returns True."""
        return True

    def recovered(
        self, states: Sequence[StageState], i: int, sources: Sequence[int], begin: Begin
    ) -> StageState:
        """Returns the stage as it was, at the last checkpoint if there are any."""
        return states[i]


@dataclass(frozen=True)
class RollBack(KeptStage):
    """Checkpoints: all stages go back to where they were at the last one.

    Every `every` steps each machine sends parameters and moments to a neighbour, and training waits
    for that. When a stage is lost, its new machine gets them from there, the others have their own,
    and the steps since then are done again, on the same batches.

    Attributes:
        every: steps between two checkpoints, at least 1.

    Raises:
        ConfigError: `every` is below 1.
    """

    every: int = 1

    def __post_init__(self) -> None:
        at_least("every", self.every, 1)

    def sources(self, i: int, lost: Collection[int], middle: Sequence[int]) -> Sequence[int]:
        """Returns the neighbour that has the checkpoint."""
        return (i + 1 if i == 0 else i - 1,)

    def rolls_back(self) -> bool:
        """Returns True."""
        return True


@dataclass(frozen=True)
class RedundantStages(KeptStage):
    """Every machine holds its successor's stage as well, and computes its forward pass.

    Bamboo (Thorpe, Zhao, Eyolfson, Qiao, Jia, Zhang, Netravali, Xu: Bamboo: Making Preemptible
    Instances Resilient for Affordable Training of Large DNNs, NSDI 2023, arXiv:2204.12013) without
    its bubbles: the redundant forward pass is charged in full. Nothing is lost with a machine,
    whose stage comes from its predecessor with its moments; two neighbours at once are fatal.
    """

    redundant: ClassVar[bool] = True

    def sources(self, i: int, lost: Collection[int], middle: Sequence[int]) -> Sequence[int]:
        """Returns the predecessor; that of the first stage is the last."""
        stages = 1 + max(middle)
        before = (i - 1) % stages
        if before in lost:
            raise SimulationError(
                f"stages {before} and {i} are lost at once, and with them both copies of stage "
                f"{i}: use strategy/recovery=checkpoint"
            )
        return (before,)


@dataclass(frozen=True)
class CopiedStage(OfNeighbours):
    """A lost stage becomes a copy of the one before it, of the next one if there is none.

    The authors of CheckFree (arXiv:2506.15461) then fit it to cached activations, in eight steps;
    that is left out here.
    """

    def sources(self, i: int, lost: Collection[int], middle: Sequence[int]) -> Sequence[int]:
        """Returns the neighbour."""
        return super().sources(i, lost, middle)[:1]

    def recovered(
        self, states: Sequence[StageState], i: int, sources: Sequence[int], begin: Begin
    ) -> StageState:
        """Returns the copy."""
        source = states[sources[0]]
        return begin.fresh(source.w)._replace(omega=source.omega, factor=self.lr_factor)


@dataclass(frozen=True)
class DrawnAnew(StageRecovery):
    """A lost stage begins anew, with its part of another initial model.

    Attributes:
        lr_factor: of the stage from then on, above 0.

    Raises:
        ConfigError: it is not above 0.
    """

    lr_factor: float = 1.1

    def __post_init__(self) -> None:
        positive("lr_factor", self.lr_factor)

    def recovered(
        self, states: Sequence[StageState], i: int, sources: Sequence[int], begin: Begin
    ) -> StageState:
        """Returns the stage of another initial model."""
        return begin.fresh(begin.drawn(i))._replace(factor=self.lr_factor)
