"""Passes around a ring over a vector of which every rank holds an own share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fl.collectives.collective import Closed, Collective, Network, Reals, Transfers


@dataclass(frozen=True)
class ShardedRing(Collective):
    """All-gathers and reduce-scatters of unequal shards, M - 1 hops each.

        seconds = (gathers + scatters) (M - 1) max over ranks of (latency + 8 largest / bandwidth)

    with the bytes of the largest shard: libraries pad the others to it on their way, as hops wait
    for the longest chunk. What is padded is not charged as bytes.

    Attributes:
        shares: of the ranks in the vector, of sum 1.
        gathers: passes after which all have the whole vector.
        scatters: passes after which each has the sum of its shard.
    """

    shares: tuple[float, ...]
    gathers: int = 1
    scatters: int = 1

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the hops."""
        m = len(network)
        ranks, chunks = np.arange(m), self._chunks(sizes)
        for scatters in [True] * self.scatters + [False] * self.gathers:
            for k in range(m - 1):
                yield Transfers(ranks, (ranks + 1) % m, chunks[(ranks - k - scatters) % m])

    def closed(self, network: Network, sizes: Sequence[int]) -> Closed:
        """Returns the formula above."""
        m, chunks = len(network), self._chunks(sizes)
        ranks = np.arange(m)
        after = (ranks + 1) % m
        hops = network.delays(ranks, after) + 8.0 * chunks.max() / network.rates(ranks, after)
        total = chunks.sum()
        sent = self.gathers * (total - chunks[after]) + self.scatters * (total - chunks)
        return Closed((self.gathers + self.scatters) * (m - 1) * float(hops.max()), sent)

    def _chunks(self, sizes: Sequence[int]) -> Reals:
        return np.asarray(self.shares, np.float64) * max(sizes)
