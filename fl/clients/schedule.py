"""Factors on the learning rate, by the index of a round or of a local step.

A schedule is a function from an index, counted from 0, to a factor; the first factor is 1, but for
`Warmup`. Which index it sees is up to the rule: `round_schedule` gets the server's round,
`step_schedule` the step within one task, or since the training began where the message tells it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fl.checks import at_least, positive, within_unit
from fl.errors import ConfigError

Schedule = Callable[[int], float]


def check_schedule(name: str, value: object) -> None:
    """Raises a ConfigError unless a value is a schedule, or None for the constant 1."""
    if value is not None and not callable(value):
        raise ConfigError(
            f"{name} is {value!r:.80}; it must be null, or have a _target_ such as "
            "fl.clients.StepDecay"
        )


@dataclass(frozen=True)
class StepDecay:
    """gamma^floor(i / every), as `torch.optim.lr_scheduler.StepLR`.

    Attributes:
        every: indices between two drops, at least 1.
        gamma: factor at each drop, above 0.
    """

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        at_least("every", self.every, 1)
        positive("gamma", self.gamma)

    def __call__(self, index: int) -> float:
        """Returns the factor at an index."""
        return float(self.gamma ** (index // self.every))


@dataclass(frozen=True)
class ExponentialDecay:
    """gamma^i, as `torch.optim.lr_scheduler.ExponentialLR`.

    Attributes:
        gamma: factor per index, above 0.
    """

    gamma: float

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)

    def __call__(self, index: int) -> float:
        """Returns the factor at an index."""
        return float(self.gamma**index)


@dataclass(frozen=True)
class CosineDecay:
    """floor + (1 - floor) (1 + cos(pi min(i, period) / period)) / 2 (arXiv:1608.03983, no restart).

    Attributes:
        period: index at which the floor is reached, at least 1.
        floor: factor from there on, in [0, 1].
    """

    period: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        at_least("period", self.period, 1)
        within_unit("floor", self.floor)

    def __call__(self, index: int) -> float:
        """Returns the factor at an index."""
        angle = math.pi * min(index, self.period) / self.period
        return self.floor + (1 - self.floor) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True)
class Warmup:
    """(i + 1) / steps before index `steps`, then another schedule, counted from there.

    Attributes:
        steps: indices until the factor is 1, at least 1.
        then: what follows; None is 1.
    """

    steps: int
    then: Schedule | None = None

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        check_schedule("then", self.then)

    def __call__(self, index: int) -> float:
        """Returns the factor at an index."""
        if index < self.steps:
            return (index + 1) / self.steps
        return 1.0 if self.then is None else self.then(index - self.steps)
