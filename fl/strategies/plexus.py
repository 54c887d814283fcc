"""Plexus: samples of nodes that train and average in turn, and derive who is next by hashes.

De Vos, Dhasade, Kermarrec, Lavoie, Pouwelse, Sharma, "Decentralized Learning Made Practical with
Client Sampling", arXiv:2302.13837, later "Practical Federated Learning without a Server",
arXiv:2503.05509; by the authors' code, github.com/sacs-epfl/plexus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import md5
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, fraction
from fl.strategies.sample_rule import SampleRule

Counts = NDArray[np.int64]

_ENTRY_BYTES = 16  # of a view: a node, the round in which it was active, how often it has joined


class PopulationView(NamedTuple):
    """What a node knows of all nodes, shape (n,) each.

    Attributes:
        active: the last round in which each was at work, as far as is known; 0 is never.
        joined: how often each has come, the first time not counted.
    """

    active: Counts
    joined: Counts


@dataclass(frozen=True)
class Plexus(SampleRule):
    """The sample of round k is who comes first by hash, and the nodes that average it too.

        order(k)  the nodes that are taken to be there, by md5 of (seed, node, k)
        S_k       the first s of it that answer a ping
        A_k       the first a of it that answer a ping

    Every node in S_k trains the model of round k, and sends what comes of it to A_{k+1}. Who is in
    there waits for s times `success_fraction` models, averages them, all with the same weight, and
    sends the mean to S_{k+1}. So nobody draws, nobody agrees, and those who know of the same nodes
    find the same sample. What a node knows travels beside every model: when each node was last
    active, and how often it has joined. Who has been active in none of the last `inactivity` rounds
    is asked no more, until it joins again.

    Attributes:
        sample_size: s, at least 1; None is 13, or all nodes if they are fewer.
        aggregators: a, at least 1.
        success_fraction: in (0, 1].
        inactivity: rounds, at least 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    sample_size: int | None = None
    aggregators: int = 1
    success_fraction: float = 0.8
    inactivity: int = 1000

    def __post_init__(self) -> None:
        if self.sample_size is not None:
            at_least("sample_size", self.sample_size, 1)
        at_least("aggregators", self.aggregators, 1)
        fraction("success_fraction", self.success_fraction)
        at_least("inactivity", self.inactivity, 1)

    def init(self, n: int) -> PopulationView:
        """Returns a view in which all are there, and nobody has been active."""
        return PopulationView(np.zeros(n, np.int64), np.zeros(n, np.int64))

    def heard(
        self, view: PopulationView, j: int, k: int, joined: int | None = None
    ) -> PopulationView:
        """Returns a view in which j was active in round k, or later."""
        active, times = view.active.copy(), view.joined.copy()
        active[j] = max(active[j], k)
        times[j] = max(times[j], joined or 0)
        return PopulationView(active, times)

    def merged(self, view: PopulationView, other: PopulationView) -> PopulationView:
        """Returns the later of both, node by node."""
        return PopulationView(
            np.maximum(view.active, other.active), np.maximum(view.joined, other.joined)
        )

    def latest(self, view: PopulationView) -> int:
        """Returns the latest round in which anybody was active."""
        return int(view.active.max())

    def candidates(self, view: PopulationView, k: int, i: int) -> list[int]:
        """Returns i, and all that were active since round k - `inactivity`."""
        there = view.active >= k - self.inactivity
        there[i] = True
        found: list[int] = np.flatnonzero(there).tolist()
        return found

    def order(self, k: int, nodes: Sequence[int], seed: int) -> list[int]:
        """Returns nodes by the md5 of their numbers, the round and the seed."""
        return sorted(nodes, key=lambda j: md5(b"%d-%d-%d" % (seed, j, k)).digest())

    def view_bytes(self, n: int) -> int:
        """Returns 16 n."""
        return _ENTRY_BYTES * n
