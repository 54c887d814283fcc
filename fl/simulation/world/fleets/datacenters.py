"""Islands of GPUs in several regions, joined by wide-area links: the setting of DiLoCo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, fraction, positive, read_if
from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, PeerLinks, ServerLink
from fl.simulation.world.availability import Always, Availability
from fl.simulation.world.checkpointing import Checkpointing
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import client_ids, constant

REGIONS = (
    "australia",
    "belgium",
    "canada",
    "germany",
    "iowa",
    "japan",
    "london",
    "los-angeles",
    "netherlands",
    "oregon",
    "singapore",
    "taiwan",
)
"""Regions of the table of wide-area links."""

# Row i holds the pairs of REGIONS[i] with the regions after it.
_DELAY_MS = """
    129 98 125.5 84 58 132 69 128 68 48 67
    41 4 49 112 3.5 70 3 66 83 105
    44 14 74 38.5 35 42 30.5 107 89
    53.5 112 6.6 73 3.5 68 80 102
    72.5 48.1 23.4 51 19.3 101.5 88
    107 50 108.5 46.2 35.6 19.2
    68 4.8 64 85 109.5
    71.5 12.4 79.5 64
    67 81.5 105.5
    78.5 59.5
    23.2
"""
_MBPS = """
    84 113 90 96 118 81 126 82 126 256 180
    171 2083 243 101 2083 167 2083 179 138 107
    274 650 155 312 262 215 405 103 126
    229 95 1621 157 2083 128 107 108
    120 188 528 235 776 109 110
    76 239 98 262 335 659
    128 203 182 135 77
    122 1018 145 139
    175 141 103
    144 200
    532
"""
_SITE_MS = 1.0
_SITE_MBPS = 17_180.0

ARCHETYPES = {
    # name: (bit/s, one-way delay in s)
    "high": (400e9, 0.0001),
    "medium": (100e9, 0.001),
    "low": (10e9, 0.010),
    "co2-rdma": (800e9, 0.0001),
    "co2-tcp": (80e9, 0.001),
    "intellect-usa": (4e9, 0.030),
    "swarm-wan": (0.2e9, 0.100),
    "home": (0.1e9, 0.150),
}
"""Links by name: high, medium and low are the archetypes of Charles et al. 2025, "Communication-
Efficient Language Model Training Scales Reliably and Robustly: Scaling Laws for DiLoCo"
(arXiv:2503.09799). intellect-usa is the 4 Gb/s between centres of PRIME's README, home the defaults
of Petals. co2-rdma and co2-tcp are the bandwidths of CO2's abstract, swarm-wan the slow end of
SWARM's 0.2 to 0.5 Gb/s and up to 100 ms, second-hand. Of co2-rdma, co2-tcp and intellect-usa only
the bandwidth is published; the delay is our assumption."""


def wide_area(
    regions: Sequence[str], parallel_flows: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns bandwidth and delay between regions, from the table of CheckFree's simulator.

    Repo gensyn-ai/CheckFree, `communication/communication_costs.py`: delay in ms, added once per
    message, and GiB/s of one flow (here Mb/s, rounded); within a region 1 ms and 2 GiB/s. The
    product of delay and bandwidth is near 1.4 MB for most pairs, which is TCP with a fixed window,
    so parallel flows add up (PRIME reports gains of up to 8 times).

    Args:
        regions: names out of `REGIONS`, m of them.
        parallel_flows: flows used side by side for one transfer; bandwidth between regions is
            multiplied by it, up to that within a region.

    Returns:
        Bandwidth in bit/s and one-way delay in s, each float64, shape (m, m), symmetric.

    Raises:
        ConfigError: a region is not in the table, or parallel_flows is not positive.
    """
    unknown = [name for name in regions if name not in REGIONS]
    if unknown or not regions:
        raise ConfigError(
            f"regions is {list(regions)}; it takes at least one of {', '.join(REGIONS)}."
        )
    at_least("parallel_flows", parallel_flows, 1)
    chosen = np.array([REGIONS.index(name) for name in regions])
    between = np.ix_(chosen, chosen)
    mbps = np.minimum(_symmetric(_MBPS, 0.0) * parallel_flows, _SITE_MBPS)
    np.fill_diagonal(mbps, _SITE_MBPS)
    return mbps[between] * 1e6, _symmetric(_DELAY_MS, _SITE_MS)[between] / 1000.0


def _symmetric(rows: str, diagonal: float) -> NDArray[np.float64]:
    matrix = np.zeros((len(REGIONS), len(REGIONS)))
    matrix[np.triu_indices(len(REGIONS), 1)] = [float(number) for number in rows.split()]
    matrix += matrix.T
    np.fill_diagonal(matrix, diagonal)
    return matrix


