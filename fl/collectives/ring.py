"""The ring: reduce-scatter, then all-gather, by chunks from neighbour to neighbour."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fl.collectives.collective import Closed, Collective, Network, Reals, Transfers
from fl.collectives.ring_order import widest_ring
from fl.errors import ConfigError


@dataclass(frozen=True)
class RingAllReduce(Collective):
    """2 (M - 1) hops of a chunk of 1 / M from every rank to the next one.

        seconds = 2 (M - 1) max over neighbours of (latency + 8 (size / M) / bandwidth)

    which holds on unequal links too: the last rank is done when the slowest edge has carried its
    2 (M - 1) chunks, one after the other. Every rank sends 2 (M - 1) / M of its payload, the least
    that is possible. Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", JPDC 69(2), 2009 (from memory).

    Attributes:
        order: "given" is that of the clients' numbers; "widest" that of the ring whose slowest edge
            is the fastest, see `widest_ring`.

    Raises:
        ConfigError: another order.
    """

    order: str = "given"

    def __post_init__(self) -> None:
        if self.order not in ("given", "widest"):
            raise ConfigError(f"order is {self.order!r}; it must be 'given' or 'widest'")

    def arranged(self, network: Network) -> Sequence[int]:
        """Returns the ranks around the ring."""
        m = len(network)
        if self.order == "given" or m < 4:  # of three there are two rings, one each way
            return range(m)
        return widest_ring(_rates(network))

    def chunks(self, m: int, size: int) -> Reals:
        """Returns the bytes of the chunks as they travel, shape (M,)."""
        return np.full(m, size / m)

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the hops."""
        m = len(network)
        ranks, chunks = np.arange(m), self.chunks(m, max(sizes))
        after = (ranks + 1) % m
        for k in range(m - 1):
            yield Transfers(ranks, after, chunks[(ranks - 1 - k) % m])
        for k in range(m - 1):
            yield Transfers(ranks, after, chunks[(ranks - k) % m])

    def closed(self, network: Network, sizes: Sequence[int]) -> Closed:
        """Returns the formula above; of uneven chunks, with the largest one."""
        m = len(network)
        ranks, chunks = np.arange(m), self.chunks(m, max(sizes))
        after = (ranks + 1) % m
        hops = network.delays(ranks, after) + 8.0 * chunks.max() / network.rates(ranks, after)
        sent = 2.0 * chunks.sum() - chunks - chunks[after]
        return Closed(2 * (m - 1) * float(hops.max()), sent)


def around(
    network: Network, order: Sequence[int], avoided: Collection[tuple[int, int]]
) -> Sequence[int]:
    """Returns the ranks around a ring without some of its edges, if there is any.

    It is the one given if that has none of them, and else the one whose slowest edge is the
    fastest.

    Args:
        network: the links.
        order: of the ranks.
        avoided: edges, from rank to rank.
    """
    edges = zip(order, [*order[1:], order[0]], strict=True)
    if len(order) < 3 or not any(edge in avoided for edge in edges):
        return order
    rates = _rates(network)
    i, j = (list(ends) for ends in zip(*avoided, strict=True))
    rates[i, j] = 0.0
    return widest_ring(rates)


def _rates(network: Network) -> Reals:
    """Returns the bit/s from rank to rank, shape (M, M)."""
    m = len(network)
    i, j = np.indices((m, m)).reshape(2, -1)
    return np.array(network.rates(i, j), np.float64).reshape(m, m)


@dataclass(frozen=True)
class Gather(Collective):
    """M - 1 hops of whole payloads around a ring, for what cannot be added on its way.

        seconds = sum over k < M - 1 of max over i of (latency + 8 size_{i-k} / bandwidth)

    In hop k, rank i hands rank i + 1 the payload of rank i - k. So each sends all but the one of
    its successor, and all have all of them.
    """

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields the hops."""
        m = len(network)
        ranks, payloads = np.arange(m), np.asarray(sizes, np.float64)
        for k in range(m - 1):
            yield Transfers(ranks, (ranks + 1) % m, payloads[(ranks - k) % m])

    def closed(self, network: Network, sizes: Sequence[int]) -> Closed:
        """Returns the formula above: all wait for the slowest transfer of a hop."""
        payloads = np.asarray(sizes, np.float64)
        seconds = sum(
            float((network.delays(i, j) + 8.0 * size / network.rates(i, j)).max())
            for i, j, size in self.steps(network, sizes)
        )
        return Closed(seconds, payloads.sum() - np.roll(payloads, -1))
