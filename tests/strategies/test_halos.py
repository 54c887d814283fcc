"""HALoS: its recursion, the flat rule as its limit, and when which server hears of whom."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from every_strategy import configured
from quadratics import run

from fl.errors import ConfigError, NotFinite
from fl.runs.build import build
from fl.simulation.kernel.links import Links, PeerLinks
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.strategies import AsyncDiLoCo, DelayedNesterov, Events, HALoS, Regions
from fl.strategies.event_rule import Arrivals

COPY = DelayedNesterov(lr=1.0, beta=0.0, buffer_size=1)


@dataclass
class Came:
    """A worker's answer, or a region's."""

    node: int
    delta: np.ndarray
    received_s: float = 1.0
    sent_s: float = 0.0
    config: dict = field(default_factory=lambda: {"local-steps": 1})
    metrics: dict = field(default_factory=dict)


def nesterov(lr, beta, n):
    """Delayed Nesterov on one number, as the authors' `DelayedNesterovOptimizer` with c = 0."""
    m, gathered, t = 0.0, 0.0, 0

    def step(w, g):
        nonlocal m, gathered, t
        gathered, t = gathered + g, t + 1
        if t % n:
            return w - lr * g / n
        m, gathered = beta * m + gathered / n, 0.0
        return w - lr * (beta * m + g / n)

    return step


def test_two_regions_step_merge_and_wait_as_the_authors_servers_do():
    """Merges come 3 updates late in region 1, whose count passes K = 2 without a second send."""
    rule = HALoS(
        regional=DelayedNesterov(0.8, 0.9, 3), above=DelayedNesterov(0.6, 0.5, 2), local_updates=2
    )
    state = rule.init(np.full(1, 5.0, np.float32), 1)
    w, above = 5.0, nesterov(0.6, 0.5, 2)
    x, z, count = {0: 5.0, 1: 5.0}, {0: 5.0, 1: 5.0}, {0: 0, 1: 0}
    local = {r: nesterov(0.8, 0.9, 3) for r in x}
    coming: list[list] = []  # updates to go, region, w
    state = rule.joined(rule.joined(state, 10, 0), 11, 1)
    rng = np.random.default_rng(3)
    sends = 0
    for _ in range(40):
        r = int(rng.integers(2))
        g = float(np.float32(rng.normal()))
        x[r], count[r] = local[r](x[r], g), count[r] + 1
        state, sent = rule.met(state, Arrivals([Came(10 + r, np.array([-g], np.float32))]))
        assert sent == (count[r] == 2)
        if sent:
            sends += 1
            begin, at = rule.sent(state, r)
            assert (begin, at) == (pytest.approx(z[r], rel=1e-5), pytest.approx(x[r], rel=1e-5))
            w = above(w, z[r] - x[r])
            state = rule.step(state, Arrivals([Came(r, at - begin)]))
            coming.append([3 if r else 0, r, w, state.w])
        for one in list(coming):
            if one[0] == 0:
                coming.remove(one)
                _, s, ours, theirs = one
                x[s] = z[s] = 0.75 * x[s] + 0.25 * ours
                count[s] = 0
                state = rule.merged(state, s, theirs)
            one[0] -= one[1] == r
        assert state.w[0] == pytest.approx(w, rel=1e-5)
        for s in x:
            assert rule.model_for(state, 10 + s)[0] == pytest.approx(x[s], rel=1e-5)
    assert sends > 10


def test_of_one_region_that_sends_everything_and_takes_over_what_comes_it_is_async_diloco():
    """As in docs: K = 1, a = 1, and a global server that adds what it is sent."""
    centres, times = [1.0, -2.0, 4.0], [1.0, 0.7, 2.3]
    flat = AsyncDiLoCo(inner_steps=2, lr=0.7, beta=0.9, buffer_size=3)
    regional = DelayedNesterov(0.7, 0.9, 3)
    rule = HALoS(inner_steps=2, regional=regional, above=COPY, local_updates=1, merge_weight=1.0)
    one = run(Regions(rule), centres, times, num_rounds=40)
    other = run(Events(flat), centres, times, num_rounds=40)
    assert one.times == other.times
    np.testing.assert_allclose(one.models, other.models, rtol=1e-4, atol=1e-6)


