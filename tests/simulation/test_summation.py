"""Aggregators between clients and server: when they have a sum, what it costs, and what is lost.

Times are worked out by hand from the profile UNIT, in which a sum has 4 bytes and takes 4 s to add.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from many_cases import for_each

from fl.errors import ConfigError, SimulationError
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.events import EventQueue
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.summation import SimSummation
from fl.simulation.world.fleets import uniform
from fl.simulation.world.hierarchies import AggregatorMachine, Edge, Lifl
from fl.simulation.world.networks import Cells
from fl.vectors.sum_tree import leaves_of

FREE = AggregatorMachine(
    add_s_per_byte=0.0,
    copy_s_per_byte=0.0,
    encode_s_per_byte=0.0,
    hop_s=0.0,
    nic_bps=math.inf,
    nic_latency_s=0.0,
    cold_s=0.0,
    warm_s=0.0,
    keep_alive_s=math.inf,
    idle_cpu=0.0,
    idle_w=0.0,
    work_w=0.0,
)
UNIT = replace(FREE, add_s_per_byte=1.0)  # 4 s for each vector
PLAIN = {"planned": False, "reuse": False}
E = Event


class Rig:
    """A summation on a queue of its own."""

    def __init__(self, hierarchy, seed=0, **fleet):
        self.queue, self.trace = EventQueue(), Trace()
        queue = self.queue

        def advance(until):
            while queue.advance(until):
                pass

        self.sum = SimSummation(
            hierarchy, uniform(100, seed, **fleet), queue, self.trace, queue.advance, advance
        )
        self.advance = advance
        self.rounds = 0

    def round(self, arrivals, *, whole=True, numbers=1, size=4):
        """Runs a round with (time after its begin, client) each; returns the sum and its end."""
        began = self.queue.now
        self.sum.begin(numbers)
        for time, client in sorted(arrivals):
            self.advance(began + time)
            name = f"{client}.{self.rounds}"
            dispatch = Dispatch.__new__(Dispatch)
            dispatch.name, dispatch.size_up = name, size
            self.sum.weigh([dispatch])
            self.sum.add(name)
        self.rounds += 1
        summed = self.sum.close(whole=whole)
        return summed, self.queue.now - began


def lifl(machine=UNIT, **how):
    return Lifl(machine=machine, **how)


# ---- leaves, middles, tops -----------------------------------------------------------------------


def test_one_leaf_adds_eagerly_or_at_the_end():
    arrivals = [(0.0, 0), (10.0, 1), (12.0, 2)]
    tree, end = Rig(lifl(leaf_updates=3)).round(arrivals)
    assert (tree.tree, end) == (("0.0", "1.0", "2.0"), 18.0)  # 10 + 4, + 4
    _, lazy = Rig(lifl(leaf_updates=3, eager=False)).round(arrivals)
    assert lazy == 12.0 + 3 * 4.0


def test_a_node_of_two_leaves_has_a_middle():
    arrivals = [(0.0, 0), (0.0, 1), (0.0, 2), (0.0, 3)]
    rig = Rig(lifl(**PLAIN))
    summed, end = rig.round(arrivals)
    assert summed.tree == (("0.0", "1.0"), ("2.0", "3.0"))
    assert end == 2 * 4.0 + 2 * 4.0  # leaves at once, then the middle adds both
    assert rig.sum.processes.cold_starts == 3
    assert rig.sum.bytes_within == 2 * 4
    reusing = Rig(lifl(planned=False))
    _, end = reusing.round(arrivals)
    assert end == 2 * 4.0 + 4.0  # the first leaf keeps its sum, and adds the other's
    assert (reusing.sum.processes.cold_starts, reusing.sum.bytes_within) == (2, 4)


def test_sums_of_nodes_cross_the_link_of_the_top_one_after_the_other():
    machine = replace(FREE, nic_bps=8.0, nic_latency_s=0.5, encode_s_per_byte=0.25)
    rig = Rig(lifl(machine, nodes=3, node_updates=1, planned=False))
    # Each payload is decoded in 1 s. The first node's sum is there at 1 s and is the top's; the
    # others are encoded by 2 s, cross in 4 s each, and are decoded: 2 + 4 + 4 + 0.5 + 1.
    summed, end = rig.round([(0.0, 0), (0.0, 1), (0.0, 2)])
    assert summed.tree == (("0.0",), ("1.0",), ("2.0",))
    assert end == 11.5
    assert rig.sum.bytes_between == 2 * 4
    rows = [v for v, kind in zip(rig.trace.value, rig.trace.kinds, strict=True) if kind == 47]
    assert rows == [6.5, 10.5]


def test_one_node_has_no_bytes_between_aggregators():
    arrivals = [(float(i), i) for i in range(20)]
    machine = replace(UNIT, nic_bps=1.0)
    one = Rig(lifl(machine, node_updates=20))
    one.round(arrivals)
    assert (one.sum.bytes_between, one.sum.report()["machines_used"]) == (0, 1.0)
    spread = Rig(lifl(machine, node_updates=20, locality=False))
    spread.round(arrivals)
    assert (spread.sum.bytes_between, spread.sum.report()["machines_used"]) == (4 * 4, 5.0)
    alone = Rig(lifl(machine, nodes=1, node_updates=1))  # more than it should take
    alone.round(arrivals)
    assert alone.sum.bytes_between == 0


def test_best_fit_fills_the_fewest_nodes():
    rig = lifl(nodes=4, node_updates=3)
    assigned = [0] * 4
    places = []
    for client in range(13):
        where = rig.place(client, assigned)
        assigned[where] += 1
        places.append(where)
    assert places == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0]  # the last is too many
    spread = replace(rig, locality=False)
    assert [spread.place(0, [i, 0, 0, 0]) for i in (0, 1)] == [0, 1]


def test_what_is_large_enough_needs_one_aggregator():
    rig = Rig(lifl(leaf_updates=50, **PLAIN))
    rig.round([(0.0, i) for i in range(20)])
    assert rig.sum.processes.cold_starts == 1


def test_shared_memory_saves_copies_and_encoding():
    machine = replace(FREE, encode_s_per_byte=0.25, copy_s_per_byte=0.5, hop_s=1.0)
    arrivals = [(0.0, i) for i in range(4)]
    # In: decoded, 1 s, and handed on, 1 s. Up: handed on.
    rig = Rig(lifl(machine, **PLAIN))
    _, end = rig.round(arrivals)
    assert end == 2.0 + 1.0
    assert rig.sum.moving_s == 4 * 1.0
    # A broker: two copies of 2 s more on each way, and a sum is encoded and decoded.
    rig = Rig(lifl(machine, shared_memory=False, **PLAIN))
    _, end = rig.round(arrivals)
    assert end == (2.0 + 4.0) + (1.0 + 4.0 + 2.0)
    assert rig.sum.moving_s == 4 * 5.0 + 2 * 6.0


# ---- processes -----------------------------------------------------------------------------------


def test_processes_that_live_for_ever_start_cold_in_the_first_round_only():
    machine = replace(UNIT, cold_s=3.0, warm_s=1.0)
    for how in ({}, PLAIN):
        rig = Rig(lifl(machine, **how))
        ends, starts = [], []
        for _ in range(3):
            _, end = rig.round([(0.0, i) for i in range(30)])
            ends.append(end)
            starts.append(rig.sum.processes.cold_starts)
        assert starts[0] == starts[1] == starts[2] > 0
        assert ends[0] > ends[1] == ends[2]


def test_processes_that_end_at_once_start_cold_always():
    machine = replace(UNIT, cold_s=3.0, keep_alive_s=0.0)
    rig = Rig(lifl(machine, leaf_updates=2, planned=False))
    for expected in (1, 2):
        rig.round([(0.0, 0), (0.0, 1)])
        rig.advance(rig.queue.now + 1.0)
        assert rig.sum.processes.cold_starts == expected


def test_a_plan_starts_what_the_last_rounds_needed():
    machine = replace(UNIT, cold_s=3.0, keep_alive_s=0.5)
    late = [(10.0, i) for i in range(4)]
    ends = {}
    for planned in (False, True):
        rig = Rig(lifl(machine, planned=planned))
        for _ in range(2):
            _, ends[planned] = rig.round(late)
            rig.advance(rig.queue.now + 5.0)  # all have ended
        assert rig.sum.processes.cold_starts == 4
    # Of the second round: without a plan leaves start at 10, with it they are there.
    assert (ends[False], ends[True]) == (10 + 3 + 8 + 4, 10 + 8 + 4)


def test_an_aggregator_that_is_done_takes_another_part():
    machine = replace(UNIT, cold_s=3.0)
    arrivals = [(0.0, 0), (0.0, 1), (0.0, 2), (0.0, 3), (40.0, 4), (40.0, 5)]
    rig = Rig(lifl(machine, planned=False))
    rig.round(arrivals)
    assert (rig.sum.processes.cold_starts, rig.sum.processes.warm_starts) == (2, 1)
    rig = Rig(lifl(machine, **PLAIN))
    rig.round(arrivals)
    assert (rig.sum.processes.cold_starts, rig.sum.processes.warm_starts) == (
        3,
        1,
    )  # leaves may be leaves again


def test_without_reuse_a_middle_is_no_leaf():
    rig = Rig(lifl(replace(UNIT, cold_s=3.0, idle_w=1.0), **PLAIN))
    _, end = rig.round([(0.0, i) for i in range(4)])  # two leaves and a middle
    assert rig.sum.energy_j == end  # of one machine, however many are alive on it
    _, end = rig.round([(0.0, i) for i in range(6)])
    # The third leaf is new: it is done at 3 + 8, when the middle has all but added the others'.
    assert end == 8 + 3 * 4
    assert rig.sum.processes.cold_starts == 4


def test_cpu_and_joules_are_those_of_work_and_waiting():
    machine = replace(UNIT, cold_s=3.0, keep_alive_s=10.0, idle_cpu=0.5, idle_w=2.0, work_w=5.0)
    rig = Rig(lifl(machine, leaf_updates=2, planned=False))
    _, end = rig.round([(0.0, 0), (6.0, 1)])  # starts by 3, adds to 7, and to 11
    assert end == 11.0
    rig.advance(50.0)
    report = rig.sum.report()
    assert report["busy_s"] == 3.0 + 8.0
    assert report["waiting_s"] == 10.0  # alive for 21 s
    assert report["cpu_s"] == 11.0 + 0.5 * 10.0
    assert report["energy_j"] == 2.0 * 21.0 + 5.0 * 11.0
    assert report["completion_s"] == 11.0 - 6.0
    rig.round([(0.0, 0)])  # another process, as the first has ended
    assert rig.sum.processes.cold_starts == 2
    assert rig.sum.processes.on_s == pytest.approx(21.0 + 7.0)


# ---- eager and lazy ------------------------------------------------------------------------------


@for_each("seed", range(30))
def test_eager_has_the_same_sum_and_is_never_later(seed):
    rng = np.random.default_rng(seed)
    how = {
        "nodes": int(rng.integers(1, 5)),
        "node_updates": int(rng.integers(1, 6)),
        "leaf_updates": int(rng.integers(1, 5)),
        "shared_memory": bool(rng.integers(2)),
        "locality": bool(rng.integers(2)),
        "planned": bool(rng.integers(2)),
        "reuse": bool(rng.integers(2)),
    }
    machine = replace(
        UNIT,
        add_s_per_byte=float(rng.choice([0.0, 0.3, 1.0])),
        encode_s_per_byte=float(rng.choice([0.0, 0.2])),
        nic_bps=float(rng.choice([1.0, 8.0, math.inf])),
        cold_s=float(rng.choice([0.0, 5.0])),
        hop_s=0.1,
    )
    arrivals = [(float(rng.choice([0.0, rng.uniform(0, 40)])), i) for i in range(16)]
    eager, lazy = Rig(lifl(machine, **how)), Rig(lifl(machine, eager=False, **how))
    for _ in range(2):
        (one, early), (other, late) = eager.round(arrivals), lazy.round(arrivals)
        assert early <= late + 1e-9
        assert sorted(leaves_of((one.tree,))) == sorted(leaves_of((other.tree,)))
        assert len(leaves_of((one.tree,))) == 16  # each once
        lazy.advance(lazy.queue.now + 1.0)


# ---- edge servers --------------------------------------------------------------------------------


def test_edge_servers_add_their_clients_and_the_cloud_adds_them():
    machine = replace(UNIT, nic_bps=8.0, nic_latency_s=0.5)
    rig = Rig(Edge(machine=machine, edges=2), server_down_bps=4.0, server_latency_s=0.25)
    summed, end = rig.round([(0.0, 0), (0.0, 1), (0.0, 2), (1.0, 4)])
    assert summed.tree == (("1.0",), ("0.0", "2.0", "4.0"))
    # Edge 1 is done at 4 s, its sum takes 32 bits / 4 bit/s and 0.75 s, and 4 s to add: 16.75.
    # That of edge 0 is done at 12, begins to cross then, and is there at 20.75.
    assert end == 20.75 + 4.0
    assert rig.sum.bytes_between == 2 * 4
    summed, end = rig.round([(0.0, 0), (0.0, 1)], whole=False)
    assert (summed.tree, end) == ((("0.1",), ("1.1",)), 4.0)
    assert rig.sum.bytes_between == 2 * 4
    assert rig.sum.processes.cold_starts == 0


def test_edge_servers_are_alive_all_the_time():
    machine = replace(UNIT, idle_w=2.0, work_w=1.0)
    rig = Rig(Edge(machine=machine, edges=3))
    rig.round([(0.0, 0), (0.0, 1)])
    rig.advance(100.0)
    # 3 edge servers and the cloud; 2 updates and 2 sums were added.
    assert rig.sum.energy_j == 2.0 * 4 * 100.0 + 1.0 * 4 * 4.0


def test_clients_exchange_with_their_edge_server_over_its_link():
    edge = Edge(machine=UNIT, edges=2, up_bps=100.0, down_bps=200.0, latency_s=0.5)
    fleet = edge.attached(uniform(5, 0, server_up_bps=1.0, server_latency_s=9.0))
    assert [fleet.routes.to(i).links for i in range(5)] == [(0,), (2,), (0,), (2,), (0,)]
    assert [fleet.routes.capacity_bps[k] for k in range(4)] == [200.0, 100.0, 200.0, 100.0]
    assert fleet.latency_s(0) == 0.5
    with pytest.raises(ConfigError, match="edges is 2, and there are 1 clients"):
        edge.attached(uniform(1, 0))
    with pytest.raises(ConfigError, match="network is Cells"):
        edge.attached(replace(uniform(2, 0), network=Cells()))


# ---- failures ------------------------------------------------------------------------------------


def test_an_aggregator_that_dies_takes_its_part_with_it():
    rig = Rig(lifl(failure=0.3, on_failure="lost", **PLAIN))
    lost = kept = 0
    for _ in range(40):
        summed, _ = rig.round([(0.0, i) for i in range(8)])
        names = leaves_of((summed.tree,))
        assert not {*names} & {*summed.lost}
        assert len(names) + len(summed.lost) == 8
        lost, kept = lost + len(summed.lost), kept + len(names)
    assert lost > 0
    assert kept > 0
    report = rig.sum.report()
    failed = rig.trace.kind == E.AGGREGATOR_FAILED
    assert report["lost_updates"] == lost == rig.trace.value[failed].sum()
    assert report["failures"] == failed.sum() == rig.trace.faults()["aggregator_failed"]


@pytest.mark.parametrize("hierarchy", [lifl, Edge])
def test_a_part_is_done_again_and_nothing_is_lost(hierarchy):
    machine = replace(UNIT, cold_s=3.0)
    how = {} if hierarchy is Edge else PLAIN
    late = Rig(hierarchy(machine=machine, failure=0.5, detection_s=2.0, **how))
    sound = Rig(hierarchy(machine=machine, **how))
    behind = []
    for _ in range(20):
        arrivals = [(0.0, i) for i in range(8)]
        (summed, end), (other, usual) = late.round(arrivals), sound.round(arrivals)
        assert not summed.lost
        assert sorted(leaves_of((summed.tree,))) == sorted(leaves_of((other.tree,)))
        behind.append(end - usual)
    assert min(behind) >= 0
    assert max(behind) > 2.0 + 3.0
    assert late.sum.failures > 10


def test_one_that_dies_once_costs_detection_a_start_and_its_work():
    machine = replace(UNIT, cold_s=3.0)
    hierarchy = lifl(machine, failure=0.5, detection_s=2.0, planned=False)
    for seed in range(20):  # until exactly one dies
        rig = Rig(hierarchy, seed=seed)
        _, end = rig.round([(0.0, 0), (0.0, 1)])
        if rig.sum.failures == 1:
            break
    assert end == (3.0 + 8.0) + 2.0 + (3.0 + 8.0)


def test_a_round_whose_whole_sum_is_lost_ends():
    rig = Rig(lifl(failure=0.999, on_failure="lost", **PLAIN))
    summed, _ = rig.round([(0.0, i) for i in range(30)])
    assert (summed.tree, len(summed.lost)) == ((), 30)


def test_rounds_are_opened_and_closed():
    rig = Rig(lifl())
    with pytest.raises(SimulationError, match="no round"):
        rig.sum.add("0.0")
    summed, end = rig.round([])
    assert (summed.tree, end) == ((), 0.0)
    with pytest.raises(SimulationError, match="no round"):
        rig.sum.close()


def test_more_nodes_than_clients_are_refused():
    assert Lifl(machine=UNIT, nodes=4).attached(uniform(4, 0)).network is None
    with pytest.raises(ConfigError, match="nodes is 5, and there are 4 clients: it must be at m"):
        Lifl(machine=UNIT, nodes=5).attached(uniform(4, 0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"failure": 1.0}, "failure is 1.0"),
        ({"on_failure": "again"}, "on_failure is 'again'; it must be one of lost, retry"),
        ({"eager": 1}, "eager is 1"),
        ({"nodes": 0}, "nodes is 0"),
        ({"leaf_updates": 0}, "leaf_updates is 0"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"detection_s": -1.0}, "detection_s is -1.0"),
        ({"machine": 3}, "machine is 3"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Lifl(**{"machine": UNIT, **wrong})
    if "cold_s" not in wrong:
        with pytest.raises(ConfigError, match=r"warm_s is 2\.0, and cold_s 1\.0"):
            replace(UNIT, cold_s=1.0, warm_s=2.0)
