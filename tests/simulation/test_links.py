"""Links: the server's shared link against a brute-force fluid model, caps, and TCP under loss."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl.errors import ConfigError, SimulationError
from fl.simulation.kernel import water_filling
from fl.simulation.kernel.links import (
    FLOOR_FRACTION,
    Links,
    PeerLinks,
    ServerLink,
    mathis_bps,
)
from fl.simulation.kernel.shared_link import SharedLink

# ---- a brute-force reference ---------------------------------------------------------------------


def water_fill(caps, capacity):
    """Max-min fair rates by progressive filling: fix whoever is below an equal share, repeat."""
    caps = np.minimum(np.asarray(caps, dtype=float), capacity)
    rates = np.zeros(len(caps))
    open_ = np.ones(len(caps), dtype=bool)
    left = capacity
    while open_.any():
        share = left / open_.sum()
        below = open_ & (caps <= share)
        if not below.any():
            rates[open_] = share
            break
        rates[below] = caps[below]
        left = max(left - caps[below].sum(), 0.0)
        open_ &= ~below
    return rates


class FluidReference:
    """Recomputes every rate at every event, and moves every flow."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.now = 0.0
        self.left = {}
        self.caps = {}
        self.ended = []  # (time, flow)

    def advance(self, now):
        while self.left:
            flows = list(self.left)
            rates = water_fill([self.caps[f] for f in flows], self.capacity)
            left = np.array([self.left[f] for f in flows])
            with np.errstate(invalid="ignore"):
                times = np.where(left == 0, 0.0, left / rates)
            step = min(times.min(), now - self.now)
            ends = times <= step * (1 + 1e-12)
            for flow, rest, end in zip(flows, left - rates * step, ends, strict=True):
                self.left[flow] = rest
                if end:
                    del self.left[flow], self.caps[flow]
                    self.ended.append((self.now + step, flow))
            self.now += step
            if not ends.any():
                break
        self.now = now


def drain(link, until, ended):
    """Does what the event queue does: pops at every announced completion up to `until`."""
    while (at := link.next_completion()) <= until:
        done = link.pop_completed(at)
        assert done, "an announced completion pops at least one flow"
        ended += [(at, flow) for flow in done]


def assert_same_ends(ended, expected):
    times = dict((flow, at) for at, flow in ended)
    reference = dict((flow, at) for at, flow in expected)
    assert times.keys() == reference.keys()
    for flow, at in times.items():
        assert at == pytest.approx(reference[flow], rel=1e-9, abs=1e-12)


CAPS = st.one_of(
    st.sampled_from([1.0, 2.0, 2.0, 5.0, math.inf]),
    st.floats(0.01, 100.0),
    st.floats(1.999999, 2.000001),
)
STEPS = st.tuples(
    st.floats(0.0, 3.0),  # time since the step before
    st.sampled_from(["add", "add", "add", "remove", "cap", "cap"]),
    st.floats(0.001, 50.0),  # size
    CAPS,
    st.integers(0, 10**6),  # which flow in flight
)


@settings(max_examples=400)
@given(st.sampled_from([0.5, 3.0, 10.0, 40.0, 1e9, math.inf]), st.lists(STEPS, max_size=40))
def test_rates_and_ends_agree_with_progressive_filling(capacity, steps):
    link, reference = SharedLink(capacity), FluidReference(capacity)
    now, ended = 0.0, []
    for flow, (wait, what, size, cap, pick) in enumerate(steps):
        now += wait
        drain(link, now, ended)
        reference.advance(now)
        assert_same_ends(ended, reference.ended)
        flying = sorted(reference.left)
        if what == "add" or not flying:
            cap = min(cap, 1e6)  # a flow without any limit has no rate to compare
            link.add(now, flow, size, cap)
            reference.left[flow], reference.caps[flow] = size, cap
        elif what == "remove":
            gone = flying[pick % len(flying)]
            rest = link.remove(now, gone)
            assert rest == pytest.approx(reference.left.pop(gone), rel=1e-9, abs=1e-9)
            del reference.caps[gone]
        else:
            changed = flying[pick % len(flying)]
            cap = min(cap, 1e6)
            link.set_cap(now, changed, cap)
            reference.caps[changed] = cap
        assert len(link) == len(reference.left)
        assert link.next_completion() >= now
        flows = list(reference.left)
        rates = water_fill([reference.caps[f] for f in flows], capacity)
        assert [link.rate_bps(f) for f in flows] == pytest.approx(list(rates), rel=1e-12)
    drain(link, now + 1e9, ended)
    reference.advance(now + 1e9)
    assert_same_ends(ended, reference.ended)
    assert len(link) == 0
    assert link.next_completion() == math.inf


