"""A parameter server among the ranks: everything to one of them, and the mean back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fl.collectives.collective import Collective, Network, Transfers, step


@dataclass(frozen=True)
class ParameterServerAllReduce(Collective):
    """All others send their payload to one rank at the same time, which sends the mean back.

        seconds = 2 latency + 2 (M - 1) 8 size / bandwidth of the server

    on equal links. The server is the rank whose slowest link to the others is the fastest, of
    equals the first.
    """

    def arranged(self, network: Network) -> Sequence[int]:
        """Returns the server and then the others."""
        m = len(network)
        i, j = np.indices((m, m)).reshape(2, -1)
        both = np.minimum(network.rates(i, j), network.rates(j, i)).reshape(m, m)
        np.fill_diagonal(both, np.inf)
        server = int(both.min(axis=1).argmax())
        return [server, *(rank for rank in range(m) if rank != server)]

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the two steps."""
        others, size = np.arange(1, len(network)), max(sizes)
        yield step(others, np.zeros_like(others), size)
        yield step(np.zeros_like(others), others, size)
