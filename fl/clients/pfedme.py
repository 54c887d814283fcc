"""Local training of the clients of pFedMe, on the Moreau envelope of their loss.

Dinh, Tran, Nguyen: Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020,
arXiv:2006.08848, Algorithm 1; authors' code CharlieDinh/pFedMe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fl.checks import at_least, positive
from fl.clients.local_optimizer import LR_FACTOR_KEY, descend, round_lr
from fl.clients.rule import Batch, Finished, Received, Rule, Scalar, State


@dataclass(frozen=True)
class MoreauEnvelope(Rule):
    """Steps by the gradient of F_i(w) = min_theta f_i(theta) + lambda/2 |theta - w|^2.

        K times, on one batch:    theta <- theta - eta_p [g(theta) + lambda (theta - w_i)]
        w_i <- w_i - eta lambda (w_i - theta)

    A step is one of the paper's R local rounds: `local_steps` is R. theta begins at the received
    model, goes on from batch to batch, and is what the client predicts with afterwards, until its
    next task. The authors' code adds 0.001 theta to the gradient, which this does not; and what it
    evaluates as the personal model is w_i after R rounds, the "local" model here.

    Statistics of normalisation layers are those of theta's passes, w_i having none.

    A message's "lr" replaces `lr` for its task.

    Attributes:
        lr: eta, above 0.
        inner_lr: eta_p, above 0.
        lam: lambda, above 0; larger keeps theta nearer to w_i.
        inner_steps: K, at least 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 0.005
    inner_lr: float = 0.1
    lam: float = 15.0
    inner_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("lr", "inner_lr", "lam"):
            positive(name, getattr(self, name))
        at_least("inner_steps", self.inner_steps, 1)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The learning rate of w_i."""
        return {"lr": ("lr",), LR_FACTOR_KEY: ()}

    @property
    def keeps_statistics(self) -> Literal["sent"]:
        """Those of theta's passes."""
        return "sent"

    @property
    def gradients_per_step(self) -> float:
        """K."""
        return float(self.inner_steps)

    @property
    def vectors(self) -> int:
        """Theta, and the one of the last task."""
        return 2

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the learning rate of this task."""
        return {"lr": round_lr(config, self.lr, None)}

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns theta = w."""
        return {"theta": w}

    def init(self, received: Received) -> State:
        """Returns theta at the received model."""
        return received.w

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w_i, theta, loss) after a local round; the loss is theta's before it."""
        theta: Tensor = state
        g, loss = batch.grad(theta)
        theta = descend(theta, self.inner_lr, g + self.lam * (theta - w))
        for _ in range(self.inner_steps - 1):
            g, _ = batch.grad(theta)
            theta = descend(theta, self.inner_lr, g + self.lam * (theta - w))
        return descend(w, received.scalars["lr"], self.lam * (w - theta)), theta, loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns w_i, and theta for predictions."""
        return Finished(w, {}, {"theta": state})

    def personal(self, received: Received) -> Tensor:
        """Returns theta."""
        return received.memory["theta"]
