"""Local SGD on the worst loss nearby: sharpness-aware minimisation, the client of DFedSAM.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving
Generalization, ICLR 2021, arXiv:2010.01412, Algorithm 1; Shi, Shen, Wei, Sun, Yuan, Wang, Tao:
Improving the Model Consistency of Decentralized Federated Learning, ICML 2023, arXiv:2302.04083,
Algorithm 1, whose nodes train with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl.checks import not_negative
from fl.clients.rule import Batch
from fl.clients.sgd import Sgd


@dataclass(frozen=True)
class Sam(Sgd):
    """SGD on max_{|e| <= rho} f(w + e), with the maximum to first order in e.

        g <- gradient of the batch at w
        g <- gradient of the same batch at w + rho g / |g|      (2-norm of all parameters together)

    and from there on as `Sgd`, which clips, decays and keeps momentum of the second gradient alone.
    A step costs two gradients. With rho = 0 the rule is `Sgd` at twice the cost.

    Attributes:
        rho: radius, at least 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("rho", self.rho)

    @property
    def gradients_per_step(self) -> float:
        """Two: at w, and where it is sharpest."""
        return 2.0

    @property
    def vectors(self) -> int:
        """Those of SGD, and the point where the second gradient is taken."""
        return super().vectors + 1

    def gradient(self, w: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the gradient at w + rho g / |g|, and the loss at w."""
        g, loss = batch.grad(w)
        # A gradient of zero is a point to stay at: 0 / 1e-12, and no division by zero.
        ascent = g * (self.rho / (torch.linalg.vector_norm(g) + 1e-12))
        return batch.grad(w + ascent)[0], loss
