"""CO2: momentum by averages that are a phase old, whose staleness is held against them.

Sun, Qin, Sun, Li, Li, Shen, Qiao, Zhong, "CO2: Efficient Distributed Training with Full
Communication-Computation Overlap", ICLR 2024, arXiv:2401.16265; weigao266/fairscale-CO2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import positive, share
from fl.errors import ConfigError
from fl.strategies.outer_optimizers import Vector
from fl.strategies.outer_rule import OuterGradients, OverlappedRule, moved
from fl.vectors.rows import Row


class Stale(NamedTuple):
    """State of a fragment.

    Attributes:
        theta: x_(t,0), where phase t begins, shape (n,), float32, read-only.
        before: x_(t-1,0), likewise.
        m: outer momentum, shape (n,), float64.
        t: outer steps taken.
    """

    theta: Row
    before: Row
    m: Vector
    t: int = 0


@dataclass(frozen=True)
class CO2(OverlappedRule):
    """Local SGD whose all-reduce has a whole phase of H inner steps to end, with outer momentum.

    After phase t the workers begin the all-reduce of what they have, x_(t,H), and go on with the
    mean of the phase before:

        Delta = x_(t-1,0) - mean_i x_(t-1,H)
        m <- clip(beta m + Delta / Lambda_t, -phi, phi)            entry by entry
        x_(t+1,0) <- x_(t,0) - alpha m

    Lambda_t >= 1 is the staleness gap: how far the model has moved since Delta was measured. With
    Lambda = 1, no clipping and OuterSgd(alpha, beta, nesterov=False) it is `DelayedUpdates`. After
    phase 0 nothing has come: phase 1 begins at the same model.

    The paper's formula of Lambda_t is not known to us, and the authors' code has a constant. Ours,
    with `gap` None, counts the distance in lengths of Delta:

        Lambda_t = max(1, |x_(t,0) - x_(t-1,0)| / |Delta|)

    In the authors' code clipping has no effect, as the result is dropped; here it has.

    Attributes:
        inner_steps: H, tau of the paper.
        beta: outer momentum, in [0, 1).
        alpha: outer learning rate, above 0.
        gap: Lambda, at least 1; None measures it.
        clip: phi, above 0; None does not clip.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    inner_steps: int = 48
    beta: float = 0.5
    alpha: float = 1.0
    gap: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        share("beta", self.beta)
        positive("alpha", self.alpha)
        if self.gap is not None and not 1 <= self.gap < np.inf:
            raise ConfigError(f"gap is {self.gap}; it must be finite, at least 1, or null")
        if self.clip is not None:
            positive("clip", self.clip)

    def init(self, theta: Row) -> Stale:
        """Returns the model, and m = 0."""
        return Stale(theta, theta, np.zeros(len(theta)))

    def reduced(self, s: Stale, gradients: OuterGradients) -> Stale:
        """Returns where the phase after the next begins."""
        delta = gradients.mean()
        m = self.beta * s.m + delta / self._staleness(s, delta)
        if self.clip is not None:
            m = np.clip(m, -self.clip, self.clip)
        return Stale(moved(s.theta, self.alpha * m), s.theta, m, s.t + 1)

    def _staleness(self, s: Stale, delta: Vector) -> float:
        """Returns Lambda_t."""
        if self.gap is not None:
            return self.gap
        distance = np.linalg.norm(s.theta.astype(np.float64) - s.before)
        length = np.linalg.norm(delta)
        return max(1.0, float(distance / length)) if length else 1.0
