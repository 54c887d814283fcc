"""How long tasks take, drawn from a law instead of following from FLOPs and speed.

Papers on stragglers state their systems as laws of a task's time. A `Law` gives such times by its
quantiles, so that one number in [0, 1) of a stateless stream is one task's time; `Spread`s set the
clients' own factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fl.errors import ConfigError
from fl.randomness import uniform, uniforms

_HALF_ULP = 2.0**-54  # keeps a number of [0, 1) away from 0, where quantiles may be infinite


class Law(Protocol):
    """A distribution of positive numbers."""

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the inverse distribution function at `u`, 0 < u < 1."""


class Spread(Protocol):
    """What sets clients apart."""

    def factors(self, seed: int, num_clients: int) -> NDArray[np.float64]:
        """Returns a positive factor for each client, shape (num_clients,)."""


def _check(law: str, **least: tuple[float, float]) -> None:
    for name, (value, bound) in least.items():
        if not (math.isfinite(value) and value >= bound):
            raise ConfigError(f"{law}.{name} is {value}; it must be finite and at least {bound:g}")


# ---- laws ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """Always 1."""

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns ones."""
        return np.ones_like(u)


@dataclass(frozen=True)
class ShiftedExponential:
    """shift + mean Exp(1); with shift 1 - a and mean a, the law of arXiv:2004.14696 (mean 1).

    Attributes:
        shift: least value, at least 0.
        mean: of the exponential part, at least 0.

    Raises:
        ConfigError: a parameter is out of its range, or both are 0.
    """

    shift: float = 0.0
    mean: float = 1.0

    def __post_init__(self) -> None:
        _check("ShiftedExponential", shift=(self.shift, 0), mean=(self.mean, 0))
        if self.shift + self.mean == 0:
            raise ConfigError("ShiftedExponential has shift 0 and mean 0: raise one of them")

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns shift - mean log(1 - u)."""
        return np.asarray(self.shift - self.mean * np.log1p(-u))


@dataclass(frozen=True)
class HalfNormal:
    """shift + |N(0, sigma^2)|, the law of FedBuff's simulator (facebookresearch/FLSim).

    Attributes:
        shift: least value, at least 0.
        sigma: above 0.

    Raises:
        ConfigError: a parameter is out of its range.
    """

    shift: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _check("HalfNormal", shift=(self.shift, 0), sigma=(self.sigma, 1e-9))

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns shift + sigma times the normal quantile of (1 + u) / 2."""
        return np.asarray(self.shift + self.sigma * ndtri((1 + u) / 2))


@dataclass(frozen=True)
class Normal:
    """max(least, N(mean, sigma^2)).

    Attributes:
        mean: at least 0.
        sigma: at least 0.
        least: cuts off what is smaller; above 0.

    Raises:
        ConfigError: a parameter is out of its range.
    """

    mean: float = 1.0
    sigma: float = 0.3
    least: float = 0.05

    def __post_init__(self) -> None:
        _check("Normal", mean=(self.mean, 0), sigma=(self.sigma, 0), least=(self.least, 1e-9))

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the larger of `least` and mean + sigma times the standard normal quantile."""
        return np.asarray(np.maximum(self.mean + self.sigma * ndtri(u), self.least))


@dataclass(frozen=True)
class LogNormal:
    """exp(sigma N(0, 1) - sigma^2 / 2), of mean 1.

    Attributes:
        sigma: at least 0.

    Raises:
        ConfigError: sigma is out of its range.
    """

    sigma: float = 0.5

    def __post_init__(self) -> None:
        _check("LogNormal", sigma=(self.sigma, 0))

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns exp(sigma z - sigma^2 / 2), z the standard normal quantile."""
        return np.asarray(np.exp(self.sigma * ndtri(u) - self.sigma**2 / 2))


@dataclass(frozen=True)
class Uniform:
    """Uniform between two bounds.

    Attributes:
        low: above 0.
        high: at least `low`.

    Raises:
        ConfigError: a parameter is out of its range.
    """

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        _check("Uniform", low=(self.low, 1e-9), high=(self.high, self.low))

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns low + (high - low) u."""
        return np.asarray(self.low + (self.high - self.low) * u)


