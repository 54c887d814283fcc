"""Gradient codes: n workers send one combination each, and any n - s of them give the whole sum.

Tandon, Lei, Dimakis, Karampatziakis, "Gradient Coding: Avoiding Stragglers in Distributed
Learning", ICML 2017, arXiv:1612.03301.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.errors import ConfigError, NoStep
from fl.randomness import generator

Matrix = NDArray[np.float64]
_EXACT = 1e-6  # largest error of a decoded coefficient; the codes' own is below 1e-8


@dataclass(frozen=True)
class GradientCode(ABC):
    """An (n, s) gradient code.

    The data are n chunks of gradients g_1, ..., g_n. Worker i holds s + 1 of them and sends

        c_i = sum_j B_ij g_j

    Of any n - s workers there are a_i with sum_i a_i B_ij = 1 for all j, so that

        sum_i a_i c_i = sum_j g_j

    Attributes:
        n: workers, and chunks; at least 1.
        s: stragglers that it bears, at least 0, below n.

    Raises:
        ConfigError: a number is out of its range.
    """

    n: int
    s: int

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        at_least("s", self.s, 0)
        if self.s >= self.n:
            raise ConfigError(
                f"s is {self.s}; it must be below the number of workers, {self.n}: set "
                f"s={max(0, self.n - 1)}, or num_clients={self.s + 1} or more"
            )

    @property
    @abstractmethod
    def chunks(self) -> NDArray[np.int64]:
        """The chunks of each worker, shape (n, s + 1)."""

    @property
    @abstractmethod
    def coefficients(self) -> Matrix:
        """B_ij for these, shape (n, s + 1)."""

    @cached_property
    def matrix(self) -> Matrix:
        """B, shape (n, n)."""
        B = np.zeros((self.n, self.n))
        np.put_along_axis(B, self.chunks, self.coefficients, axis=1)
        return B

    def decodes(self, there: NDArray[np.bool_]) -> bool:
        """Returns whether workers suffice, shape (n,): n - s of them always do."""
        return int(there.sum()) >= self.n - self.s

    @abstractmethod
    def decode(self, there: NDArray[np.bool_]) -> Matrix:
        """Returns a, shape (n,), float64: 0 for workers that are not there.

        Args:
            there: whose c_i has come, shape (n,).

        Raises:
            NoStep: they do not suffice.
        """

    def check(self, there: NDArray[np.bool_]) -> None:
        """Raises NoStep if workers do not suffice, shape (n,)."""
        if not self.decodes(there):
            raise NoStep(
                f"{int(there.sum())} of {self.n} workers do not give the sum of a code that bears "
                f"{self.s} stragglers"
            )


@dataclass(frozen=True)
class RepetitionCode(GradientCode):
    """Groups of s + 1 workers that hold the same s + 1 chunks and send their sum.

    Section 4 of the paper. One of each group is enough, so that it bears more than s stragglers if
    they are in different groups, and nothing is rounded: all coefficients are 1.

    Raises:
        ConfigError: s + 1 does not divide n.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n % (self.s + 1):
            below = self.n - self.n % (self.s + 1)
            raise ConfigError(
                f"s is {self.s}, and groups of {self.s + 1} do not make up {self.n} workers: s + 1 "
                f"must divide their number, so set num_clients={below} or "
                f"num_clients={below + self.s + 1}, or code=cyclic"
            )

    @property
    def chunks(self) -> NDArray[np.int64]:
        """Those of its group."""
        first = np.arange(self.n) // (self.s + 1) * (self.s + 1)
        return first[:, None] + np.arange(self.s + 1)

    @property
    def coefficients(self) -> Matrix:
        """Ones."""
        return np.ones((self.n, self.s + 1))

    def decodes(self, there: NDArray[np.bool_]) -> bool:
        """Returns whether one of each group is there."""
        return bool(there.reshape(-1, self.s + 1).any(axis=1).all())

    def decode(self, there: NDArray[np.bool_]) -> Matrix:
        """Returns 1 for the first of each group that is there."""
        self.check(there)
        groups = there.reshape(-1, self.s + 1)
        a = np.zeros(groups.shape)
        a[np.arange(len(a)), groups.argmax(axis=1)] = 1.0
        return a.reshape(self.n)


@dataclass(frozen=True)
class CyclicCode(GradientCode):
    """Worker i holds chunks i, i + 1, ..., i + s modulo n; for any n and s.

    Algorithm 2 of the paper: the rows of B are in the null space of a random H, shape (s, n), whose
    rows add up to 0. So is the vector of ones, and n - s rows of B are a basis of that space.

    Coefficients grow with n and s, and with them what decoding makes of the rounding of c_i, which
    is float32: by factors of 100 at n = 16 and s = 3, of 10,000 and more at n = 256.

    Attributes:
        seed: of H.
    """

    seed: int = 0

    @property
    def chunks(self) -> NDArray[np.int64]:
        """Those from its own number on."""
        return (np.arange(self.n)[:, None] + np.arange(self.s + 1)) % self.n

    @cached_property
    def _coefficients(self) -> Matrix:
        H = generator(self.seed, "gradient-code", self.n, self.s).standard_normal((self.s, self.n))
        H[:, -1] = -H[:, :-1].sum(axis=1)
        B = np.ones((self.n, self.s + 1))
        for i, chunks in enumerate(self.chunks):
            B[i, 1:] = -np.linalg.solve(H[:, chunks[1:]], H[:, i])
        return B

    @property
    def coefficients(self) -> Matrix:
        """B_ii = 1, and what puts row i into the null space of H."""
        return self._coefficients

    def decode(self, there: NDArray[np.bool_]) -> Matrix:
        """Returns the shortest a."""
        self.check(there)
        a = np.zeros(self.n)
        rows = self.matrix[there]
        a[there] = np.linalg.lstsq(rows.T, np.ones(self.n), rcond=None)[0]
        error = float(np.abs(a @ self.matrix - 1).max())
        if not error <= _EXACT:
            raise NoStep(
                f"the cyclic code of {self.n} workers that bears {self.s} stragglers decodes the "
                f"{int(there.sum())} that have come with an error of {error:.1g}: use another "
                "seed, or code=fractional_repetition"
            )
        return a


CODES = {"fractional_repetition": RepetitionCode, "cyclic": CyclicCode}
"""Codes by name."""
