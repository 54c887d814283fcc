"""How good a model is on held-out examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fl.errors import ConfigError
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
    model: nn.Module, examples: tuple[torch.Tensor, torch.Tensor], batch_size: int = 1000
) -> Evaluation:
    """Computes mean loss and accuracy of a model; the model's mode and gradients stay as they are.

    Args:
        model: maps inputs to logits.
        examples: inputs and targets, as `FederatedData.test_set` gives them, on the model's device.
        batch_size: examples at a time; changes memory and speed, the result only by rounding.

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
            for start in range(0, len(y), batch_size):
                targets = y[start : start + batch_size]
                logits = model(x[start : start + batch_size])
                # Sums in float64: the mean must not depend on how many batches it came from.
                loss += per_example_loss(logits, targets).double().sum().item()
                hits += correct(logits, targets).double().sum().item()
    finally:
        model.train(training)
    return Evaluation(loss / len(y), hits / len(y))
