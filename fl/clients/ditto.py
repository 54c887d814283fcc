"""A personal model beside the global one, as the clients of Ditto have it.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML
2021, arXiv:2012.04221, Algorithm 1; authors' code litian96/ditto.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fl.checks import not_negative, positive
from fl.clients.correction import Correction
from fl.clients.local_optimizer import descend
from fl.clients.rule import Batch, Finished, Received, Scalar, State


@dataclass(frozen=True)
class Ditto(Correction):
    """The client's own v_i, pulled towards the received model w_t; the sent one is as without.

        v_i <- v_i - eta_v [g(v_i) + lambda (v_i - w_t)],    at every step, on the batch of the step

    As in the authors' code v_i is trained on the same batches as the model that is sent, whose
    gradient stays as it is: that model is FedAvg's, bit for bit, with any optimizer. v_i steps by
    plain SGD, without clipping; it is what the client predicts with, and outlives the task. It
    begins as the model that the client is sent first; in the authors' code, as the initial one.

    The paper's box trains v_i after the model that is sent. Neither reads the other, so that the
    order changes nothing but which batches v_i sees; its steps are as many as the task's here.

    With lambda = 0, v_i is trained on the client's data alone.

    Attributes:
        lam: lambda, the weight of the pull, at least 0; the authors' is 1.
        lr: eta_v, above 0; None is the learning rate of the step.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lam: float = 1.0
    lr: float | None = None
    clip_first: bool = field(default=True, init=False)  # the gradient stays as it is

    def __post_init__(self) -> None:
        not_negative("lam", self.lam)
        if self.lr is not None:
            positive("lr", self.lr)

    @property
    def keeps_statistics(self) -> Literal["own"]:
        """Those of v_i's passes."""
        return "own"

    @property
    def gradients_per_step(self) -> float:
        """One more, at v_i."""
        return 1.0

    def vectors(self, is_plain: bool) -> int:
        """Returns 3, for v_i, its gradient and the received model."""
        return 3

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns v_i = w_t."""
        return {"own": w}

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns v_i as the last task left it."""
        return received.memory["own"]

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g, and v_i after its step."""
        v: Tensor = state
        g_v, _ = batch.own.grad(v)
        eta_v = lr if self.lr is None else self.lr
        return g, descend(v, eta_v, g_v + self.lam * (v - received.w))

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model, and v_i for the next task."""
        return Finished(w, {}, {"own": state})

    def personal(self, received: Received) -> Tensor:
        """Returns v_i."""
        return received.memory["own"]
