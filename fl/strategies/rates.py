"""Rates that grow with the number of clients: linear scaling with a gradual warm-up.

Goyal, Dollar, Girshick, Noordhuis, Wesolowski, Kyrola, Tulloch, Jia, He, "Accurate, Large Minibatch
SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, sections 2.1 and 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least
from fl.clients.schedule import Schedule, check_schedule
from fl.errors import ConfigError


@dataclass(frozen=True)
class LinearScaling:
    """A rate times k = S / S_0, since a round of S clients is a batch k times that of S_0.

        1 + (k - 1) (t + 1) / warmup    in round t < warmup, counted from 0
        k then(t - warmup)              afterwards

    The paper's warm-up takes 5 epochs. It is without harm up to a batch of the order of the noise
    scale, see `fl.strategies.NoiseScale`, and with one local step; with more, S clients average
    S changes whose length does not grow with S.

    Attributes:
        cohort: S_0, clients for which the rate is right as it is, at least 1.
        warmup: rounds until the rate is k times as high, at least 0.
        then: what follows, by the round after the warm-up; None is 1.

    Raises:
        ConfigError: an argument is out of its range.
    """

    cohort: int
    warmup: int = 0
    then: Schedule | None = None

    def __post_init__(self) -> None:
        at_least("cohort", self.cohort, 1)
        at_least("warmup", self.warmup, 0)
        check_schedule("then", self.then)

    def factor(self, t: int, n: int) -> float:
        """Returns the factor of round t, from 0, of n clients."""
        k = n / self.cohort
        if t < self.warmup:
            return 1 + (k - 1) * (t + 1) / self.warmup
        return k if self.then is None else k * self.then(t - self.warmup)


_MOST_CHECKED = 100_000  # rounds

Rate = Schedule | LinearScaling
"""A factor on a rate, by the round, or by the round and the number of its clients."""


def factor_of(rate: Rate | None, t: int, n: int) -> float:
    """Returns the factor of round t, from 0, of n clients; 1 without a schedule."""
    if rate is None:
        return 1.0
    return rate.factor(t, n) if isinstance(rate, LinearScaling) else rate(t)


def check_rate(name: str, rate: object) -> None:
    """Raises a ConfigError unless an argument is a schedule, or None."""
    if rate is not None and not (callable(rate) or isinstance(rate, LinearScaling)):
        raise ConfigError(
            f"{name} is {rate!r:.80}; it must be null, or have a _target_ such as "
            "fl.clients.Warmup or fl.strategies.LinearScaling"
        )


def check_factors(name: str, rate: Rate | None, num_rounds: int, n: int) -> None:
    """Raises a ConfigError unless the factors of a run of rounds of n clients are above 0.

    Of a run that is longer than any can be, those of its first rounds.
    """
    for t in range(0 if rate is None else min(num_rounds, _MOST_CHECKED)):
        if not (found := factor_of(rate, t, n)) > 0:
            raise ConfigError(
                f"{name} is {found:g} in round {t + 1} of {num_rounds}; every factor must be above "
                "0: give it a floor, or a period longer than the run"
            )
