"""The convolutional network of FedAvg (arXiv:1602.05629) and LEAF's FEMNIST (arXiv:1812.01097)."""

from __future__ import annotations

import torch
from torch import nn

from fl.errors import ConfigError
from fl.models.pieces import Piece


class LeafCNN(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels, each with ReLU and 2x2 max-pooling, then a layer.

    On MNIST, `width` 512 gives the 1,663,370 parameters of FedAvg's paper; LEAF has 2048.

    Args:
        input_shape: (channels, height, width), at least 4x4 pixels.
        num_classes: width of the output.
        width: units of the hidden fully connected layer.

    Raises:
        ConfigError: inputs that are not images, or too small to pool twice.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 2048) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ConfigError(
                f"input_shape={input_shape}: LeafCNN needs (channels, height, width) with at least "
                "4x4 pixels; use model=mlp for other inputs"
            )
        channels, rows, columns = input_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * (rows // 4) * (columns // 4), width),
            nn.ReLU(),
            nn.Linear(width, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape (B, num_classes), of images of shape (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return logits

    def pieces(self) -> list[Piece]:
        """Returns the two convolutions and the two linear layers, for `fl.stages`."""
        linear = nn.Sequential(nn.Flatten(), self.classifier[0], self.classifier[1])
        return [
            Piece(("features.0",), self.features[:3]),
            Piece(("features.3",), self.features[3:]),
            Piece(("classifier.0",), linear),
            Piece(("classifier.2",), self.classifier[2]),
        ]
