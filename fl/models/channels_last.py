"""Images whose channels lie last in memory.

PyTorch's convolutions, poolings and normalisations are faster on a CPU where a pixel's channels lie
side by side, and what a layer returns lies as its input did: it is enough to turn the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def gains_from_channels_last(
    model: nn.Module, input_shape: Sequence[int], device: torch.device
) -> bool:
    """Says whether a model has convolutions, and runs them on images and on a CPU.

    Its code may still depend on how activations lie, as `x.view(len(x), -1)` does: PyTorch then
    raises a RuntimeError, and a trial finds out.

    Args:
        model: any module.
        input_shape: shape of one input.
        device: where the model runs.
    """
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutions and len(input_shape) == 3 and device.type == "cpu"


def with_channels_last(x: Tensor) -> Tensor:
    """Returns images with a pixel's channels side by side in memory.

    Args:
        x: shape (b, c, h, w).
    """
    # Not `contiguous`: it leaves strides as they are where there is one channel, or one pixel, and
    # the layers go by the strides.
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
