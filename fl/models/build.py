"""Making a model for a data set."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fl.randomness import global_generators


def build(
    model: Callable[..., nn.Module], input_shape: tuple[int, ...], num_classes: int, seed: int
) -> nn.Module:
    """Builds a model whose initial values are a function of the seed.

    Args:
        model: what the `model` group of the configuration instantiates to (`_partial_: true`), or a
            model's class.
        input_shape: shape of one input.
        num_classes: classes, or size of the vocabulary.
        seed: root seed of the run. The global generators are as before afterwards.

    Raises:
        ConfigError: the model does not take such inputs.
    """
    with global_generators(seed, "model"):
        return model(input_shape=input_shape, num_classes=num_classes)
