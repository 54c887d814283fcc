"""The binomial tree: everything to the root, and the mean back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fl.collectives.collective import Collective, Network, Transfers, step


@dataclass(frozen=True)
class TreeAllReduce(Collective):
    """Whole payloads up a binomial tree, added on their way, and the mean down.

        seconds = 2 L (latency + 8 size / bandwidth),    L = ceil(log2 M)

    on equal links: the fewest messages, for small payloads. The first rank is the root.
    """

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the steps."""
        m, size = len(network), max(sizes)
        distances = [1 << k for k in range((m - 1).bit_length())]
        for distance in distances:
            senders = np.arange(distance, m, 2 * distance)
            yield step(senders, senders - distance, size)
        for distance in reversed(distances):
            receivers = np.arange(distance, m, 2 * distance)
            yield step(receivers - distance, receivers, size)
