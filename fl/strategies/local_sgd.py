"""Local SGD: workers average their parameters every H steps.

Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019, arXiv:1805.09767, Algorithm 1;
with any inner optimizer, whose own state is not averaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd
from fl.strategies.outer_rule import OuterRule


@dataclass(frozen=True)
class LocalSGD(OuterRule):
    """Averages the workers' parameters after every H inner steps.

        theta <- mean_m theta_m,    theta_m <- theta

    Among workers, without a server, and from where their inner optimizers are, it is FedAvg with
    all clients.

    Attributes:
        inner_steps: H.
        optimizer: theta <- theta - Delta.

    Raises:
        ConfigError: inner_steps is out of range.
    """

    inner_steps: int = 30
    optimizer: OuterOptimizer = field(
        default=OuterSgd(lr=1.0, momentum=0.0, nesterov=False), init=False
    )
