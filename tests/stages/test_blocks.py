"""Petals' rules: where servers settle, and that the route found is the shortest there is."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
from many_cases import for_each

from fl.errors import ConfigError
from fl.stages import (
    Ban,
    Bans,
    BlockPlacement,
    Held,
    Leg,
    ShortestTime,
    random_route,
    server_throughput,
)

# ---- placement -----------------------------------------------------------------------------------


def test_a_server_that_joins_takes_the_blocks_that_are_served_worst():
    placement = BlockPlacement(6)
    servers = {0: Held(0, 3, 5.0), 1: Held(3, 2, 5.0)}
    assert placement.joins({}, 2) == 0
    assert placement.joins(servers, 1) == 5
    # 4 and 5 have (0, 5) in order, as 3 and 4 have (5, 5): the weakest counts first.
    assert placement.joins(servers, 2) == 4
    np.testing.assert_array_equal(placement.throughputs(servers), [5, 5, 5, 5, 5, 0])


def test_a_server_moves_where_that_helps_and_never_leaves_a_block_alone():
    placement, order = BlockPlacement(4), [0, 1, 2]
    crowded = {0: Held(0, 2, 1.0), 1: Held(0, 2, 1.0), 2: Held(2, 2, 0.5)}
    # The weakest block has 0.5, and would have 1.0 with server 1 at 2: less than 0.75 of it.
    assert placement.moves(crowded, 1, order) == 2
    assert BlockPlacement(4, quality=0.5).moves(crowded, 1, order) is None
    assert placement.moves(crowded, 2, order) is None  # the last one at blocks 2 and 3
    apart = {0: Held(0, 2, 1.0), 1: Held(2, 2, 1.0)}
    assert placement.moves(apart, 0, order[:2]) is None


def settled(placement, servers, rng):
    """Has servers move until none would."""
    for _ in range(100):
        moved = False
        for k in sorted(servers):
            start = placement.moves(servers, k, rng.permutation(sorted(servers)).tolist())
            if start is not None:
                servers = {**servers, k: servers[k]._replace(start=start)}
                moved = True
        if not moved:
            return servers
    raise AssertionError("they do not come to rest")


@for_each("seed", range(4))
def test_servers_come_to_rest_near_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    num_blocks = 5
    lengths = rng.integers(1, 4, 4).tolist()
    speeds = rng.uniform(1, 4, 4).tolist()
    placement = BlockPlacement(num_blocks, quality=1.0)
    begin = {k: Held(0, n, s) for k, (n, s) in enumerate(zip(lengths, speeds, strict=True))}
    weakest = placement.throughputs(settled(placement, begin, rng)).min()
    best = max(
        placement.throughputs(
            {k: held._replace(start=i) for (k, held), i in zip(begin.items(), starts, strict=True)}
        ).min()
        for starts in product(*(range(num_blocks - n + 1) for n in lengths))
    )
    covered = sum(lengths) >= num_blocks
    assert (weakest > 0) == (covered and best > 0)
    assert weakest >= 0.5 * best  # each looks for itself: no more is promised


def test_a_servers_throughput_is_the_smaller_of_its_device_and_its_network():
    of = partial(server_throughput, hidden=1000, length=9)
    assert of(50.0, 1e9) == pytest.approx(10.0)
    assert of(1e9, 100e6) == pytest.approx(6250.0)
    assert of(1e9, 100e6, relayed=True) == pytest.approx(1250.0)


# ---- routes --------------------------------------------------------------------------------------


def every_chain(servers, block, end):
    """Yields all chains of servers, each of which serves to the end of what it holds."""
    if block == end:
        yield ()
        return
    for k, held in servers.items():
        if held.start <= block < held.end:
            leg = Leg(k, block, min(held.end, end))
            for rest in every_chain(servers, leg.end, end):
                yield (leg, *rest)


@for_each("seed", range(40))
def test_the_route_is_the_shortest_of_all_there_are(seed):
    rng = np.random.default_rng(seed)
    n, num_blocks = 7, 6
    servers = {}
    for k in range(n):
        start = int(rng.integers(num_blocks))
        servers[k] = Held(start, int(rng.integers(1, num_blocks - start + 1)), 1.0)
    servers[n] = Held(0, num_blocks, 1.0)
    names = [None, *range(n + 1)]
    table = {(i, j): rng.uniform(0, 0.4) for i, j in product(names, names)}
    unknown = {pair for pair in table if rng.random() < 0.1}
    rps = {k: float(rng.uniform(5, 50)) for k in servers}
    full = frozenset(k for k in servers if rng.random() < 0.2)
    first, end = (0, num_blocks) if seed % 2 else (1, 4)
    rule = ShortestTime(cache_s=0.3)

    def rtt(i, j):
        return None if (i, j) in unknown else table[i, j]

    def seconds(chain):
        stops = [None, *(leg.server for leg in chain), None]
        halves = [0.15 if rtt(i, j) is None else rtt(i, j) / 2 for i, j in pairwise(stops)]
        work = [(leg.end - leg.start) / rps[leg.server] + 0.018 for leg in chain]
        return sum(halves) + sum(work) + 0.3 * sum(leg.server in full for leg in chain)

    legs, took = rule.route(servers, first, end, rtt, rps, full)
    best = min(seconds(chain) for chain in every_chain(servers, first, end))
    assert took == pytest.approx(best, rel=1e-12)
    assert seconds(legs) == pytest.approx(best, rel=1e-12)


def test_a_round_trip_counts_half_and_five_seconds_at_most():
    servers, rps = {0: Held(0, 1, 1.0)}, {0: 10.0}
    legs, took = ShortestTime().route(servers, 0, 1, lambda i, j: 60.0, rps)
    assert legs == (Leg(0, 0, 1),)
    assert took == pytest.approx(5 + 0.018 + 0.1 + 5)


def test_a_batch_goes_to_servers_by_how_much_they_hold():
    servers = {0: Held(0, 4, 1.0), 1: Held(0, 1, 1.0), 2: Held(1, 3, 1.0)}
    rng = np.random.default_rng(0)
    first = Counter(random_route(servers, 0, 4, rng)[0].server for _ in range(2000))
    assert first[0] / 2000 == pytest.approx(0.8, abs=0.03)
    after = {random_route({1: servers[1], 2: servers[2]}, 0, 4, rng) for _ in range(9)}
    assert after == {(Leg(1, 0, 1), Leg(2, 1, 4))}


def test_a_block_without_a_server_is_named():
    servers = {0: Held(0, 2, 1.0), 1: Held(3, 1, 1.0)}
    with pytest.raises(ConfigError, match="no server holds block 2"):
        ShortestTime().route(servers, 0, 4, lambda i, j: 0.0, {0: 1.0, 1: 1.0})
    with pytest.raises(ConfigError, match="no server holds block 2"):
        random_route(servers, 0, 4, np.random.default_rng(0))


def test_bans_double_and_end_with_an_answer_and_spare_the_last_of_a_block():
    rule, servers = Bans(), {0: Held(0, 2, 1.0), 1: Held(0, 1, 1.0)}
    once = rule.failed({}, 1, 100.0)
    assert once == {1: Ban(115.0, 1)}
    assert rule.failed(once, 1, 120.0) == {1: Ban(150.0, 2)}
    assert rule.answered(once, 1) == {}
    assert rule.allowed(once, servers, 2, 114.0) == {0: servers[0]}
    assert rule.allowed(once, servers, 2, 115.0) == servers
    both = rule.failed(once, 0, 100.0)
    assert rule.allowed(both, servers, 2, 101.0) == servers
