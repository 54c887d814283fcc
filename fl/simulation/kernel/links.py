"""Links: the clients' access, the server's, and links between clients.

Rates are bits per second, sizes bits, times virtual seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fl.errors import ConfigError
from fl.randomness import uniform, uniforms

MSS_BITS = 1460 * 8
"""Payload of a full TCP segment on Ethernet: 1500 bytes less 40 bytes of headers."""

MATHIS_CONSTANT = math.sqrt(1.5)
"""C of Mathis et al. for periodic loss, with an acknowledgement for every segment."""

FLOOR_FRACTION = 0.01
"""A transfer's drawn bandwidth is at least this fraction of the link's mean."""

Indices = NDArray[np.int64]

Some = int | NDArray[np.intp]
"""A whole number, or several."""


def mathis_bps(rtt_s: float, loss: float) -> float:
    """Returns the rate at which TCP's congestion avoidance settles under random packet loss.

    rate = MSS / RTT * C / sqrt(p), with C = sqrt(3/2). With delayed acknowledgements (one for
    every other segment) C is sqrt(3/4), a third less; we use the larger figure, so this is a bound.

    Source: Mathis, Semke, Mahdavi, Ott, "The macroscopic behavior of the TCP congestion avoidance
    algorithm", ACM CCR 27(3), 1997. The constant is also that of Floyd's response function
    w = sqrt(1.5 / p), and of Padhye et al. 1998 for small p, sqrt(3 / (2 b p)) with b = 1.

    Args:
        rtt_s: round-trip time in s; 0 gives infinity.
        loss: packet loss probability in [0, 1); 0 gives infinity.

    Returns:
        Bound on one flow's throughput in bit/s.
    """
    if loss == 0.0 or rtt_s == 0.0:
        return math.inf
    return MSS_BITS / rtt_s * MATHIS_CONSTANT / math.sqrt(loss)


@dataclass(frozen=True, eq=False)
class Links:
    """Columns of the clients' access links, one row per client.

    Attributes:
        down_bps: towards the client, bit/s, float64, shape (n,); infinity means no limit.
        up_bps: from the client, likewise.
        latency_s: one-way delay in s, float64, shape (n,).
        loss: packet loss probability, float64, shape (n,); see `mathis_bps`. A lost packet is sent
            again and costs time. The loss of a whole message is `Faults.message_loss`.
        down_sigma_bps: standard deviation of each download's bandwidth, shape (n,), or None.
        up_sigma_bps: the same for uploads.
        reachable: whether others can open connections to the client, bool, shape (n,): not if it is
            behind a firewall or NAT; None means all.
    """

    down_bps: NDArray[np.float64]
    up_bps: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    loss: NDArray[np.float64]
    down_sigma_bps: NDArray[np.float64] | None = None
    up_sigma_bps: NDArray[np.float64] | None = None
    reachable: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.down_bps)

    def down_cap(
        self,
        seed: int,
        client: int,
        transfer: int,
        server_latency_s: float = 0.0,
        more_loss: float = 0.0,
    ) -> float:
        """Returns the bandwidth that one download of the client gets if nothing else limits it.

        The smaller of the bandwidth drawn for this transfer and TCP's rate under the loss of all
        links at RTT = 2 * (client's latency + server's latency). The draw is a normal distribution
        with the columns' mean and standard deviation, truncated below at 1% of the mean (FLASH
        truncates at 0, where a transfer would never end).

        Args:
            seed: root seed of the run.
            client: index of the client.
            transfer: running number of the client's transfer; its dispatch number will do.
            server_latency_s: one-way delay of the links beyond the client's own, in s.
            more_loss: that a packet is lost on those.

        Returns:
            bit/s, positive, possibly infinite; a pure function of the arguments.
        """
        bps = self._drawn("down-bps", self.down_bps, self.down_sigma_bps, seed, client, transfer)
        return min(bps, self._lossy_bps(client, server_latency_s, more_loss))

    def up_cap(
        self,
        seed: int,
        client: int,
        transfer: int,
        server_latency_s: float = 0.0,
        more_loss: float = 0.0,
    ) -> float:
        """Returns the bandwidth of one upload; see `down_cap`."""
        bps = self._drawn("up-bps", self.up_bps, self.up_sigma_bps, seed, client, transfer)
        return min(bps, self._lossy_bps(client, server_latency_s, more_loss))

    def down_caps(
        self, seed: int, clients: Indices, transfers: Indices, server_latency_s: float = 0.0
    ) -> NDArray[np.float64]:
        """Returns `down_cap` of one download of each of several clients, shape (n,)."""
        mean, sigma = self.down_bps, self.down_sigma_bps
        return self._caps("down-bps", mean, sigma, seed, clients, transfers, server_latency_s)

    def up_caps(
        self, seed: int, clients: Indices, transfers: Indices, server_latency_s: float = 0.0
    ) -> NDArray[np.float64]:
        """Returns `up_cap` of one upload of each of several clients, shape (n,)."""
        mean, sigma = self.up_bps, self.up_sigma_bps
        return self._caps("up-bps", mean, sigma, seed, clients, transfers, server_latency_s)

    def _caps(
        self,
        purpose: str,
        mean: NDArray[np.float64],
        sigma: NDArray[np.float64] | None,
        seed: int,
        clients: Indices,
        transfers: Indices,
        server_latency_s: float,
    ) -> NDArray[np.float64]:
        # The operations of the scalar forms, one by one, so that the bits are theirs.
        bps = mean[clients]
        if sigma is not None:
            vary = np.flatnonzero(sigma[clients] > 0)
            some = clients[vary]
            u = uniforms(seed, purpose, some, transfers[vary])
            bps[vary] = _truncated_normals(bps[vary], sigma[some], FLOOR_FRACTION * bps[vary], u)
        loss, rtt_s = self.loss[clients], 2.0 * (self.latency_s[clients] + server_latency_s)
        lossy = np.flatnonzero((loss > 0) & (rtt_s > 0))
        bound = MSS_BITS / rtt_s[lossy] * MATHIS_CONSTANT / np.sqrt(loss[lossy])
        bps[lossy] = np.minimum(bps[lossy], bound)
        return bps

    def _drawn(
        self,
        purpose: str,
        mean: NDArray[np.float64],
        sigma: NDArray[np.float64] | None,
        seed: int,
        client: int,
        transfer: int,
    ) -> float:
        bps = float(mean[client])
        if sigma is not None and sigma[client] > 0:
            u = uniform(seed, purpose, client, transfer)
            bps = _truncated_normal(bps, float(sigma[client]), FLOOR_FRACTION * bps, u)
        return bps

    def _lossy_bps(self, client: int, server_latency_s: float, more_loss: float) -> float:
        loss = float(self.loss[client])
        if more_loss > 0:
            loss = 1.0 - (1.0 - loss) * (1.0 - more_loss)
        if loss == 0:
            return math.inf
        return mathis_bps(2.0 * (float(self.latency_s[client]) + server_latency_s), loss)


def _truncated_normal(mean: float, sigma: float, low: float, u: float) -> float:
    """Returns the u-quantile of Normal(mean, sigma) given that it is at least `low`."""
    below = float(ndtr((low - mean) / sigma))
    # For u next to 1 the sum may round to 1, whose quantile is infinite.
    v = min(below + (1.0 - below) * u, 1.0 - 2.0**-53)
    return max(low, mean + sigma * float(ndtri(v)))


def _truncated_normals(
    mean: NDArray[np.float64],
    sigma: NDArray[np.float64],
    low: NDArray[np.float64],
    u: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns `_truncated_normal` of each, shape (n,); also of links without a limit."""
    with np.errstate(invalid="ignore"):  # infinity less infinity: the comparisons are false
        below = ndtr((low - mean) / sigma)
        v = below + (1.0 - below) * u
        most = 1.0 - 2.0**-53
        bps = mean + sigma * ndtri(np.where(most < v, most, v))
        return np.where(bps > low, bps, low)


