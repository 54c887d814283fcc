"""Local Adam with decoupled weight decay.

Kingma, Ba: Adam, ICLR 2015, arXiv:1412.6980. Loshchilov, Hutter: Decoupled Weight Decay
Regularization, ICLR 2019, arXiv:1711.05101, Algorithm 2. As a client of FedAvg with the moments
reset in every task it is the inner optimizer of DiLoCo-style training when kept (arXiv:2311.08105).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fl.checks import not_negative
from fl.clients.local_optimizer import LocalOptimizer, goes_on
from fl.clients.rule import Finished, Received, Scalar, State
from fl.clients.schedule import Schedule
from fl.errors import ConfigError


class Moments(NamedTuple):
    """First and second moment of the gradient, shape (p,) each."""

    m: Tensor
    v: Tensor


@dataclass(frozen=True)
class AdamW(LocalOptimizer):
    """AdamW, as `torch.optim.AdamW` computes it.

        g <- clip(gradient of the batch at w)
        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)      t = 1, 2, ...

    A message's "lr" replaces `lr` and `round_schedule` for its task; `step_schedule` still applies.

    Attributes:
        lr: learning rate, above 0.
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: decoupled, at least 0.
        clip_norm: bound on the gradient's 2-norm; None does not clip.
        keep_moments: a client keeps m, v and t from task to task; False starts every task from
            zero. None is as the strategy needs it: workers of outer steps, who go on from where
            they were, keep theirs, clients of rounds do not.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    rescales: ClassVar[bool] = True

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = None
    keep_moments: bool | None = None
    round_schedule: Schedule | None = None
    step_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("eps", self.eps)
        not_negative("weight_decay", self.weight_decay)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ConfigError(f"{name} is {beta}; it must be in [0, 1)")

    @property
    def vectors(self) -> int:
        """The two moments."""
        return 2

    @property
    def keeps(self) -> bool | None:
        """Whether the moments do."""
        return self.keep_moments

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns zero moments after zero steps, if they are kept at all."""
        if not goes_on(self.keep_moments, scalars):
            return {}
        zero = torch.zeros_like(w)
        # float64: 1 - beta2^t loses five digits in float32.
        return {"m": zero, "v": zero, "steps": torch.zeros((), dtype=torch.float64)}

    def init(self, received: Received) -> State:
        """Returns the moments to start from."""
        if goes_on(self.keep_moments, received.scalars):
            return Moments(received.memory["m"], received.memory["v"])
        zero = torch.zeros_like(received.w)
        return Moments(zero, zero)

    def update(
        self, w: Tensor, g: Tensor, state: State, received: Received, t: int
    ) -> tuple[Tensor, State]:
        """Returns (w, moments) after one step."""
        lr = self.step_lr(received, t)
        m = state.m + (1 - self.beta1) * (g - state.m)
        v = self.beta2 * state.v + (1 - self.beta2) * (g * g)
        steps: Scalar = t + 1.0
        if goes_on(self.keep_moments, received.scalars):
            steps = received.memory["steps"] + steps
        bias1, bias2 = 1 - self.beta1**steps, 1 - self.beta2**steps
        update = m / (torch.sqrt(v) / bias2**0.5 + self.eps)
        return w * (1 - lr * self.weight_decay) - update * (lr / bias1), Moments(m, v)

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model, and the moments if they are kept."""
        if not goes_on(self.keep_moments, received.scalars):
            return Finished(w, {}, {})
        total = received.memory["steps"] + steps
        return Finished(w, {}, {"m": state.m, "v": state.v, "steps": total})
