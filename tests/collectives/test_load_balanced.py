"""Shares of an all-to-all by a linear program, against hivemind's and another solver; its times."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from many_cases import for_each
from scipy.optimize import linprog

from fl.collectives import LoadBalancedAllReduce, apportioned, balanced_shares
from fl.collectives.sound import check_closed, check_steps
from fl.errors import ConfigError
from fl.simulation.kernel.links import Links, PeerLinks, RankLinks


def load(f, has=None):
    """Vectors that each rank moves each way, shape (M,)."""
    has = np.ones(len(f), bool) if has is None else np.asarray(has)
    return has * (1 - f) + (has.sum() - has) * f


def cost(f, b, has=None):
    b = np.asarray(b, float)
    return (load(np.asarray(f, float), has)[b > 0] / b[b > 0]).max()


# Partitions of learning-at-home/hivemind, tests/test_averaging.py, which compares costs.
@pytest.mark.parametrize(
    ("size", "bandwidths", "golden"),
    [
        (60, [0.25] * 4, [15] * 4),
        (1024, [0.3, 0.5, 0.9], [0, 255, 769]),
        (60, [0.44, 0.33, 0.22], [42, 18, 0]),
        (60, [0.55, 0.44, 0.40], [35, 16, 9]),
        (2**20, [0.3, 0.5, 0.9, 0.6], [0, 169327, 602629, 276620]),
        (2**20, [0.0, 0.5, 0.0, 0.6], [0, 428963, 0, 619613]),
    ],
)
def test_parts_cost_no_more_than_hiveminds(size, bandwidths, golden):
    parts = apportioned(size, balanced_shares(bandwidths))
    assert parts.sum() == size
    got, theirs = (cost(np.array(p) / size, bandwidths) for p in (parts, golden))
    assert got <= theirs * (1 + 1e-12)


# The same file, which compares these one by one.
@pytest.mark.parametrize(
    ("size", "bandwidths", "golden"),
    [
        (60, [0.55, 0.44, 0.40], [41, 19, 0]),
        (60, [0.32, 0.55, 0.44], [0, 40, 20]),
        (2, [0.55, 0.20, 0.44], [1, 0, 1]),
        (1, [0.55, 0.20, 0.44], [1, 0, 0]),
        (100, [1, 1], [50, 50]),
        (100, [1] * 5, [20] * 5),
        (100, [0, 0, 0, 1, 1], [0, 0, 0, 50, 50]),
    ],
)
def test_parts_of_ten_at_least_are_hiveminds(size, bandwidths, golden):
    assert apportioned(size, balanced_shares(bandwidths), 10).tolist() == golden


def test_if_nobody_can_be_reached_there_are_no_shares():
    with pytest.raises(ConfigError, match="all bandwidths are 0"):
        balanced_shares([0, 0, 0])
    with pytest.raises(ConfigError, match="bandwidths are"):
        balanced_shares([1, float("nan")])


@for_each("seed", range(40))
def test_shares_solve_the_linear_program(seed):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(3, 12))
    b = rng.random(m) * 10 ** rng.uniform(-3, 9)
    b[rng.random(m) < 0.2] = 0
    b[0], has = rng.random() + 0.1, rng.random(m) < 0.8
    has[:2] = True
    S = has.sum()
    # Of a vector's share f_i, and xi: (has_i + (S - 2 or S) f_i) / b_i <= xi.
    rows = [[0.0] * m + [-1.0] for _ in range(m)]
    for i in range(m):
        rows[i][i] = (S - 2 if has[i] else S) / max(b[i], 1e-300) if b[i] else 0.0
    bound = [-1.0 / b[i] if has[i] and b[i] else 0.0 for i in range(m)]
    ones = [[1.0] * m + [0.0]]
    limits = [(0, 1 if x else 0) for x in b] + [(None, None)]
    best = linprog([0.0] * m + [1.0], rows, bound, ones, [1.0], limits, method="highs")
    f = balanced_shares(b, has)
    assert f.sum() == pytest.approx(1)
    assert (f >= 0).all()
    assert not f[b == 0].any()
    assert cost(f, b, has) == pytest.approx(best.fun, rel=1e-7)


def test_no_partition_of_a_small_vector_is_better():
    bandwidths, size = [3.0, 2.0, 1.5, 1.2], 24
    splits = (p for p in product(range(size + 1), repeat=4) if sum(p) == size)
    best = min(cost(np.array(p) / size, bandwidths) for p in splits)
    assert cost(balanced_shares(bandwidths), bandwidths) <= best + 1e-12


@for_each("m", [2, 3, 8])
def test_of_equal_bandwidths_all_have_the_same(m):
    np.testing.assert_allclose(balanced_shares([7.0] * m), 1 / m)


def test_one_fast_rank_is_a_parameter_server_and_several_without_limit_share_all():
    assert balanced_shares([1000, 10, 10, 10]).tolist() == [1, 0, 0, 0]
    assert balanced_shares([np.inf, 10, np.inf]).tolist() == [0.5, 0, 0.5]


# ---- as a collective -----------------------------------------------------------------------------


def network(bps, latency_s=0.0, reachable=None):
    b = np.asarray(bps, float)
    reachable = None if reachable is None else np.asarray(reachable)
    delay = np.full(len(b), latency_s / 2)
    return RankLinks(
        PeerLinks(Links(b, b, delay, np.zeros(len(b)), reachable=reachable)), range(len(b))
    )


BED = np.repeat([200e6, 100e6, 50e6], [4, 8, 4])  # of DeDLOC's AWS_runner
BYTES = 2 * 18_000_000  # ALBERT-large in 16 bits


def test_the_papers_bed_by_lp_equal_shares_and_one_server():
    # Of 16 ranks: the slowest link carries the vector once in any case, and that is the optimum;
    # with equal shares it carries 2 15 / 16, and a server at 200 Mb/s carries 15.
    seconds = {
        kind: LoadBalancedAllReduce(kind).closed(network(BED), [BYTES] * 16).seconds
        for kind in ("balanced", "equal", "one")
    }
    vector_s = 8 * BYTES / 50e6
    f = balanced_shares(BED)
    xi = (14 + 12) / (4 * 200e6 + 8 * 100e6)  # sum over the faster twelve of (xi b - 1) / 14 is 1
    assert f[:12] == pytest.approx((xi * BED[:12] - 1) / 14)
    assert not f[12:].any()
    assert seconds["balanced"] == pytest.approx(vector_s, rel=1e-6)
    assert seconds["equal"] == pytest.approx(vector_s * 2 * 15 / 16)
    assert seconds["one"] == pytest.approx(8 * BYTES * 15 / 200e6)


def test_auxiliary_ranks_take_parts_and_want_no_mean():
    n = network([*BED, *[500e6] * 4], latency_s=0.01)
    sizes = [BYTES] * 16 + [0] * 4
    by = LoadBalancedAllReduce()
    parts = by.parts(n, sizes)
    assert parts.sum() == BYTES
    assert parts[16:].min() > parts[:16].max()
    seconds, sent = by.closed(n, sizes)
    # Each of the 16 sends every part but its own, and 15 get what it has added up.
    np.testing.assert_array_equal(sent[:16], BYTES - parts[:16] + 15 * parts[:16])
    np.testing.assert_array_equal(sent[16:], 16 * parts[16:])
    assert seconds == pytest.approx(2 * 0.01 + (8 * sent / [*BED, *[500e6] * 4]).max())
    check_steps(by, n, sizes)


@pytest.mark.parametrize("shares", ["balanced", "equal", "one"])
@for_each("m", [2, 3, 5, 8])
def test_steps_bring_all_to_all_and_send_what_the_formula_says(shares, m):
    n = network(np.linspace(1e6, 9e6, m), latency_s=0.1)
    by, sizes = LoadBalancedAllReduce(shares), [1003] * m
    check_steps(by, n, sizes)
    check_closed(by, by.closed(n, sizes), m)
    sent = np.zeros(m)
    for i, _, size in by.steps(n, sizes):
        np.add.at(sent, i, size)
    np.testing.assert_array_equal(sent, by.closed(n, sizes).sent)


@pytest.mark.parametrize("shares", ["balanced", "equal", "one"])
def test_who_cannot_be_reached_adds_nothing_up(shares):
    n = network([9e6, 1e6, 5e6], reachable=[False, True, True])
    parts = LoadBalancedAllReduce(shares).parts(n, [900] * 3)
    assert parts[0] == 0
    assert parts.sum() == 900
    nobody = network([9e6, 1e6, 5e6], reachable=[False] * 3)
    assert LoadBalancedAllReduce(shares).parts(nobody, [900] * 3).sum() == 900  # by a relay


def test_other_shares_are_refused():
    with pytest.raises(ConfigError, match="shares is 'fair'; it must be balanced"):
        LoadBalancedAllReduce("fair")
    with pytest.raises(ConfigError, match="min_size"):
        LoadBalancedAllReduce(min_size=-1)
