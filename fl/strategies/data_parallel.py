"""Data-parallel training: the gradients of every step are averaged.

The baseline of DiLoCo, arXiv:2311.08105, and of all methods that communicate less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fl.strategies.drivers.outer import OuterSteps
from fl.strategies.outer_optimizers import OuterAdam, OuterOptimizer


class DataParallel(OuterSteps):
    """Steps by the workers' mean gradient; every worker has the same parameters.

        theta <- Optimizer(theta, mean_m g_m(theta))

    Workers compute the gradient of one batch (`client=gradient`), wait for the all-reduce, and take
    the same step. With batches of b that is training with batches of M b on one machine, whatever
    the optimizer; `LocalSGD` with H = 1 is that for plain SGD only, since moments differ between
    workers. Nothing overlaps: the all-reduce begins when the gradient is complete, where frameworks
    begin it layer by layer. `clip_norm` of the client clips the workers' gradients, not their mean.

    Args:
        optimizer: of the parameters; None is AdamW as DiLoCo has it inside, arXiv:2311.08105.
        **outer: arguments of `OuterSteps` about messages, membership and bytes.

    Raises:
        ConfigError: an argument is out of its range.
    """

    sends_gradients = True
    tells: ClassVar[Mapping[str, Any]] = {**OuterSteps.tells, "local-steps": 1}

    def __init__(self, *, optimizer: OuterOptimizer | None = None, **outer: Any) -> None:
        adamw = OuterAdam(lr=4e-4, beta1=0.9, beta2=0.95, weight_decay=0.1)
        super().__init__(inner_steps=1, optimizer=optimizer or adamw, **outer)