@pytest.mark.parametrize(("seed", "near"), [(0, 64), (1, 1), (2, 2), (3, 1), (4, 64)])
def test_many_flows_with_lognormal_caps_agree_with_progressive_filling(seed, near, monkeypatch):
    monkeypatch.setattr(water_filling, "_NEAR", near)  # groups of caps that come to the level
    monkeypatch.setattr(water_filling, "_MOST_NEAR", 2 * near)
    rng = np.random.default_rng(seed)
    link, reference = SharedLink(100.0), FluidReference(100.0)
    arrivals = np.cumsum(rng.exponential(0.05, size=200))
    caps = rng.lognormal(0.0, rng.choice([0.01, 0.3, 2.0]), size=200)
    ended = []
    for flow, (at, cap) in enumerate(zip(arrivals, caps, strict=True)):
        drain(link, at, ended)
        reference.advance(at)
        size = rng.exponential(20.0)
        link.add(at, flow, size, cap)
        reference.left[flow], reference.caps[flow] = size, cap
    drain(link, 1e9, ended)
    reference.advance(1e9)
    assert_same_ends(ended, reference.ended)


@pytest.mark.parametrize(("sigma", "load"), [(0.001, 1.001), (0.02, 1.01), (0.5, 1.2), (0.1, 0.98)])
def test_rates_are_right_however_many_flows_came_and_went(sigma, load):
    rng = np.random.default_rng(1)
    link, flying, flow, now = SharedLink(1e6), {}, 0, 0.0
    for _ in range(300):
        while len(flying) < 40:
            flying[flow] = load * 25e3 * rng.lognormal(-(sigma**2) / 2, sigma)
            link.add(now, flow, rng.uniform(1e4, 1e5), flying[flow])
            flow += 1
        now = link.next_completion()
        gone = link.pop_completed(now)
        assert gone
        for ended in gone:
            del flying[ended]
        rates = [link.rate_bps(f) for f in flying]
        assert rates == pytest.approx(list(water_fill(list(flying.values()), 1e6)), rel=1e-12)


# ---- closed forms and ties -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_n_equal_flows_take_n_times_as_long_and_end_together(n):
    link = SharedLink(3e6)
    for flow in reversed(range(n)):
        link.add(1.5, flow, 1e6, 1e9)
    at = link.next_completion()
    assert at == pytest.approx(1.5 + n / 3)
    assert link.pop_completed(at) == list(range(n))
    assert link.next_completion() == math.inf


def test_flows_held_down_together_end_together_whatever_their_caps():
    link = SharedLink(1e6)
    for flow in range(50):
        link.add(0.1, flow, 1e6, 0.9e6 - 1e3 * flow)
    at = link.next_completion()
    assert at == pytest.approx(50.1)
    assert link.pop_completed(at) == list(range(50))


def test_without_limit_a_flow_ends_exactly_at_start_plus_size_over_cap():
    link = SharedLink(math.inf)
    link.add(0.1, 4, 3e6, 0.7e6)
    link.add(0.2, 2, 1e6, math.inf)
    assert link.next_completion() == 0.2
    assert link.pop_completed(0.2) == [2]
    assert link.next_completion() == 0.1 + 3e6 / 0.7e6
    assert link.rate_bps(4) == 0.7e6


@pytest.mark.parametrize("capacity", [1e6, math.inf])
def test_an_empty_flow_ends_at_once(capacity):
    link = SharedLink(capacity)
    link.add(7.0, 1, 5e6, 1e6)
    link.add(7.0, 0, 0.0, 1e6)
    assert link.next_completion() == 7.0
    assert link.pop_completed(7.0) == [0]


@pytest.mark.parametrize("capacity", [1e6, math.inf])
def test_ends_of_one_instant_come_in_order_of_flow_number(capacity):
    link = SharedLink(capacity)
    for flow, cap in ((9, 1e3), (3, 2e3), (5, 3e3)):
        link.add(0.0, flow, 2.5 * cap, cap)
    link.add(0.0, 1, 4e3, 1e3)
    assert link.pop_completed(link.next_completion()) == [3, 5, 9]
    assert link.pop_completed(4.0) == [1]


def test_pop_after_several_ends_returns_them_in_order_of_time():
    link = SharedLink(2.0)
    link.add(0.0, 1, 3.0, 9.0)
    link.add(0.0, 2, 1.0, 9.0)  # at rate 1 until t = 1
    assert link.pop_completed(2.0) == [2, 1]  # then 2 bits are left at rate 2