@read_if(
    lambda a: a["network"] == "geo",
    "regions",
    "server_region",
    only="only {at}network=geo has regions",
)
def datacenters(
    num_clients: int,
    seed: int,
    *,
    network: str = "geo",
    regions: Sequence[str] = ("iowa", "oregon", "los-angeles", "japan"),
    server_region: str | None = None,
    parallel_flows: int = 1,
    window_bytes: float | None = None,
    access_bps: float = math.inf,
    gpus: int = 8,
    gpu_flops: float = 312e12,
    utilisation: float = 0.4,
    gpu_memory_bytes: float = 80e9,
    gpu_idle_w: float = 50.0,
    gpu_compute_w: float = 400.0,
    host_w: float = 800.0,
    jitter: float = 0.01,
    server_down_bps: float = math.inf,
    server_up_bps: float = math.inf,
    availability: Availability | None = None,
    faults: Faults | None = None,
    prefetch: bool = False,
    checkpointing: Checkpointing | None = None,
) -> Fleet:
    """Returns a fleet whose clients are islands of GPUs, with edges between them.

    Island i is in region i modulo their number. Its link to the server is the wide-area path to
    `server_region`; its edges are the paths to the other islands' regions.

    A GPU is an NVIDIA A100: 312 TFLOP/s peak in bfloat16, 80 GB, 400 W (data sheet, from memory).
    The utilisation, the idle power and that of the host are our assumptions; 40% is what large
    language models are commonly trained at.

    Args:
        num_clients: n, the number of islands.
        seed: root seed of the run.
        network: "geo" for the table of `wide_area`, or a name out of `ARCHETYPES` for the same link
            between any two islands and to the server.
        regions: regions of the islands, in turn; for "geo".
        server_region: region of the server; None is the first of `regions`; for "geo".
        parallel_flows: flows side by side per transfer; for "geo", and with window_bytes.
        window_bytes: the most that one flow has on its way, by which it gets window / RTT at most;
            None is no bound.
        access_bps: bandwidth of an island's own link in each direction, bit/s.
        gpus: GPUs of an island.
        gpu_flops: peak of a GPU in FLOP/s.
        utilisation: fraction of the peak that training reaches, in (0, 1].
        gpu_memory_bytes: memory of a GPU.
        gpu_idle_w: power in W of a GPU while it waits.
        gpu_compute_w: power in W of a GPU while it trains.
        host_w: power in W of the rest of an island, always.
        jitter: sigma of the log-normal factor on each task's compute time.
        server_down_bps: capacity for what the server receives, bit/s.
        server_up_bps: capacity for what the server sends, bit/s.
        availability: who is online when; None means always.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.
        checkpointing: of the islands' job, and how often that fails; None is neither.

    Raises:
        ConfigError: an argument is out of range, or a name is unknown.
    """
    clients = client_ids(num_clients)
    fraction("utilisation", utilisation)
    if gpus < 1:
        raise ConfigError(f"gpus is {gpus}; an island has at least 1.")
    if network == "geo":
        site = clients % max(len(regions), 1)
        # The server's region is the last row, whether or not an island is there.
        home = server_region if server_region is not None else regions[0] if regions else ""
        bps, delay = wide_area([*regions, home] if regions else [], parallel_flows)
        to_server = np.full(num_clients, len(regions))
    elif network in ARCHETYPES:
        if parallel_flows != 1 and window_bytes is None:
            raise ConfigError(
                f"parallel_flows is {parallel_flows}, but the link {network!r} is a capacity, not "
                "the rate of one flow. Set it to 1, or network to geo, or window_bytes to what a "
                "flow may have on its way."
            )
        site = to_server = np.zeros(num_clients, dtype=np.int64)
        bps, delay = (np.full((1, 1), value) for value in ARCHETYPES[network])
    else:
        raise ConfigError(f"network is {network!r}; it is geo or one of {', '.join(ARCHETYPES)}.")
    access = constant(num_clients, access_bps)
    no_loss = constant(num_clients, 0.0)
    path = np.minimum(bps[site, to_server], access_bps)
    window = math.inf
    if window_bytes is not None:
        positive("window_bytes", window_bytes)
        if window_bytes < 1:
            raise ConfigError(
                f"window_bytes is {window_bytes}; it must be null, or at least 1: a flow has that "
                "many bytes on its way"
            )
        window = window_bytes
        rtt_s = 2.0 * delay[site, to_server]
        path = np.minimum(path, parallel_flows * 8.0 * window / rtt_s)
    idle_w = constant(num_clients, gpus * gpu_idle_w + host_w)
    links = Links(path, path, delay[site, to_server], no_loss)
    return Fleet(
        name="datacenters",
        seed=seed,
        devices=Devices(
            kind=np.broadcast_to(np.int16(0), (num_clients,)),
            kinds=("island",),
            flops=constant(num_clients, gpus * gpu_flops * utilisation),
            memory_bytes=constant(num_clients, gpus * gpu_memory_bytes),
            idle_w=idle_w,
            compute_w=constant(num_clients, gpus * gpu_compute_w + host_w),
            radio_w=idle_w,
            jitter=jitter,
            mains=True,
        ),
        links=links,
        server=ServerLink(server_down_bps, server_up_bps),
        availability=Always(num_clients) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
        checkpointing=checkpointing,
        edges=PeerLinks(
            Links(access, access, links.latency_s, no_loss),
            site,
            bps,
            delay,
            window,
            parallel_flows,
        ),
    )
