"""A learning rate that each client moves from step to step by its hypergradient: FedHyper-CL.

Wang, Wang, Li: FedHyper: A Universal and Robust Learning Rate Scheduler for Federated Learning with
Hypergradient Descent, ICLR 2024, arXiv:2310.03156, equation 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fl.clients.correction import Correction
from fl.clients.rule import Batch, Received, Scalar, State
from fl.errors import ConfigError


class Rate(NamedTuple):
    """Of the last step: the rate's factor on lr, its gradient, and whether there was one.

    Attributes:
        factor: beta_k / beta_0, shape ().
        g: g_k, shape (p,); 0 before the first step.
        begun: 1 after the first step, 0 before, shape ().
    """

    factor: Tensor
    g: Tensor
    begun: Tensor


@dataclass(frozen=True)
class Hypergradient(Correction):
    """The client of FedHyper-CL: step k of K is made at the rate beta_k in the place of lr.

        beta_k = clip(beta_(k-1) + <g_k, g_(k-1)> - 1/K <g_k, Delta>, lr / gamma_b, lr gamma_b)
        g <- beta_k / lr g_k

    with beta_0 = lr in every task. Delta is the record "last_update" of the message, the mean
    change of the model in the last round, whose direction as a gradient is -Delta. With SGD the
    step is that of SGD at the rate beta_k. An optimizer that divides a gradient by its own size, as
    AdamW does, would undo the factor.

    The paper could not be had. That equation 20 adds 1/K of the product with the global change is
    from what others write of it; that a task begins at lr, and that its first step moves nothing,
    is as in the authors' code, which multiplies the rate where the paper adds to it.

    K is the number of steps that the task is to have. A step schedule of the optimizer is a factor
    on top.

    Attributes:
        gamma_b: bound on beta_k / lr and its inverse, at least 1; 1 keeps the rate.
        clip_first: clip the batch's gradient, whose products move the rate, by default; otherwise
            what the factor makes of it.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    counts_on_length: ClassVar[bool] = True

    gamma_b: float = 10.0
    clip_first: bool = True

    def __post_init__(self) -> None:
        bound_of_rate("gamma_b", self.gamma_b)

    @property
    def needs(self) -> tuple[str, ...]:
        """The server's last change."""
        return ("last_update",)

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for the last gradient and the server's change."""
        return 2

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns a factor of 1, and no gradient."""
        zero = torch.zeros_like(received.w[:1].sum())
        return Rate(zero + 1, torch.zeros_like(received.w), zero)

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns beta_k / lr g, and the rate."""
        beta_0 = received.scalars["lr"]
        ours = state.begun * (g @ received.server["last_update"]) / received.steps
        moved = state.factor + (g @ state.g - ours) / beta_0
        factor = moved.clamp(1 / self.gamma_b, self.gamma_b)
        return factor * g, Rate(factor, g, torch.ones_like(state.begun))


def bound_of_rate(name: str, value: float) -> None:
    """Raises ConfigError if a bound on a factor and on its inverse is below 1 or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be finite and at least 1")
