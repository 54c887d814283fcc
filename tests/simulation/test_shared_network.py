"""Links shared along routes: max-min fairness, closed forms, and SimGrid's ends of flows."""

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.errors import ConfigError, SimulationError
from fl.simulation.kernel.max_min import Demand, max_min
from fl.simulation.kernel.shared_link import SharedLink
from fl.simulation.kernel.shared_network import SharedNetwork
from fl.simulation.world.networks.platform import PlatformReader

ROUNDING = 1e-7
SIMGRID = json.loads((Path(__file__).parent / "simgrid_flows.json").read_text("utf-8"))

CAPACITY = st.sampled_from([1.0, 3.0, 10.0, 700.0])
FLOWS = st.lists(
    st.tuples(
        st.sets(st.integers(0, 4), max_size=4),
        st.sampled_from([0.1, 2.0, 5.0, math.inf]),
        st.sampled_from([1.0, 1.0, 0.25, 8.0]),
    ),
    min_size=1,
    max_size=12,
)


def demands_of(flows):
    return [Demand(tuple(sorted(route)), cap if route else 2.0, w) for route, cap, w in flows]


def loads(demands, rates, links):
    return [sum(r for d, r in zip(demands, rates, strict=True) if k in d.route) for k in links]


@given(FLOWS, st.lists(CAPACITY, min_size=5, max_size=5))
def test_every_flow_is_at_its_cap_or_has_a_bottleneck_and_no_link_is_overloaded(flows, capacity):
    demands = demands_of(flows)
    rates = max_min(demands, dict(enumerate(capacity)))
    load = loads(demands, rates, range(5))
    assert all(a <= b * (1 + ROUNDING) for a, b in zip(load, capacity, strict=True))
    levels = [rate / demand.weight for demand, rate in zip(demands, rates, strict=True)]
    for demand, rate, level in zip(demands, rates, levels, strict=True):
        assert 0 < rate <= demand.cap_bps * (1 + ROUNDING)
        bottlenecks = [
            k
            for k in demand.route
            if load[k] >= capacity[k] * (1 - ROUNDING)
            and all(
                level >= other * (1 - ROUNDING)
                for other, d in zip(levels, demands, strict=True)
                if k in d.route
            )
        ]
        assert bottlenecks or rate >= demand.cap_bps * (1 - ROUNDING)


@given(FLOWS, st.lists(CAPACITY, min_size=5, max_size=5))
def test_rates_do_not_depend_on_the_order_of_the_flows(flows, capacity):
    demands = demands_of(flows)
    rates = max_min(demands, dict(enumerate(capacity)))
    backwards = max_min(demands[::-1], dict(enumerate(capacity)))
    assert backwards[::-1] == pytest.approx(rates, rel=1e-12)


def test_a_flow_on_no_link_that_nothing_bounds_is_infinitely_fast():
    assert max_min([Demand((), math.inf), Demand((), 3.0)], {}) == [math.inf, 3.0]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "cap", "capacity", "wait", "end"]),
        st.sets(st.integers(0, 4), max_size=3),
        st.sampled_from([0.1, 2.0, 5.0, 60.0]),
        st.sampled_from([1.0, 0.25, 8.0]),
        st.integers(0, 10**6),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(CHANGES, st.lists(CAPACITY, min_size=5, max_size=5))
def test_after_any_change_rates_are_those_found_from_nothing(changes, capacity):
    capacity = list(capacity)
    network, flows, now = SharedNetwork(list(capacity)), {}, 0.0
    for number, (what, route, x, weight, which) in enumerate(changes):
        chosen = sorted(flows)[which % len(flows)] if flows else None
        if what == "add" or chosen is None:
            flows[number] = Demand(tuple(sorted(route)), x, weight)
            network.add(now, number, 1.0 + which % 97, x, flows[number].route, weight)
        elif what == "remove":
            network.remove(now, chosen)
            del flows[chosen]
        elif what == "cap":
            network.set_cap(now, chosen, x)
            flows[chosen] = flows[chosen]._replace(cap_bps=x)
        elif what == "capacity":
            capacity[which % 5] = x
            network.set_capacity(now, which % 5, x)
        elif what == "wait":
            now += (network.next_completion() - now) * 0.5
        else:
            now = network.next_completion()
            for flow in network.pop_completed(now):
                del flows[flow]
        rates = max_min(list(flows.values()), dict(enumerate(capacity)))
        assert [network.rate_bps(flow) for flow in flows] == pytest.approx(rates, rel=ROUNDING)
    assert len(network) == len(flows)


def drained(network):
    """Returns when each flow ends, as the caller of the network sees it."""
    ends = {}
    while math.isfinite(now := network.next_completion()):
        done = network.pop_completed(now)
        assert done
        ends.update(dict.fromkeys(done, now))
    return ends


@pytest.mark.parametrize("seed", range(4))
def test_one_link_ends_flows_when_the_link_by_itself_does(seed):
    rng = np.random.default_rng(seed)
    link, network = SharedLink(100.0), SharedNetwork([100.0])
    for flow in range(60):
        size, cap = float(rng.integers(1, 500)), float(rng.choice([2.0, 5.0, 9.0, math.inf]))
        link.add(0.0, flow, size, cap)
        network.add(0.0, flow, size, cap, (0,))
    for _ in range(60):
        at = link.next_completion()
        assert network.next_completion() == pytest.approx(at, rel=1e-9)
        assert link.pop_completed(at) == network.pop_completed(network.next_completion())
        if not len(link):
            break
    assert not len(link)
    assert not len(network)