def test_a_slow_flow_leaves_its_share_to_the_others():
    link = SharedLink(10.0)
    link.add(0.0, 0, 100.0, 1.0)
    link.add(0.0, 1, 45.0, math.inf)
    link.add(0.0, 2, 90.0, math.inf)
    assert [link.rate_bps(flow) for flow in (0, 1, 2)] == [1.0, 4.5, 4.5]
    assert link.next_completion() == pytest.approx(10.0)
    assert link.pop_completed(link.next_completion()) == [1]
    assert [link.rate_bps(flow) for flow in (0, 2)] == [1.0, 9.0]
    assert link.next_completion() == pytest.approx(15.0)
    assert link.remove(12.0, 2) == pytest.approx(27.0)


def test_a_new_cap_holds_for_the_rest_of_the_flow():
    for capacity in (1e9, math.inf):
        link = SharedLink(capacity)
        link.add(0.0, 0, 10.0, 1.0)
        link.set_cap(4.0, 0, 3.0)
        assert link.next_completion() == pytest.approx(6.0)
        link.set_cap(5.0, 0, math.inf)
        assert link.next_completion() == pytest.approx(5.0, abs=1e-8)


@pytest.mark.parametrize("asked", [False, True])
def test_a_flow_whose_cap_the_level_crosses_again_and_again_ends_when_it_has_its_bits(asked):
    # Beside another flow it gets 5 bit/s, alone 6: 11 bits in 2 s, so 5 of the 60 are left at 10 s.
    link, ended = SharedLink(10.0), []
    link.add(0.0, 0, 60.0, 6.0)
    for k in range(6):
        link.add(2.0 * k, k + 1, 5.0, math.inf)
        if asked:
            assert link.next_completion() == 2 * k + 1
        ended += link.pop_completed(2.0 * k + 1)
        if asked and k < 5:
            assert link.next_completion() == pytest.approx(2 * k + 1 + (54 - 11 * k + 1) / 6)
    assert ended == [1, 2, 3, 4, 5, 0, 6]
    assert link.next_completion() == math.inf


def test_flows_that_were_held_end_at_their_own_pace_once_nothing_is_held():
    link = SharedLink(10.0)
    link.add(0.0, 0, 40.0, 4.0)
    link.add(0.0, 1, 90.0, 6.0)
    link.add(0.0, 2, 30.0, math.inf)  # 10 / 3 bit/s each until t = 3
    link.set_cap(3.0, 2, 1e-3)
    link.remove(3.0, 2)
    assert [link.rate_bps(flow) for flow in (0, 1)] == [4.0, 6.0]
    assert link.next_completion() == pytest.approx(3 + 30 / 4)
    assert link.pop_completed(link.next_completion()) == [0]
    assert link.next_completion() == pytest.approx(3 + 80 / 6)


def test_the_level_keeps_no_trace_of_flows_that_came_and_went():
    rng = np.random.default_rng(0)
    link = SharedLink(1e9)
    link.add(0.0, 0, 1e15, math.inf)
    link.add(0.0, 1, 1e15, 0.1)
    fresh = link.rate_bps(0)
    for flow in range(2, 2000):
        link.add(float(flow), flow, 1e15, float(rng.lognormal(10, 3)))
    for flow in range(2, 2000):
        link.remove(2000.0 + flow, flow)
    assert link.rate_bps(0) == fresh == 1e9 - 0.1


def test_rounding_schedules_no_chain_of_events():
    # Much volume and a slow level: the end of a flow is finer than the volume can tell.
    link = SharedLink(1e12)
    link.add(0.0, 0, 1e18, math.inf)
    now = 999_999.9
    assert link.next_completion() > now
    for flow in range(1, 2000):
        link.add(now, flow, 0.1 * flow, 1e12)
    pops = 0
    while link.next_completion() < math.inf:
        at = link.next_completion()
        assert at >= now
        now = at
        link.pop_completed(now)
        pops += 1
    assert len(link) == 0
    assert pops <= 2000


def test_another_call_at_the_instant_of_an_end_does_not_lose_it():
    link = SharedLink(7.0)
    for flow in range(3):
        link.add(0.0, flow, 1.0, 5.0)
    at = link.next_completion()
    link.add(at, 3, 1.0, 5.0)
    assert link.pop_completed(link.next_completion()) == [0, 1, 2]
    assert link.next_completion() == pytest.approx(at + 1 / 5)


