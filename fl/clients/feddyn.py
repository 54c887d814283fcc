"""A dynamic regulariser of each client's loss, as FedDyn and FedSpeed have it.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic
Regularization, ICLR 2021, arXiv:2111.04263, Algorithm 1; authors' code alpemreacar/FedDyn. Sun,
Shen, Huang, Ding, Tao: FedSpeed, ICLR 2023, arXiv:2302.10429, where 1 / lambda is alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.clients.app.message_config import read_float
from fl.clients.correction import Correction
from fl.clients.rule import Batch, Finished, Received, Scalar, State
from fl.errors import ConfigError


@dataclass(frozen=True)
class DynamicRegularization(Correction):
    """The gradient of f_i(w) - <a_i, w> + alpha/2 |w - x|^2, x the received model.

        g <- g - a_i + alpha (w - x),    at every step
        a_i <- a_i - alpha (w - x),      w the model after the last

    a_i, 0 at first, is what the client keeps from task to task: where the loss above is minimised
    it is the gradient of f_i. alpha is the message's "feddyn-alpha". If "feddyn-sends-dual" is
    true, what the client sends is w - a_i / alpha, with the new a_i.

    A client that did no step keeps its a_i. A device that crashes begins at 0 again, and then the
    server's h is no longer the mean of the a_i.

    Attributes:
        clip_first: clip the batch's gradient alone and correct the result. By default the corrected
            one is clipped, as in both papers' code.
    """

    clip_first: bool = False

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The weight of the regulariser, and whether the dual goes with the model."""
        return {"feddyn-alpha": (), "feddyn-sends-dual": ()}

    @property
    def requires(self) -> tuple[str, ...]:
        """The weight of the regulariser."""
        return ("feddyn-alpha",)

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for a_i and the received model."""
        return 2

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns {"alpha": weight, "sends_dual": 0 or 1} of this task.

        Raises:
            ConfigError: the message has no alpha above 0.
        """
        alpha = read_float(config, "feddyn-alpha", above=0.0)
        if alpha is None:
            raise ConfigError(
                "the message has no 'feddyn-alpha', which DynamicRegularization needs: use "
                "strategy=feddyn or fedspeed, or another correction"
            )
        return {"alpha": alpha, "sends_dual": float(bool(config.get("feddyn-sends-dual", False)))}

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns a_i = 0."""
        return {"a_i": torch.zeros_like(w)}

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g - a_i + alpha (w - x)."""
        alpha = received.scalars["alpha"]
        return g - received.memory["a_i"] + alpha * (w - received.w), state

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model, or that with the dual, and the new a_i."""
        alpha, sends_dual = received.scalars["alpha"], received.scalars["sends_dual"]
        a_i = received.memory["a_i"] - alpha * (w - received.w)
        return Finished(w - sends_dual * (a_i / alpha), {}, {"a_i": a_i})
