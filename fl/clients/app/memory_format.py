"""Whether a model trains on images that lie with channels last in memory."""

from __future__ import annotations

import torch
from torch import nn

from fl.clients.app.alone import AutogradBatch
from fl.models.channels_last import gains_from_channels_last, with_channels_last
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
    if not gains_from_channels_last(model, input_shape, device):
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
