"""A network that a YAML file states: links, hosts, and the links on the way of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.kernel.routes import Cable, Routes
from fl.simulation.world.networks.network import NetworkModel

LARGEST_FILE = 64 * 2**20
"""Bytes of a file that states a network, at most."""

_CABLE = ("bps", "down_bps", "up_bps", "latency_s", "loss", "sharing")
_HOST = ("route", "clients")


def text_of(path: str) -> str:
    """Returns what is in a file that states a network.

    Raises:
        ConfigError: it cannot be read, or is too large.
    """
    try:
        if not Path(path).is_file():  # a pipe, or a device, has no end
            raise ConfigError(f"path is {path!r}, and there is no such file")
        size = Path(path).stat().st_size
        if size > LARGEST_FILE:
            raise ConfigError(
                f"path is {path!r}, of {size} bytes; a network has at most {LARGEST_FILE}"
            )
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"path is {path!r}, which cannot be read: {error}") from error


def _loaded(text: str) -> Any:
    """Returns what a YAML says, plain values; of a key that is given twice YAML takes the last."""
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    waiting, seen = [root], set()  # as aliases name nodes again, and may name what they are in
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                mark = node.start_mark
                raise yaml.MarkedYAMLError(problem="a key is given twice", problem_mark=mark)
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return None if root is None else loader.construct_document(root)


def in_turn(num_clients: int, hosts: int) -> NDArray[np.int64]:
    """Returns a place for each client: the hosts one after the other, and again."""
    return np.arange(num_clients) % hosts


@dataclass(frozen=True, kw_only=True)
class NetworkFile(NetworkModel):
    """The tree of a YAML file.

        links:
          backbone: {bps: 10e9, latency_s: 0.01, sharing: each}
          campus: {down_bps: 1e9, up_bps: 200e6, latency_s: 0.002}
        hosts:
          library: {route: [campus, backbone], clients: [0-9]}
          dormitory: {route: [campus, backbone], clients: [10, 11, 12]}

    A link has `bps`, or `down_bps` and `up_bps` (away from the server, and towards it), and may
    have `latency_s`, `loss` and `sharing`; see `fl.simulation.kernel.routes.Cable`. A route has the
    links from the host to the server. Between two hosts, what is the same at the ends of both
    routes is not crossed. If no host names its clients, they are at the hosts in turn.

    Attributes:
        path: of the file.

    Raises:
        ConfigError: see `routes`.
    """

    path: str

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes.

        Raises:
            ConfigError: the file cannot be read, or says what cannot be: an unknown link or key, a
                host without a route, a client at two hosts, or at none.
        """
        try:
            said = _loaded(text_of(self.path))
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # a number of 10,000 digits
            raise ConfigError(f"path is {self.path!r}, which is no YAML: {error}") from error
        parts = _mapping(said, f"path is {self.path!r}: the file", ("links", "hosts"))
        names = _named(parts.get("links"), "links")
        cables = [_cable(name, of) for name, of in names.items()]
        number = {name: k for k, name in enumerate(names)}
        hosts = _named(parts.get("hosts"), "hosts")
        if not hosts:
            raise ConfigError(f"path is {self.path!r}, whose hosts are none; clients are at hosts")
        paths, clients = [], {}
        for name, of in hosts.items():
            host = _mapping(of, f"host {name!r}", _HOST)
            paths.append(_route(name, host.get("route"), number))
            if host.get("clients") is not None:
                clients[len(paths) - 1] = _clients(name, host["clients"], len(links))
        place = _places(clients, list(hosts), len(links))
        return Routes.tree(cables, paths, place, server)


def _named(of: object, what: str) -> Mapping[str, Any]:
    if of is None:
        return {}
    if not isinstance(of, dict) or not all(isinstance(name, str) for name in of):
        raise ConfigError(f"{what} is {of!r:.80}; it must have a name for each of its entries")
    return of


