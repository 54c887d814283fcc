"""Making a model for a data set."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fl.models.adapters import Adapter
from fl.randomness import global_generators


def build(
    model: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    adapter: Adapter | None = None,
) -> nn.Module:
    """Builds a model whose initial values are a function of the seed.

    Args:
        model: what the `model` group of the configuration instantiates to (`_partial_: true`), or a
            model's class.
        input_shape: shape of one input.
        num_classes: classes, or size of the vocabulary.
        seed: root seed of the run. The global generators are as before afterwards.
        adapter: puts little to train beside the model, which then is frozen; None trains all of it.

    Raises:
        ConfigError: the model does not take such inputs, or not this adapter.
    """
    with global_generators(seed, "model"):
        made = model(input_shape=input_shape, num_classes=num_classes)
    if adapter is None:
        return made
    with global_generators(seed, "adapter"):
        return adapter(made)
