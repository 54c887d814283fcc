"""Edge servers: each serves clients of its own, and the cloud is above them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fl.checks import at_least, not_negative, read_if
from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.kernel.routes import Cable, Routes
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies.hierarchy import Hierarchy
from fl.simulation.world.networks.areas import capacity
from fl.simulation.world.networks.network import NetworkModel


@dataclass(frozen=True, kw_only=True)
class _Access(NetworkModel):
    """The clients' way to their edge server; nothing else is shared."""

    edge: Edge

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes."""
        edge = self.edge
        masts = [
            Cable(f"edge {e}", edge.down_bps, edge.up_bps, edge.latency_s)
            for e in range(edge.edges)
        ]
        place = np.arange(len(links)) % edge.edges
        return Routes.tree(masts, [(e,) for e in range(edge.edges)], place, server)


@read_if(
    lambda a: False,
    "machine.warm_s",
    "machine.keep_alive_s",
    only="an edge server's aggregator is always there",
)
@read_if(
    lambda a: a["failure"] > 0,
    "machine.cold_s",
    only="edge servers start again only with {at}failure above 0",
)
@dataclass(frozen=True, kw_only=True)
class Edge(Hierarchy):
    """Client i is at edge server i modulo their number.

    Clients exchange with their edge server, over its link to all of its clients. It has one
    aggregator, which is always there. The edge servers exchange with the cloud, over their
    machines' links and the server's own, that of the fleet: what is sent goes down to the edge
    servers that need it, and then to the clients; each one's sum goes up.

    Attributes:
        edges: their number.
        down_bps: of an edge server's link towards all of its clients, bit/s.
        up_bps: from them.
        latency_s: one-way delay of that link.

    Raises:
        ConfigError: an argument is out of its range.
    """

    edges: int = 5
    down_bps: float = math.inf
    up_bps: float = math.inf
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("edges", self.edges, 1)
        for name in ("down_bps", "up_bps"):
            capacity(name, getattr(self, name))
        not_negative("latency_s", self.latency_s)

    @property
    def machines(self) -> int:
        """How many edge servers there are."""
        return self.edges

    @property
    def has_cloud(self) -> bool:
        """True."""
        return True

    @property
    def always_on(self) -> bool:
        """True."""
        return True

    def place(self, client: int, assigned: Sequence[int]) -> int:
        """Returns the client's edge server."""
        return client % self.edges

    def attached(self, fleet: Fleet) -> Fleet:
        """Returns the fleet with its clients at the edge servers.

        Raises:
            ConfigError: it has fewer clients, or a network of its own.
        """
        if fleet.network is not None:
            raise ConfigError(
                f"edges are the links between clients and server, and network is "
                f"{type(fleet.network).__name__} as well: leave network out, or use hierarchy=lifl"
            )
        if len(fleet) < self.edges:
            raise ConfigError(
                f"edges is {self.edges}, and there are {len(fleet)} clients: it must be at most "
                "that many"
            )
        free = ServerLink(math.inf, math.inf, 0.0)
        return replace(fleet, network=_Access(edge=self), server=free)

    def relay_s(self, fleet: Fleet, sizes: Sequence[int]) -> float:
        """Returns the longest of the transfers to the edge servers, which share the cloud's link.

        They share it equally; what the shorter ones leave to the others is not used.
        """
        if not sizes:
            return 0.0
        rate = min(self.machine.nic_bps, fleet.server.up_bps / len(sizes))
        delay = self.machine.nic_latency_s + fleet.server.latency_s
        return delay + 8 * max(sizes) / rate
