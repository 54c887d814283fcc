"""The gradient at the received model, for servers that do the stepping themselves.

FedSGD in McMahan, Moore, Ramage, Hampson, Aguera y Arcas, arXiv:1602.05629; and what the workers of
data-parallel training send (1-bit Adam, arXiv:2102.02888).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fl.checks import positive
from fl.clients.local_optimizer import Descent, clip
from fl.clients.rule import Batch, Finished, Received, Rule, Scalar, State


class GradientSum(NamedTuple):
    """Sum of the examples' gradients, shape (p,), and their number, shape ()."""

    g: Tensor
    examples: Tensor

    @classmethod
    def empty(cls, w: Tensor) -> GradientSum:
        """Returns the sum of none, for weights of shape (p,)."""
        return cls(torch.zeros_like(w), torch.zeros_like(w[:1].sum()))

    def plus(self, g: Tensor, examples: Scalar) -> GradientSum:
        """Returns the sum with the mean gradient of so many examples, shape (p,)."""
        return GradientSum(self.g + g * examples, self.examples + examples)

    def mean(self, max_norm: float | None) -> Tensor:
        """Returns the mean gradient, shape (p,), clipped."""
        return clip(self.g / self.examples, max_norm)


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
        return GradientSum.empty(received.w)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, sum, loss) with the batch added."""
        g, loss = batch.grad(w)
        return w, state.plus(g, batch.examples), loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model as it came, and the mean gradient."""
        g = state.mean(self.clip_norm)
        # Under vmap, clients that received one model each need a row of their own to return.
        return Finished(w + torch.zeros_like(g), {"gradient": g}, {})


@dataclass(frozen=True)
class Direction(Rule):
    """d, which an optimizer would step along, for servers that do the stepping themselves.

        g <- mean gradient over the examples of the task's batches, as the optimizer takes them;
        d <- direction(w, clip(g)),    all at the received model w

    The model is sent back as it came, d in the record "gradient", in the place of one:

    - `Sam`: gradients where the loss is worst nearby, each client's by its own batches, which is
      how Foret et al., arXiv:2010.01412, train on several accelerators (m-sharpness);
    - `Momentum`: a running mean of the client's gradients, which is what workers send in
      Karimireddy et al., arXiv:2012.10333, Algorithm 2;
    - weight decay, which is a gradient of lambda |w|^2 / 2.

    An optimizer that divides by the size of the gradients, as AdamW, has none: the mean of clients'
    directions then vanishes where the mean of their gradients does not, and no rate of the server
    mends that (Chen, Karimi, Zhao, Li, arXiv:2109.03194).

    Attributes:
        optimizer: its learning rate and schedules are the server's matter, and do not count.
    """

    optimizer: Descent

    @property
    def uploads(self) -> tuple[str, ...]:
        """The direction."""
        return ("gradient",)

    @property
    def gradients_per_step(self) -> float:
        """Those of the optimizer."""
        return self.optimizer.gradients_per_step

    @property
    def vectors(self) -> int:
        """The sum, and those of the optimizer."""
        return 1 + self.optimizer.vectors

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns that of the optimizer."""
        return self.optimizer.first_memory(w, scalars)

    def init(self, received: Received) -> State:
        """Returns an empty sum."""
        return GradientSum.empty(received.w)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, sum, loss) with the batch added."""
        g, loss = self.optimizer.gradient(w, batch)
        return w, state.plus(g, batch.examples), loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model as it came, the direction, and what the optimizer keeps."""
        g = state.mean(self.optimizer.clip_norm)
        d, kept = self.optimizer.direction(w, g, self.optimizer.init(received))
        memory = self.optimizer.finish(w, kept, received, 1).memory
        return Finished(w + torch.zeros_like(g), {"gradient": d}, memory)
