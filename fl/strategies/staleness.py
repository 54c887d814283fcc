"""How much an update weighs that began with an old version of the model.

Staleness tau counts versions of the server's model, not seconds. Every weight is 1 at tau = 0 and
does not increase.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fl.errors import ConfigError


class StalenessWeight(ABC):
    """s(tau), from whole numbers at least 0 to (0, 1]."""

    @abstractmethod
    def __call__(self, tau: int) -> float:
        """Returns s(tau)."""


@dataclass(frozen=True)
class ConstantWeight(StalenessWeight):
    """s(tau) = 1."""

    def __call__(self, tau: int) -> float:
        """Returns 1."""
        return 1.0


@dataclass(frozen=True)
class Polynomial(StalenessWeight):
    """s(tau) = (1 + tau)**(-a).

    Source: arXiv:1903.03934, section 5.2; with a = 1/2, arXiv:2106.06639.

    Attributes:
        a: at least 0.

    Raises:
        ConfigError: a is negative: then older updates would weigh more.
    """

    a: float = 0.5

    def __post_init__(self) -> None:
        if not self.a >= 0:
            raise ConfigError(f"a is {self.a}; it must be at least 0, or older updates weigh more")

    def __call__(self, tau: int) -> float:
        """Returns (1 + tau)**(-a)."""
        return float((1 + tau) ** -self.a)


@dataclass(frozen=True)
class Hinge(StalenessWeight):
    """s(tau) = 1 up to tau = b, then 1 / (a (tau - b) + 1).

    Source: arXiv:1903.03934, section 5.2.

    Attributes:
        a: above 0.
        b: at least 0.

    Raises:
        ConfigError: a or b is out of its range.
    """

    a: float = 10.0
    b: float = 4.0

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b >= 0):
            raise ConfigError(f"a is {self.a} and b {self.b}; a must be positive and b at least 0")

    def __call__(self, tau: int) -> float:
        """Returns the weight."""
        return 1.0 if tau <= self.b else 1.0 / (self.a * (tau - self.b) + 1.0)
