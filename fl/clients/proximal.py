"""Local SGD held near the received model by a proximal term, the client of FedProx.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks,
MLSys 2020, arXiv:1812.06127, Algorithm 2. "Variable local work" is not in this file: a client does
the epochs ("local-epochs"), steps ("local-steps") or seconds ("deadline-s") its message says, with
this rule as with any other, and its partial work is uploaded like full work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.checks import read_if
from fl.clients.message_config import read_float
from fl.clients.rule import Received
from fl.clients.sgd import Sgd, check_not_negative, clip


@read_if(lambda a: a["clip_norm"] is not None, "clip_first", only="only {at}clip_norm clips")
@dataclass(frozen=True)
class Proximal(Sgd):
    """SGD on f(w) + mu/2 |w - w_t|^2, w_t the received model: the gradient gains mu (w - w_t).

    w_t stays what was received, for all steps of the task. With mu = 0 the rule is `Sgd`, bit for
    bit. A message's "proximal-mu", which Flower's `FedProx` strategy sends, replaces `mu`.

    Attributes:
        mu: at least 0.
        clip_first: clip the batch's gradient alone and add the term to the result. By default the
            sum is clipped, as the reference code of FedDyn, FedSpeed and SCAFFOLD does with its
            corrections; the authors of FedProx do not clip.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    honours: ClassVar[Mapping[str, tuple[str, ...]]] = {**Sgd.honours, "proximal-mu": ("mu",)}

    mu: float = 0.0
    clip_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("mu", self.mu)

    @property
    def vectors(self) -> int:
        """Those of SGD, and the received model."""
        return super().vectors + 1

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns {"lr": learning rate, "mu": weight of the proximal term} of this task."""
        mu = read_float(config, "proximal-mu", least=0.0)
        return {**super().scalars(config), "mu": float(self.mu) if mu is None else mu}

    def direction(self, g: Tensor, w: Tensor, received: Received) -> Tensor:
        """Returns g + mu (w - w_t), clipped before or after the sum."""
        mu = received.scalars["mu"]
        if isinstance(mu, float) and mu == 0.0:
            return clip(g, self.clip_norm)  # adding 0 would turn -0.0 into 0.0
        if self.clip_first:
            g = clip(g, self.clip_norm)
        away = w - received.w
        g = g + mu * away if isinstance(mu, Tensor) else torch.add(g, away, alpha=mu)
        return g if self.clip_first else clip(g, self.clip_norm)
