"""How good a model is on held-out examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fl.errors import ConfigError
from fl.models.channels_last import gains_from_channels_last, with_channels_last
from fl.models.objective import correct, per_example_loss


class Evaluation(NamedTuple):
    """Means over examples.

    Attributes:
        loss: cross-entropy in nats.
        accuracy: share of correct predictions, 0 to 1.
    """

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250
) -> Evaluation:
    """Computes mean loss and accuracy of a model; the model's mode and gradients stay as they are.

    On a CPU, a model with convolutions is given images whose channels lie last in memory, unless
    its code depends on how they lie.

    Args:
        model: maps inputs to logits.
        examples: inputs and targets, as `FederatedData.test_set` gives them, on the model's device.
        batch_size: examples at a time; changes memory and speed, the result only by rounding. The
            activations of 250 images fit the caches of most CPUs, those of 1000 do not.

    Raises:
        ConfigError: no examples, or a batch size below 1.
    """
    x, y = examples
    if len(y) == 0 or batch_size < 1:
        raise ConfigError(
            f"{len(y)} examples in batches of {batch_size}: need at least 1 of both to evaluate"
        )
    loss = hits = 0.0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            turned = gains_from_channels_last(model, x.shape[1:], x.device)
            turned = turned and _takes_channels_last(model, x[:1])
            for start in range(0, len(y), batch_size):
                inputs, targets = x[start : start + batch_size], y[start : start + batch_size]
                logits = model(with_channels_last(inputs) if turned else inputs)
                # Sums in float64: the mean must not depend on how many batches it came from.
                loss += per_example_loss(logits, targets).double().sum().item()
                hits += correct(logits, targets).double().sum().item()
    finally:
        model.train(training)
    return Evaluation(loss / len(y), hits / len(y))


def _takes_channels_last(model: nn.Module, x: Tensor) -> bool:
    try:
        model(with_channels_last(x))
    except RuntimeError:
        return False
    return True
