"""How good a model is on held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl.errors import ConfigError
from fl.models.channels_last import gains_from_channels_last, with_channels_last
from fl.models.objective import absolute_error, correct, per_example_loss


class Evaluation(NamedTuple):
    """Means over examples.

    Attributes:
        loss: cross-entropy in nats; of regression the squared error.
        score: share of correct predictions, 0 to 1; of regression the absolute error.
    """

    loss: float
    score: float


def evaluate(
    model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250
) -> Evaluation:
    """Computes mean loss and score of a model; the model's mode and gradients stay as they are.

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
    n = len(examples[1])
    if n == 0 or batch_size < 1:
        raise ConfigError(
            f"{n} examples in batches of {batch_size}: need at least 1 of both to evaluate"
        )
    loss = scores = 0.0
    y = examples[1]
    score_of = absolute_error if y.is_floating_point() and y.ndim == 1 else correct

    def add(logits: Tensor, targets: Tensor) -> None:
        nonlocal loss, scores
        # Sums in float64: the mean must not depend on how many batches it came from.
        loss += per_example_loss(logits, targets).double().sum().item()
        scores += score_of(logits, targets).double().sum().item()

    _predict(model, examples, batch_size, add)
    return Evaluation(loss / n, scores / n)


def predictions(model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250) -> Tensor:
    """Returns what a model makes of all inputs, shape (n, C), on the CPU; arguments as above."""
    found: list[Tensor] = []
    _predict(model, examples, batch_size, lambda logits, _: found.append(logits.cpu()))
    return torch.cat(found)


def losses_of(
    model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250
) -> NDArray[np.float64]:
    """Computes the loss of each example, shape (n,), in nats; arguments as of `evaluate`."""
    found: list[Tensor] = []

    def add(logits: Tensor, targets: Tensor) -> None:
        found.append(per_example_loss(logits, targets).double().cpu())

    _predict(model, examples, batch_size, add)
    return np.asarray(torch.cat(found).numpy())


def _predict(
    model: nn.Module,
    examples: tuple[Tensor, Tensor],
    batch_size: int,
    see: Callable[[Tensor, Tensor], None],
) -> None:
    """Calls `see` with logits and targets of some examples after the other, in evaluation mode."""
    x, y = examples
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            turned = gains_from_channels_last(model, x.shape[1:], x.device)
            turned = turned and _takes_channels_last(model, x[:1])
            for start in range(0, len(y), batch_size):
                inputs, targets = x[start : start + batch_size], y[start : start + batch_size]
                see(model(with_channels_last(inputs) if turned else inputs), targets)
    finally:
        model.train(training)


def _takes_channels_last(model: nn.Module, x: Tensor) -> bool:
    try:
        model(with_channels_last(x))
    except RuntimeError:
        return False
    return True
