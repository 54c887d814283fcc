"""Local stochastic gradient descent, the client of FedAvg.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, arXiv:1602.05629, Algorithm 1, `ClientUpdate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.clients.rule import Batch, Received, Scalar, State
from fl.clients.schedule import Schedule
from fl.clients.scheduled import Scheduled
from fl.errors import ConfigError


@dataclass(frozen=True)
class Sgd(Scheduled):
    """Mini-batch SGD with momentum, weight decay and clipping, as `torch.optim.SGD` computes it.

        g <- clip(gradient of the batch at w)
        g <- g + weight_decay w
        v <- momentum v + g                     (v starts at 0 in every task)
        w <- w - lr v                           (Nesterov: w - lr (g + momentum v))

    A message's "lr" replaces `lr` and `round_schedule` for its task; `step_schedule` still applies.

    Attributes:
        lr: learning rate eta, above 0.
        momentum: in [0, 1); 0 keeps no buffer.
        nesterov: look ahead; needs momentum.
        weight_decay: coefficient of w added to the gradient, at least 0.
        clip_norm: bound on the 2-norm of the gradient of all parameters together, as
            `torch.nn.utils.clip_grad_norm_`, before weight decay; None does not clip.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    round_schedule: Schedule | None = None
    step_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_not_negative("weight_decay", self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}; it must be in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov needs momentum above 0, got momentum 0: set it, or drop it")
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)

    @property
    def vectors(self) -> int:
        """The momentum buffer, if there is one."""
        return 1 if self.momentum else 0

    def init(self, received: Received) -> State:
        """Returns the momentum buffer, or nothing without momentum."""
        return torch.zeros_like(received.w) if self.momentum else ()

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, v, loss) after one step."""
        g, loss = batch.grad(w)
        g = self.direction(g, w, received)
        if self.weight_decay:
            g = torch.add(g, w, alpha=self.weight_decay)
        if self.momentum:
            state = state * self.momentum + g
            g = torch.add(g, state, alpha=self.momentum) if self.nesterov else state
        lr = self.step_lr(received, t)
        return descend(w, lr, g), state, loss

    def direction(self, g: Tensor, w: Tensor, received: Received) -> Tensor:
        """Returns what the step follows, given the batch's gradient: here the clipped gradient.

        Rules that only correct the gradient override this.
        """
        return clip(g, self.clip_norm)


def clip(g: Tensor, max_norm: float | None) -> Tensor:
    """Returns g min(1, max_norm / (|g| + 1e-6)), the formula of `clip_grad_norm_`.

    Args:
        g: shape (p,).
        max_norm: bound; None returns `g`.
    """
    if max_norm is None:
        return g
    return g * torch.clamp(max_norm / (torch.linalg.vector_norm(g) + 1e-6), max=1.0)


def descend(w: Tensor, lr: Scalar, g: Tensor) -> Tensor:
    """Returns w - lr g, in one pass over memory where `lr` is a float."""
    if isinstance(lr, Tensor):
        return w - lr * g
    return torch.add(w, g, alpha=-lr)


def check_positive(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; it must be finite and above 0")


def check_not_negative(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value}; it must be finite and at least 0")
