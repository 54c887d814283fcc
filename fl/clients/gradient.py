"""The gradient at the received model, for servers that do the stepping themselves.

FedSGD in McMahan, Moore, Ramage, Hampson, Aguera y Arcas, arXiv:1602.05629; and what the workers of
data-parallel training send (1-bit Adam, arXiv:2102.02888).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fl.checks import positive
from fl.clients.local_optimizer import clip
from fl.clients.rule import Batch, Finished, Received, Rule, Scalar, State


class GradientSum(NamedTuple):
    """Sum of the examples' gradients, shape (p,), and their number, shape ()."""

    g: Tensor
    examples: Tensor


@dataclass(frozen=True)
class Gradient(Rule):
    """g = mean gradient over the examples of the task's batches, all at the received model.

    The model is sent back as it came, g in the record "gradient".

    Attributes:
        clip_norm: bound on the 2-norm of g; None does not clip.

    Raises:
        ConfigError: clip_norm is not above 0.
    """

    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.clip_norm is not None:
            positive("clip_norm", self.clip_norm)

    @property
    def uploads(self) -> tuple[str, ...]:
        """The gradient."""
        return ("gradient",)

    @property
    def vectors(self) -> int:
        """The sum."""
        return 1

    def init(self, received: Received) -> State:
        """Returns an empty sum."""
        return GradientSum(torch.zeros_like(received.w), torch.zeros_like(received.w[:1].sum()))

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, sum, loss) with the batch added."""
        g, loss = batch.grad(w)
        return w, GradientSum(state.g + g * batch.examples, state.examples + batch.examples), loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model as it came, and the mean gradient."""
        g = clip(state.g / state.examples, self.clip_norm)
        # Under vmap, clients that received one model each need a row of their own to return.
        return Finished(w + torch.zeros_like(g), {"gradient": g}, {})
