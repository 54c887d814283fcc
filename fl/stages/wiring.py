"""Stochastic wiring: which peer of a stage is given the next micro-batch (SWARM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fl.checks import fraction, positive
from fl.errors import ConfigError


class Candidate(NamedTuple):
    """What is known of a peer that serves a stage.

    Attributes:
        load: s of work that it has been given, by what was known then: its virtual time.
        tie: decides among equal ones.
        average: exponential average of s per sample, which begins at 0.
        measured: how often it has been measured.
    """

    load: float
    tie: float
    average: float = 0.0
    measured: int = 0


Candidates = Mapping[int, Candidate]
"""The peers of a stage, by number."""


@dataclass(frozen=True)
class StochasticWiring:
    """Interleaved weighted round-robin of a stage's peers, in proportion to their speed.

    The peer with the least virtual time is next, and its virtual time grows by what the work is
    expected to take it:

        p = argmin load;   load_p <- load_p + size * c_p
        c_p = a_p / (1 - (1 - alpha)^n),   a_p <- (1 - alpha) a_p + alpha seconds / size

    with c_p = initial_s as long as n = 0. A peer that joins begins at the least virtual time, so
    that it is tried at once; one that fails is banned: forgotten, until it has told that it is
    there since. So peers of speeds 1 and 3 get work as 1 to 3.

    Source: Ryabinin, Dettmers, Diskin, Borzunov, "SWARM Parallelism", ICML 2023, arXiv:2301.11913,
    and yandex-research/swarm (`moe/client/balancer.py`). There, the seconds are those from the
    request to the answer, with what it waits at the peer; and `initial_s` is called a throughput,
    but taken as s per sample.

    Attributes:
        alpha: weight of the last measurement, in (0, 1].
        initial_s: s per sample of a peer that has not been measured.
        backward_size: samples that a backward pass counts as, where a forward pass is 1.

    Raises:
        ConfigError: a number is out of its range.
    """

    alpha: float = 0.1
    initial_s: float = 1.0
    backward_size: float = 2.5

    def __post_init__(self) -> None:
        fraction("alpha", self.alpha)
        positive("initial_s", self.initial_s)
        positive("backward_size", self.backward_size)

    def join(self, peers: Candidates, peer: int, tie: float) -> Candidates:
        """Returns the peers with one more, whose turn it is; one that is there stays as it is."""
        if peer in peers:
            return peers
        load = min((known.load for known in peers.values()), default=0.0)
        return {**peers, peer: Candidate(load, tie)}

    def leave(self, peers: Candidates, peer: int) -> Candidates:
        """Returns the peers without one; nothing stays of it."""
        return {number: known for number, known in peers.items() if number != peer}

    def choose(self, peers: Candidates, size: float, tie: float) -> tuple[int, Candidates]:
        """Returns who is given so many samples, and the peers afterwards.

        Args:
            peers: of the stage; at least one.
            size: samples.
            tie: a number from [0, 1), drawn for this choice.

        Raises:
            ConfigError: there is no peer.
        """
        if not peers:
            raise ConfigError("the stage has no peers: wait until one is there")
        chosen = min(peers, key=lambda peer: peers[peer][:2])
        known = peers[chosen]
        load = known.load + size * self.seconds(known)
        return chosen, {**peers, chosen: known._replace(load=load, tie=tie)}

    def measure(self, peers: Candidates, peer: int, size: float, seconds: float) -> Candidates:
        """Returns the peers after one has answered; one that has left since is not known any more.

        Args:
            peers: of the stage.
            peer: that has answered.
            size: samples it was given.
            seconds: that it took.
        """
        known = peers.get(peer)
        if known is None:
            return peers
        average = (1 - self.alpha) * known.average + self.alpha * seconds / size
        return {**peers, peer: known._replace(average=average, measured=known.measured + 1)}

    def seconds(self, known: Candidate) -> float:
        """Returns what a sample is expected to take a peer, s."""
        if known.measured == 0:
            return self.initial_s
        return known.average / (1 - (1 - self.alpha) ** known.measured)
