"""A pull towards the received model, as the clients of FedProx have it.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks,
MLSys 2020, arXiv:1812.06127, Algorithm 2. "Variable local work" is not in this file: a client does
the epochs ("local-epochs"), steps ("local-steps") or seconds ("deadline-s") its message says, with
this correction as without, and its partial work is uploaded like full work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.checks import not_negative
from fl.clients.app.message_config import read_float
from fl.clients.correction import Correction
from fl.clients.rule import Batch, Received, Scalar, State


@dataclass(frozen=True)
class Proximal(Correction):
    """The gradient of f(w) + mu/2 |w - w_t|^2, w_t the received model: g + mu (w - w_t).

    w_t stays what was received, for all steps of the task. With mu = 0 the optimizer is what it is
    without, bit for bit. A message's "proximal-mu", which FedProx, FedAsync and Flower's `FedProx`
    send, replaces `mu`. FedProx's own clients step by SGD; with AdamW the term goes through the
    moments, like a penalty in the loss and unlike decoupled weight decay.

    Attributes:
        mu: at least 0.
        clip_first: clip the batch's gradient alone and add the term to the result. By default the
            sum is clipped, as the reference code of FedDyn, FedSpeed and SCAFFOLD does with its
            corrections; the authors of FedProx do not clip.

    Raises:
        ConfigError: mu is negative or not finite.
    """

    mu: float = 0.0
    clip_first: bool = False

    def __post_init__(self) -> None:
        not_negative("mu", self.mu)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The weight of the term."""
        return {"proximal-mu": ("mu",)}

    def vectors(self, is_plain: bool) -> int:
        """Returns 1, for the received model."""
        return 1

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns {"mu": weight of the proximal term} of this task."""
        mu = read_float(config, "proximal-mu", least=0.0)
        return {"mu": float(self.mu) if mu is None else mu}

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g + mu (w - w_t)."""
        mu = received.scalars["mu"]
        if isinstance(mu, float) and mu == 0.0:
            return g, state  # adding 0 would turn -0.0 into 0.0
        away = w - received.w
        return g + mu * away if isinstance(mu, Tensor) else torch.add(g, away, alpha=mu), state