@pytest.mark.parametrize("capacity", [1e9, 10.0, math.inf])
@pytest.mark.parametrize("same_cap", [False, True])
def test_memory_follows_the_flows_in_flight(capacity, same_cap):
    link = SharedLink(capacity)
    # It ends first, and has the largest cap of the free and the smallest of the held flows, so
    # nothing that is out of date comes to the top of a heap.
    link.add(0.0, 0, 6e3, 1e6 if capacity > 10 else 1.0)
    for flow in range(1, 5001):
        now = flow / 1e6
        link.add(now, flow, 1e12 - flow, 1e3 if same_cap else 1e3 + flow)
        if flow > 10:
            link.remove(now, flow - 10)
    inner = link._flows
    heaps = [value for value in vars(inner).values() if isinstance(value, list)]
    if capacity < math.inf:
        heaps += [group.heap for group in inner._groups.values()]
    assert len(heaps) > 0
    assert max(len(heap) for heap in heaps) < 150


def test_a_flow_is_held_down_whatever_was_cleared_away_when_it_came():
    for before in range(150):
        link = SharedLink(10e6)
        link.add(0.0, 0, 1e9, 9e6)
        for flow in range(1, before + 1):
            link.add(0.0, flow, 1e9, 1e3 + flow)
            link.remove(0.0, flow)
        link.add(0.0, -1, 1e9, 8e6)
        assert (link.rate_bps(0), link.rate_bps(-1)) == (5e6, 5e6)


def test_what_a_link_carried_long_ago_does_not_blur_what_it_carries_now():
    link = SharedLink(1e12)
    for flow in range(2):
        link.add(0.0, flow, 1e18, math.inf)
    start = link.next_completion()
    assert link.pop_completed(start) == [0, 1]
    for flow in range(1000):
        link.add(start, flow, 1050.0, math.inf)
    assert link.next_completion() - start == pytest.approx(1.05e-6, rel=1e-3)


@pytest.mark.parametrize("capacity", [10.0, math.inf])
def test_ends_that_only_rounding_keeps_apart_come_together(capacity):
    assert 3 * 0.7 / 0.7 != 3 * 0.1 / 0.1
    link = SharedLink(capacity)
    link.add(0.0, 1, 3 * 0.7, 0.7)
    link.add(0.0, 0, 3 * 0.1, 0.1)
    assert link.pop_completed(link.next_completion()) == [0, 1]


def test_a_flow_removed_at_the_instant_of_its_end_has_nothing_left():
    for capacity in (5.0, math.inf):
        link = SharedLink(capacity)
        link.add(1.0, 0, 10.0, 5.0)
        assert link.remove(3.0, 0) == 0.0
    link.add(4.0, 1, 10.0, math.inf)
    assert link.remove(4.0, 1) == 0.0


# ---- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_capacities_caps_and_sizes_out_of_range_are_refused(value):
    with pytest.raises(ConfigError, match=f"capacity_bps is {value}"):
        SharedLink(value)
    with pytest.raises(ConfigError, match=f"down_bps is {value}"):
        ServerLink(down_bps=value)
    with pytest.raises(ConfigError, match=f"up_bps is {value}"):
        ServerLink(up_bps=value)
    link = SharedLink(1.0)
    with pytest.raises(ConfigError, match=f"flow 3 has cap_bps {value}"):
        link.add(0.0, 3, 1.0, value)
    link.add(0.0, 3, 1.0, 1.0)
    with pytest.raises(ConfigError, match=f"flow 3 has cap_bps {value}"):
        link.set_cap(0.0, 3, value)


@pytest.mark.parametrize("size", [-1.0, math.nan, math.inf])
def test_a_size_that_no_link_can_carry_is_refused(size):
    with pytest.raises(ConfigError, match="flow 1 has size_bits"):
        SharedLink(1.0).add(0.0, 1, size, 1.0)


@pytest.mark.parametrize("latency", [-0.1, math.nan, math.inf])
def test_a_server_latency_out_of_range_is_refused(latency):
    with pytest.raises(ConfigError, match="latency_s"):
        ServerLink(latency_s=latency)


@pytest.mark.parametrize("capacity", [1.0, math.inf])
def test_calls_out_of_order_are_errors(capacity):
    link = SharedLink(capacity)
    link.add(1.0, 0, 1.0, 1.0)
    with pytest.raises(SimulationError, match="cannot go back"):
        link.add(0.5, 1, 1.0, 1.0)
    with pytest.raises(SimulationError, match=r"ended at t=2\.0"):
        link.add(2.5, 1, 1.0, 1.0)
    with pytest.raises(SimulationError, match="flow 0 is already in flight"):
        link.add(1.5, 0, 1.0, 1.0)
    with pytest.raises(SimulationError, match="flow 7 is not in flight"):
        link.remove(1.5, 7)
    with pytest.raises(SimulationError, match="flow 7 is not in flight"):
        link.set_cap(1.5, 7, 1.0)


