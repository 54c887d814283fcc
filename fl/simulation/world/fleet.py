"""A fleet: the clients' devices, links, availability and faults, and what follows from them.

A fleet answers how long, how fast and how much energy; the grid turns the answers into events.
Everything is a pure function of (seed, client, dispatch), so a client's properties and luck do not
depend on how many clients there are or on the order of the questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl.checks import boolean, is_a
from fl.errors import ConfigError
from fl.randomness import client_key, normal_of, normals
from fl.simulation.kernel.links import Indices, Links, PeerLinks, ServerLink
from fl.simulation.kernel.routes import Routes, Way, routed
from fl.simulation.world.availability import Availability
from fl.simulation.world.battery import Battery
from fl.simulation.world.checkpointing import Checkpointing, JobTime
from fl.simulation.world.devices import Devices, TaskSeconds
from fl.simulation.world.faults import Faults
from fl.simulation.world.networks.network import NetworkModel
from fl.simulation.world.power import Power
from fl.simulation.world.radio import Radios

_POSITIVE = "positive and finite"
_UNLIMITED = "positive"
_NOT_NEGATIVE = "finite and at least 0"
_LOSS = "at least 0 and less than 1"
_MOST_JITTER = (
    20  # sigma, of which exp(sigma z - sigma**2 / 2) is above 0 for every z that is drawn
)


def _within(column: NDArray[np.float64], bound: str) -> NDArray[np.bool_]:
    # Each test states what is right: a NaN makes every comparison false.
    if bound == _POSITIVE:
        return (column > 0) & (column < np.inf)
    if bound == _UNLIMITED:
        return column > 0
    if bound == _NOT_NEGATIVE:
        return (column >= 0) & (column < np.inf)
    return (column >= 0) & (column < 1)


@dataclass(frozen=True, eq=False)
class Fleet:
    """All clients of a run, as columns, with the server's link.

    Args:
        name: what to call the fleet in summaries and messages.
        seed: root seed of the run.
        devices: compute speed, memory, power.
        links: access links.
        server: the server's own link.
        availability: who is online when.
        faults: what goes wrong with tasks.
        edges: direct links between clients; None means through both access links, see `peers`.
        task_seconds: measured or drawn task times that replace FLOPs over speed, or None.
        prefetch: clients download messages while they compute. False is a SuperNode of Flower: the
            next message stays at the server until the reply to the last one is there.
        checkpointing: of all clients as one job, that fails and is done over as one; None is
            neither.
        network: links between the clients' own and the server's; None has none.
        power: below which power devices compute; None is full power.
        battery: of the devices; None has none, or they never run down.
        radios: of the devices, by their states, in place of `devices.radio_w`; None has that.

    Raises:
        ConfigError: see `check`.
    """

    name: str
    seed: int
    devices: Devices
    links: Links
    server: ServerLink
    availability: Availability
    faults: Faults = field(default_factory=Faults)
    edges: PeerLinks | None = None
    task_seconds: TaskSeconds | None = None
    prefetch: bool = False
    checkpointing: Checkpointing | None = None
    network: NetworkModel | None = None
    power: Power | None = None
    battery: Battery | None = None
    radios: Radios | None = None

    def __post_init__(self) -> None:
        self.check()

    def __len__(self) -> int:
        """Returns the number of clients."""
        return len(self.devices)

    @cached_property
    def job(self) -> JobTime | None:
        """When the clients' job gets how far; None if it never stands still."""
        return None if self.checkpointing is None else JobTime(self.checkpointing, self.seed)

    @cached_property
    def routes(self) -> Routes | None:
        """The links of the network, and which of them a transfer crosses; None without one."""
        if self.network is None:
            return None
        return self.network.routes(self.links, self.server, self.seed)

    @cached_property
    def peers(self) -> PeerLinks:
        """The links between clients, the network's among them."""
        direct = PeerLinks(self.links) if self.edges is None else self.edges
        if self.network is None or self.routes is None:
            return direct
        left = self.network.background.mean_left
        return routed(direct, self.routes, left, self.network.tcp.window_bytes)

    def with_servers_at_sites(self) -> Fleet:
        """Returns the fleet with a server in each site: clients reach theirs by links within it.

        Where there are no sites, clients reach the one server as before.

        Raises:
            ConfigError: there is a network, whose links lead to one server.
        """
        if self.network is not None:
            raise ConfigError(
                "a network's links lead all clients to one server, and this strategy has one in "
                "each region: leave network out"
            )
        if self.edges is None or self.edges.site is None:
            return self
        clients = np.arange(len(self))
        bps = self.edges.rates(clients, clients)
        delays = self.edges.delays(clients, clients)
        return replace(self, links=replace(self.links, down_bps=bps, up_bps=bps, latency_s=delays))

    def compute_seconds(self, client: int, dispatch: int, flops: float) -> float:
        """Returns the seconds that the client computes on its task number `dispatch`.

            flops / devices.flops[client] * jitter * slowdown

        The jitter is exp(sigma z - sigma**2 / 2), of mean 1, with z standard normal and
        sigma = devices.jitter, from the stream (seed, "jitter", client, dispatch). The slowdown is
        that of `slowdown`. With `task_seconds`, these replace flops / speed * jitter, whatever the
        FLOPs are unless they say for how many they hold; a task of none takes no time.

        Args:
            client: index of the client.
            dispatch: the client's running task number.
            flops: work of the task in FLOPs, finite, at least 0.

        Raises:
            ConfigError: flops out of range, or more tasks than were measured.
        """
        if not (flops >= 0 and math.isfinite(flops)):
            raise ConfigError(
                f"a task of client {client} has {flops} FLOPs; it must be finite and at least 0. "
                "Check the work plan or the FLOP count of the model."
            )
        if self.task_seconds is not None:
            seconds = self.task_seconds.of(client, dispatch) if flops > 0 else 0.0
            if self.task_seconds.flops is not None:
                seconds *= flops / self.task_seconds.flops
        else:
            seconds = flops / self.devices.flops.item(client)
            sigma = self.devices.jitter
            if sigma > 0:
                z = normal_of(client_key(self.seed, "jitter", client), dispatch)
                seconds *= math.exp(sigma * z - sigma * sigma / 2)
        return seconds * self.slowdown(client, dispatch)

    def all_compute_seconds(
        self, clients: Indices, dispatches: Indices, flops: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns `compute_seconds` of one task of each of several clients, shape (n,)."""
        if self.task_seconds is not None or self.faults.slowdown is not None:
            tasks = zip(clients.tolist(), dispatches.tolist(), flops.tolist(), strict=True)
            return np.array([self.compute_seconds(*task) for task in tasks], dtype=np.float64)
        seconds = flops / self.devices.flops[clients]
        sigma = self.devices.jitter
        if sigma > 0:
            z = normals(self.seed, "jitter", clients, dispatches)
            # The exponentials of NumPy's arrays are not `math.exp` to the last bit.
            seconds *= [*map(math.exp, (sigma * z - sigma * sigma / 2).tolist())]
        return seconds

    def seconds_per_flop(self, client: int, dispatch: int) -> float:
        """Returns what one FLOP of the client's task number `dispatch` takes, in s.

        NaN with task times that are for a whole task, whatever its FLOPs.
        """
        if self.task_seconds is not None and self.task_seconds.flops is None:
            return math.nan
        return self.compute_seconds(client, dispatch, 1.0)

    def slowdown(self, client: int, dispatch: int) -> float:
        """Returns the factor, at least 1, that `compute_seconds` has in it for a slow spell."""
        slow = self.faults.slowdown
        return 1.0 if slow is None else slow.slowdown(self.seed, client, dispatch)

    def latency_s(self, client: int) -> float:
        """Returns the one-way delay in s between client and server, all links together.

        Where a network has another delay there than back, it is the mean of both.
        """
        return self.links.latency_s.item(client) + self._beyond_s(client)

    def _beyond_s(self, client: int) -> float:
        """Returns the one-way delay of the links between the client's own and the server."""
        if self.routes is None:
            return self.server.latency_s
        there, back = self.routes.to(client), self.routes.of(client)
        return (there.latency_s + back.latency_s) / 2 + self.server.latency_s

    def down_cap(self, client: int, transfer: int) -> float:
        """Returns the most that one download gets, whoever else is there; see `Links.down_cap`."""
        way = None if self.routes is None else self.routes.to(client)
        return self._cap(self.links.down_cap, way, client, transfer)

    def down_caps(self, clients: Indices, transfers: Indices) -> NDArray[np.float64]:
        """Returns `down_cap` of one download of each of several clients, without a network."""
        return self.links.down_caps(self.seed, clients, transfers, self.server.latency_s)

    def up_caps(self, clients: Indices, transfers: Indices) -> NDArray[np.float64]:
        """Returns `up_cap` of one upload of each of several clients, without a network."""
        return self.links.up_caps(self.seed, clients, transfers, self.server.latency_s)

    def up_cap(self, client: int, transfer: int) -> float:
        """Returns the most that one upload gets, whoever else is there; see `Links.up_cap`."""
        way = None if self.routes is None else self.routes.of(client)
        return self._cap(self.links.up_cap, way, client, transfer)

    def _cap(self, own: Callable[..., float], way: Way | None, client: int, transfer: int) -> float:
        if way is None or self.network is None:
            return own(self.seed, client, transfer, self.server.latency_s)
        cap = own(self.seed, client, transfer, self._beyond_s(client), way.loss)
        return min(cap, way.cap_bps, self.network.tcp.cap_bps(2 * self.latency_s(client)))

    def ramp_s(self, way: Way, client: int, size: int, cap_bps: float) -> float:
        """Returns how much longer a transfer takes as it begins slowly; see `Tcp.ramp_s`.

        Args:
            way: that it takes.
            client: index of the client.
            size: bytes.
            cap_bps: the most that it gets.
        """
        if self.network is None or self.routes is None:
            return 0.0
        shared = (self.routes.capacity_bps[link] for link in way.links)
        rtt_s = 2 * self.latency_s(client)
        return self.network.tcp.ramp_s(size, min([cap_bps, *shared]), rtt_s)

    def weight(self, client: int) -> float:
        """Returns the client's share of links that are full, relative to those of others."""
        if self.network is None or not self.network.tcp.rtt_fairness:
            return 1.0
        return 0.5 / self.latency_s(client)

    def energy_j(self, client: int, compute_s: float, radio_s: float, idle_s: float) -> float:
        """Returns the joules a client spends on so many seconds of computing, radio and idling."""
        devices = self.devices
        return (
            devices.compute_w.item(client) * compute_s
            + devices.radio_w.item(client) * radio_s
            + devices.idle_w.item(client) * idle_s
        )

    def check(self) -> None:
        """Checks every column; called on construction.

        Raises:
            ConfigError: a column has the wrong shape or dtype, or an entry that cannot be; the
                message names column, client, value and remedy.
        """
        n = len(self.devices)
        if n == 0:
            raise ConfigError(f"fleet {self.name!r} has no clients; num_clients must be positive.")
        devices, links = self.devices, self.links
        self._check_kinds(n)
        for name, column, bound in (
            ("devices.flops", devices.flops, _POSITIVE),
            ("devices.memory_bytes", devices.memory_bytes, _POSITIVE),
            ("devices.idle_w", devices.idle_w, _NOT_NEGATIVE),
            ("devices.compute_w", devices.compute_w, _NOT_NEGATIVE),
            ("devices.radio_w", devices.radio_w, _NOT_NEGATIVE),
            ("links.down_bps", links.down_bps, _UNLIMITED),
            ("links.up_bps", links.up_bps, _UNLIMITED),
            ("links.latency_s", links.latency_s, _NOT_NEGATIVE),
            ("links.loss", links.loss, _LOSS),
            ("links.down_sigma_bps", links.down_sigma_bps, _NOT_NEGATIVE),
            ("links.up_sigma_bps", links.up_sigma_bps, _NOT_NEGATIVE),
        ):
            if column is not None:
                self._check_column(name, column, n, bound)
        reachable = links.reachable
        if reachable is not None and (reachable.shape != (n,) or reachable.dtype != np.bool_):
            raise ConfigError(
                f"links.reachable has shape {reachable.shape} and dtype {reachable.dtype}; it must "
                f"be ({n},) and bool, one row per client."
            )
        if not 0 <= devices.jitter <= _MOST_JITTER:
            raise ConfigError(
                f"devices.jitter is {devices.jitter}; the sigma of the log-normal factor must be "
                f"at least 0 (for none) and at most {_MOST_JITTER}."
            )
        boolean("fleet.prefetch", self.prefetch)
        is_a("availability", self.availability, Availability)
        online = self.availability.online(0.0)
        if online.shape != (n,):
            raise ConfigError(
                f"the availability is for {online.shape} clients, the fleet has {n}. Give both the "
                "same num_clients."
            )
        if self.task_seconds is not None:
            self.task_seconds.check_clients(n)
        if self.network is not None:
            self._check_network(self.network)
        if self.power is not None:
            is_a("power", self.power, Power)
            self.power.check_kinds(devices.kinds)
        if self.radios is not None and self.radios.kind.shape != (n,):
            raise ConfigError(
                f"radios are for {self.radios.kind.shape} clients, the fleet has {n}. Give one for "
                "each."
            )
        if self.battery is not None:
            is_a("battery", self.battery, Battery)
            self.battery.capacities(devices)
            plugged = self.battery.plugged.online(0.0)
            if plugged.shape != (n,):
                raise ConfigError(
                    f"battery.plugged is for {plugged.shape} clients, the fleet has {n}. Give both "
                    "the same num_clients."
                )

    def _check_network(self, network: NetworkModel) -> None:
        is_a("network", network, NetworkModel)
        routes = self.routes
        is_a("network.routes", routes, Routes)
        if routes is not None and routes.place.shape != (len(self),):
            raise ConfigError(
                f"network has places for {routes.place.shape} clients, the fleet has {len(self)}"
            )
        load = network.background.load
        if load > 0 and routes is not None and all(map(math.isinf, routes.capacity_bps)):
            raise ConfigError(
                f"network.background.load is {load:g}, and no link of the network has a capacity "
                "of which it could take a share: give one, as bps, or leave the load at 0"
            )
        if network.tcp.rtt_fairness:
            for client in range(len(self)):
                if self.latency_s(client) == 0:
                    raise ConfigError(
                        f"network.tcp.rtt_fairness is true, but the round trip of client {client} "
                        "takes no time: give its links a latency_s"
                    )

    def _check_column(self, name: str, column: NDArray[np.float64], n: int, bound: str) -> None:
        if column.shape != (n,) or column.dtype != np.float64:
            raise ConfigError(
                f"{name} has shape {column.shape} and dtype {column.dtype}; it must be ({n},) and "
                "float64, one row per client."
            )
        right = _within(column, bound)
        if not right.all():
            client = int(np.argmin(right))
            raise ConfigError(
                f"{name} of client {client} ({self.devices.kind_name(client)}) is "
                f"{column[client]}; it must be {bound} ({n - int(right.sum())} of {n} clients are "
                f"out of bounds). Correct the parameter of fleet {self.name!r} that sets it, or "
                "the entry of the trace file."
            )

    def _check_kinds(self, n: int) -> None:
        kind, kinds = self.devices.kind, self.devices.kinds
        if kind.shape != (n,) or not np.issubdtype(kind.dtype, np.integer):
            raise ConfigError(
                f"devices.kind has shape {kind.shape} and dtype {kind.dtype}; it must be ({n},) "
                "and integer, one row per client."
            )
        if kind.min() < 0 or kind.max() >= len(kinds):
            raise ConfigError(
                f"devices.kind goes from {kind.min()} to {kind.max()}, but there are {len(kinds)} "
                f"kinds: {', '.join(kinds)}. Use indices into kinds."
            )

    def check_memory(self, memory_bytes: float | NDArray[np.float64]) -> None:
        """Checks that training fits into every client's memory.

        Args:
            memory_bytes: what training needs: parameters, gradients, optimizer and activations; the
                same for all clients, or of each, shape (n,).

        Raises:
            ConfigError: it does not; the message names the smallest kind of device, what it has,
                what is needed and how many clients are affected.
        """
        memory = self.devices.memory_bytes
        short = memory < memory_bytes
        if short.any():
            needed = np.broadcast_to(memory_bytes, memory.shape)
            client = int(np.argmin(np.where(short, memory, np.inf)))
            raise ConfigError(
                f"training needs {needed[client]:.4g} bytes, but the smallest device, "
                f"{self.devices.kind_name(client)!r} of fleet {self.name!r}, has "
                f"{memory[client]:.4g} bytes; {int(short.sum())} of {len(self)} clients have too "
                "little. Use a smaller model or batch, raise the fleet's memory for this kind, or "
                "train parts of the model that fit: strategy=heterofl, fedrolex, random_submodels "
                "or every_parameter_matters with strategy/capacity=by_memory."
            )
