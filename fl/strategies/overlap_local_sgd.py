"""Overlap-Local-SGD: workers are pulled to an anchor, which is averaged while they train.

Wang, Liang, Joshi, "Overlap Local-SGD: An Algorithmic Approach to Hide Communication Delays in
Distributed SGD", ICASSP 2020, arXiv:2002.09539; JYWa/Overlap_Local_SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fl.checks import fraction, share
from fl.clients.schedule import Schedule, check_schedule
from fl.strategies.outer_optimizers import Vector
from fl.strategies.outer_rule import OuterGradients, OverlappedRule, inner_rate, moved
from fl.vectors.rows import Row


class Anchor(NamedTuple):
    """State of a fragment.

    Attributes:
        theta: z, shape (n,), float32, read-only.
        before: the anchor of the phase before, likewise.
        v: anchor momentum, shape (n,), float64.
        t: outer steps taken.
    """

    theta: Row
    before: Row
    v: Vector
    t: int = 0


@dataclass(frozen=True)
class OverlapLocalSGD(OverlappedRule):
    """Local SGD whose workers never wait: an anchor is averaged during the next phase.

    After every H inner steps at the rate gamma, worker m waits for the anchor z whose all-reduce it
    began H steps before, and goes on from a point between:

        x_m <- (1 - alpha) x_m + alpha z
        v_m <- beta v_m + (z - x_m) / gamma
        the all-reduce of z <- mean_m (z - gamma v_m) begins

    So without momentum the next anchor is the mean of the pulled workers. The first z is the
    initial model. gamma cancels while it does not change; see `fl.strategies.SlowMo` for what it is
    when it does.

    v_m enters by its mean alone, which follows the same formula and which everybody can tell from
    the anchors; it is kept instead of v_m, so that a worker that enters late has it too. With an
    aggregator F, z - x_m are combined by F. The model that is evaluated is the anchor.

    Attributes:
        inner_steps: H, tau of the paper.
        alpha: how far workers are pulled to the anchor, in (0, 1]; with 1 they begin again at it,
            and without momentum it never moves.
        beta: anchor momentum, in [0, 1).
        step_schedule: of the inner optimizer, by the global step; None is constant.
        round_schedule: likewise, by phase.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    why_no_drop: ClassVar[str] = "an outer gradient is measured against the newest anchor"

    inner_steps: int = 30
    alpha: float = 0.6
    beta: float = 0.7
    step_schedule: Schedule | None = None
    round_schedule: Schedule | None = None

    @property
    def mixing(self) -> float:  # type: ignore[override]  # no choice of its own
        """1 - alpha."""
        return 1 - self.alpha

    def __post_init__(self) -> None:
        fraction("alpha", self.alpha)
        super().__post_init__()
        share("beta", self.beta)
        check_schedule("step_schedule", self.step_schedule)
        check_schedule("round_schedule", self.round_schedule)

    def init(self, theta: Row) -> Anchor:
        """Returns the model as the anchor, and v = 0."""
        return Anchor(theta, theta, np.zeros(len(theta)))

    def reduced(self, s: Anchor, gradients: OuterGradients) -> Anchor:
        """Returns the next anchor."""
        gamma = inner_rate(gradients, self.inner_steps, self.step_schedule, self.round_schedule)
        # They were measured against the anchor before, and before the pull.
        delta = gradients.mean() + s.theta.astype(np.float64) - s.before
        delta, v = (1 - self.alpha) * delta, self.beta * s.v
        z = moved(s.theta, gamma * v + delta)
        return Anchor(z, s.theta, v + delta / gamma if gamma else v, s.t + 1)
