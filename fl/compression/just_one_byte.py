"""Just One Byte as an optimiser: workers exchange seeds and projections, nothing else.

Zelikman, Huang, Liang, Haber, Goodman, Just One Byte (per gradient), 2023, arXiv:2306.10015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from fl.compression.compressor import Channel, Shapes, State, Vector
from fl.compression.replicated import Gathered
from fl.compression.spsa import OneByteSpsa
from fl.errors import ConfigError


@dataclass(frozen=True)
class JustOneByte(Gathered):
    """Steps along random directions by what all workers found there.

        worker i:  rho_is = <g_i, z_is> for S directions from its seed; sends the seed and S bytes
        everyone:  x <- x - lr / (n S) sum_is rho_is z_is

    The step is unbiased for gradient descent; its variance is about d / (n S) times |g|^2, so lr
    has to be about n S / d times that of SGD. n S bytes and n seeds reach a worker, whatever d is.

    States and wire: see `Gathered`; format 28.

    Departures: rho is the exact directional derivative, the limit of the paper's (L(x + eps z) -
    L(x - eps z)) / (2 eps) for small eps, taken from a gradient; the paper saves the backward pass,
    this shows the same bytes and steps. See `OneByteSpsa` for the code of a byte.

    Attributes:
        workers: n, at least 1.
        lr: above 0.
        compressor: the code; S is its `samples`.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 28

    workers: int
    lr: float
    compressor: OneByteSpsa = field(default_factory=OneByteSpsa)

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.lr > 0:
            raise ConfigError(
                f"workers is {self.workers} and lr is {self.lr}; they must be at least 1 and above "
                "0"
            )

    @property
    def channel(self) -> Channel:
        """The code."""
        return self.compressor

    def message_of(self, g: Vector, state: State) -> Vector:
        """Returns g."""
        return g

    def stepped(self, x: Vector, payloads: Sequence[bytes], shapes: Shapes) -> Vector:
        """Returns x after the step."""
        return x - np.float32(self.lr / self.workers) * _sum(
            self.compressor, tuple(payloads), shapes
        )


@lru_cache(maxsize=1)  # replicas in one process all need the same
def _sum(compressor: OneByteSpsa, payloads: tuple[bytes, ...], shapes: Shapes) -> Vector:
    total = np.zeros(shapes.size, dtype=np.float32)
    for payload in payloads:
        total += compressor.decode(payload, shapes)
    total.flags.writeable = False
    return total
