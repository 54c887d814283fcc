"""How much of the model each client can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError


@dataclass(frozen=True)
class Capacity(ABC):
    """Says what level each client has in each round, of a few that there are.

    Attributes:
        levels: what there are, as the extraction takes them: shares of units, or types.
        stays: whether a client has one level in all rounds.

    Raises:
        ConfigError: there are none.
    """

    levels: Sequence[float]

    stays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.levels, str) or not isinstance(self.levels, Sequence) or not self.levels:
            raise ConfigError(f"levels is {self.levels!r}; it must be a list with an entry or more")

    @abstractmethod
    def level(self, client: int, place: int, rng: np.random.Generator) -> float:
        """Returns a client's level in a round.

        Args:
            client: its index.
            place: its place among those that the round asks.
            rng: of this client and round.
        """

    def needed(
        self, needs: Mapping[float, float], memory: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns the memory that each client must have, bytes, shape (n,).

        Args:
            needs: of each level, bytes.
            memory: that each client has, bytes, shape (n,).
        """
        return np.full(len(memory), max(needs[level] for level in self.levels))


@dataclass(frozen=True)
class Fixed(Capacity):
    """Client i has levels[i mod their number] in all rounds: HeteroFL's mode "fix"."""

    stays: ClassVar[bool] = True

    def level(self, client: int, place: int, rng: np.random.Generator) -> float:
        """Returns the client's level."""
        return self.levels[client % len(self.levels)]

    def needed(
        self, needs: Mapping[float, float], memory: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns what each client's own level needs."""
        own = [needs[self.levels[i % len(self.levels)]] for i in range(len(memory))]
        return np.array(own, dtype=np.float64)


@dataclass(frozen=True)
class Redrawn(Capacity):
    """Each client of a round draws one of the levels, uniformly: HeteroFL's mode "dynamic"."""

    def level(self, client: int, place: int, rng: np.random.Generator) -> float:
        """Returns the level that is drawn."""
        return self.levels[int(rng.integers(len(self.levels)))]


@dataclass(frozen=True)
class InTurn(Capacity):
    """The k-th client that a round asks has levels[k mod their number].

    So every round has the same mix, and a client has another level from round to round, as in the
    code of Every Parameter Matters.
    """

    def level(self, client: int, place: int, rng: np.random.Generator) -> float:
        """Returns the level of the client's place."""
        return self.levels[place % len(self.levels)]


@dataclass(frozen=True)
class ByMemory(Capacity):
    """A client has the first of the levels whose training fits into its device's memory.

    Known where the fleet is: whoever builds a run puts a `Fixed` in its place.
    """

    stays: ClassVar[bool] = True

    def level(self, client: int, place: int, rng: np.random.Generator) -> float:
        """Raises ConfigError: no device is known."""
        raise ConfigError(
            "capacity is ByMemory, and no fleet says what devices clients have: use "
            "capacity=Fixed, or pass levels to fl.strategies.Exchange"
        )

    def fitting(
        self, needs: Mapping[float, float], memory: NDArray[np.float64]
    ) -> tuple[float, ...]:
        """Returns the level of each client: the last where none fits.

        Args:
            needs: of each level, bytes.
            memory: that each client has, bytes, shape (n,).
        """
        bytes_of = np.array([needs[level] for level in self.levels])
        fits = bytes_of[None] <= memory[:, None]
        first = np.where(fits.any(axis=1), fits.argmax(axis=1), len(self.levels) - 1)
        return tuple(self.levels[i] for i in first.tolist())

    def needed(
        self, needs: Mapping[float, float], memory: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns what the level of each client needs."""
        return np.array([needs[level] for level in self.fitting(needs, memory)], dtype=np.float64)
