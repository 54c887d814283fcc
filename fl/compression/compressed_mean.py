"""Compression of a mean: what workers in a ring send of their vectors is added up on its way.

A compressor by itself encodes one worker's vector, and n payloads have to be read one by one. Some
papers compress the mean instead, by sums that are all-reduced one after another: PowerSGD's factors
(arXiv:1905.13727), TernGrad's scalers and ternary numbers (arXiv:1705.07878), the rows of Grass
(arXiv:2406.17660).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fl.compression.compressor import Channel, Shapes, State, Vector
from fl.compression.error_feedback import ErrorFeedback
from fl.errors import ConfigError
from fl.vectors.rows import Row


class CompressedMean(NamedTuple):
    """What workers make of their vectors together.

    Attributes:
        mean: what all of them read, shape (d,), float32.
        sizes: bytes of each worker's payload, of one all-reduce after the other.
        state: which all of them keep.
    """

    mean: Vector
    sizes: tuple[int, ...]
    state: State


class CompressesMean(ABC):
    """A compressor that also compresses the mean of n workers' vectors, by sums."""

    @abstractmethod
    def init(self, shapes: Shapes) -> State:
        """Returns what all workers keep, before the first mean."""

    @abstractmethod
    def compress_mean(
        self, x: Row, shapes: Shapes, state: State, rngs: Sequence[np.random.Generator]
    ) -> CompressedMean:
        """Compresses the mean of vectors.

        Args:
            x: of the n workers, shape (n, d), float32, finite; not changed.
            shapes: of the tensors in a vector.
            state: which all workers keep; not changed.
            rngs: one for each worker, for methods that draw.

        Raises:
            ConfigError: entries are too large.
        """


def mean_compressor(channel: Channel) -> tuple[CompressesMean, float | None]:
    """Returns what compresses a mean, and the decay of its error feedback; None if there is none.

    Raises:
        ConfigError: the channel compresses no mean.
    """
    inner = channel.compressor if isinstance(channel, ErrorFeedback) else channel
    if not isinstance(inner, CompressesMean):
        raise ConfigError(
            f"compress_mean is true, but compressor is {type(inner).__name__}, which compresses "
            "one worker's vector: use compressor=powersgd, lowrank, terngrad or grass, or leave it "
            "out"
        )
    return inner, channel.decay if isinstance(channel, ErrorFeedback) else None


class MeanLink:
    """A vector's way through all-reduces, with what workers remember of it.

    With error feedback a worker adds e_i to its vector, x_i <- x_i + decay e_i, and keeps what the
    mean G lacks of that, e_i <- x_i - G, as PowerSGD's Algorithm 2 does.

    Args:
        channel: the compressor, with error feedback or without.
        shapes: of the tensors in a vector.

    Raises:
        ConfigError: the channel compresses no mean.
    """

    def __init__(self, channel: Channel, shapes: Shapes) -> None:
        self._compressor, self._decay = mean_compressor(channel)
        self._shapes = shapes
        self._state = self._compressor.init(shapes)
        self._errors: dict[int, Vector] = {}

    @property
    def nbytes(self) -> int:
        """What all workers keep, in bytes."""
        return sum(array.nbytes for array in self._state.values())

    def forget(self, worker: int) -> None:
        """Drops a worker's error, as it starts over."""
        self._errors.pop(worker, None)

    def mean(
        self, x: Row, workers: Sequence[int], rngs: Sequence[np.random.Generator]
    ) -> tuple[Vector, tuple[int, ...]]:
        """Returns the compressed mean of vectors, shape (d,), and the bytes of its all-reduces.

        Args:
            x: shape (n, d), float32.
            workers: whose they are.
            rngs: of the workers.

        Raises:
            ConfigError: entries are too large; then everybody's memory is as it was.
        """
        if self._decay is not None:
            zero = np.zeros(x.shape[1], np.float32)
            decay = np.float32(self._decay)
            x = x + decay * np.stack([self._errors.get(i, zero) for i in workers])
        mean, sizes, state = self._compressor.compress_mean(x, self._shapes, self._state, rngs)
        if not np.isfinite(mean).all():
            raise ConfigError("the compressed mean is not finite: clip the vectors")
        self._state = state
        if self._decay is not None:
            self._errors.update(zip(workers, x - mean, strict=True))
        return mean, sizes
