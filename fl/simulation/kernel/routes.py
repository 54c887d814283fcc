"""Which links a transfer crosses, between client and server and between clients.

Rates are bits per second, times virtual seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.simulation.kernel.links import PeerLinks, ServerLink, Some
from fl.simulation.kernel.max_min import Demand, max_min

SHARING = ("duplex", "both", "each")
"""How flows share a link: each direction by itself, both directions together, or not at all."""


class Cable(NamedTuple):
    """A link of a network, both directions of it.

    Attributes:
        name: for messages.
        down_bps: capacity away from the server, positive, may be infinite.
        up_bps: capacity towards the server.
        latency_s: one-way delay.
        loss: packet loss probability.
        sharing: "duplex": flows of one direction share it. "both": flows of both directions share
            one capacity, `down_bps`, as on a radio channel. "each": it bounds every flow by itself,
            as a backbone does that is never full.
    """

    name: str
    down_bps: float
    up_bps: float
    latency_s: float = 0.0
    loss: float = 0.0
    sharing: str = "duplex"

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: one is out of its range.
        """
        for name in ("down_bps", "up_bps"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} of link {self.name!r} is {getattr(self, name)}; it must be a positive "
                    "number of bits per second, or .inf for a link that is never the bottleneck"
                )
        if not 0 <= self.latency_s < math.inf:
            raise ConfigError(
                f"latency_s of link {self.name!r} is {self.latency_s}; it must be finite and at "
                "least 0"
            )
        if not 0 <= self.loss < 1:
            raise ConfigError(
                f"loss of link {self.name!r} is {self.loss}; it must be at least 0 and below 1"
            )
        if self.sharing not in SHARING:
            raise ConfigError(
                f"sharing of link {self.name!r} is {self.sharing!r}; it must be one of "
                f"{', '.join(SHARING)}"
            )


class Way(NamedTuple):
    """One way through a network.

    Attributes:
        links: that its flows share with others, by number.
        cap_bps: the most that a flow can get on it, whoever else is there.
        latency_s: one-way delay.
        loss: that a packet is lost on it.
    """

    links: tuple[int, ...]
    cap_bps: float
    latency_s: float
    loss: float


Hops = tuple[int, ...]
"""Directions of links, in the order in which they are crossed: 2 k away from the server, 2 k + 1
towards it, on cable k."""


@dataclass(frozen=True, eq=False)
class Routes:
    """A network: links, and the ways between places and the server, and from place to place.

    Args:
        cables: the links.
        down: of each place, the directions that a message from the server crosses.
        up: that one to the server does.
        place: of each client, integer, shape (n,).
        server: the server's own link, which every way to and from the server begins or ends with.
            Its latency is no part of the ways.
        between: what is crossed from one place to another. None cuts off what is the same on the
            ways of both to the server: right for a tree.

    Raises:
        ConfigError: a link has a number out of range, or a client is at no place.
    """

    cables: Sequence[Cable]
    down: Sequence[Hops]
    up: Sequence[Hops]
    place: NDArray[np.integer]
    server: ServerLink
    between: Callable[[int, int], Hops] | None = None
    _known: dict[Hops, Way] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for cable in self.cables:
            cable.check()
        places = len(self.down)
        if self.place.min() < 0 or self.place.max() >= places:
            client = int(np.argmax((self.place < 0) | (self.place >= places)))
            raise ConfigError(
                f"client {client} is at place {self.place[client]} of a network that has {places}, "
                "from 0"
            )

    @classmethod
    def tree(
        cls,
        cables: Sequence[Cable],
        paths: Sequence[Sequence[int]],
        place: NDArray[np.integer],
        server: ServerLink,
    ) -> Routes:
        """Returns the routes on a tree.

        Args:
            cables: the links.
            paths: of each place, the links from there to the server.
            place: of each client, integer, shape (n,).
            server: the server's own link.
        """
        up = [tuple(2 * k + 1 for k in path) for path in paths]
        down = [tuple(2 * k for k in reversed(path)) for path in paths]
        return cls(cables, down, up, place, server)

    @cached_property
    def _server_cable(self) -> Cable:
        # Of its two capacities, the one that it receives with is towards it.
        return Cable("server", self.server.up_bps, self.server.down_bps)

    @cached_property
    def capacity_bps(self) -> list[float]:
        """Capacity of each link by number; both directions of one that is shared by both."""
        both = [(c.down_bps, c.up_bps) for c in (*self.cables, self._server_cable)]
        return [bps for pair in both for bps in pair]

    def to(self, client: int) -> Way:
        """Returns the way from the server to a client."""
        return self._way((2 * len(self.cables), *self.down[self.place.item(client)]))

    def of(self, client: int) -> Way:
        """Returns the way from a client to the server."""
        return self._way((*self.up[self.place.item(client)], 2 * len(self.cables) + 1))

    def from_to(self, i: int, j: int) -> Way:
        """Returns the way from client i to client j; nothing is crossed within a place."""
        source, target = self.place.item(i), self.place.item(j)
        if source == target:
            return self._way(())
        if self.between is not None:
            return self._way(self.between(source, target))
        up, down = self.up[source], self.down[target]
        same = 0
        while same < min(len(up), len(down)) and up[-1 - same] // 2 == down[same] // 2:
            same += 1
        return self._way((*up[: len(up) - same], *down[same:]))

    @cached_property
    def shares(self) -> bool:
        """Whether flows share another link than the server's, or both of its directions."""
        server = {2 * len(self.cables), 2 * len(self.cables) + 1}
        places = np.unique(self.place).tolist()
        hops = {hop for place in places for way in (self.down, self.up) for hop in way[place]}
        return not {link for hop in hops for link in self._way((hop,)).links} <= server

    def _way(self, hops: Hops) -> Way:
        known = self._known.get(hops)
        if known is None:
            known = self._known[hops] = self._made(hops)
        return known

    def _made(self, hops: Hops) -> Way:
        links: dict[int, None] = {}
        cap, latency, arrives = math.inf, 0.0, 1.0
        for hop in hops:
            cable = self._server_cable if hop // 2 == len(self.cables) else self.cables[hop // 2]
            bps = cable.up_bps if hop % 2 and cable.sharing != "both" else cable.down_bps
            latency += cable.latency_s
            arrives *= 1.0 - cable.loss
            if cable.sharing == "each":
                cap = min(cap, bps)
            elif bps < math.inf:
                links[hop - hop % 2 if cable.sharing == "both" else hop] = None
        return Way(tuple(links), cap, latency, 1.0 - arrives)


