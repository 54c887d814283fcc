"""Whether a model's images lie with channels last in memory.

PyTorch's convolutions, poolings and normalisations are faster on a CPU where a pixel's channels lie
side by side, and what a layer returns lies as its input did: it is enough to turn the input.
"""

from __future__ import annotations

import torch
from torch import nn

from fl.clients.app.alone import AutogradBatch
from fl.clients.app.examples import with_channels_last
from fl.randomness import global_generators
from fl.vectors.layout import Layout


def takes_channels_last(
    model: nn.Module, layout: Layout, input_shape: tuple[int, ...], device: torch.device
) -> bool:
    """Says whether a model trains on a CPU, and on images that lie with channels last.

    One with convolutions does, unless its code depends on how activations lie, as
    `x.view(len(x), -1)` does: two images of zeros are tried.

    Args:
        model: in training mode; its parameters and buffers are not used.
        layout: of the model.
        input_shape: shape of one input.
        device: where the model trains.
    """
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if device.type != "cpu" or len(input_shape) != 3 or not convolutions:
        return False
    zeros = {e.name: torch.zeros(e.shape, dtype=getattr(torch, e.dtype)) for e in layout.carried}
    buffers = layout.fixed(torch.zeros(layout.size), zeros)
    x, y = with_channels_last(torch.zeros(2, *input_shape)), torch.zeros(2, dtype=torch.int64)
    try:
        with global_generators(0, "structure"):
            AutogradBatch(model, layout, buffers, x, y).grad(torch.zeros(layout.num_trainable))
    except RuntimeError:
        return False
    return True
