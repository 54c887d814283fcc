"""SGD with control variates, the client of SCAFFOLD.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", arXiv:1910.06378 (ICML 2020), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fl.clients.rule import Batch, Finished, Received, Scalar, State
from fl.clients.schedule import Schedule
from fl.clients.scheduled import Scheduled
from fl.clients.sgd import check_positive, clip
from fl.errors import ConfigError


class Steps(NamedTuple):
    """What the steps of a task leave for its end.

    Attributes:
        lr: sum of their learning rates, shape ().
        g: sum of the examples' gradients at the received model, shape (p,); (0,) with option II.
        examples: their number, shape ().
    """

    lr: Tensor
    g: Tensor
    examples: Tensor


@dataclass(frozen=True)
class ControlVariates(Scheduled):
    """SGD whose gradients are corrected by what the client and the server know of all data.

        w <- w - lr (g - c_i + c),   K steps from the received model x
        option I:   c_i+ = gradient at x, over the examples of the task's batches
        option II:  c_i+ = c_i - c + (x - w) / (K lr)

    c is the record "c" of the message, c_i what the client keeps from its last task, 0 at first.
    The reply has c_i+ - c_i in the record "delta_c". Option II takes what is there: without
    clipping c_i+ is the mean of the K gradients. Option I takes a second gradient for every batch.

    A client that did no step keeps its c_i. A device that crashes begins at 0 again, and then c is
    no longer the mean of the c_i.

    Attributes:
        lr: learning rate, above 0.
        option: "I" or "II".
        clip_norm: bound on the 2-norm of the batch's gradient; None does not clip.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ("c",)
    uploads: ClassVar[tuple[str, ...]] = ("delta_c",)

    lr: float
    option: Literal["I", "II"] = "II"
    clip_norm: float | None = None
    round_schedule: Schedule | None = None
    step_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        if self.option not in ("I", "II"):
            raise ConfigError(f"option is {self.option!r}; it must be 'I' or 'II'")
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)

    @property
    def gradients_per_step(self) -> float:
        """With option I a second one, at the received model."""
        return 2.0 if self.option == "I" else 1.0

    @property
    def vectors(self) -> int:
        """c, c_i and, with option I, the sum of gradients."""
        return 3 if self.option == "I" else 2

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns c_i = 0."""
        return {"c_i": torch.zeros_like(w)}

    def init(self, received: Received) -> State:
        """Returns no steps."""
        zero = torch.zeros_like(received.w[:1].sum())
        g = received.w if self.option == "I" else received.w[:0]
        return Steps(zero, torch.zeros_like(g), zero)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, steps, loss) after one step."""
        lr = self.step_lr(received, t)
        g, loss = batch.grad(w)
        corrected = clip(g, self.clip_norm) - received.memory["c_i"] + received.server["c"]
        total = state.g
        if self.option == "I":
            there, _ = batch.grad(received.w)
            total = total + there * batch.examples
        done = Steps(state.lr + lr, total, state.examples + batch.examples)
        return w - lr * corrected, done, loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model, the change of the client's control variate, and the new one."""
        before = received.memory["c_i"]
        if self.option == "I":
            after = state.g / state.examples
        else:
            after = before - received.server["c"] + (received.w - w) / state.lr
        return Finished(w, {"delta_c": after - before}, {"c_i": after})
