"""Training with some weights left out: they are 0, and stay 0.

Rule 3 of Every Parameter Matters (arXiv:2310.08670), y <- y - eta g * m; for any client rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from fl.clients.rule import Batch, Finished, Received, Role, Rule, Scalar, State
from fl.vectors.layout import Layout

MASK_KEY = "mask"
"""Record of a message with m, 1 where the client holds a number and 0 elsewhere, shape (p,)."""


@dataclass(frozen=True)
class Masked(Rule):
    """A client rule whose steps keep the model at 0 where the mask is:  y <- step(y) * m.

    Of rules that move each number by its own gradient this is the same as a masked gradient; a
    bound on the gradient's norm sees all of it.

    Attributes:
        rule: makes a step; it may keep nothing from task to task.
    """

    rule: Rule

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the same of the rule for a model."""
        return replace(self, rule=self.rule.for_model(model, layout))

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the rule, and the mask."""
        return (*self.rule.needs, MASK_KEY)

    @property
    def uploads(self) -> tuple[str, ...]:
        """Those of the rule."""
        return self.rule.uploads

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """Those of the rule."""
        return self.rule.honours

    @property
    def requires(self) -> tuple[str, ...]:
        """Those of the rule."""
        return self.rule.requires

    @property
    def batchable(self) -> bool:
        """Whether `vmap` takes the rule."""
        return self.rule.batchable

    @property
    def returns_only_the_model(self) -> bool:
        """Whether the rule does."""
        return self.rule.returns_only_the_model

    @property
    def gradients_per_step(self) -> float:
        """Those of the rule."""
        return self.rule.gradients_per_step

    @property
    def differentiates(self) -> bool:
        """Whether the rule does."""
        return self.rule.differentiates

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns that of the rule, with the mask."""
        role = self.rule.role(scalars)
        return role._replace(needs=(*role.needs, MASK_KEY))

    @property
    def vectors(self) -> int:
        """Those of the rule, and the mask."""
        return self.rule.vectors + 1

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns those of the rule."""
        return self.rule.scalars(config)

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns that of the rule."""
        return self.rule.first_memory(w, scalars)

    def init(self, received: Received) -> State:
        """Returns the rule's state before the first step."""
        return self.rule.init(received)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns the rule's step, masked."""
        w, state, loss = self.rule.step(w, state, received, batch, t)
        return w * received.server[MASK_KEY], state, loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns what the rule does."""
        return self.rule.finish(w, state, received, steps)
