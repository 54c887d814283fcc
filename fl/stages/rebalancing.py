"""Which peer goes from which stage to which, so that no stage holds up the others (SWARM)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fl.checks import not_negative
from fl.errors import ConfigError

Queues = Sequence[Mapping[int, float]]
"""For each stage the requests that wait at each of its peers, by number."""


class Move(NamedTuple):
    """A peer that goes from a stage to another."""

    peer: int
    source: int
    target: int


@dataclass(frozen=True)
class Rebalancing:
    """Every T seconds the idlest peer of the idlest stage goes to the busiest stage.

        L_s = sum of q_p over the peers p of stage s
        s_max = argmax L_s,  s_min = argmin L_s,  p = argmin of q_p over the peers of s_min

    A stage keeps its last peer: s_min is taken from those with two or more. A stage without peers
    is the busiest there is. Who joins goes to s_max.

    Source: SWARM, arXiv:2301.11913, algorithm 2. The authors' repository says that it does not have
    it yet: this is by the paper. Queues are noisy, and where all stages have the same speed the
    paper's rule moves a peer all the same, which then has to download its new stage and leaves the
    old one slower. With a `gain` a stage gives a peer only if it is faster without it than the
    busiest one is, by that share,

        R_s - r_p > (1 + gain) R_max,   R_s = sum of the peers' rates r_p,

    so that no move makes the slower of the two stages slower, and none is undone by the next. That
    is ours.

    Attributes:
        every_s: T, s; infinity lets nobody move, and only sends those who join where they are
            needed.
        gain: as above, at least 0; rates are measured, and so a little wrong. None is the paper's
            rule.

    Raises:
        ConfigError: every_s is not positive, or gain negative.
    """

    every_s: float = 300.0
    gain: float | None = 0.05

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise ConfigError(
                f"every_s is {self.every_s}; it must be positive, or infinite for never"
            )
        if self.gain is not None:
            not_negative("gain", self.gain)

    def busiest(self, queues: Queues) -> int:
        """Returns the stage that is needed most, the first of equals."""
        loads = [sum(stage.values()) if stage else math.inf for stage in queues]
        return loads.index(max(loads))

    def move(self, queues: Queues, rates: Mapping[int, float]) -> Move | None:
        """Returns who moves now; None if nobody does.

        Args:
            queues: what waits where.
            rates: work per s of every peer, for `gain`.
        """
        target = self.busiest(queues)
        aim = sum(queues[target].values()) if queues[target] else math.inf
        moves = []
        for source, stage in enumerate(queues):
            if len(stage) < 2 or sum(stage.values()) >= aim:
                continue
            peer = min(stage, key=lambda p: (stage[p], p))
            if self._gains(stage, peer, queues[target], rates):
                moves.append((sum(stage.values()), Move(peer, source, target)))
        return min(moves)[1] if moves else None

    def _gains(
        self,
        source: Mapping[int, float],
        peer: int,
        target: Mapping[int, float],
        rates: Mapping[int, float],
    ) -> bool:
        if self.gain is None:
            return True
        left = math.fsum(rates[p] for p in source if p != peer)
        return left > (1 + self.gain) * math.fsum(rates[p] for p in target)


def pipeline_rate(stages: Sequence[Sequence[float]]) -> float:
    """Returns the samples per s of a pipeline: those of its slowest stage.

        R = min over stages of the sum of the rates of its peers

    Args:
        stages: rates of each one's peers.
    """
    return min((math.fsum(rates) for rates in stages), default=0.0)
