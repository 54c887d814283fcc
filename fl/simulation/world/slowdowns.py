"""Slowdowns: how many times as long one client takes as another, or one task as another.

A slowdown is relative to the fleet's speed: a client of slowdown 2 takes twice as long as one of
slowdown 1. A distribution gives slowdowns by its quantiles, so that one number in [0, 1) of a
stateless stream is one client's slowdown, which never changes, or one task's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fl.checks import not_negative, positive, share
from fl.errors import ConfigError
from fl.randomness import uniforms

Slowdowns = NDArray[np.float64]


def _inside(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the middles of the cells of 2**-53 that begin at u: off 0, whose quantile is not."""
    return u + 2.0**-54


class Distribution(ABC):
    """A distribution of slowdowns over clients or tasks."""

    @abstractmethod
    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns positive slowdowns, the inverse distribution function at 0 <= u < 1."""

    def of_clients(self, seed: int, purpose: str, num_clients: int) -> Slowdowns:
        """Returns each client's slowdown, drawn from the stream (seed, purpose, client).

        Returns:
            float64, shape (num_clients,), positive and finite.

        Raises:
            ConfigError: it has other quantiles.
        """
        self.check()
        return self._checked(self.quantile(uniforms(seed, purpose, np.arange(num_clients))))

    def check(self) -> None:
        """Raises ConfigError if quantiles far out are no positive, finite numbers."""
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            slowdowns = self.quantile(np.array([1e-9, 0.5, 1 - 1e-9]))
        self._checked(slowdowns)

    def _checked(self, slowdowns: Slowdowns) -> Slowdowns:
        wrong = ~((slowdowns > 0) & (slowdowns < math.inf))  # NaN as well
        if wrong.any():
            raise ConfigError(
                f"{type(self).__name__} makes {slowdowns[wrong][0]:g} a slowdown; all must be "
                "positive and finite: give it another shape"
            )
        return slowdowns


@dataclass(frozen=True)
class Constant(Distribution):
    """Always 1."""

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns ones."""
        return np.ones_like(u)


@dataclass(frozen=True)
class Exponential(Distribution):
    """max(least, mean Exp(1)).

    Attributes:
        mean: before raising, above 0.
        least: smallest slowdown, above 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    mean: float = 1.0
    least: float = 0.05

    def __post_init__(self) -> None:
        positive("mean", self.mean)
        positive("least", self.least)

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns the larger of `least` and -mean log(1 - u)."""
        return np.asarray(np.maximum(-self.mean * np.log1p(-u), self.least))