@dataclass(frozen=True, eq=False)
class RoutedPeers(PeerLinks):
    """Direct links between clients that cross a network.

    Attributes:
        routes: of the network. Its latencies add to those of the other links.
        left: share of the capacity of its shared links that others leave on average.
    """

    routes: Routes = field(kw_only=True)
    left: float = field(kw_only=True, default=1.0)

    @cached_property
    def capacity_bps(self) -> list[float]:
        """What transfers have of each link, by number, bit/s."""
        return [self.left * bps for bps in self.routes.capacity_bps]

    @property
    def contended(self) -> bool:
        """Whether transfers between other clients share links."""
        return self.routes.shares

    def shared(self, i: int, j: int) -> Mapping[int, float]:
        """Returns the links that transfers from client i to client j share with those of others."""
        return {link: self.capacity_bps[link] for link in self.routes.from_to(i, j).links}

    def rates(self, i: Some, j: Some, fanout: Some = 1, fanin: Some = 1) -> Any:
        """Returns the bandwidth of transfers from clients i to clients j, in bit/s.

        Those of a call that says with how many others each shares its ends, in arrays, share the
        links of the network as well, max-min fair, as long as all of them flow. Otherwise each has
        the network for itself. See `PeerLinks.rates` for the rest.
        """
        own = np.asarray(super().rates(i, j, fanout, fanin), np.float64)
        ends = np.broadcast(np.asarray(i), np.asarray(j))
        ways = [self.routes.from_to(int(a), int(b)) for a, b in ends]
        bps = self.capacity_bps
        together = np.ndim(fanout) > 0
        caps = own.ravel().tolist()
        for k, way in enumerate(ways):
            caps[k] = min(caps[k], way.cap_bps)
            if not together:
                caps[k] = min([caps[k], *(bps[link] for link in way.links)])
        if together:
            demands = [Demand(way.links, cap) for way, cap in zip(ways, caps, strict=True)]
            crossed = dict.fromkeys(link for way in ways for link in way.links)
            caps = max_min(demands, {link: bps[link] for link in crossed})
        return np.array(caps).reshape(own.shape)

    def delays(self, i: Some, j: Some) -> Any:
        """Returns the one-way delays from clients i to clients j, in s, of any shape."""
        ends = np.broadcast(np.asarray(i), np.asarray(j))
        network = np.array([self.routes.from_to(int(a), int(b)).latency_s for a, b in ends])
        return super().delays(i, j) + network.reshape(ends.shape)


def routed(
    peers: PeerLinks, routes: Routes, left: float, window_bytes: float | None
) -> RoutedPeers:
    """Returns the links of peers with a network between them.

    Args:
        peers: their links without it.
        routes: of the network.
        left: share of its shared links that others leave on average.
        window_bytes: the most that a flow has on its way, or None.
    """
    own = {field.name: getattr(peers, field.name) for field in fields(PeerLinks)}
    if window_bytes is not None:
        own["window_bytes"] = min(peers.window_bytes, window_bytes)
    return RoutedPeers(**own, routes=routes, left=left)