class LosesTheFirst(Faults):
    """Loses the first payload between sites."""

    def loses_transfer(self, seed, source, target, index):
        return index == 2  # the first is region 0's own, which goes nowhere


def two_sites(faults=None):
    """Two clients a site apart, 0.5 s and 64 bit/s; steps take 1 s, and K is 2 of one step."""
    none, free = np.zeros(2), np.full(2, np.inf)
    edges = PeerLinks(
        Links(free, free, none, none),
        np.array([0, 1]),
        np.array([[np.inf, 64.0], [64.0, np.inf]]),
        np.array([[0.0, 0.5], [0.5, 0.0]]),
    )
    rule = HALoS(inner_steps=1, dynamic=False, local_updates=2, above=COPY)
    return run(Regions(rule), [1.0, -1.0], [1.0, 1.0], num_rounds=9, edges=edges, faults=faults)


def test_versions_come_when_the_links_between_sites_let_them():
    """A model of 2 numbers takes 0.5 + 64 / 64 = 1.5 s each way.

    Region 0 sends at 2, 4, ...; region 1 at 2, has the answer at 5 after its update of that moment,
    and sends again at 7, as its count begins anew.
    """
    ran = two_sites()
    assert ran.times[1:] == [2.0, 3.5, 4.0, 6.0, 8.0, 8.5, 10.0, 12.0, 13.5]
    sent = [e for e in ran.of(Event.TRANSFER) if e[0] <= 13.5]
    assert [e[0] for e in sent] == [3.5, 5.0, 8.5, 10.0, 13.5]
    assert {e[4] for e in sent} == {8}


def test_what_is_lost_between_servers_is_sent_again_when_it_is_missed():
    ran = two_sites(LosesTheFirst())
    assert ran.times[1:6] == [2.0, 4.0, 5.0, 6.0, 8.0]
    assert len(ran.of(Event.TRANSFER_LOST)) == 1


def test_a_region_that_would_not_be_finite_leaves_its_model_and_the_run_ends():
    huge = DelayedNesterov(1e6, 0.0, 1)
    rule = HALoS(inner_steps=1, regional=huge, local_updates=2)
    ran = run(Regions(rule), [0.0], [1.0], num_rounds=3, w0=2.0, gradient=lambda _, w: w * 0 - 1e35)
    assert len(ran.models) == 4
    np.testing.assert_array_equal(ran.models, 2.0)
    state = rule.joined(rule.init(np.ones(1, np.float32), 1), 7, 0)
    with np.errstate(over="ignore"), pytest.raises(NotFinite, match="the server of region 0"):
        rule.met(state, Arrivals([Came(7, np.full(1, -1e38, np.float32))]))


def test_clients_reach_the_server_of_their_region_by_links_within_it():
    islands = build(configured("halos", "fleet=datacenters", "fleet.access_bps=1e9"))
    assert islands.fleet.links.latency_s.tolist() == [0.001] * 4
    assert islands.fleet.links.up_bps.tolist() == [1e9] * 4
    assert islands.ignored["fleet.server_region"].startswith("with HALoS")
    alone = build(configured("async_diloco", "fleet=datacenters", "fleet.access_bps=1e9"))
    assert alone.fleet.links.latency_s == pytest.approx([0.001, 0.0193, 0.0234, 0.0725])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network=sites"], "this strategy has one in each region: leave network out"),
        (["compressor@downlink=ef21"], "clients of HALoS are sent different models"),
    ],
)
def test_what_does_not_go_with_servers_in_regions_is_refused(overrides, message):
    with pytest.raises(ConfigError) as refused:
        build(configured("halos", *overrides))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"merge_weight": 0}, "merge_weight is 0"),
        ({"local_updates": 0}, "local_updates is 0"),
        ({"inner_steps": 0}, "inner_steps is 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(of, message):
    with pytest.raises(ConfigError, match=message):
        HALoS(**of)
    with pytest.raises(ConfigError, match=r"activation is 0\.6"):
        DelayedNesterov(lr=1.0, beta=0.0, buffer_size=2, activation=0.6)
