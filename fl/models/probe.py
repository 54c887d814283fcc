"""Whether a model can be trained on a data set at all, found out before anybody tries."""

from __future__ import annotations

import torch
from torch import nn

from fl.errors import ConfigError
from fl.randomness import global_generators


def smallest_batch(
    model: nn.Module, input_shape: tuple[int, ...], num_classes: int, *, tokens: bool
) -> int:
    """Returns how many examples a training batch must have at least: 1, or 2 for some models.

    Two examples of zeros go through the model in training mode, then one. Batch normalisation over
    vectors, for one, refuses a batch of one example: it has no deviation.

    Args:
        model: with weights; buffers are changed.
        input_shape: shape of one input.
        num_classes: classes, or size of the vocabulary; 1 of regression; 0 if the model returns
            losses itself.
        tokens: inputs are tokens, and the model predicts one at every position.

    Raises:
        ConfigError: the model does not take such inputs, or its logits are not one for each class.
    """
    model.train()
    what = f"{type(model).__name__} does not fit the data"
    try:
        shape = _logits_of(model, 2, input_shape, tokens)
    except Exception as error:  # whatever somebody's forward raises
        remedy = "; one in float16 throughout needs .float()" if "Half" in str(error) else ""
        if tokens:
            remedy = ". Inputs are tokens: use a model of sequences, such as char_lstm or char_gpt"
        raise ConfigError(
            f"{what}: with 2 inputs of shape {input_shape} its forward raises "
            f"{type(error).__name__}: {error}{remedy}"
        ) from error
    expected = (2, *(input_shape if tokens else ()))
    got = "no tensor" if shape is None else f"logits of shape {shape}"
    if not num_classes and shape != expected:
        raise ConfigError(
            f"{what}: for 2 inputs of shape {input_shape} it returns {got}; of a game they must "
            "be one loss for each example: use a model made for these data"
        )
    if num_classes and (
        shape is None
        or shape[:-1] != expected
        or shape[-1] < num_classes
        or (num_classes == 1 and shape[-1] > 1)
    ):
        raise ConfigError(
            f"{what}: for 2 inputs of shape {input_shape} it returns {got}; they must have shape "
            f"{(*expected, num_classes)}, the last for the classes"
        )
    try:
        _logits_of(model, 1, input_shape, tokens)
    except Exception:
        return 2
    return 1


def _logits_of(
    model: nn.Module, n: int, input_shape: tuple[int, ...], tokens: bool
) -> tuple[int, ...] | None:
    x = torch.zeros((n, *input_shape), dtype=torch.int64 if tokens else torch.float32)
    with torch.no_grad(), global_generators(0, "probe"):
        logits = model(x)
    return tuple(logits.shape) if isinstance(logits, torch.Tensor) and logits.ndim else None
