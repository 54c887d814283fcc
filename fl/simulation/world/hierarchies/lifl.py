"""LIFL: aggregators of a cluster that are started as they are needed, near to each other.

Qi, Ramakrishnan, Lee, "LIFL: A Lightweight, Event-driven Serverless Platform for Federated
Learning", MLSys 2024, arXiv:2405.10968. The mechanisms are those of the abstract and of the public
code (cisco-open/flame, `lifl_coord_syncfl`, whose pairing of clients with leaves is round robin:
best fit is a stub there). What each costs is our model of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl.checks import at_least, boolean, read_if, share
from fl.errors import ConfigError
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies.hierarchy import Hierarchy


@read_if(lambda a: a["planned"], "smoothing", only="only {at}planned=true reads it")
@read_if(
    lambda a: not a["shared_memory"],
    "machine.copy_s_per_byte",
    only="only {at}shared_memory=false copies",
)
@read_if(
    lambda a: a["nodes"] > 1,
    "machine.nic_bps",
    "machine.nic_latency_s",
    only="there is one node, as {at}nodes is 1",
)
@dataclass(frozen=True, kw_only=True)
class Lifl(Hierarchy):
    """Nodes of a cluster; five mechanisms, each of which can be switched off.

    - `shared_memory`: within a node, aggregators hand on what lies in memory. Otherwise it goes
      through a broker and a sidecar: encoded, copied twice, decoded.
    - `locality`: an update goes to the node with the least capacity left that has some (best fit),
      which fills the fewest nodes. Otherwise to the one with the most (worst fit): spread.
      If no node has any left, it goes to the one with the fewest updates.
    - `planned`: as many leaves as a node's mean number of updates needs, ceil(Q / I), with
      Q <- a Q + (1 - a) q after each round, are started at its beginning. Otherwise one is
      started when an update finds none.
    - `reuse`: an aggregator that has done its part takes any other, and the first of a node, or of
      the cluster, that is done keeps its sum and becomes the middle, or the top. Otherwise leaves,
      middles and tops are processes of their own.
    - `eager`: see `Hierarchy`.

    Updates come in over the server's link, that of the fleet.

    Attributes:
        nodes: their number.
        node_updates: MC, of a round that a node takes.
        leaf_updates: I, that a leaf takes.
        shared_memory, locality, planned, reuse: see above.
        smoothing: a, in [0, 1).

    Raises:
        ConfigError: an argument is out of its range.
    """

    nodes: int = 5
    node_updates: int = 20
    leaf_updates: int = 2
    shared_memory: bool = True
    locality: bool = True
    planned: bool = True
    reuse: bool = True
    smoothing: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nodes", "node_updates", "leaf_updates"):
            at_least(name, getattr(self, name), 1)
        for name in ("shared_memory", "locality", "planned", "reuse"):
            boolean(name, getattr(self, name))
        share("smoothing", self.smoothing)

    @property
    def machines(self) -> int:
        """How many nodes there are."""
        return self.nodes

    @property
    def fan_in(self) -> int:
        """I."""
        return self.leaf_updates

    def attached(self, fleet: Fleet) -> Fleet:
        """Returns the fleet as it is.

        Raises:
            ConfigError: it has fewer clients than there are nodes.
        """
        if len(fleet) < self.nodes:
            raise ConfigError(
                f"nodes is {self.nodes}, and there are {len(fleet)} clients: it must be at most "
                "that many, as a client sends one update of a round"
            )
        return fleet

    def place(self, client: int, assigned: Sequence[int]) -> int:
        """Returns the node of an update: best or worst fit; of equal ones the first."""
        left = [self.node_updates - there for there in assigned]
        some = [node for node in range(self.nodes) if left[node] > 0]
        if self.locality and some:
            return min(some, key=lambda node: left[node])
        return max(range(self.nodes), key=lambda node: left[node])
