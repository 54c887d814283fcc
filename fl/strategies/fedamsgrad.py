"""FedAMSGrad: FedAdam whose steps do not grow again where changes have been large.

Wang, Lin, Chen, "Communication-Efficient Adaptive Federated Learning", arXiv:2205.02719 (ICML
2022), Algorithm 1 without compression, with its second option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.strategies.fedopt import FedAdam
from fl.strategies.round_rule import Updates
from fl.vectors.rows import Row


class MaxMoments(NamedTuple):
    """Model, both moments, the largest second moment so far, shape (d,) each, and the steps."""

    w: Row
    m: Row
    v: Row
    v_max: Row
    t: int = 0


@dataclass(frozen=True)
class FedAMSGrad(FedAdam):
    """FedAdam with the largest second moment so far, with Delta the mean of the clients' changes.

        m <- beta_1 m + (1 - beta_1) Delta
        v <- beta_2 v + (1 - beta_2) Delta^2
        v_max <- max(v_max, v)
        w <- w + eta m / (sqrt(v_max) + tau)

    All moments start at 0. The paper calls tau epsilon.

    Attributes:
        tau: keeps the step finite where nothing has changed yet, above 0.
        bias_correction: divide m by 1 - beta_1^t and v_max by 1 - beta_2^t, t = 1, 2, ..., as the
            authors of FADAS (arXiv:2407.18365) do in their code, and not in their paper.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    tau: float = 1e-8
    bias_correction: bool = False

    def init(self, w: Row, p: int) -> MaxMoments:  # type: ignore[override]
        """Returns the model, with moments of nothing."""
        zero = np.zeros_like(w)
        return MaxMoments(w, zero, zero, zero)

    def step(self, state: MaxMoments, updates: Updates) -> MaxMoments:  # type: ignore[override]
        """Returns the state after a step."""
        t = state.t + 1
        m, v = self.moments(state.m, state.v, updates.mean())
        v_max: Row = np.maximum(state.v_max, v)
        first, second = np.float32(1), np.float32(1)
        if self.bias_correction:
            first, second = np.float32(1 - self.beta_1**t), np.float32(1 - self.beta_2**t)
        return MaxMoments(self.moved(state.w, m / first, v_max / second), m, v, v_max, t)