# ---- the clients' links --------------------------------------------------------------------------


def links(n=4, down=8e6, sigma=None, latency=0.01, loss=0.0):
    full = lambda value: np.full(n, float(value))  # noqa: E731
    column = None if sigma is None else full(sigma)
    return Links(full(down), full(down / 2), full(latency), full(loss), column, column)


def test_a_cap_is_the_bandwidth_of_the_column_if_nothing_varies():
    assert links().down_cap(0, 1, 5) == 8e6
    assert links().up_cap(0, 1, 5) == 4e6
    assert links(down=math.inf).down_cap(0, 1, 5) == math.inf


def test_loss_limits_a_flow_to_the_rate_of_mathis_et_al():
    # 1460-byte segments, RTT 100 ms, p = 0.01: 11680 / 0.1 * 1.2247 / 0.1 = 1.430 Mb/s.
    assert mathis_bps(0.1, 0.01) == pytest.approx(1.4305e6, rel=1e-4)
    assert mathis_bps(0.1, 0.0) == mathis_bps(0.0, 0.01) == math.inf
    lossy = links(loss=0.01, latency=0.02)
    assert lossy.down_cap(0, 0, 0, server_latency_s=0.03) == mathis_bps(0.1, 0.01)
    assert lossy.down_cap(0, 0, 0, server_latency_s=0.03) < 8e6
    assert links(loss=1e-9).down_cap(0, 0, 0) == 8e6  # TCP would manage more than the link has


def test_mathis_constant_is_that_of_a_saw_tooth_window():
    # One loss per cycle: the window climbs from W/2 to W by one segment a round trip, so a cycle
    # carries 3/8 W**2 = 1/p segments in W/2 round trips.
    window, rtt = 1000, 0.05
    carried = sum(range(window // 2, window))
    rate = carried * 1460 * 8 / (window / 2 * rtt)
    assert mathis_bps(rtt, 1 / carried) == pytest.approx(rate, rel=1e-3)


def test_bandwidth_of_transfers_is_a_truncated_normal():
    mean, sigma = 8e6, 6e6
    column = links(down=mean, sigma=sigma)
    drawn = np.array([column.down_cap(3, client % 4, client // 4) for client in range(4000)])
    low = FLOOR_FRACTION * mean
    assert drawn.min() >= low
    law = stats.truncnorm((low - mean) / sigma, np.inf, mean, sigma)
    assert stats.kstest(drawn, law.cdf).pvalue > 0.01
    assert len(set(drawn)) == len(drawn)
    up = np.array([column.up_cap(3, client % 4, client // 4) for client in range(4000)])
    assert abs(np.corrcoef(drawn, up)[0, 1]) < 0.05


def test_a_transfer_has_the_same_bandwidth_whatever_the_order_of_questions():
    column = links(sigma=2e6)
    there = [column.down_cap(1, 2, k) for k in range(5)]
    back = [column.down_cap(1, 2, k) for k in reversed(range(5))]
    assert there == back[::-1]
    assert links(n=9, sigma=2e6).down_cap(1, 2, 4) == there[4]


# ---- edges ---------------------------------------------------------------------------------------


def test_an_edge_without_sites_crosses_both_access_links():
    access = Links(np.array([1.0, 2.0]), np.array([30.0, 0.5]), np.array([0.1, 0.2]), np.zeros(2))
    edges = PeerLinks(access)
    assert edges.bandwidth_bps(0, 1) == 2.0  # 30 up at 0, 2 down at 1
    assert edges.bandwidth_bps(1, 0) == 0.5
    assert edges.latency_s(0, 1) == pytest.approx(0.3)


def test_an_edge_between_sites_has_the_path_between_them():
    bps = np.array([[9.0, 3.0], [4.0, 9.0]])
    delay = np.array([[0.001, 0.05], [0.07, 0.001]])
    edges = PeerLinks(links(n=3, down=16.0), np.array([0, 1, 0]), bps, delay)
    assert edges.bandwidth_bps(0, 1) == 3.0
    assert edges.bandwidth_bps(1, 2) == 4.0
    assert edges.bandwidth_bps(0, 2) == 8.0  # the access link up
    assert edges.latency_s(0, 1) == 0.05
    assert edges.latency_s(1, 0) == 0.07