@dataclass(frozen=True)
class ServerLink:
    """The server's own link. Transfers in flight share it, see `SharedLink`.

    Args:
        down_bps: capacity for what the server receives, bit/s; infinity means no bottleneck.
        up_bps: capacity for what the server sends, bit/s.
        latency_s: one-way delay in s, added to that of the client's link.

    Raises:
        ConfigError: a capacity is not positive, or the latency is negative or not finite.
    """

    down_bps: float = math.inf
    up_bps: float = math.inf
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("down_bps", "up_bps"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(
                    f"server.{name} is {value}; it must be a positive number of bits per second, "
                    "or .inf for a link that is never the bottleneck."
                )
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ConfigError(
                f"server.latency_s is {self.latency_s}; it must be finite and at least 0."
            )


@dataclass(frozen=True, eq=False)
class PeerLinks:
    """Direct links between clients, for gossip and for islands of machines.

    A path from i to j crosses i's access link upwards, j's downwards and, where sites are given,
    the wide-area path between the two sites.

    Attributes:
        links: the clients' access links.
        site: site of each client, integer, shape (n,), or None.
        site_bps: bandwidth of a flow from site to site, bit/s, shape (m, m), or None.
        site_latency_s: one-way delay from site to site in s, shape (m, m), or None. Where given it
            replaces the latencies of the access links, which it includes.
        window_bytes: the most that one flow has on its way, so that it gets window / RTT at most;
            infinity means no bound.
        flows: side by side in every transfer.
    """

    links: Links
    site: NDArray[np.integer] | None = None
    site_bps: NDArray[np.float64] | None = None
    site_latency_s: NDArray[np.float64] | None = None
    window_bytes: float = math.inf
    flows: int = 1

    @property
    def contended(self) -> bool:
        """Whether transfers between other clients share links."""
        return False

    def shared(self, i: int, j: int) -> Mapping[int, float]:
        """Returns the links that transfers from client i to client j share with those of others.

        Returns:
            Their numbers, to bit/s.
        """
        return {}

    def rates(self, i: Some, j: Some, fanout: Some = 1, fanin: Some = 1) -> Any:
        """Returns the bandwidth of transfers from clients i to clients j, in bit/s.

            min(up_i / fanout, down_j / fanin, path, flows 8 window / RTT)

        Args:
            i: indices of the senders, of any shape.
            j: of the receivers.
            fanout: payloads that each sender sends at once.
            fanin: payloads that each receiver receives at once.
        """
        bps = np.minimum(self.links.up_bps[i] / fanout, self.links.down_bps[j] / fanin)
        if self.site is not None and self.site_bps is not None:
            bps = np.minimum(bps, self.site_bps[self.site[i], self.site[j]])
        if math.isfinite(self.window_bytes):
            with np.errstate(divide="ignore"):
                cap = self.flows * 8.0 * self.window_bytes / (2.0 * self.delays(i, j))
            bps = np.minimum(bps, cap)
        return bps

    def delays(self, i: Some, j: Some) -> Any:
        """Returns the one-way delays from clients i to clients j, in s, of any shape."""
        if self.site is not None and self.site_latency_s is not None:
            return self.site_latency_s[self.site[i], self.site[j]]
        return self.links.latency_s[i] + self.links.latency_s[j]

    def bandwidth_bps(self, i: int, j: int) -> float:
        """Returns the bandwidth of a transfer from client i to client j, in bit/s."""
        return float(self.rates(i, j))

    def transfer_s(self, i: int, j: int, size: int, *, fanout: int = 1, fanin: int = 1) -> float:
        """Returns the seconds that a payload's bytes flow from client i to client j.

            8 size / rate

        Args:
            i: index of the sender.
            j: index of the receiver.
            size: bytes.
            fanout: payloads that i sends at once.
            fanin: payloads that j receives at once.
        """
        return 8.0 * size / float(self.rates(i, j, fanout, fanin))

    def latency_s(self, i: int, j: int) -> float:
        """Returns the one-way delay from client i to client j, in s."""
        return float(self.delays(i, j))


class RankLinks:
    """The links among some clients, under their numbers in a collective: `Network`.

    Args:
        peers: the links of all clients.
        clients: the one of each rank.
    """

    def __init__(self, peers: PeerLinks, clients: Sequence[int]) -> None:
        self._peers = peers
        self._clients = np.asarray(clients, dtype=np.intp)

    def __len__(self) -> int:
        """Returns the number of ranks."""
        return len(self._clients)

    def rates(self, i: Some, j: Some, fanout: Some = 1, fanin: Some = 1) -> Any:
        """Returns bit/s from ranks to ranks."""
        return self._peers.rates(self._clients[i], self._clients[j], fanout, fanin)

    def delays(self, i: Some, j: Some) -> Any:
        """Returns one-way delays from ranks to ranks, s."""
        return self._peers.delays(self._clients[i], self._clients[j])

    @property
    def site(self) -> NDArray[np.intp]:
        """The site of each rank; all the same where there are none."""
        site = self._peers.site
        if site is None:
            return np.zeros(len(self), dtype=np.intp)
        return site[self._clients].astype(np.intp)

    @property
    def access(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The bit/s of each rank's own link, up and down."""
        links = self._peers.links
        return links.up_bps[self._clients], links.down_bps[self._clients]

    @property
    def reachable(self) -> NDArray[np.bool_]:
        """Whether others can open connections to a rank."""
        reachable = self._peers.links.reachable
        if reachable is None:
            return np.ones(len(self), dtype=np.bool_)
        return reachable[self._clients]
