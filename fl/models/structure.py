"""A model's structure without the memory of its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def drop_weights(model: nn.Module) -> nn.Module:
    """Replaces trained parameters by zeros of their shapes that take the memory of one number.

    What runs with other weights (`torch.func.functional_call`, `load_state_dict(assign=True)`)
    needs only a module's structure; a copy of the weights for nothing is much where a model has
    10**8 of them. The zeros can be read but not written. Frozen parameters stay: they come with no
    message.

    Returns:
        The model itself.
    """
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        parameter.data = zero.expand(parameter.shape)
    return model


def copy_of(model: nn.Module) -> nn.Module:
    """Returns a copy of a module that shares its frozen parameters, which nobody changes."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen)
