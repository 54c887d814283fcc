"""A network that a SimGrid platform file states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fl.checks import positive
from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.kernel.routes import Hops, Routes
from fl.simulation.world.networks.file import in_turn, text_of
from fl.simulation.world.networks.network import NetworkModel
from fl.simulation.world.networks.platform import Platform, PlatformReader


@dataclass(frozen=True, kw_only=True)
class SimGridPlatform(NetworkModel):
    """The hosts, links and routes of a platform XML.

    Clients are at its hosts in turn, but for the server's. `fl.simulation.world.networks.platform`
    says what is read.

    Attributes:
        path: of the file.
        server_host: where the server is.
        bandwidth_factor: of a link's bandwidth, that flows get: headers and acknowledgements take
            the rest. SimGrid's own model of TCP, LV08, has 0.97.
        latency_factor: of a link's latency, that a flow waits before it is at full rate; LV08 has
            13.01, in which slow start is.

    Raises:
        ConfigError: a factor is not positive; see `routes`.
    """

    path: str
    server_host: str
    bandwidth_factor: float = 1.0
    latency_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("bandwidth_factor", self.bandwidth_factor)
        positive("latency_factor", self.latency_factor)

    def platform(self) -> Platform:
        """Returns what the file says.

        Raises:
            ConfigError: it cannot be read.
        """
        text = text_of(self.path)
        try:
            return PlatformReader(text, self.bandwidth_factor, self.latency_factor).read()
        except ConfigError as error:
            raise ConfigError(f"path is {self.path!r}: {error}") from error

    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the routes.

        Raises:
            ConfigError: the file cannot be read, has no such host, or no route from the server's to
                another one and back.
        """
        platform = self.platform()
        if self.server_host not in platform.hosts:
            raise ConfigError(
                f"server_host is {self.server_host!r}, which is no host of {self.path!r}; it has "
                f"{', '.join(platform.hosts[:12]) or 'none'}"
            )
        hosts = [host for host in platform.hosts if host != self.server_host]
        hosts = hosts[: len(links)]
        if not hosts:
            raise ConfigError(f"path is {self.path!r}, which has no host for clients to be at")

        @cache
        def way(source: str, target: str) -> Hops:
            try:
                return platform.route(source, target)
            except ConfigError as error:
                raise ConfigError(f"path is {self.path!r}: {error}") from error

        return Routes(
            platform.cables,
            [way(self.server_host, host) for host in hosts],
            [way(host, self.server_host) for host in hosts],
            in_turn(len(links), len(hosts)),
            server,
            lambda i, j: way(hosts[i], hosts[j]),
        )
