"""What a model makes of its inputs before its last layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from fl.errors import ConfigError


def head_of(model: nn.Module) -> nn.Linear:
    """Returns the last linear layer of a model, whose input are the features.

    Raises:
        ConfigError: there is none, or nothing before it has parameters.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    name = type(model).__name__
    if not linear:
        raise ConfigError(f"model is {name}, which has no linear layer whose input are features")
    head = linear[-1]
    own = {id(parameter) for parameter in head.parameters()}
    if all(id(parameter) in own for parameter in model.parameters()):
        raise ConfigError(
            f"model is {name}, which has no parameters before its last layer, so that its features "
            "are its inputs: use one with a hidden layer"
        )
    return head


def features(model: nn.Module, entries: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Returns the input of the model's last linear layer.

    Args:
        model: its structure is used.
        entries: parameters and buffers by name; the model may write into the latter.
        x: inputs, shape (B, ...).

    Returns:
        Shape (B, F), or (B, T, F) of a model that predicts at T positions.
    """
    seen: list[Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        functional_call(model, dict(entries), (x,), tie_weights=False)
    finally:
        hook.remove()
    return seen[-1]
