"""A mixture of an own model and the global one, as the clients of APFL have it.

Deng, Kamani, Mahdavi: Adaptive Personalized Federated Learning, arXiv:2003.13461 (2020),
Algorithm 1; authors' code MLOPTPSU/FedTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fl.checks import not_negative, within_unit
from fl.clients.correction import Correction
from fl.clients.local_optimizer import descend
from fl.clients.rule import Batch, Finished, Received, Role, Scalar, State


class Mixture(NamedTuple):
    """The client's own model, shape (p,), and its share of what the client predicts with, ()."""

    v: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class APFL(Correction):
    """The client's own v_i, trained as a part of a mixture with the model w that is sent.

        vbar <- alpha_i v_i + (1 - alpha_i) w
        v_i <- v_i - eta alpha_i g(vbar),    at every step, on the batch of the step
        alpha_i <- clip(alpha_i - eta_alpha <v_i - w, g(vbar)>, 0, 1),    on a task's first batch

    w is trained as without, and is FedAvg's, bit for bit, with any optimizer; v_i steps by plain
    SGD at the learning rate of the step, without clipping. The client predicts with alpha_i v_i +
    (1 - alpha_i) w, w the latest model it has received. v_i begins as the first one.

    Models are mixed, as in the paper; the authors' code mixes their logits, which is the same for
    linear models only, and its step of alpha_i is the derivative of neither. It also adds 0.02
    alpha_i to that, which this does not. With alpha 0 and alpha_lr 0 the client predicts with w;
    with alpha 1, v_i is trained on the client's data alone.

    Attributes:
        alpha: alpha_i at first, in [0, 1].
        alpha_lr: eta_alpha, at least 0; 0 keeps alpha_i as it is.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    alpha: float = 0.5
    alpha_lr: float = 0.0
    clip_first: bool = field(default=True, init=False)  # the gradient stays as it is

    def __post_init__(self) -> None:
        within_unit("alpha", self.alpha)
        not_negative("alpha_lr", self.alpha_lr)

    @property
    def keeps_statistics(self) -> Literal["own"]:
        """Those of the mixture's passes."""
        return "own"

    @property
    def gradients_per_step(self) -> float:
        """One more, at the mixture."""
        return 1.0

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns one role, with a gradient for alpha_i if that is learnt."""
        return Role("", (), self.gradients_per_step, 1.0 if self.alpha_lr else 0.0)

    def vectors(self, is_plain: bool) -> int:
        """Returns 4, for v_i, the mixture, its gradient and the received model."""
        return 4

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns v_i = w, and alpha_i."""
        return {"own": w, "alpha": w.new_full((), self.alpha)}

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns v_i and alpha_i as the last task left them."""
        return Mixture(received.memory["own"], received.memory["alpha"])

    def first(self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch) -> State:
        """Returns v_i, and alpha_i after its step."""
        if not self.alpha_lr:
            return state
        g_bar, _ = batch.own.grad(mixed(state, w))
        alpha = state.alpha - self.alpha_lr * torch.dot(state.v - w, g_bar)
        return state._replace(alpha=alpha.clamp(0.0, 1.0))

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g, and v_i after its step."""
        g_bar, _ = batch.own.grad(mixed(state, w))
        return g, state._replace(v=descend(state.v, lr, state.alpha * g_bar))

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model, and v_i and alpha_i for the next task."""
        return Finished(w, {}, {"own": state.v, "alpha": state.alpha})

    def personal(self, received: Received) -> Tensor:
        """Returns the mixture with the received model."""
        return mixed(Mixture(received.memory["own"], received.memory["alpha"]), received.w)


def mixed(own: Mixture, w: Tensor) -> Tensor:
    """Returns alpha v + (1 - alpha) w, shape (p,)."""
    return own.alpha * own.v + (1 - own.alpha) * w
