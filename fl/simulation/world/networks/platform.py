"""SimGrid's platform files: hosts, links, zones, and the route between any two hosts.

The format is that of SimGrid's documentation, "Platform: XML reference" (DTD version 4.1): zones
with `Full`, `Floyd`, `Dijkstra` and `Empty` routing within each other, hosts, routers, links,
routes, zone routes, and clusters of equal hosts. What else a platform may say of its network is
refused by name; what it says of disks, powers and properties is not read.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any
from xml.parsers import expat

from fl.errors import ConfigError
from fl.simulation.kernel.routes import Cable, Hops

MOST_LINKS = 10**6
"""Of a platform, and hosts likewise: what a radical of a cluster may make."""

_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_PREFIX |= {f"{p}i": 1024.0**k for k, p in enumerate(("", "K", "M", "G", "T", "P", "E")) if k}
_SECONDS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}
_SECONDS |= {"ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12}
_SHARING = {"SHARED": "both", "SPLITDUPLEX": "duplex", "FATPIPE": "each"}
_ROUTING = ("full", "floyd", "dijkstra", "dijkstracache", "empty", "none")
_NOT_READ = frozenset(
    {"prop", "disk", "config", "random", "storage", "storage_type", "mount", "trace"}
    | {"trace_connect", "model_prop", "argument"}
)
_DEEPEST = 64


@dataclass
class Zone:
    """A zone, with what is straight in it.

    Attributes:
        name: its id.
        parent: the zone that it is in.
        explicit: whether only declared routes are taken: `Full`; others take the shortest chain.
        routes: from one point or zone in it to another: directions of links, and the points of
            both where they begin and end.
    """

    name: str
    parent: Zone | None
    explicit: bool
    routes: dict[tuple[str, str], tuple[Hops, str, str]] = field(default_factory=dict)

    @cached_property
    def neighbours(self) -> dict[str, list[str]]:
        """To whom declared routes lead, in the order of the file."""
        found: dict[str, list[str]] = {}
        for source, target in self.routes:
            found.setdefault(source, []).append(target)
        return found

    @property
    def depth(self) -> int:
        """How many zones it is in."""
        return 0 if self.parent is None else self.parent.depth + 1


@dataclass
class Platform:
    """What a file says.

    Attributes:
        cables: its links. `down` is the direction in which a route is declared.
        hosts: names of its hosts, in the order of the file.
        zone_of: the zone that a point, or zone, is straight in.
    """

    cables: list[Cable] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    zone_of: dict[str, Zone] = field(default_factory=dict)

    def route(self, source: str, target: str) -> Hops:
        """Returns the directions of links from one host to another.

        Raises:
            ConfigError: there is no route.
        """
        return self._route(source, target, 0)

    def _route(self, source: str, target: str, depth: int) -> Hops:
        if source == target:
            return ()
        if depth > _DEEPEST:
            raise ConfigError(
                f"the route from {source!r} to {target!r} goes through more than {_DEEPEST} zones"
            )
        a, b, zone = self._meet(source, target)
        hops: Hops = ()
        for x, y in self._chain(zone, a, b):
            links, first, last = zone.routes[x, y]
            if source != first:
                hops += self._route(source, first, depth + 1)
            hops += links
            source = last
        return hops + self._route(source, target, depth + 1)

    def _meet(self, source: str, target: str) -> tuple[str, str, Zone]:
        """Returns the innermost zone around two points, and what of it each is in."""

        def around(point: str) -> dict[str, str]:
            found, inside = {}, point
            while (zone := self.zone_of.get(inside)) is not None:
                found[zone.name] = inside
                inside = zone.name
            return found

        ours, theirs = around(source), around(target)
        name = next((name for name in ours if name in theirs), None)
        if name is None:
            raise ConfigError(f"{source!r} and {target!r} are in no zone together")
        a, b = ours[name], theirs[name]
        return a, b, self.zone_of[a]

    def _chain(self, zone: Zone, a: str, b: str) -> list[tuple[str, str]]:
        """Returns the declared routes that lead from one part of a zone to another: the fewest."""
        if (a, b) in zone.routes:
            return [(a, b)]
        if not zone.explicit:
            came: dict[str, str] = {a: a}
            waiting = deque([a])
            while waiting and b not in came:
                here = waiting.popleft()
                for there in zone.neighbours.get(here, ()):
                    if there not in came:
                        came[there] = here
                        waiting.append(there)
            if b in came:
                chain = [b]
                while chain[-1] != a:
                    chain.append(came[chain[-1]])
                chain.reverse()
                return list(pairwise(chain))
        raise ConfigError(f"there is no route from {a!r} to {b!r} in zone {zone.name!r}")


class PlatformReader:
    """Reads a platform; entities, which could grow without bound, are refused.

    Args:
        text: of the file.
        bandwidth_factor: of what links have, that flows get.
        latency_factor: of their latencies.

    Raises:
        ConfigError: see `read`.
    """

    def __init__(self, text: str, bandwidth_factor: float, latency_factor: float) -> None:
        self._text = text
        self._bandwidth_factor = bandwidth_factor
        self._latency_factor = latency_factor
        self._platform = Platform()
        self._zones: list[Zone] = []
        self._links: dict[str, tuple[Hops, Hops]] = {}  # as declared, and against it
        self._route: tuple[str, Mapping[str, str], list[tuple[str, str | None]]] | None = None
        self._parser = expat.ParserCreate()

    def read(self) -> Platform:
        """Returns the platform.

        Raises:
            ConfigError: the file is no XML, declares entities, says what is not known, names links
                that do not exist, or is too large.
        """
        parser = self._parser
        parser.EntityDeclHandler = self._refuse_entity
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        try:
            parser.Parse(self._text, True)
        except expat.ExpatError as error:
            raise ConfigError(f"it is no XML: {error}") from error
        return self._platform

    def _refuse_entity(self, name: str, *_: Any) -> None:
        raise ConfigError(f"it declares an entity, {name!r:.80}, which is refused")

    def _begin(self, tag: str, given: dict[str, str]) -> None:
        read = getattr(self, f"_read_{tag.lower()}", None)
        if read is not None:
            read(given)
        elif tag.lower() not in _NOT_READ:
            raise self._error(f"has <{tag:.40}>, which is not read here")

    def _end(self, tag: str) -> None:
        if tag.lower() in ("zone", "as"):
            self._zones.pop()
        elif self._route is not None and tag == self._route[0]:
            _, given, links = self._route
            self._route = None
            self._declare(tag, given, links)

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"line {self._parser.CurrentLineNumber} {message}")

    def _of(self, given: Mapping[str, str], name: str) -> str:
        if name not in given:
            raise self._error(f"lacks {name}")
        return given[name]

    @property
    def _zone(self) -> Zone:
        if not self._zones:
            raise self._error("is in no zone")
        return self._zones[-1]

    # ---- elements ----------------------------------------------------------------------------

    def _read_platform(self, given: Mapping[str, str]) -> None:
        version = given.get("version", "")
        if not version.startswith("4"):
            raise self._error(f"has platform version {version!r:.40}; 4 and 4.1 are read")

    def _read_zone(self, given: Mapping[str, str]) -> None:
        routing = self._of(given, "routing")
        if routing.lower() not in _ROUTING:
            raise self._error(
                f"has routing {routing!r:.40}; it must be one of {', '.join(_ROUTING)}"
            )
        if len(self._zones) >= _DEEPEST:
            raise self._error(f"is in more than {_DEEPEST} zones")
        parent = self._zones[-1] if self._zones else None
        zone = Zone(self._of(given, "id"), parent, routing.lower() == "full")
        if parent is not None:
            self._place(zone.name)
        self._zones.append(zone)

    _read_as = _read_zone

    def _read_host(self, given: Mapping[str, str]) -> None:
        self._place(self._of(given, "id"))
        self._platform.hosts.append(given["id"])

    def _read_router(self, given: Mapping[str, str]) -> None:
        self._place(self._of(given, "id"))

    def _read_link(self, given: Mapping[str, str]) -> None:
        if files := sorted(name for name in given if name.endswith("_file")):
            raise self._error(f"has a link with {files[0]}, which is not read here")
        self._add(
            self._of(given, "id"),
            self._bps(self._of(given, "bandwidth")),
            self._s(given.get("latency", "0")),
            given.get("sharing_policy", "SHARED"),
        )

    def _read_route(self, given: Mapping[str, str]) -> None:
        self._route = "route", given, []

    def _read_zoneroute(self, given: Mapping[str, str]) -> None:
        self._route = "zoneRoute", given, []

    def _read_link_ctn(self, given: Mapping[str, str]) -> None:
        if self._route is None:
            raise self._error("has a link_ctn outside of a route")
        self._route[2].append((self._of(given, "id"), given.get("direction")))

    def _read_cluster(self, given: Mapping[str, str]) -> None:
        """Reads a cluster of hosts with a link each to a backbone, if it has one, and a router."""
        if refused := {"loopback_bw", "loopback_lat", "limiter_link"} & given.keys():
            raise self._error(f"has a cluster with {min(refused)}, which is not read here")
        if given.get("topology", "FLAT") != "FLAT":
            raise self._error(f"has topology {given['topology']!r:.40}; only FLAT is read")
        name, parent = self._of(given, "id"), self._zone
        zone = Zone(name, parent, explicit=False)
        self._place(name)
        self._zones.append(zone)
        prefix, suffix = given.get("prefix", ""), given.get("suffix", "")
        router = given.get("router_id") or f"{prefix}{name}_router{suffix}"
        self._place(router)
        backbone: tuple[Hops, Hops] = ((), ())
        if "bb_bw" in given:
            policy = given.get("bb_sharing_policy", "SHARED")
            bb = self._bps(given["bb_bw"]), self._s(given.get("bb_lat", "0"))
            backbone = self._add(f"{name}_backbone", *bb, policy)
        # All cross the backbone once, from the side on which they come in to the other one.
        came, goes = f"{name} in", f"{name} out"
        for pair, links in (
            ((came, goes), backbone[0]),
            ((goes, router), ()),
            ((router, came), ()),
        ):
            zone.routes[pair] = links, *pair
        bps, latency_s = self._bps(self._of(given, "bw")), self._s(given.get("lat", "0"))
        policy = given.get("sharing_policy", "SPLITDUPLEX")
        for k in self._radical(given):
            host = f"{prefix}{k}{suffix}"
            self._place(host)
            self._platform.hosts.append(host)
            out, back = self._add(f"{name}_link_{k}", bps, latency_s, policy)
            zone.routes[host, came] = out, host, came
            zone.routes[goes, host] = back, goes, host
        self._zones.pop()

    # ---- their parts -------------------------------------------------------------------------

    def _place(self, name: str) -> None:
        known = self._platform.zone_of
        if name in known:
            raise self._error(f"has {name!r:.80} a second time")
        if len(known) >= MOST_LINKS:
            raise self._error(
                f"is the end of {MOST_LINKS} hosts, routers and zones; there are more"
            )
        known[name] = self._zone

    def _add(self, name: str, bps: float, latency_s: float, policy: str) -> tuple[Hops, Hops]:
        if name in self._links:
            raise self._error(f"has link {name!r:.80} a second time")
        if policy not in _SHARING:
            raise self._error(
                f"has sharing policy {policy!r:.40}; it must be one of {', '.join(_SHARING)}"
            )
        if len(self._links) >= MOST_LINKS:
            raise self._error(f"is the end of {MOST_LINKS} links; there are more")
        number = len(self._platform.cables)
        bps, latency_s = bps * self._bandwidth_factor, latency_s * self._latency_factor
        cable = Cable(name, bps, bps, latency_s, sharing=_SHARING[policy])
        try:
            cable.check()
        except ConfigError as error:
            raise self._error(f"has a link that cannot be: {error}") from error
        self._platform.cables.append(cable)
        self._links[name] = (2 * number,), (2 * number + 1,)
        return self._links[name]

    def _declare(
        self, tag: str, given: Mapping[str, str], links: list[tuple[str, str | None]]
    ) -> None:
        source, target = self._of(given, "src"), self._of(given, "dst")
        first, last = source, target
        if tag == "zoneRoute":
            first, last = self._of(given, "gw_src"), self._of(given, "gw_dst")
        for name in (source, target, first, last):
            if name not in self._platform.zone_of:
                raise self._error(f"has a route of {name!r:.80}, which is not declared before it")
        there: list[int] = []
        back: list[int] = []
        for name, direction in links:
            if name not in self._links:
                raise self._error(f"has a route over {name!r:.80}, which is no link")
            along, against = self._links[name]
            if (direction or "UP").upper() == "DOWN":
                along, against = against, along
            there += along
            back = [*against, *back]
        self._zone.routes[source, target] = tuple(there), first, last
        if given.get("symmetrical", "YES").upper() == "YES":
            self._zone.routes[target, source] = tuple(back), last, first

    def _radical(self, given: Mapping[str, str]) -> list[int]:
        numbers: list[int] = []
        for part in self._of(given, "radical").split(","):
            found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
            if found is None:
                raise self._error(f"has radical {part!r:.40}; it must be such as 0-9,12")
            a, b = int(found[1]), int(found[2] or found[1])
            if b - a >= MOST_LINKS or len(numbers) + b - a >= MOST_LINKS:
                raise self._error(f"has a cluster of more than {MOST_LINKS} hosts")
            numbers += range(a, b + 1)
        return numbers

    def _bps(self, said: str) -> float:
        """Returns bit/s; `Bps` are bytes, and so is a number alone."""
        found = re.fullmatch(r"\s*([-+.\deE]+?)\s*(|[kMGTPE]|[KMGTPE]i)(|[bB]ps)\s*", said)
        value = _float(found[1]) if found else math.nan
        if found is None or math.isnan(value):
            raise self._error(f"has bandwidth {said!r:.40}; it must be such as 125MBps or 1Gbps")
        return value * _PREFIX[found[2]] * (1.0 if found[3] == "bps" else 8.0)

    def _s(self, said: str) -> float:
        found = re.fullmatch(r"\s*([-+.\deE]+?)\s*(|w|d|h|m|s|ms|us|ns|ps)\s*", said)
        value = _float(found[1]) if found else math.nan
        if found is None or math.isnan(value):
            raise self._error(f"has latency {said!r:.40}; it must be such as 50us or 0.01s")
        return value * _SECONDS[found[2]]


def _float(said: str) -> float:
    try:
        return float(said)
    except ValueError:
        return math.nan
