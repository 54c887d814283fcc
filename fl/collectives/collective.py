"""What a collective is: who sends what to whom after what, so that the mean is everybody's.

A collective is a frozen dataclass. It says its steps; how long they take on the links there are is
`fl.collectives.times`, and the simulator charges it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.vectors.rows import Row

Ranks = NDArray[np.intp]
Reals = NDArray[np.float64]
Some = int | Ranks


class Network(Protocol):
    """The links among the M ranks of a collective, both ways at once."""

    def __len__(self) -> int:
        """Returns M."""

    def rates(self, i: Some, j: Some, fanout: Some = 1, fanin: Some = 1) -> Any:
        """Returns the bit/s of transfers from ranks i to ranks j, shape (k,).

        Args:
            i: who sends, shape (k,).
            j: who receives.
            fanout: transfers that share each sender's uplink.
            fanin: transfers that share each receiver's downlink.
        """

    def delays(self, i: Some, j: Some) -> Any:
        """Returns the one-way delays from ranks i to ranks j in s, shape (k,)."""

    @property
    def site(self) -> Ranks:
        """The site of each rank, shape (M,); all the same where there are none."""

    @property
    def access(self) -> tuple[Reals, Reals]:
        """The bit/s of each rank's own link, up and down, shape (M,) each."""

    @property
    def reachable(self) -> NDArray[np.bool_]:
        """Whether others can open connections to a rank, shape (M,)."""


class Transfers(NamedTuple):
    """Transfers of which none waits for another.

    One begins when all that its sender was sent, and has sent, in earlier steps has arrived, and
    all that its receiver was sent.

    Attributes:
        sources: ranks that send, shape (k,).
        targets: ranks that receive, likewise.
        sizes: bytes, shape (k,); fractions where chunks do not come out even.
    """

    sources: Ranks
    targets: Ranks
    sizes: Reals


class Closed(NamedTuple):
    """What a collective costs by a formula.

    Attributes:
        seconds: that it takes if all ranks begin together.
        sent: bytes that each rank sends, shape (M,).
    """

    seconds: float
    sent: Reals


class Collective(ABC):
    """How M ranks, each with a payload, come to have the mean of all of them.

    Attributes:
        helpers: whether ranks without a payload (of 0 bytes) may take part, who want no mean.
    """

    helpers: ClassVar[bool] = False

    @abstractmethod
    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the steps, one after the other.

        Args:
            network: of the ranks in the order of `arranged`; two of them at least.
            sizes: bytes of each one's payload.
        """

    def arranged(self, network: Network) -> Sequence[int]:
        """Returns the ranks in the order in which they take their places: as they are given."""
        return range(len(network))

    def closed(self, network: Network, sizes: Sequence[int]) -> Closed | None:
        """Returns what the steps cost, if that is known without taking them one by one."""
        return None


class Requantising(Collective):
    """A collective that encodes sums on their way: the ranks get another vector than the mean."""

    @abstractmethod
    def reduced(self, x: Row) -> Row:
        """Returns what every rank has in the end, shape (n,), float32.

        Args:
            x: of the ranks in their order, shape (M, n), float32, finite.

        Raises:
            ConfigError: entries are too large.
        """


def whole(ranks: ArrayLike) -> Ranks:
    """Returns ranks as an array."""
    return np.asarray(ranks, dtype=np.intp)


def step(sources: ArrayLike, targets: ArrayLike, size: ArrayLike) -> Transfers:
    """Returns a step; one size holds for all of its transfers."""
    i = whole(sources)
    return Transfers(i, whole(targets), np.broadcast_to(np.asarray(size, np.float64), i.shape))
