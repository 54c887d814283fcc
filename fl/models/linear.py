"""Multinomial logistic regression."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from fl.errors import ConfigError


class LogisticRegression(nn.Module):
    """Logits W x + b of the flattened input; C (prod(input_shape) + 1) parameters.

    Args:
        input_shape: shape of one input.
        num_classes: classes C.
        init: "zeros" for W = 0, the same start for every seed, or "glorot" for Glorot's uniform
            distribution as in FedProx (arXiv:1812.06127). The biases start at zero.

    Raises:
        ConfigError: another `init`.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        init: Literal["zeros", "glorot"] = "zeros",
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), num_classes)
        nn.init.zeros_(self.linear.bias)
        if init == "zeros":
            nn.init.zeros_(self.linear.weight)
        elif init == "glorot":
            nn.init.xavier_uniform_(self.linear.weight)
        else:
            raise ConfigError(f"init={init!r}: must be 'zeros' or 'glorot'")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape (B, C), of inputs of shape (B, *input_shape)."""
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits
