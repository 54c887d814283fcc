"""The direction in which the server has last gone, mixed into every local step.

Cheng, Huang, Wu, Yuan: Momentum Benefits Non-IID Federated Learning Simply and Provably, ICLR 2024,
arXiv:2306.16504: FedAvg-M, SCAFFOLD-M and their variants with variance reduction. FedAvg-M is
FedCM, arXiv:2106.10874.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fl.clients.app.message_config import read_float
from fl.clients.correction import Correction
from fl.clients.rule import Batch, Finished, Received, Scalar, State
from fl.errors import ConfigError


@dataclass(frozen=True)
class GlobalMomentum(Correction):
    """The client of FedAvg-M: gradients mixed with the server's last direction.

        g <- beta g + (1 - beta) G
        variance reduction:  g <- g + (1 - beta) (G - g'),  g' the same batch's gradient at x'

    G is the record "momentum" of the message, beta its "momentum-beta", and x' the model before the
    one received, x + l G with l its "momentum-length": no further vector travels. With variance
    reduction a step costs a second gradient.

    Attributes:
        variance_reduction: whether what G stands in for is the gradient at x', not at w.
        clip_first: clip the batch's gradient alone and correct the result. By default the corrected
            one is clipped, as in FedCM's code.
    """

    variance_reduction: bool = False
    clip_first: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The server's direction."""
        return ("momentum",)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The mixture, and how far back the last model is."""
        return {"momentum-beta": (), "momentum-length": ()}

    @property
    def requires(self) -> tuple[str, ...]:
        """The mixture."""
        return ("momentum-beta",)

    @property
    def gradients_per_step(self) -> float:
        """With variance reduction one more, at the last model."""
        return 1.0 if self.variance_reduction else 0.0

    def vectors(self, is_plain: bool) -> int:
        """Returns 1, for G, and 1 for x'."""
        return 2 if self.variance_reduction else 1

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns {"beta": mixture, "length": l} of this task.

        Raises:
            ConfigError: the message has no beta in (0, 1].
        """
        beta = read_float(config, "momentum-beta", above=0.0)
        if beta is None or beta > 1:
            raise ConfigError(
                f"the message's 'momentum-beta' is {beta}; {type(self).__name__} needs one above 0 "
                "and at most 1: use strategy=fedavg_m or scaffold_m, or another correction"
            )
        return {"beta": beta, "length": read_float(config, "momentum-length", least=0.0) or 0.0}

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns the mixture."""
        beta, momentum = received.scalars["beta"], received.server["momentum"]
        if not self.variance_reduction:
            return beta * g + (1 - beta) * momentum, state
        there, _ = batch.grad(received.w + received.scalars["length"] * momentum)
        return g + (1 - beta) * (momentum - there), state


class Sum(NamedTuple):
    """Sum of the steps' gradients, each times its learning rate, (p,), and of these rates, ()."""

    g: Tensor
    lr: Tensor


@dataclass(frozen=True)
class ControlledMomentum(GlobalMomentum):
    """The client of SCAFFOLD-M: the same with control variates.

        g <- beta (g - c_i + c) + (1 - beta) G
        variance reduction:  g <- g - beta (c_i - c) + (1 - beta) (G - g')
        c_i+ = mean of the K gradients g, before they are corrected

    c is the record "c" of the message, c_i what the client keeps from its last task, 0 at first;
    the reply has c_i+ - c_i in the record "delta_c". Gradients weigh as much as the learning rates
    of their steps.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """The server's direction and control variate."""
        return ("momentum", "c")

    @property
    def uploads(self) -> tuple[str, ...]:
        """The change of the client's control variate."""
        return ("delta_c",)

    def vectors(self, is_plain: bool) -> int:
        """Returns those of the mixture, c, c_i and the sum of gradients."""
        return super().vectors(is_plain) + 3

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns c_i = 0."""
        return {"c_i": torch.zeros_like(w)}

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns no gradients."""
        return Sum(torch.zeros_like(received.w), torch.zeros_like(received.w[:1].sum()))

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns the mixture with control variates, and the sum with this gradient."""
        mixed, _ = super().correct(g, w, state, received, batch, lr)
        control = received.server["c"] - received.memory["c_i"]
        total = Sum(state.g + lr * g, state.lr + lr)
        return mixed + received.scalars["beta"] * control, total

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model, the change of the client's control variate, and the new one."""
        after = state.g / state.lr
        return Finished(w, {"delta_c": after - received.memory["c_i"]}, {"c_i": after})
