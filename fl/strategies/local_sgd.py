"""Local SGD: workers average their parameters every H steps.

Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019, arXiv:1805.09767, Algorithm 1;
with any inner optimizer, whose own state is not averaged.
"""

from __future__ import annotations

from typing import Any

from fl.strategies.drivers.outer import OuterSteps
from fl.strategies.outer_optimizers import OuterSgd


class LocalSGD(OuterSteps):
    """Averages the workers' parameters after every H inner steps.

        theta <- mean_m theta_m,    theta_m <- theta

    Among workers, without a server, and from where their inner optimizers are, it is FedAvg with
    all clients.

    Args:
        inner_steps: H.
        **outer: arguments of `OuterSteps` but `optimizer`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, *, inner_steps: int, **outer: Any) -> None:
        average = OuterSgd(lr=1.0, momentum=0.0, nesterov=False)
        super().__init__(inner_steps=inner_steps, optimizer=average, **outer)
