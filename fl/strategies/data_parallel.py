"""Data-parallel training: the gradients of every step are averaged.

The baseline of DiLoCo, arXiv:2311.08105, and of all methods that communicate less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

from fl.strategies.outer_optimizers import OuterAdam, OuterOptimizer
from fl.strategies.outer_rule import OuterRule


@dataclass(frozen=True)
class DataParallel(OuterRule):
    """Steps by the workers' mean gradient; every worker has the same parameters.

        theta <- Optimizer(theta, mean_m g_m(theta))

    Workers compute the gradient of one batch (`client=gradient`), wait for the all-reduce, and take
    the same step. With batches of b that is training with batches of M b on one machine, whatever
    the optimizer; `LocalSGD` with H = 1 is that for plain SGD only, since moments differ between
    workers. The all-reduce begins when the gradient is complete, or bucket by bucket during the
    backward pass, as frameworks do (`OuterSteps.buckets`). `clip_norm` of the client clips the
    workers' gradients, not their mean.

    Attributes:
        optimizer: of the parameters; AdamW as DiLoCo has it inside, arXiv:2311.08105.
        inner_steps: 1.
    """

    sends_gradients: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    optimizer: OuterOptimizer = field(
        default_factory=partial(OuterAdam, lr=4e-4, beta1=0.9, beta2=0.95, weight_decay=0.1)
    )
    inner_steps: int = field(default=1, init=False)

    def shaped(self, sizes: Sequence[Sequence[int]]) -> Self:
        """Returns one whose `init` tells the optimizer of the tensors."""
        (own,) = sizes
        return replace(self, optimizer=self.optimizer.shaped(own))
