"""Transfers that meet on the server's link, from the message to the reply."""

from __future__ import annotations

import math
import random

import pytest
from stand_ins import Client, Scripted, fleet_of, grid_of, message_to, times

from fl.simulation.kernel.links import ServerLink
from fl.simulation.kernel.trace import Event


def upload_ends(n: int, size: int, **client: float) -> list[float]:
    """Returns when n equal uploads that start at 0 are there; the server receives 1000 B/s."""
    fleet = fleet_of([Client(**client)] * n, ServerLink(down_bps=8000))
    grid = grid_of(fleet, reply=size)
    grid.send_and_receive([message_to(i) for i in range(n)])
    assert grid.engine.bytes_up == n * size
    return list(times(grid.trace, Event.UPLOAD_END).values())


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_n_equal_uploads_take_n_times_as_long_as_one(n: int) -> None:
    assert upload_ends(n, 2000) == pytest.approx([n * 2.0] * n, rel=1e-12)


@pytest.mark.parametrize("n", [2, 7])
def test_n_equal_downloads_take_n_times_as_long_as_one(n: int) -> None:
    grid = grid_of(fleet_of([Client()] * n, ServerLink(up_bps=8000)))
    grid.send_and_receive([message_to(i, 2000) for i in range(n)])
    ends = list(times(grid.trace, Event.DOWNLOAD_END).values())
    assert ends == pytest.approx([n * 2.0] * n, rel=1e-12)


def test_a_server_link_that_is_wide_enough_slows_nobody_down() -> None:
    # Four clients of 250 B/s just fill the server's 1000 B/s.
    assert upload_ends(4, 2000, up_bps=2000) == [8.0] * 4


def test_downloads_and_uploads_do_not_share() -> None:
    fleet = fleet_of([Client(), Client()], ServerLink(down_bps=8000, up_bps=8000))
    grid = grid_of(fleet, reply={(0, 0): 4000, (1, 0): 0})
    grid.push_messages([message_to(0)])
    grid.send_and_receive([message_to(1, 4000)])
    # An upload of 4 s and a download of 4 s, at the same time.
    assert times(grid.trace, Event.DOWNLOAD_END)[1, 0] == 4.0
    assert times(grid.trace, Event.UPLOAD_END)[0, 0] == 4.0


def max_min_rates(caps: list[float], capacity: float) -> list[float]:
    """Returns the max-min fair rates by bisection on the level that fills the link."""
    if sum(caps) <= capacity:
        return caps
    low, high = 0.0, capacity
    for _ in range(200):
        level = (low + high) / 2
        if sum(min(cap, level) for cap in caps) < capacity:
            low = level
        else:
            high = level
    return [min(cap, high) for cap in caps]


def fluid_ends(
    starts: list[float], sizes: list[float], caps: list[float], capacity: float
) -> list[float]:
    """Returns when flows end, moving all of them from event to event."""
    left, ends, now = dict(enumerate(sizes)), [math.inf] * len(sizes), 0.0
    while left:
        active = [i for i in left if starts[i] <= now]
        rates = dict(zip(active, max_min_rates([caps[i] for i in active], capacity), strict=True))
        coming = [starts[i] - now for i in left if starts[i] > now]
        step = min([left[i] / rates[i] for i in active] + coming)
        now += step
        for i in active:
            left[i] -= rates[i] * step
            if left[i] <= 1e-9 * sizes[i]:
                ends[i] = now
                del left[i]
    return ends


@pytest.mark.parametrize("seed", range(5))
def test_mixed_caps_match_an_independent_max_min_computation(seed: int) -> None:
    rng = random.Random(seed)
    n, capacity = 40, 50_000.0
    clients = [
        Client(flops=rng.uniform(1, 10), up_bps=10 ** rng.uniform(2, 4.5), latency_s=rng.random())
        for _ in range(n)
    ]
    sizes = [rng.randrange(1, 5000) for _ in range(n)]
    grid = grid_of(
        fleet_of(clients, ServerLink(down_bps=capacity)),
        flops=3.0,
        reply={(i, 0): size for i, size in enumerate(sizes)},
    )
    replies = grid.send_and_receive([message_to(i) for i in range(n)])

    # A message of 0 bytes takes the latency alone; then 3 FLOPs; then the latency again.
    starts = [2 * c.latency_s + 3.0 / c.flops for c in clients]
    bits = [8.0 * size for size in sizes]
    expected = fluid_ends(starts, bits, [c.up_bps for c in clients], capacity)
    ends = times(grid.trace, Event.UPLOAD_END)
    assert [ends[i, 0] for i in range(n)] == pytest.approx(expected, rel=1e-7)
    order = [int(reply.metadata.message_id.split(".")[0]) for reply in replies]
    assert order == sorted(range(n), key=expected.__getitem__)
    # The link did limit: without it, everybody would be sooner.
    alone = [start + size / c.up_bps for start, size, c in zip(starts, bits, clients, strict=True)]
    assert max(e / a for e, a in zip(expected, alone, strict=True)) > 1.2


def test_who_leaves_makes_room_for_the_others() -> None:
    # Three uploads of 3000 B over 1000 B/s; client 2 is gone at 3.0, when each has sent 1000 B.
    fleet = fleet_of([Client()] * 3, ServerLink(down_bps=8000), Scripted(3, {2: [3.0]}))
    grid = grid_of(fleet, reply=3000)
    grid.send_and_receive([message_to(i) for i in range(3)], timeout=60)
    assert times(grid.trace, Event.UPLOAD_END) == {(0, 0): 7.0, (1, 0): 7.0}