# ---- what sets clients apart ---------------------------------------------------------------------


@dataclass(frozen=True)
class Equal:
    """Every client has the factor 1."""

    def factors(self, seed: int, num_clients: int) -> NDArray[np.float64]:
        """Returns ones."""
        return np.ones(num_clients)


@dataclass(frozen=True)
class Linear:
    """F-X of FedFix (arXiv:2206.10189): 1 - i (X / 100) / (n - 1) for client i of n.

    The slowest client has 1, the fastest 1 - X / 100.

    Attributes:
        percent: X, at least 0 and below 100.

    Raises:
        ConfigError: X is out of its range.
    """

    percent: float = 80.0

    def __post_init__(self) -> None:
        if not 0 <= self.percent < 100:
            raise ConfigError(f"percent is {self.percent}; it must be at least 0 and below 100")

    def factors(self, seed: int, num_clients: int) -> NDArray[np.float64]:
        """Returns the line from 1 down to 1 - X / 100."""
        return np.linspace(1.0, 1.0 - self.percent / 100.0, num_clients)


@dataclass(frozen=True)
class Groups:
    """Groups of equal clients, one after the other by client number.

    Client i of n is in the group in which (i + 1/2) / n falls when the groups' shares are laid end
    to end, so the shares are exact up to rounding.

    Attributes:
        shares: of the clients, for each group, at least 0; their ratios matter.
        values: factor of each group, above 0.

    Raises:
        ConfigError: the lists differ in length, are empty, or have an entry that cannot be.
    """

    shares: Sequence[float] = (0.25, 0.5, 0.25)
    values: Sequence[float] = (1.3, 1.0, 0.7)

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.values) or not len(self.shares):
            raise ConfigError(
                f"there are {len(self.shares)} shares and {len(self.values)} values of groups; "
                "give as many of both, at least one"
            )
        for share, value in zip(self.shares, self.values, strict=True):
            _check("Groups", shares=(share, 0), values=(value, 1e-9))
        if not sum(self.shares) > 0:
            raise ConfigError("the shares of all groups are 0: raise one of them")

    def factors(self, seed: int, num_clients: int) -> NDArray[np.float64]:
        """Returns the value of each client's group."""
        ends = np.cumsum(self.shares) / np.sum(self.shares)
        places = (np.arange(num_clients) + 0.5) / num_clients
        group = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
        return np.asarray(self.values, dtype=np.float64)[group]


@dataclass(frozen=True)
class Drawn:
    """Every client draws its factor from a law, once.

    Attributes:
        law: of the factor.
    """

    law: Law

    def factors(self, seed: int, num_clients: int) -> NDArray[np.float64]:
        """Returns quantiles at the stream (seed, "client-duration", client)."""
        u = uniforms(seed, "client-duration", np.arange(num_clients))
        return self.law.quantile(u + _HALF_ULP)


# ---- the times -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DrawnSeconds:
    """Task times from a law: task k of client i takes seconds f_i X_ik.

    X_ik is the law's quantile at the stream (seed, "task-duration", client, dispatch).

    Attributes:
        seed: root seed of the run.
        seconds: of a task of factor 1, above 0.
        factors: f, float64, shape (n,), positive.
        law: of X.
        flops: work that takes these seconds, other work in proportion; None: every task does.

    Raises:
        ConfigError: `seconds` or `flops` is not positive and finite.
    """

    seed: int
    seconds: float
    factors: NDArray[np.float64]
    law: Law
    flops: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("task_flops", self.flops)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be positive and finite")

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there is not one factor for each client."""
        if len(self.factors) != num_clients:
            raise ConfigError(
                f"there are {len(self.factors)} clients' factors and {num_clients} clients"
            )

    def of(self, client: int, dispatch: int) -> float:
        """Returns the seconds of the client's task number `dispatch`."""
        u = uniform(self.seed, "task-duration", client, dispatch) + _HALF_ULP
        x = self.law.quantile(np.float64(u))  # type: ignore[arg-type]
        return float(self.seconds * self.factors[client] * x)
