"""Which blocks of a model a server holds, so that no block is short of servers (Petals)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, fraction, positive
from fl.errors import ConfigError

_SHARE = 1e-3  # of a server's throughput that another place must gain, for it to move


class Held(NamedTuple):
    """What a server holds.

    Attributes:
        start: its first block.
        length: blocks, those from start up to but not start + length.
        throughput: tokens per s that it says it can serve.
    """

    start: int
    length: int
    throughput: float

    @property
    def end(self) -> int:
        """The block after its last one."""
        return self.start + self.length


Servers = Mapping[int, Held]
"""Those that there are, by number."""


@dataclass(frozen=True)
class BlockPlacement:
    """Servers choose the blocks that are served worst, and change their place if that pays.

    With t_b the throughput of block b, the sum over the servers that hold it, a server of n blocks
    that joins begins at

        argmin over i of  sort(t_i, ..., t_{i + n - 1}),

    compared like words: the weakest block counts first. Now and then a server looks whether the
    place that it would choose if it joined now is another. If so, it thinks the choices of all
    servers through, in drawn order, until none would move; it moves if the weakest block has now
    less than `quality` of what it would have then, and never if that leaves a block without any
    server.

    Source: Borzunov et al., "Petals", arXiv:2209.01188 and 2312.08361; bigscience-workshop/petals
    (`server/block_selection.py`).

    Attributes:
        num_blocks: of the model.
        quality: as above, in (0, 1].

    Raises:
        ConfigError: a number is out of its range.
    """

    num_blocks: int
    quality: float = 0.75

    def __post_init__(self) -> None:
        at_least("num_blocks", self.num_blocks, 1)
        fraction("quality", self.quality)

    def throughputs(self, servers: Servers) -> NDArray[np.float64]:
        """Returns t, tokens per s of every block, shape (num_blocks,)."""
        t = np.zeros(self.num_blocks)
        for _, held in sorted(servers.items()):  # in one order, so that equal sums are equal
            t[held.start : held.end] += held.throughput
        return t

    def joins(self, servers: Servers, length: int) -> int:
        """Returns where a server of so many blocks begins.

        Raises:
            ConfigError: the model has fewer blocks.
        """
        if not 1 <= length <= self.num_blocks:
            raise ConfigError(
                f"a server holds {length} blocks; it must be between 1 and {self.num_blocks}, "
                "those of the model"
            )
        return self._weakest(self.throughputs(servers), length)

    def moves(self, servers: Servers, server: int, order: Sequence[int]) -> int | None:
        """Returns where a server begins from now on; None if it stays.

        Args:
            servers: that there are, itself included.
            server: its number.
            order: numbers of all of them, in the order in which it thinks them through.
        """
        before = self.throughputs(servers).min()
        own = servers[server]
        start = self._reply(servers, server)
        others = self.throughputs({k: held for k, held in servers.items() if k != server})
        if start == own.start or (before > 0 and others.min() <= 0):
            return None
        found = {**servers, server: own._replace(start=start)}
        for _ in range(self.num_blocks * len(servers)):
            moved = False
            for k in order:
                reply = self._reply(found, k)
                moved |= reply != found[k].start
                found[k] = found[k]._replace(start=reply)
            if not moved:
                break
        after = self.throughputs(found).min()
        if after <= 0 or before >= self.quality * after:
            return None
        return start

    def _reply(self, servers: Servers, server: int) -> int:
        """Returns where a server would begin, given all others; where it is, of nearly equals."""
        own = servers[server]
        t = self.throughputs({k: held for k, held in servers.items() if k != server})
        t[own.start : own.end] -= _SHARE * own.throughput
        return self._weakest(t, own.length)

    def _weakest(self, t: NDArray[np.float64], length: int) -> int:
        starts = range(self.num_blocks - length + 1)
        return min(starts, key=lambda i: (np.sort(t[i : i + length]).tolist(), i))


def server_throughput(
    block_rps: float, network_bps: float, *, hidden: int, length: int, relayed: bool = False
) -> float:
    """Returns the tokens per s that a server says it can serve.

        min(block_rps / ((n + 1) / 2),  network_bps / (16 hidden))

    as a request that begins at any of its n blocks, and ends at its last, passes (n + 1) / 2 of
    them in the mean; a token's activations are numbers of 16 bits. A server that is reached
    through a relay counts as a fifth of its network.

    Args:
        block_rps: tokens per s through one block, forward.
        network_bps: the slower direction of its link, bit/s.
        hidden: numbers in a token's activations.
        length: n.
        relayed: as above.
    """
    positive("block_rps", block_rps)
    positive("network_bps", network_bps)
    network_rps = network_bps / (16 * hidden) * (0.2 if relayed else 1.0)
    return min(2 * block_rps / (length + 1), network_rps)
