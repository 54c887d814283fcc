"""Networks whose clients share links with those in their area: homes, cells, sites."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl.checks import at_least, not_negative, within_unit
from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.kernel.routes import Cable, Routes
from fl.simulation.world.networks.network import NetworkModel


@dataclass(frozen=True, kw_only=True)
class Direct(NetworkModel):
    """Nothing is between the clients' links and the server's: for TCP and background traffic."""

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes."""
        return Routes.tree((), [()], np.zeros(len(links), np.int64), server)


@dataclass(frozen=True, kw_only=True)
class Households(NetworkModel):
    """Clients of a home share its line.

    Home h has the clients from h size to (h + 1) size - 1; of the last one there may be fewer. A
    client's own link, of the fleet, is then its way to the home's router. What clients of one home
    send each other does not leave it.

    Attributes:
        size: clients of a home.
        down_bps: of its line, towards the clients, bit/s. None is that of its fastest client.
        up_bps: of its line, from them. None likewise.
        latency_s: one-way delay of the line.

    Raises:
        ConfigError: an argument is out of range.
    """

    size: int = 3
    down_bps: float | None = None
    up_bps: float | None = None
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("size", self.size, 1)
        for name in ("down_bps", "up_bps"):
            if getattr(self, name) is not None:
                capacity(name, getattr(self, name))
        not_negative("latency_s", self.latency_s)

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes."""
        home = np.arange(len(links)) // self.size
        firsts = np.arange(0, len(links), self.size)
        down, up = (
            np.maximum.reduceat(column, firsts) if bps is None else np.full(len(firsts), bps)
            for column, bps in ((links.down_bps, self.down_bps), (links.up_bps, self.up_bps))
        )
        lines = [
            Cable(f"home {h}", d, u, self.latency_s)
            for h, (d, u) in enumerate(zip(down.tolist(), up.tolist(), strict=True))
        ]
        return Routes.tree(lines, [(h,) for h in range(len(lines))], home, server)


@dataclass(frozen=True, kw_only=True)
class Cells(NetworkModel):
    """Phones of a cell share the capacity of its base station.

    Cell c has the clients from c size to (c + 1) size - 1, but for those that are on no cell.
    Downlink and uplink have spectrum of their own (FDD).

    Attributes:
        size: clients for whom there is a cell.
        share: of the clients that are on their cell; the others, drawn, have a line of their own,
            that of the fleet.
        down_bps: capacity of a cell towards its clients, bit/s.
        up_bps: from them.
        latency_s: one-way delay from the base station to the core network.

    Raises:
        ConfigError: an argument is out of range.
    """

    size: int = 50
    share: float = 1.0
    down_bps: float = 44e6
    up_bps: float = 28e6
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("size", self.size, 1)
        within_unit("share", self.share)
        for name in ("down_bps", "up_bps"):
            capacity(name, getattr(self, name))
        not_negative("latency_s", self.latency_s)

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes."""
        clients = np.arange(len(links))
        cell = clients // self.size
        cells = int(cell[-1]) + 1
        masts = [
            Cable(f"cell {c}", self.down_bps, self.up_bps, self.latency_s) for c in range(cells)
        ]
        on_cell = uniforms(seed, "network-cell", clients) < self.share
        place = np.where(on_cell, cell, cells)
        # The last place is that of all who are on none; they share nothing there.
        return Routes.tree(masts, [*((c,) for c in range(cells)), ()], place, server)


@dataclass(frozen=True, kw_only=True)
class Sites(NetworkModel):
    """Clients of a site share its uplink, sites of a region its trunk, and all a backbone.

    Client i is at site i modulo their number, site s in region s modulo theirs.

    Attributes:
        sites: their number.
        down_bps: of a site's uplink, towards the clients, bit/s.
        up_bps: from them.
        latency_s: one-way delay of a site's uplink.
        regions: their number; None has sites straight at the backbone.
        region_bps: of a region's trunk, each way.
        region_latency_s: one-way delay of a region's trunk.
        backbone_bps: each way; infinity is never full.
        backbone_latency_s: one-way delay of the backbone.

    Raises:
        ConfigError: an argument is out of range, or there are more regions than sites.
    """

    sites: int = 4
    down_bps: float = 1e9
    up_bps: float = 1e9
    latency_s: float = 0.005
    regions: int | None = None
    region_bps: float = 10e9
    region_latency_s: float = 0.01
    backbone_bps: float = math.inf
    backbone_latency_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sites", self.sites, 1)
        for name in ("down_bps", "up_bps", "region_bps", "backbone_bps"):
            capacity(name, getattr(self, name))
        for name in ("latency_s", "region_latency_s", "backbone_latency_s"):
            not_negative(name, getattr(self, name))
        if self.regions is not None:
            at_least("regions", self.regions, 1)
            if self.regions > self.sites:
                raise ConfigError(
                    f"regions is {self.regions}, but there are only {self.sites} sites: it must be "
                    "at most that many"
                )

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes."""
        sites = min(self.sites, len(links))  # at others there is nobody
        regions = self.regions or 0
        backbone = sites + regions
        cables = [
            *(Cable(f"site {s}", self.down_bps, self.up_bps, self.latency_s) for s in range(sites)),
            *(
                Cable(f"region {r}", self.region_bps, self.region_bps, self.region_latency_s)
                for r in range(regions)
            ),
            Cable("backbone", self.backbone_bps, self.backbone_bps, self.backbone_latency_s),
        ]
        trunk = [(sites + s % regions,) if regions else () for s in range(sites)]
        paths = [(s, *trunk[s], backbone) for s in range(sites)]
        return Routes.tree(cables, paths, np.arange(len(links)) % sites, server)


def capacity(name: str, value: float) -> None:
    """Raises a ConfigError unless a number can be a link's capacity: positive, maybe infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(
            f"{name} is {value!r}; it must be above 0, or .inf for a link that is never full"
        )