def test_dumbbell():
    """Three pairs over a link of 9: the slow one has its 1, the others half of what is left."""
    network = SharedNetwork([9.0, 1.0, 100.0, 100.0])
    for flow in range(3):
        network.add(0.0, flow, 80.0, math.inf, (1 + flow, 0))
    assert [network.rate_bps(flow) for flow in range(3)] == [1.0, 4.0, 4.0]
    # The two end at 20, when the first has 60 left, which its own link takes 60 for.
    assert drained(network) == {0: 80.0, 1: 20.0, 2: 20.0}


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_parking_lot(hops):
    """One flow over all links, and one over each: all have half, and it is there last."""
    network = SharedNetwork([10.0] * hops)
    network.add(0.0, 0, 100.0, math.inf, tuple(range(hops)))
    for link in range(hops):
        network.add(0.0, 1 + link, 50.0, math.inf, (link,))
    assert [network.rate_bps(flow) for flow in range(hops + 1)] == [5.0] * (hops + 1)
    assert drained(network) == {0: 15.0} | {1 + link: 10.0 for link in range(hops)}


def test_a_flow_that_ends_changes_the_rates_of_flows_that_share_no_link_with_it():
    # 0 and 1 share a, 1 and 2 share b: when 0 ends, 1 takes what it left, and 2 loses.
    network = SharedNetwork([2.0, 10.0])
    network.add(0.0, 0, 2.0, math.inf, (0,))
    network.add(0.0, 1, 100.0, math.inf, (0, 1))
    network.add(0.0, 2, 100.0, math.inf, (1,))
    assert [network.rate_bps(flow) for flow in range(3)] == [1.0, 1.0, 9.0]
    assert network.pop_completed(2.0) == [0]
    assert [network.rate_bps(flow) for flow in (1, 2)] == [2.0, 8.0]


def test_ends_do_not_depend_on_the_order_in_which_flows_came_at_one_instant():
    flows = [(30.0, (0, 1)), (20.0, (1, 2)), (10.0, (0,)), (25.0, (2,))]
    found = []
    for order in permutations(range(4)):
        network = SharedNetwork([3.0, 5.0, 7.0])
        for flow in order:
            network.add(0.0, flow, flows[flow][0], math.inf, flows[flow][1])
        found.append(drained(network))
    assert all(ends == pytest.approx(found[0], rel=1e-12) for ends in found)


def test_what_flows_carry_is_conserved():
    network, sizes, left = SharedNetwork([10.0, 4.0]), {0: 40.0, 1: 30.0, 2: 50.0}, {}
    for flow, route in ((0, (0,)), (1, (0, 1)), (2, (1,))):
        network.add(0.0, flow, sizes[flow], math.inf, route)
    rates = {flow: network.rate_bps(flow) for flow in sizes}
    for flow in sizes:
        left[flow] = network.remove(3.0, flow)
    assert left == {flow: sizes[flow] - 3.0 * rates[flow] for flow in sizes}


def test_what_cannot_be_is_refused():
    network = SharedNetwork([1.0])
    network.add(0.0, 0, 5.0, math.inf, (0,))
    with pytest.raises(SimulationError, match="flow 0"):
        network.add(0.0, 0, 5.0, 1.0, (0,))
    with pytest.raises(ConfigError, match=r"cap_bps 0\.0"):
        network.add(0.0, 1, 5.0, 0.0, (0,))
    with pytest.raises(ConfigError, match="size_bits -1"):
        network.add(0.0, 1, -1.0, 1.0, (0,))
    with pytest.raises(SimulationError, match="flow 7"):
        network.remove(0.0, 7)
    with pytest.raises(SimulationError, match="pop_completed"):
        network.set_cap(6.0, 0, 1.0)


@pytest.mark.parametrize("scenario", SIMGRID["scenarios"], ids=lambda scenario: scenario["name"])
def test_flows_end_when_simgrid_says(scenario):
    """Recorded from SimGrid 3.32 by benchmarks/fidelity/flows.py --record.

    The platform is read from the same XML; flows wait for the latency of their route, and then have
    shares of full links by 1 / latency, and at most window / (2 latency).
    """
    platform = PlatformReader(scenario["platform"], 1.0, 1.0).read()
    network = SharedNetwork(
        [b for cable in platform.cables for b in (cable.down_bps, cable.up_bps)]
    )
    coming = []
    for flow, (source, target, size, start) in enumerate(scenario["flows"]):
        hops = platform.route(source, target)
        crossed = [platform.cables[hop // 2] for hop in hops]
        delay = sum(cable.latency_s for cable in crossed)
        cap = min((c.down_bps for c in crossed if c.sharing == "each"), default=math.inf)
        if delay and scenario["window_bytes"]:
            cap = min(cap, 8 * scenario["window_bytes"] / (2 * delay))
        links = [
            hop - hop % 2 if cable.sharing == "both" else hop
            for hop, cable in zip(hops, crossed, strict=True)
            if cable.sharing != "each"
        ]
        coming.append((start + delay, flow, 8.0 * size, cap, links, 1 / delay if delay else 1.0))
    coming.sort()
    ends = {}
    while coming or len(network):
        now = network.next_completion()
        if coming and coming[0][0] < now:
            network.add(*coming.pop(0))
            continue
        ends.update(dict.fromkeys(network.pop_completed(now), now))
    assert [ends[flow] for flow in range(len(ends))] == pytest.approx(scenario["ends"], rel=1e-9)
