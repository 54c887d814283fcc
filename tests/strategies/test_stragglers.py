"""C4: slow members are found by when they arrive, slow links by what transfers take on each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from islands import LAYOUT, MODEL, crashes, data_of, driven, of, run
from stand_ins import Client, fleet_of

from fl.aggregation import Median
from fl.collectives import RingAllReduce, SlowLinks, Stragglers, TreeAllReduce
from fl.collectives.ring import around
from fl.errors import ConfigError
from fl.models import flops_per_example
from fl.simulation.kernel.links import PeerLinks, RankLinks
from fl.simulation.kernel.trace import Event
from fl.strategies import DiLoCo

STEP_FLOPS = 32 * flops_per_example(MODEL(), (1, 8, 8)).training
D = LAYOUT.size
DATA = data_of(5)


def fleet(*step_s, faults=None):
    return fleet_of([Client(flops=STEP_FLOPS / s) for s in step_s], faults=faults)


def ran(rounds, *step_s, stragglers=Stragglers(), faults=None, workers=3):  # noqa: B008
    strategy = driven(
        DiLoCo(inner_steps=2), workers=len(step_s), workers_=workers, stragglers=stragglers
    )
    there = fleet(*step_s, faults=faults)
    return run(strategy, rounds, fleet=there, data=data_of(len(step_s)), batch_size=32)


def test_who_is_late_at_three_of_five_is_slow_and_the_slowest_comes_first():
    stragglers, state = Stragglers(), {}
    arrivals = {0: (10.0, 4.0), 1: (10.1, 4.1), 2: (10.2, 4.2), 3: (12.2, 6.2), 4: (13.0, 7.0)}
    usual = {i: (10.0 + i / 100, 4.0) for i in range(5)}
    found = []
    for seen in (arrivals, usual, arrivals, usual, arrivals, usual, usual):
        state, slow = stragglers.step(state, seen)
        found.append(slow)
    # 2.1 s after the median is half of a period of 4.2 s, and no more than that.
    assert found == [[], [], [], [], [4], [], []]
    assert Stragglers(lateness=0.4).step({3: (True, True)}, arrivals)[1] == [3]


def test_five_percent_of_jitter_finds_nobody():
    rng, stragglers, state = np.random.default_rng(0), Stragglers(), {}
    for took in rng.normal(1.0, 0.05, size=(10_000, 8)):
        state, slow = stragglers.step(state, {i: (t, t) for i, t in enumerate(took.tolist())})
        assert not slow


def test_a_slow_worker_is_replaced_after_three_all_reduces():
    got = ran(6, 1.0, 3.0, 1.0, 1.0)
    assert got.times == pytest.approx([0, 6, 12, 18, 20, 22, 24])
    assert [(e["time_s"], e["client"]) for e in of(got.run.trace, Event.ABSENT)] == [(18.0, 1)]
    islands = [m["islands"] for m in got.result.train_metrics_clientapp.values()]
    assert islands == [0, 3, 3, 3, 3, 3, 3]
    computed = {e["client"] for e in of(got.run.trace, Event.COMPUTE_START) if e["time_s"] > 17}
    assert computed == {0, 2, 3}
    (transfer,) = of(got.run.trace, Event.TRANSFER)
    assert (transfer["client"], transfer["bytes"]) == (3, 8 * D)


@pytest.mark.slow
def test_without_a_spare_it_stays_and_a_spare_takes_the_place_of_one_that_crashes():
    both = ran(5, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, workers=5)  # one spare for two
    assert len(of(both.run.trace, Event.ABSENT)) == 1
    assert both.times[-1] == pytest.approx(30)
    failed = ran(3, 1.0, 1.0, 1.0, stragglers=None, faults=crashes((0, 1)), workers=2)
    third = {e["client"] for e in of(failed.run.trace, Event.COMPUTE_START) if e["time_s"] > 3.5}
    assert third == {0, 1}  # the one that crashed is there again, and is the first


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"lateness": 0.0}, "lateness is 0.0"),
        ({"times": 6}, "last is 5; it must be at least times, 6"),
    ],
)
def test_arguments_out_of_range_are_refused(of, why):
    with pytest.raises(ConfigError, match=why):
        Stragglers(**of)


def test_stragglers_without_spares_are_refused():
    with pytest.raises(ConfigError, match=r"workers is null.*set workers to less than num_cl"):
        driven(DiLoCo(inner_steps=2), stragglers=Stragglers())
    strategy = driven(DiLoCo(inner_steps=2), workers_=3, stragglers=Stragglers())
    with pytest.raises(ConfigError, match=r"workers is 3, and there are no more clients \(3\)"):
        strategy.check_clients(3)


# ---- links ---------------------------------------------------------------------------------------


def found(slow, m=8, rounds=3, jitter=0.0):
    """Diagnoses the matrix of the delays of all pairs, of which some are three times as long."""
    rng, links, state = np.random.default_rng(0), SlowLinks(), {}
    for _ in range(rounds):
        delays = rng.normal(1.0, jitter, (m, m)) if jitter else np.ones((m, m))
        for i, j in slow:
            delays[i, j] *= 3.0
        state, parts = links.step(
            state, {(i, j): delays[i, j].item() for i in range(m) for j in range(m) if i != j}
        )
    return parts


ROW, COLUMN = [(2, j) for j in range(8)], [(i, 5) for i in range(8)]


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        (ROW, ([2], [], [])),
        (COLUMN, ([], [5], [])),
        ([(3, 4)], ([], [], [(3, 4)])),
        ([*ROW, *COLUMN], ([2], [5], [])),
        ([*ROW, (0, 1)], ([2], [], [(0, 1)])),
        ([(2, 0), (2, 1)], ([], [], [(2, 0), (2, 1)])),
    ],
)
def test_rows_are_senders_columns_receivers_and_cells_links(slow, expected):
    assert found(slow, jitter=0.05) == expected
    assert found(slow, rounds=2) == ([], [], [])


def test_five_percent_of_jitter_is_no_slow_link():
    rng, links, state = np.random.default_rng(0), SlowLinks(), {}
    edges = [(k, (k + 1) % 8) for k in range(8)]
    for took in rng.normal(1.0, 0.05, size=(10_000, 8)):
        state, parts = links.step(state, dict(zip(edges, took.tolist(), strict=True)))
        assert parts == ([], [], [])


class Sites:
    """One client at each site: four in a ring of 4 s a payload, with some paths of 12 s."""

    def __init__(self, m, slow):
        self.bps = np.full((m, m), 8.0 * D)
        for i, j in slow:
            self.bps[i, j] /= 3.0

    def fleet(self):
        m = len(self.bps)
        there = fleet_of([Client(flops=STEP_FLOPS, latency_s=0.0)] * m)
        zero = np.zeros((m, m))
        edges = PeerLinks(there.links, np.arange(m), self.bps, zero)
        return replace(there, edges=edges)


def linked(slow, rounds, m=4, workers=None, **of_driver):
    strategy = driven(
        DiLoCo(inner_steps=2), workers=m, workers_=workers, slow_links=SlowLinks(), **of_driver
    )
    there = Sites(m, slow).fleet()
    return run(strategy, rounds, fleet=there, data=data_of(m), batch_size=32)


def ring_s(m=4, slow=False):
    return 2 * (m - 1) * (4.0 / m) * (3 if slow else 1)


def test_a_ring_passes_around_a_slow_link_after_three_all_reduces():
    got = linked([(1, 2)], 5)
    assert np.diff(got.times) == pytest.approx([2 + ring_s(slow=True)] * 3 + [2 + ring_s()] * 2)
    assert not of(got.run.trace, Event.ABSENT)


def test_whose_next_link_is_slow_too_is_replaced_by_a_spare():
    got = linked([(1, j) for j in range(5)], 8, m=5, workers=4)
    assert [e["client"] for e in of(got.run.trace, Event.ABSENT)] == [1]
    # Three all-reduces each for the first link and the next one; then a ring of 0, 2, 3 and 4.
    (transfer,) = of(got.run.trace, Event.TRANSFER)
    assert transfer["client"] == 4
    assert np.diff(got.times)[-1] == pytest.approx(2 + ring_s())
    assert np.diff(got.times)[:6] == pytest.approx([2 + ring_s(slow=True)] * 6)


def test_a_ring_without_an_edge_is_the_widest_of_those_there_are():
    network = Sites(4, [(0, 2)]).fleet().peers
    ranks = RankLinks(network, range(4))
    assert list(around(ranks, range(4), {(0, 2)})) == [0, 1, 2, 3]
    order = list(around(ranks, range(4), {(1, 2)}))
    edges = set(zip(order, [*order[1:], order[0]], strict=True))
    assert not edges & {(1, 2), (0, 2)}
    every = {(i, j) for i in range(4) for j in range(4)}
    assert sorted(around(ranks, range(4), every)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"slowness": 0.0}, "slowness is 0.0"),
        ({"times": 6}, "last is 5; it must be at least times, 6"),
    ],
)
def test_thresholds_of_links_out_of_range_are_refused(of, why):
    with pytest.raises(ConfigError, match=why):
        SlowLinks(**of)


def test_what_is_no_ring_passes_around_nothing():
    with pytest.raises(ConfigError, match=r"slow_links is .*allreduce is TreeAllReduce"):
        driven(DiLoCo(inner_steps=2), slow_links=SlowLinks(), allreduce=TreeAllReduce())
    driven(DiLoCo(inner_steps=2), slow_links=SlowLinks(), aggregator=Median())
    driven(DiLoCo(inner_steps=2), slow_links=SlowLinks(), allreduce=RingAllReduce("widest"))
