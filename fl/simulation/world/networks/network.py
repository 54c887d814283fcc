"""What every network has: links that transfers share, TCP, and what others send."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from fl.checks import is_a
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.kernel.routes import Routes
from fl.simulation.world.networks.background import Background
from fl.simulation.world.networks.tcp import Tcp


@dataclass(frozen=True, kw_only=True)
class NetworkModel(ABC):
    """Links between the clients' own and the server's, and who crosses which.

    A transfer has the least of what its client's own link leaves it, of its max-min fair share of
    all links on its way, and of what TCP gets at its round-trip time. Its latency is the sum of
    those of the links.

    Attributes:
        tcp: how rates depend on the round-trip time.
        background: what others send over the links that are shared.

    Raises:
        ConfigError: one of the two is something else.
    """

    tcp: Tcp = field(default_factory=Tcp)
    background: Background = field(default_factory=Background)

    def __post_init__(self) -> None:
        is_a("tcp", self.tcp, Tcp)
        is_a("background", self.background, Background)

    @abstractmethod
    def routes(self, links: Links, server: ServerLink, seed: int) -> Routes:
        """Returns the links, and the ways of the clients over them.

        Args:
            links: of the clients, one row each.
            server: the server's own link.
            seed: root seed of the run.

        Raises:
            ConfigError: there is no such network for these clients.
        """
