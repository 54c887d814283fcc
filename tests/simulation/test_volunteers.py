"""Volunteers' sessions, machines that are taken away in groups, recorded pools, their fleet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import gamma

from fl.errors import ConfigError
from fl.simulation.world.fleets import volunteers
from fl.simulation.world.volunteers import Preemptions, WeibullSessions, preemption_trace


@pytest.mark.parametrize("t", [0.0, 5e3, 1e5])
def test_the_share_online_is_the_same_at_any_time(t):
    n, share = 20_000, 2 / 3
    online = WeibullSessions(n, 0).online(t).mean()
    assert online == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


@pytest.mark.parametrize("t", [0.0, 2e4])
def test_what_is_left_of_a_session_has_the_law_of_a_renewal_process(t):
    # Its mean is E[L^2] / (2 E[L]), and its density at 0 is 1 / E[L].
    mean, shape = 100.0, 0.7
    model = WeibullSessions(20_000, 3, mean, 50.0, shape)
    there = np.flatnonzero(model.online(t))
    left = np.array([model.next_change(int(client), t) for client in there]) - t
    scale = mean / gamma(1 + 1 / shape)
    expected = scale**2 * gamma(1 + 2 / shape) / (2 * mean)
    assert left.mean() == pytest.approx(expected, rel=4 * left.std() / left.mean() / 115)
    assert (left < 1.0).mean() == pytest.approx(1 / mean, rel=0.25)


def test_sessions_have_the_law_they_are_said_to_have():
    model = WeibullSessions(3000, 1, 100.0, 50.0, 0.5)
    lengths = []
    for client in range(3000):
        t = model.next_change(client, 0.0)
        if not model.is_online(client, t):
            t = model.next_change(client, t)
        lengths.append(model.next_change(client, t) - t)
    got = np.array(lengths)
    for t in (10.0, 50.0, 200.0, 500.0):
        assert (got > t).mean() == pytest.approx(math.exp(-math.sqrt(t / 50)), abs=0.035)


# ---- preemptions ---------------------------------------------------------------------------------


def events(model, n, hours):
    """Returns (when, who) of removals, and the mean number that is there."""
    removals, area = {}, 0.0
    for client in range(n):
        t, on = 0.0, model.is_online(client, 0.0)
        while t < 3600 * hours:
            end = min(model.next_change(client, t), 3600 * hours)
            area += on * (end - t)
            t = end
            if on and t < 3600 * hours:
                removals.setdefault(t, []).append(client)
            on = not on
    return removals, area / (3600 * hours)


def test_the_defaults_have_the_figures_of_the_trace_of_v100s():
    # 79 instants in 11.4 h, groups of 2.11 on average and 6 at most, half of them of several;
    # 24.0 of 32 machines there on average, .61 removals per machine and hour.
    hours = 600
    removals, there = events(Preemptions(32, 0), 32, hours)
    sizes = np.array([len(who) for who in removals.values()])
    assert len(sizes) / hours == pytest.approx(79 / 11.4, rel=0.1)
    assert sizes.mean() == pytest.approx(2.11, rel=0.1)
    assert sizes.max() == 6
    assert (sizes > 1).mean() == pytest.approx(0.51, rel=0.1)
    assert there == pytest.approx(24.0, rel=0.1)
    assert sizes.sum() / hours / there == pytest.approx(0.61, rel=0.1)


def test_who_is_taken_together_comes_back_together():
    model = Preemptions(12, 3)
    (when, who), *_ = sorted((t, w) for t, w in events(model, 12, 20)[0].items() if len(w) > 2)
    assert len({model.next_change(client, when) for client in who}) == 1


def test_answers_about_preemptions_do_not_depend_on_the_order_of_questions():
    times = np.random.default_rng(0).uniform(0, 2e5, 40)
    model = Preemptions(9, 1)
    answers = [model.online(t).tolist() for t in times]
    later = Preemptions(9, 1)
    later.online(3e5)
    assert answers == [later.online(t).tolist() for t in times]
    for t, row in zip(times, answers, strict=True):
        assert row == [later.is_online(client, t) for client in range(9)]
        for client in range(9):
            change = later.next_change(client, t)
            assert later.is_online(client, change) != row[client]
            assert later.is_online(client, math.nextafter(change, 0)) == row[client]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean_group": 3.5}, "mean_group is 3.5 and most is 6"),
        ({"mean_group": 1.0}, "mean_group is 1.0"),
        ({"most": 0}, "most is 0"),
        ({"mean_gap_s": 0.0}, "mean_gap_s is 0.0"),
        ({"mean_away_s": math.inf}, "mean_away_s is inf"),
    ],
)
def test_preemptions_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Preemptions(4, 0, **wrong)
    assert Preemptions(4, 0, mean_group=1, most=1).online(0.0).shape == (4,)


# ---- recorded pools ------------------------------------------------------------------------------

POOL = """0,add,a
0,add,b
1000,add,c
2000,remove,a
2000,remove,c
3000,add,d
4000,remove,b
5000,add,e
9000,remove,d
"""


def test_a_recorded_pool_keeps_its_groups_and_its_number_of_machines(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text(POOL)
    model = preemption_trace(3, str(path))
    # Slots: a, then d; b, then (after c's, which was free before it) nothing; c, then e.
    counts = [int(model.online(t).sum()) for t in (0.0, 1.0, 2.0, 3.5, 4.0, 5.0, 8.9)]
    assert counts == [2, 3, 1, 2, 1, 2, 2]
    assert [model.online(t + 9.0).sum() for t in (0.0, 1.0, 2.0)] == [2, 3, 1]  # again
    gone = [c for c in range(3) if model.is_online(c, 1.999) and not model.is_online(c, 2.0)]
    assert len(gone) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no machine"),
        ("5,add\n", "line 1"),
        ("x,add,a\n", "line 1"),
        ("5,add,a\n4,remove,a\n", "line 2.*comes before"),
        ("5,remove,a\n", "removes one that is not"),
        ("5,add,a\n6,add,a\n", "adds a machine that is there"),
    ],
)
def test_a_pool_that_cannot_be_read_is_refused(tmp_path, content, message):
    path = tmp_path / "pool.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        preemption_trace(3, str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        preemption_trace(3, str(tmp_path / "none.csv"))


# ---- the fleet -----------------------------------------------------------------------------------


def test_links_are_those_of_the_papers_bed_and_auxiliary_peers_come_last():
    fleet = volunteers(20, 0, auxiliary=4)
    up = fleet.links.up_bps
    assert sorted(up[:16] / 1e6) == [50] * 4 + [100] * 8 + [200] * 4
    assert (up[16:] == 500e6).all()
    assert fleet.links.reachable[16:].all()
    many = volunteers(4000, 0).links.reachable
    assert many.mean() == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 4000))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bps": []}, "bps is empty"),
        ({"bps": [-1.0]}, "down_bps of client 0"),
        ({"client_mode": 1.5}, "client_mode is 1.5"),
        ({"auxiliary": -1}, "auxiliary is -1"),
        ({"min_latency_s": 1.0}, "min_latency_s is 1.0"),
        ({"down_over_up": 0}, "down_over_up is 0"),
    ],
)
def test_a_fleet_of_volunteers_out_of_range_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        volunteers(4, 0, **wrong)
