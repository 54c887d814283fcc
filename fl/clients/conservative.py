"""Local SGD that steps forwards, backwards or not at all: ZO-SGD-Cons.

Zhang et al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning, ICML 2024,
arXiv:2402.11592; ZO-Bench/ZO-LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.checks import positive
from fl.clients.local_optimizer import LR_FACTOR_KEY, descend, round_lr
from fl.clients.rule import Batch, Received, Rule, Scalar, State


@dataclass(frozen=True)
class Conservative(Rule):
    """The best on the batch of w, w - lr g and w + lr g.

    The loss of no batch rises by its step. Comparing takes three forward passes, and no memory: a
    device goes there and back. With `client/estimator=two_point` g is an estimate, and the rule is
    ZO-SGD-Cons. Ties go to w - lr g, then to w; where the loss is no number is no place to go.

    A message's "lr" replaces `lr` for its task.

    Attributes:
        lr: learning rate, above 0.

    Raises:
        ConfigError: it is not.
    """

    lr: float = 0.1

    def __post_init__(self) -> None:
        positive("lr", self.lr)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The learning rate."""
        return {"lr": ("lr",), LR_FACTOR_KEY: ()}

    @property
    def forwards_per_step(self) -> float:
        """Three, to compare."""
        return 3.0

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the learning rate of this task."""
        return {"lr": round_lr(config, self.lr, None)}

    def init(self, received: Received) -> State:
        """Returns nothing."""
        return ()

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (best, (), loss at w)."""
        lr: Scalar = received.scalars["lr"]
        g, _ = batch.grad(w)
        forth, back = descend(w, lr, g), descend(w, -lr, g)
        losses = batch.losses(w, forth, back)
        here, there, behind = (torch.nan_to_num(x, nan=torch.inf) for x in losses)
        best = torch.where(here <= behind, w, back)
        best = torch.where(there <= torch.minimum(here, behind), forth, best)
        return best, state, losses[0]
