"""The driver of rules with a server in each region, and one above them.

What clients and the servers of their regions send each other are messages of the grid: on the
simulator they go by the links within a site, see `Fleet.with_servers_at_sites`. What servers send
each other goes by the direct links between machines of their sites.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from fl.errors import NoStep
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.asynchronous import Events
from fl.strategies.drivers.events.server import Server, Update
from fl.strategies.event_rule import Arrivals, Combine
from fl.strategies.regional_rule import RegionalRule
from fl.vectors.rows import Row


class BetweenServers(NamedTuple):
    """What one server has sent to another, in the order of arrival.

    Attributes:
        arrival_s: when it is there, or is missed, s.
        number: of all of them.
        region: that sends it, or is sent it.
        begin: a region's model as it was after its last merge, shape (d,); None comes from above.
        x: a region's model, or the global one, shape (d,).
        arrives: whether it does.
    """

    arrival_s: float
    number: int
    region: int
    begin: Row | None
    x: Row
    arrives: bool


@dataclass(frozen=True, eq=False)
class OfRegion:
    """What a region has made of its model, as an update of the global one: see `Arrival`.

    Attributes:
        node: the region.
        begin: where it began, shape (d,).
        x: where it is.
        received_s: when it arrived, s.
    """

    node: int
    begin: Row
    x: Row
    received_s: float
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sent_s: float = 0.0

    @property
    def delta(self) -> Row:
        """The change, x less where it began, shape (d,)."""
        with np.errstate(over="ignore"):  # seen in what is made of it
            return np.asarray(self.x - self.begin)


class Regions(Events):
    """A rule with a server in each region, and a global one above them.

    A region is a site of the fleet; where there are none, as on a deployment, all is one. Versions,
    which `num_rounds` counts, are those of the global model, which is evaluated. An update counts
    as applied when its region's server has it; its staleness is in versions of the global model.

    A region's server is beside its first client, the global one beside that of the first region: so
    far do they send, each a model in float32. What is lost on the way is sent again when it is
    missed. Servers are always there.

    Args:
        rule: makes the next models.
        **events: arguments of `Events`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = RegionalRule
    example = "HALoS"
    rule: RegionalRule

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, regional=True, customises=False, clusters="")

    def begin(self, server: Server) -> None:
        """Finds the regions."""
        super().begin(server)
        self.parcels: list[BetweenServers] = []
        self.sent = 0
        peers = server.tasks.peers
        self.region_of = {node: peers.site(node) for node in peers.nodes()}
        self.hosts: dict[int, int] = {}  # of the regions' servers
        for node in sorted(self.region_of):
            self.hosts.setdefault(self.region_of[node], node)
        self.home = self.hosts[min(self.hosts)]
        self.known: set[int] = set()

    def ask(self, server: Server, nodes: Iterable[int]) -> None:
        """Sends clients the models of their regions."""
        nodes = list(nodes)
        for node in nodes:
            if node not in self.known:
                self.known.add(node)
                region = self.region_of.setdefault(node, server.tasks.peers.site(node))
                self.hosts.setdefault(region, node)
                self.state = self.rule.joined(self.state, node, region)
        super().ask(server, nodes)

    def receive(self, server: Server, update: Update) -> None:
        """Lets a region's server step by an update."""
        self.answered.append(update.node)
        arrivals = Arrivals([update], statistics=self.statistics)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
                self.state, sends = self.rule.met(self.state, arrivals)
        except NoStep as error:
            server.discard(update)
            server.stay(error)
            return
        age = server.staleness(update)
        server.control.applied(update.task.message_id, age, update.metrics)
        if sends:
            region = self.region_of[update.node]
            self._send(server, region, *self.rule.sent(self.state, region))

    def timer(self, server: Server) -> float:
        """Returns when the next parcel is there."""
        return self.parcels[0].arrival_s if self.parcels else math.inf

    def tick(self, server: Server) -> None:
        """Takes in what servers have sent each other."""
        while self.timer(server) <= server.now and server.version < server.num_rounds:
            parcel = heapq.heappop(self.parcels)
            region, begin, x = parcel.region, parcel.begin, parcel.x
            if not parcel.arrives:
                self._send(server, region, begin, x)
            elif begin is None:
                self.state = self.rule.merged(self.state, region, x)
            else:
                self._step_by(server, OfRegion(region, begin, x, server.now))
                self._send(server, region, None, server.w)

    def _step_by(self, server: Server, came: OfRegion) -> None:
        """Makes the next version of the global model, by a region's change."""

        def make(_: Sequence[Update], __: Combine | None) -> Any:
            return self.rule.step(self.state, Arrivals([came], statistics=self.statistics))

        state = self.advance(server, [], make)
        if state is not None:
            self.state = state._replace(w=server.w)

    def _send(self, server: Server, region: int, begin: Row | None, x: Row) -> None:
        """Sends a model from a region to the global server, or back."""
        self.sent += 1
        ends = self.hosts[region], self.home
        source, target = ends if begin is not None else reversed(ends)
        arrival_s, arrives = server.now, True
        if source != target:
            arrival_s, arrives = server.tasks.peers.transfer(
                source, target, 4 * len(x), server.now, index=self.sent
            )
        parcel = BetweenServers(arrival_s, self.sent, region, begin, x, arrives)
        heapq.heappush(self.parcels, parcel)
