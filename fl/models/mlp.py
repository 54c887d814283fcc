"""Fully connected network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from fl.checks import share
from fl.errors import ConfigError
from fl.models.pieces import Piece


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened input.

    Args:
        input_shape: shape of one input.
        num_classes: width of the output.
        hidden: widths of the hidden layers, in order; empty for a linear model.
        dropout: share of each hidden layer's units that a training step leaves out, in [0, 1).

    Raises:
        ConfigError: a width below 1, or a share out of its range.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(hidden, Sequence) or isinstance(hidden, str):
            raise ConfigError(f"hidden={hidden!r}: must be a list of widths; [] is a linear model")
        if any(width < 1 for width in hidden):
            raise ConfigError(f"hidden={list(hidden)}: every width must be at least 1")
        share("dropout", dropout)
        widths = [math.prod(input_shape), *hidden, num_classes]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        after = [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
        between = [layer for linear in layers[:-1] for layer in (linear, *after)]
        self.layers = nn.Sequential(*between, layers[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape (B, C), of inputs of shape (B, *input_shape)."""
        logits: torch.Tensor = self.layers(x.flatten(1))
        return logits

    def pieces(self) -> list[Piece]:
        """Returns the linear layers with what follows each, for `fl.stages`."""
        layers = list(self.layers)
        linear = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        pieces = []
        for a, b in itertools.pairwise([*linear, len(layers)]):
            flat = [nn.Flatten()] if a == 0 else []
            pieces.append(Piece((f"layers.{a}",), nn.Sequential(*flat, *layers[a:b])))
        return pieces
