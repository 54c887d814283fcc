"""Transfers on a fleet's network."""

from __future__ import annotations

import math
from collections.abc import Callable

from fl.simulation.kernel.dispatch import Dispatch, Stage
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.port import LinkPort, Port, Ramp
from fl.simulation.kernel.routes import Routes, Way
from fl.simulation.kernel.shared_network import SharedNetwork
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.networks.background import LinkLoad


class NetworkPort(Port):
    """All links of a network, both directions, the server's among them.

    Args:
        fleet: has the network.
        routes: of the network.
        load: what others send over its links.
        queue: of the engine.
        arrived: called with each dispatch whose transfer has ended.
        ramp: how slowly transfers begin; None begins at full rate.
    """

    def __init__(
        self,
        fleet: Fleet,
        routes: Routes,
        load: LinkLoad,
        queue: EventQueue,
        arrived: Callable[[Dispatch], None],
        ramp: Ramp | None,
    ) -> None:
        self._network = SharedNetwork(routes.capacity_bps)
        super().__init__(self._network, queue, arrived, ramp)
        self._fleet = fleet
        self._routes = routes
        self._load = load
        self._watched: set[int] = set()  # links that have the capacity that others leave

    def _end(self, dispatch: Dispatch) -> int:
        return 2 * dispatch.client + (dispatch.stage is Stage.UPLOADING)

    def _add(self, flow: int, dispatch: Dispatch, size_bits: float, cap_bps: float) -> None:
        links = way_of(self._routes, dispatch).links
        for link in links:
            if self._load.load > 0 and link not in self._watched:
                self._watched.add(link)
                self._limit(link)
        weight = self._fleet.weight(dispatch.client)
        self._network.add(self._queue.now, flow, size_bits, cap_bps, links, weight)

    def _limit(self, link: int) -> None:
        """Gives a link the capacity that others leave now, until that changes."""
        now, bps = self._queue.now, self._routes.capacity_bps[link]
        self._network.set_capacity(now, link, bps * self._load.left(link, now))
        time = self._load.next_change(link, now)
        if math.isfinite(time):
            self._queue.schedule(time, Priority.PROGRESS, self._changed, link)

    def _changed(self, link: int) -> None:
        if self._network.crossed(link):
            self._limit(link)
            self._arm()
        else:
            self._watched.remove(link)


def way_of(routes: Routes, dispatch: Dispatch) -> Way:
    """Returns the way that the transfer of a dispatch takes, which is in one of its stages."""
    if dispatch.stage is Stage.UPLOADING:
        return routes.of(dispatch.client)
    return routes.to(dispatch.client)


def ports(
    fleet: Fleet,
    queue: EventQueue,
    downloaded: Callable[[Dispatch], None],
    uploaded: Callable[[Dispatch], None],
) -> tuple[Port, Port]:
    """Returns where downloads go, and uploads.

    Without a network, or if all that flows share on it is the server's link, each direction of that
    is by itself; otherwise both are one.

    Args:
        fleet: the clients.
        queue: of the engine.
        downloaded: called with each dispatch whose download has ended.
        uploaded: called with each dispatch whose upload has ended.
    """
    routes, network, server = fleet.routes, fleet.network, fleet.server
    ramp: Ramp | None = None
    if routes is not None and network is not None:
        known = routes
        if network.tcp.initial_window_bytes is not None:

            def ramp(dispatch: Dispatch, size: int, cap_bps: float) -> float:
                return fleet.ramp_s(way_of(known, dispatch), dispatch.client, size, cap_bps)

        if routes.shares or network.tcp.rtt_fairness or network.background.load > 0:
            load = network.background.of_links(len(routes.capacity_bps), fleet.seed)

            def arrived(dispatch: Dispatch) -> None:
                done = uploaded if dispatch.stage is Stage.UPLOADING else downloaded
                done(dispatch)

            port = NetworkPort(fleet, routes, load, queue, arrived, ramp)
            return port, port
    down = LinkPort(server.up_bps, queue, downloaded, ramp)
    return down, LinkPort(server.down_bps, queue, uploaded, ramp)
