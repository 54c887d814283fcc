"""SlowMo: momentum over the phases of Local SGD, in units of the inner learning rate.

Wang, Tantia, Ballas, Rabbat, "SlowMo: Improving Communication-Efficient Distributed SGD with Slow
Momentum", ICLR 2020, arXiv:1910.00643, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import positive, share
from fl.clients.schedule import Schedule, check_schedule
from fl.strategies.outer_optimizers import Vector
from fl.strategies.outer_rule import OuterGradients, OuterRule, inner_rate, moved
from fl.vectors.rows import Row


class SlowMomentum(NamedTuple):
    """State of a fragment.

    Attributes:
        theta: x, the anchor, shape (n,), float32, read-only.
        u: slow momentum, shape (n,), float64.
        t: outer steps taken.
    """

    theta: Row
    u: Vector
    t: int = 0


@dataclass(frozen=True)
class SlowMo(OuterRule):
    """Averages after H inner steps, and goes on with momentum.

        H inner steps from x at the rate gamma;    Delta = x - mean_m x_m
        u <- beta u + Delta / gamma
        x <- x - alpha gamma u

    With beta = 0 and alpha = 1 it is `LocalSGD`. As long as gamma does not change it cancels, and
    the rule is a heavy ball on Delta (`DiLoCo` with an `OuterSgd` without nesterov). When it does,
    it is the rate that was used which divides: old momentum shrinks with the rate.

    gamma is known here up to a factor, which cancels: by the schedules of the inner optimizer. In
    the paper it is constant during a phase. Otherwise it is the mean of the phase's rates (the
    choice is ours; the authors' code takes the last one), and a phase at rate 0 adds nothing to u.

    Attributes:
        inner_steps: H.
        beta: slow momentum, in [0, 1).
        alpha: slow learning rate, above 0.
        step_schedule: of the inner optimizer, by the global step; None is constant.
        round_schedule: likewise, by phase.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    inner_steps: int = 48
    beta: float = 0.5
    alpha: float = 1.0
    step_schedule: Schedule | None = None
    round_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        share("beta", self.beta)
        positive("alpha", self.alpha)
        check_schedule("step_schedule", self.step_schedule)
        check_schedule("round_schedule", self.round_schedule)

    def init(self, theta: Row) -> SlowMomentum:
        """Returns the model, and u = 0."""
        return SlowMomentum(theta, np.zeros(len(theta)))

    def reduced(self, s: SlowMomentum, gradients: OuterGradients) -> SlowMomentum:
        """Returns x and u after a phase."""
        gamma = inner_rate(gradients, self.inner_steps, self.step_schedule, self.round_schedule)
        delta, u = gradients.mean(), self.beta * s.u
        # gamma u of the new u; Delta itself goes in as it came.
        x = moved(s.theta, self.alpha * (gamma * u + delta))
        return SlowMomentum(x, u + delta / gamma if gamma else u, s.t + 1)
