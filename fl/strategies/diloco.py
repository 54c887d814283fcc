"""DiLoCo: AdamW inside, Nesterov momentum outside, so that islands meet every H steps.

Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen, "DiLoCo: Distributed
Low-Communication Training of Language Models", 2023, arXiv:2311.08105, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from fl.strategies.drivers.outer import OuterSteps
from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd


class DiLoCo(OuterSteps):
    """Takes an outer step with the workers' mean change after every H inner steps.

        theta_m <- theta;    H inner steps on theta_m
        Delta = mean_m (theta - theta_m)
        theta <- OuterOpt(theta, Delta)

    Workers wait for the all-reduce. The states of their inner optimizers stay with them, neither
    reset nor averaged. With outer SGD of rate 1 it is `LocalSGD`.

    Args:
        inner_steps: H.
        optimizer: OuterOpt; None is the paper's, Nesterov with rate 0.7 and momentum 0.9.
        **outer: arguments of `OuterSteps`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self, *, inner_steps: int, optimizer: OuterOptimizer | None = None, **outer: Any
    ) -> None:
        super().__init__(inner_steps=inner_steps, optimizer=optimizer or OuterSgd(), **outer)
