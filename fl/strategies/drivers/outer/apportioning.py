"""What every worker takes of a batch and of the state, by what is measured of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fl.collectives import ShardedRing
from fl.flower.grid_view import Peers
from fl.strategies.cephalo import BatchPart, Cephalo, Machine

log = logging.getLogger("fl")


class Apportioning:
    """Deals batch and state among the workers that are there.

    In the step after somebody has entered who was never measured all take the same number of
    samples, as far as memories go; whoever was not is measured then. Afterwards Cephalo deals by
    that, until the workers are others again.

    Args:
        rule: how they are dealt.
        parameters: of the model.
        peers: by whose order `rule.memory` is the clients'.

    Attributes:
        gather_s: seconds of an all-gather, when it was last measured with even shards.
        scatter_s: of a reduce-scatter, likewise.
    """

    def __init__(self, rule: Cephalo, parameters: int, peers: Peers) -> None:
        self.rule = rule
        self._parameters = parameters
        self._peers = peers
        self._seconds: dict[int, float] = {}  # of a sample, by Flower id
        self._memory: dict[int, float] = {}
        self._dealt: tuple[list[int], bool] = ([], False)
        self.parts: dict[int, BatchPart] = {}
        self.shares: dict[int, float] = {}
        self.gather_s = self.scatter_s = 0.0

    def deal(self, present: Sequence[int]) -> None:
        """Deals the next step's batch among these workers.

        Raises:
            ConfigError: they have not enough memory, or are more than there are samples.
        """
        known = all(m in self._seconds for m in present)
        if self._dealt == (list(present), known):
            return
        if any(m not in self._memory for m in present):
            nodes, memory = self._peers.nodes(), self.rule.memory
            self._memory = {m: memory[i % len(memory)] for i, m in enumerate(nodes)}
        machines = [self._machine(m, self._seconds[m] if known else 1.0) for m in present]
        gather_s, scatter_s = (self.gather_s, self.scatter_s) if known else (0.0, 0.0)
        parts = self.rule.divided(machines, self._parameters, gather_s, scatter_s)
        shares = self.rule.shards(machines, parts, self._parameters)
        self.parts = dict(zip(present, parts, strict=True))
        self.shares = dict(zip(present, shares.tolist(), strict=True))
        self._dealt = list(present), known
        log.info(
            "%s take %s samples, in micro-batches of %s, and %s of the state",
            *("workers" if known else "workers that are to be measured",),
            ", ".join(str(part.samples) for part in parts),
            ", ".join(str(part.size) for part in parts),
            ", ".join(f"{100 * share:.1f} %" for share in shares),
        )

    def measured(self, m: int, seconds: float) -> None:
        """Notes how long a worker took for its part, s; the first time counts."""
        self._seconds.setdefault(m, seconds / self.parts[m].samples)

    def finish_s(
        self,
        peers: Peers,
        nodes: Sequence[int],
        sizes: Sequence[int],
        ends: Sequence[tuple[float, float]],
    ) -> float:
        """Returns when all have passed the step, with gathers and scatters beside it, s.

        Parameters are gathered from its begin on, beside the forward passes; when all have done
        these, again, and gradients are scattered, beside the backward passes. A worker that waits
        for the first gather ends by so much later.

        Args:
            peers: the workers' links.
            nodes: the workers.
            sizes: bytes of each one's vector.
            ends: when each has computed its part, and how long that took, s.
        """
        shares = tuple(self.shares[m] for m in nodes)
        begin = max(end - took for end, took in ends)
        passed = [end - (1 - self._forward) * took for end, took in ends]
        gathered = peers.collect(nodes, sizes, ShardedRing(shares, 1, 0), since=begin).finish_s
        back = max(gathered, *passed)
        both = peers.collect(nodes, sizes, ShardedRing(shares, 1, 1), since=back).finish_s
        if len(set(shares)) == 1:
            self.gather_s, self.scatter_s = gathered - begin, (both - back) / 2
        late = (
            end + max(0.0, gathered - done) for (end, _), done in zip(ends, passed, strict=True)
        )
        return max(both, *late)

    @property
    def _forward(self) -> float:
        """The share of a step's seconds that the forward pass takes."""
        return 0.25 if self.rule.recompute else 1 / 3

    def _machine(self, m: int, seconds: float) -> Machine:
        forward = seconds * self._forward
        own = seconds - forward * (2 if self.rule.recompute else 1)
        return Machine(self._memory[m], (0.0, forward), (0.0, own))
