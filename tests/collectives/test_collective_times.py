"""Time and bytes of every collective, against closed forms of the alpha-beta model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from many_cases import for_each

from fl.collectives import (
    Butterfly,
    Closed,
    Collective,
    Gather,
    Hierarchical,
    Int8Ring,
    ParameterServerAllReduce,
    RingAllReduce,
    Transfers,
    TreeAllReduce,
    step,
    times,
)
from fl.collectives.sound import check_closed, check_order, check_steps
from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, PeerLinks, RankLinks

SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 32]


def equal(m, alpha, beta):
    """M ranks, each pair alpha s apart, with links of beta s a byte."""
    same = np.full(m, 8 / beta)
    return RankLinks(PeerLinks(Links(same, same, np.full(m, alpha / 2), np.zeros(m))), range(m))


def cost(collective, network, size, arrivals=None):
    m = len(network)
    arrivals = np.zeros(m) if arrivals is None else np.asarray(arrivals, float)
    if m == 1:
        return arrivals, np.zeros(1), np.zeros(1)
    return times(collective.steps(network, [size] * m), network, arrivals)


def levels(p):
    return math.ceil(math.log2(p))


def ring_s(p, d, alpha, beta):
    return 2 * (p - 1) * (alpha + d / p * beta)


def butterfly_s(p, d, alpha, beta):
    power = 2 ** math.floor(math.log2(p))
    seconds = 2 * math.log2(power) * alpha + 2 * (power - 1) / power * d * beta
    return seconds + (p > power) * 2 * (alpha + d * beta)


def tree_s(p, d, alpha, beta):
    return 2 * levels(p) * (alpha + d * beta)


def server_s(p, d, alpha, beta):
    return 2 * alpha + 2 * (p - 1) * d * beta


@pytest.mark.parametrize(
    ("size", "ring", "butterfly", "tree"),
    [(100_000_000, 1.414, 1.406, 4.806), (10_000, 14.14e-3, 6.14e-3, 6.48e-3)],
)
def test_eight_ranks_at_a_millisecond_and_a_gigabit(size, ring, butterfly, tree):
    network = equal(8, 1e-3, 8e-9)
    for collective, seconds in (
        (RingAllReduce(), ring),
        (Butterfly(), butterfly),
        (TreeAllReduce(), tree),
    ):
        assert cost(collective, network, size).finished.max() == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("p", SIZES[1:])
@for_each(
    "collective, seconds",
    [
        (RingAllReduce(), ring_s),
        (Butterfly(), butterfly_s),
        (TreeAllReduce(), tree_s),
        (ParameterServerAllReduce(), server_s),
    ],
)
def test_on_equal_links_the_steps_take_what_the_closed_form_says(collective, seconds, p):
    alpha, beta, size = 2e-3, 3e-8, 1_000_003
    network = equal(p, alpha, beta)
    done = cost(collective, network, size).finished
    assert done.max() == pytest.approx(seconds(p, size, alpha, beta), rel=1e-9)
    closed = collective.closed(network, [size] * p)
    if closed is not None:
        assert closed.seconds == pytest.approx(done.max(), rel=1e-9)


def test_a_tree_is_faster_than_a_ring_up_to_the_crossover():
    p, alpha, beta = 8, 1e-3, 8e-9
    crossover = (p - 1 - levels(p)) * alpha / (beta * (levels(p) - (p - 1) / p))
    assert crossover == pytest.approx(235_294, abs=1)
    network = equal(p, alpha, beta)
    for size, tree_wins in ((235_000, True), (236_000, False)):
        ring, tree = (
            cost(c, network, size).finished.max() for c in (RingAllReduce(), TreeAllReduce())
        )
        assert (tree < ring) == tree_wins


@pytest.mark.parametrize("p", [2, 4, 8, 16, 32])
def test_a_butterfly_is_never_slower_than_a_ring_and_both_are_the_same_for_two(p):
    for size in (1, 1000, 10**7):
        network = equal(p, 1e-3, 8e-9)
        ring, butterfly = (
            cost(c, network, size).finished.max() for c in (RingAllReduce(), Butterfly())
        )
        assert butterfly <= ring * (1 + 1e-12)
        if p == 2:
            assert ring == pytest.approx(2 * 1e-3 + size * 8e-9)


ALL = [
    RingAllReduce(),
    Butterfly(),
    TreeAllReduce(),
    ParameterServerAllReduce(),
    Hierarchical(4),
    Hierarchical(4, rails=False),
    Hierarchical(),
]


@pytest.mark.parametrize("p", SIZES[1:])
def test_bytes_over_all_edges_are_what_the_ranks_send(p):
    network, size = equal(p, 1e-3, 8e-9), 1_000_003
    power = 2 ** math.floor(math.log2(p))
    expected = {
        "RingAllReduce": 2 * (p - 1) * size,
        "Butterfly": 2 * (power - 1) * size + 2 * (p - power) * size,
        "TreeAllReduce": 2 * (p - 1) * size,
        "ParameterServerAllReduce": 2 * (p - 1) * size,
    }
    for collective in ALL:
        steps = list(collective.steps(network, [size] * p))
        sent = cost(collective, network, size).sent
        assert sent.sum() == pytest.approx(sum(one.sizes.sum() for one in steps))
        least = 2 * (p - 1) * size
        assert sent.sum() >= least * (1 - 1e-9)  # the lower bound of any all-reduce
        if type(collective).__name__ in expected:
            assert sent.sum() == pytest.approx(expected[type(collective).__name__])
    ring = cost(RingAllReduce(), network, size).sent
    np.testing.assert_allclose(ring, 2 * (p - 1) / p * size)
    np.testing.assert_allclose(RingAllReduce().closed(network, [size] * p).sent, ring)


@pytest.mark.parametrize("p", SIZES[1:])
@for_each("collective", [*ALL, Int8Ring()])
def test_after_the_steps_every_rank_has_the_part_of_every_other(collective, p):
    # Whoever receives has heard of all that the sender has heard of. A chunk's way is not followed.
    network = equal(p, 1e-3, 8e-9)
    heard = [{rank} for rank in range(p)]
    for i, j, _ in collective.steps(network, [1_000_003] * p):
        before = [set(one) for one in heard]
        for source, target in zip(i.tolist(), j.tolist(), strict=True):
            heard[target] |= before[source]
    assert all(len(one) == p for one in heard)


def test_all_wait_for_a_rank_that_is_late():
    # Four ranks, unit steps: 6 s, and 6.5 s if one is half a second late.
    network = equal(4, 0.5, 0.5)
    for late in range(4):
        arrivals = np.zeros(4)
        arrivals[late] = 0.5
        done = cost(RingAllReduce(), network, 4, arrivals).finished
        np.testing.assert_allclose(done, 6.5)
    np.testing.assert_allclose(cost(RingAllReduce(), network, 4).finished, 6.0)


def random_links(p, seed):
    rng = np.random.default_rng(seed)
    n, m = p, 3
    up, down = rng.uniform(1e6, 9e6, n), rng.uniform(1e6, 9e6, n)
    path, delay = rng.uniform(1e6, 9e6, (m, m)), rng.uniform(0.001, 0.1, (m, m))
    links = Links(up, down, np.zeros(n), np.zeros(n))
    return RankLinks(PeerLinks(links, rng.integers(m, size=n), path, delay), range(n))


@pytest.mark.parametrize("p", [2, 3, 5, 9])
@for_each("seed", range(3))
def test_the_slowest_edge_paces_a_ring_on_any_links(p, seed):
    network, size = random_links(p, seed), 1_000_000
    i = np.arange(p)
    hop = network.delays(i, (i + 1) % p) + 8 * size / p / network.rates(i, (i + 1) % p)
    done = cost(RingAllReduce(), network, size).finished
    assert done.max() == pytest.approx(2 * (p - 1) * hop.max())
    assert RingAllReduce().closed(network, [size] * p).seconds == pytest.approx(done.max())


def recurrence(network, size, arrivals):
    """t[i][k] = max(t[i][k-1], t[i-1][k-1]) + alpha + D/p beta of the edge from i - 1 to i."""
    p = len(network)
    t = list(arrivals)
    for _ in range(2 * (p - 1)):
        t = [
            max(t[i], t[i - 1])
            + float(network.delays((i - 1) % p, i))
            + 8 * size / p / float(network.rates((i - 1) % p, i))
            for i in range(p)
        ]
    return t


@pytest.mark.parametrize("seed", range(3))
def test_a_rings_steps_follow_the_recurrence_on_any_links_and_arrivals(seed):
    p, size = 6, 10**6
    network = random_links(p, seed)
    arrivals = np.random.default_rng(seed).uniform(0, 5, p)
    done = cost(RingAllReduce(), network, size, arrivals).finished
    np.testing.assert_allclose(done, recurrence(network, size, arrivals))


def two_levels(q, c):
    """C groups of q; inside 100 Gb/s and 1 us, between them 10 Gb/s and 50 us."""
    n = q * c
    inner, outer = (100e9, 1e-6), (10e9, 50e-6)
    bps, delay = (np.where(np.eye(c, dtype=bool), inner[k], outer[k]) for k in (0, 1))
    free = Links(np.full(n, np.inf), np.full(n, np.inf), np.zeros(n), np.zeros(n))
    return RankLinks(PeerLinks(free, np.repeat(np.arange(c), q), bps, delay), range(n))


def test_two_levels_of_a_gigabyte_by_rails_and_by_gateways_and_flat():
    q, c, size = 8, 4, 10**9
    network = two_levels(q, c)
    rails = cost(Hierarchical(), network, size).finished.max()
    assert rails == pytest.approx(0.290, abs=5e-4)
    assert cost(Hierarchical(group_size=q), network, size).finished.max() == rails
    # 1.340 s, and what it takes to bring the chunks to the gateway and back, one by one.
    gateway = cost(Hierarchical(rails=False), network, size).finished.max()
    to_and_fro = 2 * (q - 1) * (1e-6 + size / q * 8 / 100e9)
    assert gateway - to_and_fro == pytest.approx(1.340, abs=5e-4)
    flat = cost(RingAllReduce(), network, size).finished.max()
    assert flat == pytest.approx(1.553, abs=5e-4)


@pytest.mark.parametrize("rails", [True, False])
def test_two_levels_of_which_one_is_single_are_a_ring(rails):
    for q, c in ((1, 5), (5, 1)):
        network, size = two_levels(q, c), 10**8
        ring = cost(RingAllReduce(), network, size).finished.max()
        if q == 1 or rails:
            seconds = cost(Hierarchical(rails=rails), network, size).finished.max()
            assert seconds == pytest.approx(ring)


def test_flows_from_one_rank_share_its_uplink_and_have_a_window_each():
    n = 3
    up = np.full(n, 30e6)
    links = Links(np.full(n, 20e6), up, np.full(n, 0.025), np.zeros(n))
    plain = RankLinks(PeerLinks(links), range(n))
    # Three from one rank: 10 Mb/s each; one alone the receiver's 20 Mb/s.
    assert plain.rates(0, 1, 3) == 10e6
    assert plain.rates(0, 1) == 20e6
    # 50,000 bytes on their way at an RTT of 0.1 s are 4 Mb/s a flow.
    for flows, bps in ((1, 4e6), (2, 8e6), (10, 20e6)):
        capped = RankLinks(PeerLinks(links, window_bytes=50_000, flows=flows), range(n))
        assert capped.rates(0, 1) == pytest.approx(bps)
        assert capped.rates(0, 1, 3) == pytest.approx(min(bps, 10e6))


def test_what_begins_later_than_a_failure_is_not_sent():
    network, size = equal(4, 0.5, 0.5), 4
    whole = cost(RingAllReduce(), network, size)
    before = -1.0
    for until in np.linspace(0, 7, 29):
        part = times(RingAllReduce().steps(network, [size] * 4), network, np.zeros(4), until)
        assert part.sent.sum() == 4 * min(6, math.ceil(until))  # four transfers of 1 byte a second
        assert part.sent.sum() >= before
        before = part.sent.sum()
    np.testing.assert_array_equal(part.sent, whole.sent)


class Direct(Collective):
    """All-to-all of 1 / M, then all-to-all of the means: 2 alpha + 2 (p - 1) / p D beta."""

    def steps(self, network, sizes):
        m = len(network)
        i, j = np.nonzero(~np.eye(m, dtype=bool))
        for _ in range(2):
            yield step(i, j, max(sizes) / m)


@pytest.mark.parametrize("p", [2, 3, 8])
def test_a_collective_of_ones_own_costs_what_its_steps_cost(p):
    alpha, beta, size = 2e-3, 3e-8, 10**6
    done = cost(Direct(), equal(p, alpha, beta), size)
    seconds = 2 * alpha + 2 * (p - 1) / p * size * beta
    assert done.finished.max() == pytest.approx(seconds)
    np.testing.assert_allclose(done.sent, 2 * (p - 1) / p * size)


def test_a_gathering_ring_sends_all_but_the_successors_payload():
    network, sizes = equal(3, 1.0, 1.0), [1, 2, 3]
    assert Gather().closed(network, sizes) == Closed(
        pytest.approx(4.0 + 4.0), pytest.approx([4, 3, 5])
    )


# ---- collectives of others -----------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 7, 8])
@for_each("kind", [RingAllReduce, Gather, TreeAllReduce, Butterfly, Hierarchical])
def test_ours_bring_every_payload_to_all(kind, m):
    by, network = kind(), equal(m, 0.001, 1e6)
    check_order(by, by.arranged(network), m)
    check_steps(by, network, [1000] * m)
    check_steps(ParameterServerAllReduce(), network, [1000] * m)


@dataclass(frozen=True)
class Scripted(Collective):
    """Has the steps that it is given."""

    script: tuple

    def steps(self, network, sizes):
        return self.script


ALL_TO_ALL = step([0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1], 10)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "has the steps None"),
        ((ALL_TO_ALL, None), "None as step 1"),
        ((Transfers([0, 1], [1], [5.0]),), "2 sources, 1 targets and 1 sizes in step 0"),
        ((step([0], [3], 5),), r"ranks \[3\] in step 0; they are 0 to 2"),
        ((step([-1], [0], 5),), r"ranks \[-1\]"),
        ((Transfers([0.0], [1], [5.0]),), "ranks"),
        ((step([1], [1], 5),), "rank 1 send to itself"),
        ((step([0], [1], -5),), r"sends \[-5.\] bytes"),
        ((step([0], [1], math.nan),), r"sends \[nan\] bytes"),
        ((step([0, 1], [1, 0], 5),), "nothing of rank 2's payload to rank 0"),
        ((step([0, 1, 2], [1, 2, 0], 5),), "nothing of rank 1's payload to rank 0"),
        ((ALL_TO_ALL._replace(sizes=np.zeros(6)),), "brings nothing"),
        # Side by side, nobody hands on what comes in the same step.
        (
            (step([0, 1], [1, 2], 5), step([2, 2], [0, 1], 5)),
            "nothing of rank 0's payload to rank 2",
        ),
    ],
)
def test_steps_that_are_none_or_reach_not_all_are_refused_by_name(script, message):
    with pytest.raises(ConfigError, match=f"allreduce is Scripted.*{message}"):
        check_steps(Scripted(script), equal(3, 0.001, 1e6), [10] * 3)


def test_orders_and_formulas_of_others_are_refused_by_name():
    by = Scripted((ALL_TO_ALL,))
    check_steps(by, equal(3, 0.001, 1e6), [10] * 3)
    with pytest.raises(ConfigError, match=r"Scripted.*\[0, 0, 1\]"):
        check_order(by, [0, 0, 1], 3)
    with pytest.raises(ConfigError, match=r"Scripted.*nan s"):
        check_closed(by, Closed(math.nan, np.zeros(3)), 3)
    with pytest.raises(ConfigError, match=r"Scripted.*3 sizes"):
        check_closed(by, Closed(1.0, np.zeros(2)), 3)
