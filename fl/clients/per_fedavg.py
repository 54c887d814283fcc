"""Local training of the clients of Per-FedAvg, whose model is one to begin a step from.

Fallah, Mokhtari, Ozdaglar: Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach, NeurIPS 2020, arXiv:2002.07948, Algorithm 1 and section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fl.checks import positive
from fl.clients.local_optimizer import LR_FACTOR_KEY, descend, round_lr
from fl.clients.rule import Adaptation, Batch, Received, Rule, State
from fl.clients.sgd import Sgd
from fl.errors import ConfigError

_BATCHES = {"FO": 2, "HF": 3, "exact": 3}


class Meta(NamedTuple):
    """What a meta-step has so far: theta and the gradient there, shape (p,) each."""

    theta: Tensor
    g: Tensor


@dataclass(frozen=True)
class PerFedAvg(Rule):
    """Steps by the gradient of F_i(w) = f_i(w - alpha grad f_i(w)), on batches D, D', D''.

        theta <- w - alpha g(w; D)
        d <- g(theta; D')
        FO:     w <- w - beta d
        HF:     w <- w - beta (d - alpha [g(w + delta d; D'') - g(w - delta d; D'')] / (2 delta))
        exact:  w <- w - beta (d - alpha H(w; D'') d),    H the Hessian

    A step of this rule takes one batch, so that a step of the paper is two of them with FO, and
    three otherwise; what a task has begun and not ended at its last step is left out. The client
    predicts with the received model after one step w - alpha g(w) on its training examples. (The
    code that papers compare with takes another one with beta, both on test examples.)

    A message's "lr" replaces `lr` for its task.

    Attributes:
        lr: beta, above 0.
        alpha: of the step that adapts, above 0.
        gradient: "FO" drops the Hessian, "HF" takes a difference of gradients for it.
        delta: of the difference, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 0.1
    alpha: float = 0.01
    gradient: Literal["FO", "HF", "exact"] = "FO"
    delta: float = 0.001

    def __post_init__(self) -> None:
        for name in ("lr", "alpha", "delta"):
            positive(name, getattr(self, name))
        if self.gradient not in _BATCHES:
            raise ConfigError(
                f"gradient is {self.gradient!r}; it must be one of {', '.join(_BATCHES)}"
            )

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The learning rate."""
        return {"lr": ("lr",), LR_FACTOR_KEY: ()}

    @property
    def adaptation(self) -> Adaptation:
        """One step of SGD with alpha."""
        return Adaptation(Sgd(self.alpha), steps=1)

    @property
    def gradients_per_step(self) -> float:
        """One; on average 4/3 with the Hessian, whose product takes two."""
        return 1.0 if self.gradient == "FO" else 4 / 3

    @property
    def differentiates(self) -> bool:
        """The product with the Hessian, where that is exact."""
        return self.gradient == "exact"

    @property
    def least_steps(self) -> int:
        """The batches of a meta-step."""
        return _BATCHES[self.gradient]

    @property
    def vectors(self) -> int:
        """Theta, and the gradient there."""
        return 1 if self.gradient == "FO" else 2

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the learning rate of this task."""
        return {"lr": round_lr(config, self.lr, None)}

    def init(self, received: Received) -> State:
        """Returns a meta-step that has not begun."""
        return Meta(received.w, received.w)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, state, loss) after one batch of a meta-step."""
        beta, place = received.scalars["lr"], t % _BATCHES[self.gradient]
        if place == 0:
            g, loss = batch.grad(w)
            return w, state._replace(theta=descend(w, self.alpha, g)), loss
        if place == 1:
            d, loss = batch.grad(state.theta)
            if self.gradient == "FO":
                return descend(w, beta, d), state, loss
            return w, state._replace(g=d), loss
        product, loss = self._hessian_product(w, state.g, batch)
        return descend(w, beta, torch.add(state.g, product, alpha=-self.alpha)), state, loss

    def _hessian_product(self, w: Tensor, d: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the Hessian at w times d, shape (p,), and the loss near w or at theta."""
        if self.gradient == "exact":
            return batch.hessian_product(w, d), batch.loss(w)
        above, loss = batch.grad(w + self.delta * d)
        below, _ = batch.grad(w - self.delta * d)
        return (above - below) / (2 * self.delta), loss
