"""Local stochastic gradient descent, the client of FedAvg.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, arXiv:1602.05629, Algorithm 1, `ClientUpdate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl.checks import not_negative, share
from fl.clients.local_optimizer import Descent
from fl.clients.rule import Received, State
from fl.clients.schedule import Schedule
from fl.errors import ConfigError


@dataclass(frozen=True)
class Sgd(Descent):
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
        super().__post_init__()
        not_negative("weight_decay", self.weight_decay)
        share("momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov needs momentum above 0, got momentum 0: set it, or drop it")

    @property
    def is_plain(self) -> bool:
        """Without momentum and weight decay."""
        return not (self.momentum or self.weight_decay)

    @property
    def vectors(self) -> int:
        """The momentum buffer, if there is one."""
        return 1 if self.momentum else 0

    def init(self, received: Received) -> State:
        """Returns the momentum buffer, or nothing without momentum."""
        return torch.zeros_like(received.w) if self.momentum else ()

    def direction(self, w: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns v, or g + momentum v, and v."""
        if self.weight_decay:
            g = torch.add(g, w, alpha=self.weight_decay)
        if self.momentum:
            state = state * self.momentum + g
            g = torch.add(g, state, alpha=self.momentum) if self.nesterov else state
        return g, state
