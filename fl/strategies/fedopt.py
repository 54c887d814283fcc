"""Adaptive federated optimization: the mean change of a round is the gradient of an optimizer.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization",
arXiv:2003.00295 (ICLR 2021), Algorithm 2.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import positive, share
from fl.errors import ConfigError
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Moments(NamedTuple):
    """Model, first and second moment, shape (d,) each."""

    w: Row
    m: Row
    v: Row


@dataclass(frozen=True)
class FedOpt(RoundRule):
    """Algorithm 2, with Delta the mean of the clients' changes.

        m <- beta_1 m + (1 - beta_1) Delta
        v <- as the method says
        w <- w + eta m / (sqrt(v) + tau)

    m starts at 0 and v at tau^2, the least that the algorithm allows, and there is no bias
    correction, as in the paper.

    Attributes:
        eta: server learning rate, above 0.
        beta_1: decay of m, in [0, 1).
        tau: degree of adaptivity, above 0; the larger, the less adaptive.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    eta: float = 0.1
    beta_1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        share("beta_1", self.beta_1)
        positive("tau", self.tau)
        if not np.float32(self.tau) ** 2 > 0:
            raise ConfigError(f"tau is {self.tau}; its square must be a float32 above 0")

    def init(self, w: Row, p: int) -> Moments:
        """Returns the model, with moments of nothing."""
        return Moments(w, np.zeros_like(w), np.full_like(w, self.tau**2))

    def step(self, state: Moments, updates: Updates) -> Moments:
        """Returns the state after a step."""
        m, v = self.moments(state.m, state.v, updates.mean())
        return Moments(self.moved(state.w, m, v), m, v)

    def moments(self, m: Row, v: Row, delta: Row) -> tuple[Row, Row]:
        """Returns both moments after a round, shape (d,) each."""
        m = np.float32(self.beta_1) * m + np.float32(1 - self.beta_1) * delta
        return m, self.second_moment(v, delta * delta)

    def moved(self, w: Row, m: Row, v: Row) -> Row:
        """Returns w + eta m / (sqrt(v) + tau), shape (d,)."""
        step = np.asarray(m / (np.sqrt(v) + np.float32(self.tau)), dtype=np.float32)
        return w + np.float32(self.eta) * step

    @abstractmethod
    def second_moment(self, v: Row, square: Row) -> Row:
        """Returns v after a round, shape (d,).

        Args:
            v: before it.
            square: Delta^2.
        """


@dataclass(frozen=True)
class FedAdagrad(FedOpt):
    """v <- v + Delta^2; the paper has beta_1 = 0."""

    beta_1: float = 0.0

    def second_moment(self, v: Row, square: Row) -> Row:
        """Returns v + Delta^2."""
        return v + square


@dataclass(frozen=True)
class _Decaying(FedOpt):
    """Those whose second moment forgets.

    Attributes:
        beta_2: decay of v, in [0, 1).
    """

    beta_2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        share("beta_2", self.beta_2)


@dataclass(frozen=True)
class FedYogi(_Decaying):
    """v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)."""

    def second_moment(self, v: Row, square: Row) -> Row:
        """Returns v, a step of (1 - beta_2) Delta^2 nearer to Delta^2."""
        sign: Row = np.sign(v - square)
        return v - np.float32(1 - self.beta_2) * square * sign


@dataclass(frozen=True)
class FedAdam(_Decaying):
    """v <- beta_2 v + (1 - beta_2) Delta^2."""

    def second_moment(self, v: Row, square: Row) -> Row:
        """Returns the decaying mean of Delta^2."""
        return np.float32(self.beta_2) * v + np.float32(1 - self.beta_2) * square
