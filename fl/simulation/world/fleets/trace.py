"""A fleet made of published measurements: phones, links, behaviour and distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.checks import read_if
from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.kernel.links import Links, PeerLinks, ServerLink
from fl.simulation.world.availability import Availability, Diurnal
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets.columns import client_ids, constant, log_normals
from fl.simulation.world.measurements import (
    read_capacity,
    read_city_latency,
    read_link_speeds,
    read_scores,
)

FEMNIST_FORWARD_FLOPS = 34_423_808.0
"""Forward FLOPs of FLASH's FEMNIST CNN for one example; see `fl.simulation.world.fleets.mobile`."""

MEDIAN_PHONE_FLOPS = 1.735e9
"""Training FLOP/s of FLASH's middle phone: a batch of 10, 1.0202 GFLOP, in 588 ms."""


@read_if(lambda a: a["score_file"] is not None, "median_flops", only="only {at}score_file needs it")
@read_if(
    lambda a: a["score_file"] is None and a["capacity_file"] is not None,
    "forward_flops",
    only="only {at}capacity_file needs it, without {at}score_file",
)
@read_if(lambda a: a["speed_file"] is not None, "link_sigma", only="only {at}speed_file needs it")
@read_if(
    lambda a: a["latency_file"] is not None, "server_city", only="only {at}latency_file needs it"
)
@read_if(lambda a: a["latency_file"] is None, "latency_s", only="{at}latency_file says it instead")
def trace(
    num_clients: int,
    seed: int,
    *,
    score_file: str | None = None,
    speed_file: str | None = None,
    capacity_file: str | None = None,
    latency_file: str | None = None,
    median_flops: float = MEDIAN_PHONE_FLOPS,
    forward_flops: float = FEMNIST_FORWARD_FLOPS,
    link_sigma: float = 0.4,
    server_city: int = 0,
    jitter: float = 0.05,
    memory_bytes: float = 2 * 2.0**30,
    idle_w: float = 0.3,
    compute_w: float = 3.0,
    radio_w: float = 1.0,
    latency_s: float = 0.005,
    loss: float = 0.0,
    server_down_bps: float = 1e9,
    server_up_bps: float = 1e9,
    availability: Availability | None = None,
    faults: Faults | None = None,
    prefetch: bool = False,
) -> Fleet:
    """Returns a fleet whose columns come from files, each client drawing its own rows.

    Compute, from one of:

    - `score_file` (FLASH `benchmark2score.json`): each client is a phone drawn from the file, and
      its milliseconds are c / score, with c such that the median score trains at `median_flops`;
      hence flops = median_flops * score / median(score);
    - `capacity_file` (FedScale): client i is device i modulo their number; `computation` is
      inference milliseconds per sample, of a model of `forward_flops`, and training takes three
      times as long, as FedScale has it; hence flops = forward_flops / (computation / 1000).

    Links, from one of:

    - `speed_file` (FLASH `speed_distri.json`): each client is a user drawn from the file, with its
      four figures multiplied by one log-normal factor of median 1 and sigma `link_sigma`;
    - `capacity_file`: `communication` in both directions, 1 kbit = 1000 bit.

    `score_file` and `speed_file` go before `capacity_file`.

    Delays, from `latency_file` (a matrix between cities): client i is in city i modulo their
    number, as in plexus; its delay is the mean of the two directions to `server_city`. Edges
    between clients have the delays between their cities. Without the file, `latency_s`.

    Behaviour comes with `availability`: `TraceAvailability.from_file` reads FedScale's and FLASH's
    files.

    The power, memory, jitter, latency and server link defaults are those of `mobile` for a
    mid-range phone on Wi-Fi; `link_sigma` is our choice.

    Args:
        num_clients: n.
        seed: root seed of the run.
        score_file: path, or None.
        speed_file: path, or None.
        capacity_file: path, or None.
        latency_file: path, or None.
        median_flops: training speed of the phone with the median score, FLOP/s.
        forward_flops: FLOPs of one inference of the model behind FedScale's milliseconds. FedScale
            uses its numbers for every model, so this is a convention: the FEMNIST CNN.
        link_sigma: log-normal spread of the link speeds.
        server_city: row of the server's city.
        jitter: sigma of the log-normal factor on each task's compute time.
        memory_bytes: memory for training.
        idle_w: power in W while waiting.
        compute_w: power in W while training.
        radio_w: power in W while sending or receiving.
        latency_s: one-way delay of each client's link in s, without `latency_file`.
        loss: packet loss probability of each client's link.
        server_down_bps: capacity for what the server receives, bit/s.
        server_up_bps: capacity for what the server sends, bit/s.
        availability: who is online when; None means `Diurnal` with its defaults, 5% to 25%.
        faults: what goes wrong with tasks; None means nothing.
        prefetch: clients download messages while they compute; see `Fleet`.

    Raises:
        ConfigError: a file cannot be read, there is none for compute or links, or an argument is
            out of range.
    """
    clients = client_ids(num_clients)
    capacity = None
    if capacity_file is not None:
        capacity = tuple(c[clients % len(c)] for c in read_capacity(capacity_file))
    if score_file is not None:
        scores = read_scores(score_file)
        phone = (uniforms(seed, "trace-phone", clients) * len(scores)).astype(np.int64)
        flops = median_flops * scores[phone] / np.median(scores)
    elif capacity is not None:
        flops = forward_flops / (capacity[0] / 1000.0)
    else:
        raise ConfigError("no file says how fast clients compute; set score_file or capacity_file.")
    sigmas: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None] = (None, None)
    if speed_file is not None:
        speeds = read_link_speeds(speed_file)
        user = (uniforms(seed, "trace-user", clients) * len(speeds)).astype(np.int64)
        factor = log_normals(seed, "link-quality", clients, link_sigma)
        down, up = speeds[user, 0] * factor, speeds[user, 2] * factor
        sigmas = (speeds[user, 1] * factor, speeds[user, 3] * factor)
    elif capacity is not None:
        down = up = capacity[1] * 1000.0
    else:
        raise ConfigError("no file says how fast links are; set speed_file or capacity_file.")
    delay, city, between = constant(num_clients, latency_s), None, None
    if latency_file is not None:
        between = read_city_latency(latency_file)
        if not 0 <= server_city < len(between):
            raise ConfigError(
                f"server_city is {server_city}; {latency_file} has {len(between)} cities, from 0."
            )
        city = clients % len(between)
        delay = ((between[:, server_city] + between[server_city]) / 2)[city]
    links = Links(down, up, delay, constant(num_clients, loss), *sigmas)
    return Fleet(
        name="trace",
        seed=seed,
        devices=Devices(
            kind=np.broadcast_to(np.int16(0), (num_clients,)),
            kinds=("phone",),
            flops=np.asarray(flops, dtype=np.float64),
            memory_bytes=constant(num_clients, memory_bytes),
            idle_w=constant(num_clients, idle_w),
            compute_w=constant(num_clients, compute_w),
            radio_w=constant(num_clients, radio_w),
            jitter=jitter,
        ),
        links=links,
        server=ServerLink(server_down_bps, server_up_bps),
        availability=Diurnal(num_clients, seed) if availability is None else availability,
        faults=Faults() if faults is None else faults,
        prefetch=prefetch,
        edges=None if between is None else PeerLinks(links, city, None, between),
    )
