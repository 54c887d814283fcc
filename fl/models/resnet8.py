"""A residual network of eight layers (He et al., arXiv:1512.03385) that normalises groups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from fl.errors import ConfigError
from fl.models.pieces import Piece


def _norm(groups: int | None, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if groups is None else nn.GroupNorm(groups, channels)


class _Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the first convolution has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int | None) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            _norm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            _norm(groups, outputs),
        )
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(groups, outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNet8(nn.Module):
    """One 3x3 convolution, three blocks of two, mean over pixels, one linear layer.

    Groups instead of batches are normalised: batch statistics of clients with different data do not
    average to anything useful. The second and third block halve height and width.

    Args:
        input_shape: (channels, height, width).
        num_classes: width of the output.
        groups: groups of channels that are normalised together; None normalises over batches.
        channels: channels of the three blocks, each a multiple of `groups`.

    Raises:
        ConfigError: inputs that are not images, not three widths, or widths that `groups` does not
            divide.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        groups: int | None = 2,
        channels: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ConfigError(
                f"input_shape={input_shape}: ResNet8 needs (channels, height, width); "
                "use model=mlp for other inputs"
            )
        of = 1 if groups is None else groups
        if len(channels) != 3 or of < 1 or any(c < 1 or c % of for c in channels):
            raise ConfigError(
                f"channels={list(channels)} with groups={groups}: need three positive multiples of "
                "groups, as 16, 32, 64 with 2"
            )
        first = channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], first, 3, padding=1, bias=False),
            _norm(groups, first),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            _Block(first, first, 1, groups),
            *(_Block(a, b, 2, groups) for a, b in itertools.pairwise(channels)),
        )
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape (B, num_classes), of images of shape (B, C, H, W)."""
        return self._logits(self.blocks(self.stem(x)))

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(x.mean(dim=(-2, -1)))
        return logits

    def pieces(self) -> list[Piece]:
        """Returns the first convolution, the blocks and the classifier, for `fl.stages`."""
        blocks = [Piece((f"blocks.{i}",), block) for i, block in enumerate(self.blocks)]
        last = Piece(("classifier",), self._logits)
        return [Piece(("stem",), self.stem), *blocks, last]
