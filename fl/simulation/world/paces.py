"""Laws of clients' paces: how much longer one device takes than another for the same work.

A pace is seconds per unit of work, relative to the fleet's speed: a client of pace 2 takes twice
as long as one of pace 1. A pace belongs to a client and never changes; the jitter of single tasks
comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.randomness import normals, uniforms

Paces = NDArray[np.float64]


class PaceLaw(Protocol):
    """A distribution of paces over clients."""

    def __call__(self, seed: int, num_clients: int) -> Paces:
        """Returns a positive pace for every client, shape (num_clients,), float64."""


@dataclass(frozen=True)
class Equal:
    """Every client has pace 1."""

    def __call__(self, seed: int, num_clients: int) -> Paces:
        """Returns ones."""
        return np.ones(num_clients)


@dataclass(frozen=True)
class Normal:
    """Paces from N(mean, sigma**2), those below `least` raised to it.

    Attributes:
        mean: above 0.
        sigma: at least 0.
        least: smallest pace, above 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    mean: float = 1.0
    sigma: float = 0.3
    least: float = 0.05

    def __post_init__(self) -> None:
        _check(mean=self.mean, least=self.least)
        if not 0 <= self.sigma < math.inf:
            raise ConfigError(f"paces.sigma is {self.sigma}; it must be finite and at least 0")

    def __call__(self, seed: int, num_clients: int) -> Paces:
        """Returns the draws of (seed, "pace", client)."""
        z = normals(seed, "pace", np.arange(num_clients))
        return np.maximum(self.mean + self.sigma * z, self.least)


@dataclass(frozen=True)
class Exponential:
    """Paces from the exponential distribution, those below `least` raised to it.

    Attributes:
        mean: before raising, above 0.
        least: smallest pace, above 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    mean: float = 1.0
    least: float = 0.05

    def __post_init__(self) -> None:
        _check(mean=self.mean, least=self.least)

    def __call__(self, seed: int, num_clients: int) -> Paces:
        """Returns the draws of (seed, "pace", client)."""
        u = uniforms(seed, "pace", np.arange(num_clients))
        return np.maximum(-self.mean * np.log1p(-u), self.least)


@dataclass(frozen=True)
class Classes:
    """A few paces, each client's drawn with the classes' shares.

    Attributes:
        paces: of the classes, above 0.
        shares: relative frequencies of the classes, at least 0, not all 0.

    Raises:
        ConfigError: a number is out of its range, or the lists differ in length.
    """

    paces: Sequence[float] = (1.0, 8.0)
    shares: Sequence[float] = (2.0, 1.0)

    def __post_init__(self) -> None:
        for pace in self.paces:
            _check(paces=pace)
        shares = np.asarray(self.shares, dtype=np.float64)
        if len(self.shares) != len(self.paces) or not len(shares):
            raise ConfigError(
                f"paces.paces has {len(self.paces)} entries and paces.shares {len(shares)}; give "
                "every class both"
            )
        if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
            raise ConfigError(
                f"paces.shares is {list(self.shares)}; shares must be finite, at least 0 and not "
                "all 0"
            )

    def __call__(self, seed: int, num_clients: int) -> Paces:
        """Returns the classes' paces by the draws of (seed, "pace", client)."""
        sums = np.cumsum(np.asarray(self.shares, dtype=np.float64))
        u = uniforms(seed, "pace", np.arange(num_clients))
        drawn = np.searchsorted(sums / sums[-1], u, side="right")
        return np.asarray(self.paces, dtype=np.float64)[drawn]


@dataclass(frozen=True)
class Linear:
    """Paces that fall evenly from 1, of client 0, to 1 - spread, of the last client.

    Source: time scenario F-X of arXiv:2206.10189, with X = 100 spread.

    Attributes:
        spread: in [0, 1).

    Raises:
        ConfigError: the spread is out of its range.
    """

    spread: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 1:
            raise ConfigError(
                f"paces.spread is {self.spread}; it must be at least 0 and below 1, where the "
                "fastest client would take no time"
            )

    def __call__(self, seed: int, num_clients: int) -> Paces:
        """Returns 1 - spread i / (n - 1)."""
        return 1.0 - self.spread * np.arange(num_clients) / max(1, num_clients - 1)


def _check(**positive: float) -> None:
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"paces.{name} is {value}; it must be positive and finite")
