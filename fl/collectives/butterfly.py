"""The butterfly: recursive halving, then recursive doubling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fl.collectives.collective import Collective, Network, Transfers, step


@dataclass(frozen=True)
class Butterfly(Collective):
    """Halves with ever nearer partners, then the same the other way: 2 log2 M steps.

        seconds = 2 L latency + 2 (M - 1) / M 8 size / bandwidth,    L = log2 M

    on equal links: the bytes of a ring in fewer steps. In the first step all send half of a payload
    to a partner that is M / 2 away. If M is no power of two, r = M - 2^L ranks hand their payload
    to a partner before, and are sent the mean in the end: 2 (latency + 8 size / bandwidth) more.
    Rabenseifner's algorithm, in Thakur, Rabenseifner, Gropp, "Optimization of collective
    communication operations in MPICH", 2005 (from memory).
    """

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the steps."""
        m, size = len(network), max(sizes)
        power = 1 << (m.bit_length() - 1)
        extra = np.arange(power, m)
        if len(extra):
            yield step(extra, extra - power, size)
        ranks, distances = np.arange(power), []
        while power > 1:
            power //= 2
            distances.append(power)
        for k, distance in enumerate(distances):
            yield step(ranks, ranks ^ distance, size / 2 ** (k + 1))
        for k, distance in reversed(list(enumerate(distances))):
            yield step(ranks, ranks ^ distance, size / 2 ** (k + 1))
        if len(extra):
            yield step(extra - len(ranks), extra, size)
