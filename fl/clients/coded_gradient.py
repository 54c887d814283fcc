"""A linear combination of gradients at the received model, for servers that decode several.

Tandon, Lei, Dimakis, Karampatziakis, ICML 2017, arXiv:1612.03301.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fl.clients.rule import Batch, Finished, Received, Role, Rule, Scalar, State
from fl.errors import ConfigError
from fl.vectors.layout import Layout

COEFFICIENTS_KEY = "coefficients"
_EACH = "coefficient-"
_ALL = "coefficient"


@dataclass(frozen=True)
class CodedGradient(Rule):
    """c = sum_t B_t g_t, with g_t the mean gradient of the task's batch t at the received model.

    The message says B in "coefficients": a number for each batch, or one for all of them. c goes
    into the record "gradient", and the model is not sent back, but where it has statistics of
    normalisation layers, which are a function of the batches as well.

    Whoever computes the gradient of a chunk must get the same: a model that draws (dropout) is
    refused.

    Attributes:
        sends_model: whether the model goes back, as it has such statistics.
    """

    sends_model: bool = field(default=False, init=False)

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the rule for a model.

        Raises:
            ConfigError: the model has dropout layers.
        """
        for name, module in model.named_modules():
            if isinstance(module, _DropoutNd) and module.p > 0:
                raise ConfigError(
                    f"the model's {name!r} draws (dropout {module.p:g}), so that clients which "
                    "hold the same examples would not compute the same gradient: set it to 0"
                )
        made = type(self)()
        object.__setattr__(made, "sends_model", bool(layout.moving_buffers))
        return made

    @property
    def uploads(self) -> tuple[str, ...]:
        """The combination."""
        return ("gradient",)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The coefficients, which stand in for nothing."""
        return {COEFFICIENTS_KEY: ()}

    @property
    def requires(self) -> tuple[str, ...]:
        """The coefficients."""
        return (COEFFICIENTS_KEY,)

    @property
    def vectors(self) -> int:
        """The sum."""
        return 1

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the coefficients.

        Raises:
            ConfigError: the message has none, or some that are no finite numbers.
        """
        given: Any = config.get(COEFFICIENTS_KEY)
        listed = isinstance(given, list | tuple)
        for value in given if listed else (given,):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ConfigError(
                    f"the message's {COEFFICIENTS_KEY!r} is {given!r:.80}; it must be a finite "
                    "number, or one for each batch: use strategy=gradient_coding, sr_sgc or m_sgc"
                )
        if not listed:
            return {_ALL: float(given)}
        return {f"{_EACH}{t}": float(value) for t, value in enumerate(given)}

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns what tells tasks with other numbers of coefficients apart."""
        name = "" if _ALL in scalars else f"{len(scalars)} coefficients"
        return Role(name, self.needs, self.gradients_per_step)

    def init(self, received: Received) -> State:
        """Returns a sum of nothing."""
        return torch.zeros_like(received.w)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, sum, loss) with the batch's gradient added.

        Raises:
            ConfigError: the message has fewer coefficients than there are batches.
        """
        g, loss = batch.grad(w)
        name = _ALL if _ALL in received.scalars else f"{_EACH}{t}"
        if name not in received.scalars:
            raise ConfigError(
                f"the message has {len(received.scalars)} {COEFFICIENTS_KEY}, and the task more "
                "batches: send one for each"
            )
        return w, state + received.scalars[name] * g, loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the combination, and the model only where statistics have moved."""
        model = w + torch.zeros_like(state) if self.sends_model else w[:0]
        return Finished(model, {"gradient": state}, {})