@dataclass(frozen=True)
class ShiftedExponential(Distribution):
    """shift + mean Exp(1); with shift 1 - a and mean a, the law of arXiv:2004.14696 (mean 1).

    Attributes:
        shift: least value, at least 0.
        mean: of the exponential part, at least 0.

    Raises:
        ConfigError: a number is out of its range, or both are 0.
    """

    shift: float = 0.0
    mean: float = 1.0

    def __post_init__(self) -> None:
        not_negative("shift", self.shift)
        not_negative("mean", self.mean)
        if self.shift + self.mean == 0:
            raise ConfigError("shift is 0 and mean is 0: raise one of them")

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns shift - mean log(1 - u)."""
        return np.asarray(self.shift - self.mean * np.log1p(-_inside(u)))


@dataclass(frozen=True)
class HalfNormal(Distribution):
    """shift + |N(0, sigma^2)|, the law of FedBuff's simulator (facebookresearch/FLSim).

    Attributes:
        shift: least value, at least 0.
        sigma: above 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    shift: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        not_negative("shift", self.shift)
        positive("sigma", self.sigma)

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns shift + sigma times the normal quantile of (1 + u) / 2."""
        return np.asarray(self.shift + self.sigma * ndtri((1 + _inside(u)) / 2))


@dataclass(frozen=True)
class Normal(Distribution):
    """max(least, N(mean, sigma^2)).

    Attributes:
        mean: above 0.
        sigma: at least 0.
        least: smallest slowdown, above 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    mean: float = 1.0
    sigma: float = 0.3
    least: float = 0.05

    def __post_init__(self) -> None:
        positive("mean", self.mean)
        not_negative("sigma", self.sigma)
        positive("least", self.least)

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns the larger of `least` and mean + sigma times the normal quantile."""
        return np.asarray(np.maximum(self.mean + self.sigma * ndtri(_inside(u)), self.least))


@dataclass(frozen=True)
class LogNormal(Distribution):
    """exp(sigma N(0, 1) - sigma^2 / 2), of mean 1.

    Attributes:
        sigma: at least 0.

    Raises:
        ConfigError: sigma is out of its range.
    """

    sigma: float = 0.5

    def __post_init__(self) -> None:
        not_negative("sigma", self.sigma)

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns exp(sigma z - sigma^2 / 2), z the normal quantile."""
        return np.asarray(np.exp(self.sigma * ndtri(_inside(u)) - self.sigma**2 / 2))


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform between two bounds.

    Attributes:
        low: above 0.
        high: at least `low`.

    Raises:
        ConfigError: a number is out of its range.
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        positive("low", self.low)
        positive("high", self.high)
        if self.high < self.low:
            raise ConfigError(f"high is {self.high}; it must be at least low, {self.low}")

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns low + (high - low) u."""
        return np.asarray(self.low + (self.high - self.low) * _inside(u))


@dataclass(frozen=True)
class Linear(Distribution):
    """F-X of FedFix (arXiv:2206.10189), X = 100 spread: uniform between 1 - spread and 1.

    Clients are not drawn: they go in equal steps from 1, the first, to 1 - spread, the last.

    Attributes:
        spread: in [0, 1).

    Raises:
        ConfigError: the spread is out of its range.
    """

    spread: float = 0.8

    def __post_init__(self) -> None:
        share("spread", self.spread)

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns 1 - spread u."""
        return 1.0 - self.spread * u

    def of_clients(self, seed: int, purpose: str, num_clients: int) -> Slowdowns:
        """Returns 1 - spread i / (n - 1) for client i of n."""
        return 1.0 - self.spread * np.arange(num_clients) / max(1, num_clients - 1)


@dataclass(frozen=True)
class Classes(Distribution):
    """A few slowdowns, each with its share.

    Attributes:
        slowdowns: of the classes, above 0.
        shares: relative frequencies of the classes, at least 0, not all 0.
        drawn: whether every client draws its class. Otherwise one class follows the other by client
            number, and shares are exact up to rounding: client i of n is in the class in which
            (i + 1/2) / n falls when the shares are laid end to end. A task always draws.

    Raises:
        ConfigError: a number is out of its range, or the lists differ in length or are empty.
    """

    slowdowns: Sequence[float] = (1.0, 8.0)
    shares: Sequence[float] = (2.0, 1.0)
    drawn: bool = True

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.slowdowns) or not len(self.shares):
            raise ConfigError(
                f"slowdowns has {len(self.slowdowns)} entries and shares {len(self.shares)}; give "
                "every class both, at least one"
            )
        for slowdown, part in zip(self.slowdowns, self.shares, strict=True):
            positive("slowdowns", slowdown)
            not_negative("shares", part)
        if not 0 < sum(self.shares) < math.inf:
            raise ConfigError(f"shares is {list(self.shares)}; raise one of them above 0")

    def quantile(self, u: NDArray[np.float64]) -> Slowdowns:
        """Returns the slowdowns of the classes in whose shares u falls."""
        sums = np.cumsum(np.asarray(self.shares, dtype=np.float64))
        of = np.searchsorted(sums / sums[-1], u, side="right")
        return np.asarray(np.asarray(self.slowdowns, dtype=np.float64)[of])

    def of_clients(self, seed: int, purpose: str, num_clients: int) -> Slowdowns:
        """Returns the slowdown of each client's class, float64, shape (num_clients,)."""
        if self.drawn:
            return super().of_clients(seed, purpose, num_clients)
        return self.quantile((np.arange(num_clients) + 0.5) / num_clients)
