"""Control variates, as the clients of SCAFFOLD have them.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", arXiv:1910.06378 (ICML 2020), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fl.clients.correction import Correction
from fl.clients.rule import Batch, Finished, Received, Scalar, State
from fl.errors import ConfigError


class Steps(NamedTuple):
    """What the steps of a task leave for its end.

    Attributes:
        lr: sum of their learning rates, shape ().
        g: sum of gradients, shape (p,): with option I of the examples', at the received model; with
            option II of the steps', each times its learning rate, or of shape (0,) where the
            model's change tells it.
        examples: their number, shape ().
    """

    lr: Tensor
    g: Tensor
    examples: Tensor


@dataclass(frozen=True)
class ControlVariates(Correction):
    """Gradients corrected by what the client and the server know of all data.

        g <- g - c_i + c,    at each of K steps from the received model x
        option I:   c_i+ = gradient at x, over the examples of the task's batches
        option II:  c_i+ = mean of the K gradients g

    c is the record "c" of the message, c_i what the client keeps from its last task, 0 at first.
    The reply has c_i+ - c_i in the record "delta_c". Option I takes a second gradient for every
    batch. In option II gradients weigh as much as the learning rates of their steps. With plain SGD
    their mean is c_i - c + (x - w) / (K lr), w the model after K steps, and so it is taken, as the
    paper writes it. The other optimizers, which the paper does not have, change the model by more
    or less than lr times the gradient, so there it is summed up, at one more vector of memory: with
    momentum the formula would have c_i up to 1 / (1 - momentum) times too large, and with AdamW it
    would be no gradient at all. SAM's g is the gradient where the loss is worst, in option II.

    A client that did no step keeps its c_i. A device that crashes begins at 0 again, and then c is
    no longer the mean of the c_i.

    Attributes:
        option: "I" or "II".
        clip_first: clip the batch's gradient alone, by default. If the corrected one is clipped,
            option II takes with plain SGD what is there, which is no longer the mean.

    Raises:
        ConfigError: there is no such option.
    """

    option: Literal["I", "II"] = "II"
    clip_first: bool = True

    def __post_init__(self) -> None:
        if self.option not in ("I", "II"):
            raise ConfigError(f"option is {self.option!r}; it must be 'I' or 'II'")

    @property
    def needs(self) -> tuple[str, ...]:
        """The server's control variate."""
        return ("c",)

    @property
    def uploads(self) -> tuple[str, ...]:
        """The change of the client's."""
        return ("delta_c",)

    @property
    def gradients_per_step(self) -> float:
        """With option I one more, at the received model."""
        return 1.0 if self.option == "I" else 0.0

    def vectors(self, is_plain: bool) -> int:
        """Returns how many c, c_i and, where there is one, the sum of gradients are."""
        return 2 if self._change_tells(is_plain) else 3

    def _change_tells(self, is_plain: bool) -> bool:
        return self.option == "II" and is_plain

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns c_i = 0."""
        return {"c_i": torch.zeros_like(w)}

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns no steps."""
        zero = torch.zeros_like(received.w[:1].sum())
        g = received.w[:0] if self._change_tells(is_plain) else received.w
        return Steps(zero, torch.zeros_like(g), zero)

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g - c_i + c, and the steps with this one."""
        total = state.g
        if self.option == "I":
            there, _ = batch.grad(received.w)
            total = total + there * batch.examples
        elif total.shape[0]:
            total = total + lr * g
        done = Steps(state.lr + lr, total, state.examples + batch.examples)
        return g - received.memory["c_i"] + received.server["c"], done

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model, the change of the client's control variate, and the new one."""
        before = received.memory["c_i"]
        if self.option == "I":
            after = state.g / state.examples
        elif state.g.shape[0]:
            after = state.g / state.lr
        else:
            after = before - received.server["c"] + (received.w - w) / state.lr
        return Finished(w, {"delta_c": after - before}, {"c_i": after})
