"""Static batch normalisation: no statistics in training, and then those of one model on all data.

Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for
Heterogeneous Clients", arXiv:2010.01264 (ICLR 2021), section 3; the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fl.errors import ConfigError

_BatchNorm = nn.modules.batchnorm._BatchNorm


def keeps_statistics(model: nn.Module) -> bool:
    """Returns whether layers of a model normalise over batches and keep statistics of them."""
    return bool(_keeping(model))


def _keeping(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def without_statistics(model: nn.Module) -> nn.Module:
    """Has layers that normalise over batches keep no statistics in training; returns the model.

    Their running mean and variance stay entries of the model, at what they are.

    Raises:
        ConfigError: it has no such layers that keep statistics.
    """
    layers = _keeping(model)
    if not layers:
        raise ConfigError(
            f"static_batch_norm is true, and {type(model).__name__} has no batch normalisation "
            "that keeps statistics: set it to false, or use a model that has, such as resnet8 "
            "with groups=null"
        )
    for layer in layers:
        layer.track_running_stats = False
    return model


def take_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets running means and variances to the means of those of batches, with the model as it is.

        mean <- 1/B sum_b mean_b,    var <- 1/B sum_b var_b (unbiased)

    Args:
        model: its layers keep statistics.
        batches: inputs, shape (n_b, ...).
    """
    # Between batches of unlike sizes as in the authors' code: all weigh the same.
    inputs: Any = batches
    update_bn(inputs, model)
