"""By which servers a request passes through all blocks of a model (Petals)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import not_negative, positive
from fl.errors import ConfigError
from fl.stages.block_placement import Held, Servers


class Leg(NamedTuple):
    """Blocks that a request passes at one server: from start up to but not end."""

    server: int
    start: int
    end: int


Delay = Callable[[int | None, int | None], float | None]
"""Round trip in s between two servers; None is the client. It returns None if it is not known."""


@dataclass(frozen=True)
class ShortestTime:
    """The chain of servers by which one token passes soonest.

    A request that has come to a server stays to the end of what that holds. The time is

        sum over servers of (delay from the one before + overhead_s + blocks / rps), + delay back,

    with a delay of half the round trip, `unknown_s` if that is not known, and `most_s` at most; and
    `cache_s` for each server that has no room left for the request's attention caches.

    Source: bigscience-workshop/petals (`client/routing/sequence_manager.py`), which finds it by
    Dijkstra's algorithm. Blocks are in an order here, so that one pass over them will do.

    Attributes:
        overhead_s: of each server: serialisation.
        unknown_s, most_s, cache_s: as above.

    Raises:
        ConfigError: a number is negative.
    """

    overhead_s: float = 0.018
    unknown_s: float = 0.15
    most_s: float = 5.0
    cache_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("overhead_s", "unknown_s", "most_s", "cache_s"):
            not_negative(name, getattr(self, name))

    def route(
        self,
        servers: Servers,
        first: int,
        end: int,
        rtt: Delay,
        rps: Mapping[int, float],
        full: frozenset[int] = frozenset(),
    ) -> tuple[tuple[Leg, ...], float]:
        """Returns the chain, and the s that it takes.

        Args:
            servers: that there are.
            first: block at which the request begins.
            end: block before which it ends, above first.
            rtt: round trips.
            rps: tokens per s through a block, of each server.
            full: servers without room.

        Raises:
            ConfigError: no server holds one of the blocks.
        """
        arrived: dict[int, list[tuple[float, tuple[Leg, ...]]]] = {first: [(0.0, ())]}
        for block in range(first, end):
            ways = arrived.pop(block, [])
            for j in sorted(holders := holding(servers, block)):
                begun = [
                    (s + self.delay(rtt, legs[-1].server if legs else None, j), legs)
                    for s, legs in ways
                    if not legs or legs[-1].server != j
                ]
                if not begun:
                    continue
                s, legs = min(begun)
                leg = Leg(j, block, min(servers[j].end, end))
                s += self.overhead_s + (leg.end - block) / rps[j]
                s += self.cache_s if j in full else 0.0
                arrived.setdefault(leg.end, []).append((s, (*legs, leg)))
            if not holders:
                raise no_holder(block)
        s, legs = min(
            (s + self.delay(rtt, legs[-1].server, None), legs) for s, legs in arrived[end]
        )
        return legs, s

    def delay(self, rtt: Delay, i: int | None, j: int | None) -> float:
        """Returns what a message takes from a server to another, s."""
        known = rtt(i, j)
        return self.unknown_s if known is None else min(known / 2, self.most_s)


def random_route(
    servers: Servers, first: int, end: int, rng: np.random.Generator
) -> tuple[Leg, ...]:
    """Returns a chain for a batch, which spreads the load: whoever holds much, rather.

    At each block it goes to one of the servers that hold it, drawn in proportion to how many blocks
    each holds, and stays to the end of what that holds. So does Petals for forward and backward
    passes of training.

    Args:
        servers: that there are.
        first: block at which the batch begins.
        end: block before which it ends.
        rng: draws.

    Raises:
        ConfigError: no server holds one of the blocks.
    """
    legs, block = [], first
    while block < end:
        holders = sorted(holding(servers, block))
        if not holders:
            raise no_holder(block)
        lengths = np.array([servers[k].length for k in holders], dtype=np.float64)
        server = holders[int(rng.choice(len(holders), p=lengths / lengths.sum()))]
        legs.append(Leg(server, block, min(servers[server].end, end)))
        block = legs[-1].end
    return tuple(legs)


def holding(servers: Servers, block: int) -> dict[int, Held]:
    """Returns the servers that hold a block."""
    return {k: held for k, held in servers.items() if held.start <= block < held.end}


def no_holder(block: int) -> ConfigError:
    """Returns what is told where no server holds a block."""
    return ConfigError(f"no server holds block {block}: add servers, or let them hold more blocks")


class Ban(NamedTuple):
    """A server that did not answer: until when it is left out, s, and how often in a row."""

    until_s: float
    failures: int


@dataclass(frozen=True)
class Bans:
    """Servers that did not answer are left out for a while, each time for longer.

    For base_s factor^(k - 1) s at the k-th time in a row; an answer ends the row. If all that hold
    a block are banned, none of them is.

    Attributes:
        base_s: 15 s in Petals.
        factor: 2 in Petals.

    Raises:
        ConfigError: base_s is not positive, or factor below 1.
    """

    base_s: float = 15.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        positive("base_s", self.base_s)
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"factor is {self.factor}; it must be finite and at least 1")

    def failed(self, bans: Mapping[int, Ban], server: int, now: float) -> dict[int, Ban]:
        """Returns the bans after a server has not answered."""
        times = bans[server].failures + 1 if server in bans else 1
        return {**bans, server: Ban(now + self.base_s * self.factor ** (times - 1), times)}

    def answered(self, bans: Mapping[int, Ban], server: int) -> dict[int, Ban]:
        """Returns the bans after a server has answered."""
        return {k: ban for k, ban in bans.items() if k != server}

    def allowed(
        self, bans: Mapping[int, Ban], servers: Servers, num_blocks: int, now: float
    ) -> dict[int, Held]:
        """Returns the servers without those that are banned, but where nobody else holds a block.

        Args:
            bans: that there are.
            servers: likewise.
            num_blocks: of the model.
            now: time, s.
        """
        left = {k: h for k, h in servers.items() if k not in bans or bans[k].until_s <= now}
        for block in range(num_blocks):
            if not holding(left, block):
                left |= holding(servers, block)
        return left
