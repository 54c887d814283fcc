"""DiLoCo: AdamW inside, Nesterov momentum outside, so that islands meet every H steps.

Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen, "DiLoCo: Distributed
Low-Communication Training of Language Models", 2023, arXiv:2311.08105, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd
from fl.strategies.outer_rule import OuterRule


@dataclass(frozen=True)
class DiLoCo(OuterRule):
    """Takes an outer step with the workers' mean change after every H inner steps.

        theta_m <- theta;    H inner steps on theta_m
        Delta = mean_m (theta - theta_m)
        theta <- OuterOpt(theta, Delta)

    Workers wait for the all-reduce. The states of their inner optimizers stay with them, neither
    reset nor averaged. With outer SGD of rate 1 it is `LocalSGD`.

    Attributes:
        inner_steps: H.
        optimizer: OuterOpt; the paper's is Nesterov with rate 0.7 and momentum 0.9.

    Raises:
        ConfigError: inner_steps is out of range.
    """

    inner_steps: int = 30
    optimizer: OuterOptimizer = field(default_factory=OuterSgd)