def _mapping(of: object, what: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(of, dict):
        raise ConfigError(f"{what} is {of!r:.80}; it must have keys: {', '.join(known)}")
    unknown = [key for key in of if key not in known]
    if unknown:
        raise ConfigError(f"{what} has a key {unknown[0]!r}; it may have {', '.join(known)}")
    return of


def _number(name: str, key: str, value: object) -> float:
    # YAML reads 10e9 as text: it wants 10.0e+9.
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"{key} of link {name!r} is {value!r:.80}; it must be a number")
    if key.endswith("bps") and not number > 0:
        raise ConfigError(
            f"{key} of link {name!r} is {value!r:.80}; it must be positive, in bit/s, or .inf for "
            "a link that is never the bottleneck"
        )
    return number


def _cable(name: str, of: object) -> Cable:
    said = _mapping(of, f"link {name!r}", _CABLE)
    if ("bps" in said) == ("down_bps" in said or "up_bps" in said):
        raise ConfigError(
            f"link {name!r} has {', '.join(map(str, said)) or 'no keys'}; it must have bps, or "
            "down_bps and up_bps"
        )
    down, up = ("bps", "bps") if "bps" in said else ("down_bps", "up_bps")
    numbers = {
        "down_bps": _number(name, down, said.get(down)),
        "up_bps": _number(name, up, said.get(up)),
        "latency_s": _number(name, "latency_s", said.get("latency_s", 0.0)),
        "loss": _number(name, "loss", said.get("loss", 0.0)),
    }
    return Cable(name, sharing=said.get("sharing", "duplex"), **numbers)


def _route(host: str, route: object, number: Mapping[str, int]) -> tuple[int, ...]:
    if not isinstance(route, list):
        raise ConfigError(
            f"host {host!r} has no route to the server: route is {route!r:.80}; it must be a list "
            "of links, empty for none"
        )
    for name in route:
        if not isinstance(name, str) or name not in number:
            raise ConfigError(
                f"route of host {host!r} has {name!r:.80}, which is no link: there are "
                f"{', '.join(list(number)[:12]) or 'none'}"
            )
    if len(set(route)) < len(route):
        raise ConfigError(f"route of host {host!r} is {route}; it must cross each link once")
    return tuple(number[name] for name in route)


def _clients(host: str, said: object, num_clients: int) -> NDArray[np.int64]:
    """Returns the clients of a host, of numbers and ranges such as 0-9, both ends among them."""
    found = []
    for entry in said if isinstance(said, list) else [said]:
        first, dash, last = str(entry).partition("-")
        ends = (first, last) if dash else (first,)
        if isinstance(entry, bool) or not all(e.isdecimal() and len(e) < 19 for e in ends):
            raise ConfigError(
                f"clients of host {host!r} has {entry!r:.80}; it must be a client's number, or a "
                "range such as 0-9"
            )
        a, b = int(ends[0]), int(ends[-1])
        if not a <= b < num_clients:
            raise ConfigError(
                f"clients of host {host!r} has {entry!r:.80}; clients are 0 to {num_clients - 1}"
            )
        found.append(np.arange(a, b + 1))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _places(
    clients: Mapping[int, NDArray[np.int64]], hosts: Sequence[str], num_clients: int
) -> NDArray[np.int64]:
    if not clients:
        return in_turn(num_clients, len(hosts))
    place = np.full(num_clients, -1)
    for host, there in clients.items():
        twice = there[place[there] >= 0]
        if len(twice) or len(np.unique(there)) < len(there):
            client = int(twice[0]) if len(twice) else int(there[0])
            raise ConfigError(
                f"clients of host {hosts[host]!r} names client {client} again; a client is at one "
                "host"
            )
        place[there] = host
    if (place < 0).any():
        client = int(np.argmax(place < 0))
        raise ConfigError(
            f"client {client} is at no host; name all {num_clients} in the hosts' clients, or "
            "none, which has them at the hosts in turn"
        )
    return place
