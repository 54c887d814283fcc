"""Batteries: the law of charging in closed form, and clients that leave when they are low."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import NEVER, Client, Scripted, fleet_of, grid_of, message_to

from fl.errors import ConfigError
from fl.flower.identity import node_id
from fl.selection import ByCharge, Opening
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import Always
from fl.simulation.world.battery import Battery
from fl.simulation.world.fleets.datacenters import datacenters

UNPLUGGED = Scripted(1, {}, offline=[0])


def battery_of(plugged=UNPLUGGED, **given_values) -> Battery:
    values = dict(capacity_j=1000.0, charger_w=10.0, other_w=0.0, least_start=1.0) | given_values
    return Battery(plugged, **values)


def after(battery: Battery, charge: float, seconds: float, load_w: float, plugged: bool) -> float:
    columns = (np.array([x]) for x in (charge, seconds, load_w, battery.capacity_j))
    return battery.after(*columns, np.array([plugged])).item()


def test_charge_is_constant_power_to_the_knee_and_then_decays() -> None:
    # 55.4 kJ at 15 W from 10 %: the knee at 80 % after 2,585 s, 95 % after 1,024 s more.
    battery = battery_of(capacity_j=55400.0, charger_w=15.0)
    to_knee = 0.7 * 55400 / 15
    assert round(to_knee) == 2585
    assert after(battery, 0.1, to_knee, 0.0, True) == pytest.approx(0.8, rel=1e-14)
    tau = 0.2 * 55400 / 15
    to_95 = to_knee + tau * math.log(4)
    assert after(battery, 0.1, to_95, 0.0, True) == pytest.approx(0.95, rel=1e-12)
    assert battery.seconds_until(0.1, 0.95, 0.0, 55400.0, True) == pytest.approx(to_95, rel=1e-12)
    assert battery.seconds_until(0.1, 1.0, 0.0, 55400.0, True) == math.inf


@given(
    charge=st.floats(0.0, 1.0),
    seconds=st.floats(0.0, 500.0),
    load_w=st.sampled_from([0.0, 3.0, 10.0, 12.0, 40.0]),
    plugged=st.booleans(),
)
def test_charge_is_that_of_small_steps_of_its_differential_equation(
    charge: float, seconds: float, load_w: float, plugged: bool
) -> None:
    battery, s, steps = battery_of(), charge, 1000
    for _ in range(steps):
        into = 10.0 if s < 0.8 else 10.0 * (1 - s) / 0.2
        s += (plugged * into - load_w) / 1000.0 * seconds / steps
        s = min(max(s, 0.0), 1.0)
    assert after(battery, charge, seconds, load_w, plugged) == pytest.approx(s, abs=3e-3)


@given(
    charge=st.floats(0.05, 0.99),
    level=st.floats(0.05, 0.99),
    load_w=st.sampled_from([0.0, 3.0, 10.0, 12.0, 40.0]),
    plugged=st.booleans(),
)
def test_level_is_reached_when_it_is_foretold(
    charge: float, level: float, load_w: float, plugged: bool
) -> None:
    battery = battery_of()
    seconds = battery.seconds_until(charge, level, load_w, 1000.0, plugged)
    if math.isfinite(seconds):
        assert after(battery, charge, seconds, load_w, plugged) == pytest.approx(level, abs=1e-9)
    else:
        far = after(battery, charge, 1e6, load_w, plugged)
        assert (far - level) * (charge - level) >= -1e-9  # still on the same side


def grid_with(battery: Battery, clients: Sequence[Client], **given_values):
    return grid_of(fleet_of(clients, battery=battery), **given_values)


def found(grid, *kinds: Event) -> list[tuple[float, int, float]]:
    trace = grid.trace
    return [
        (time, client, value)
        for time, kind, client, value in zip(
            trace.time, trace.kind, trace.client, trace.value, strict=True
        )
        if kind in kinds
    ]


def test_task_empties_the_battery_and_ends_at_the_very_time_it_is_low() -> None:
    # Of 1,000 J from 100 % down to 20 %, at 10 W and 2 W of all else: 800 J / 12 W.
    battery = battery_of(other_w=2.0)
    grid = grid_with(battery, [Client(flops=1.0, compute_w=10.0)], flops=100.0)
    grid.send_and_receive([message_to(0, 10, ttl=1000.0)])
    low = 800 / 12
    assert found(grid, Event.DEPARTURE) == [(pytest.approx(low), 0, 0.0)]
    assert found(grid, Event.BATTERY_LOW) == [(pytest.approx(low), 0, pytest.approx(0.2))]
    assert grid.engine.energy_j["compute"] == pytest.approx(10 * low)
    assert grid.get_node_ids() == []


def test_client_comes_back_when_it_is_charged_and_takes_its_message_then() -> None:
    # At 0 it is at 10 %; plugged from 50 s on, at 10 W it has 30 % after 20 s more.
    battery = battery_of(
        Scripted(1, {0: [50.0]}, offline=[0]), least_start=0.1, most_start=0.1, resume=0.3
    )
    grid = grid_with(battery, [Client(flops=1.0)], flops=7.0)
    assert grid.get_node_ids() == []
    (reply,) = grid.send_and_receive([message_to(0, 10, ttl=1000.0)])
    assert reply.has_content()
    assert grid.clock.now() == pytest.approx(70.0 + 7.0)
    assert found(grid, Event.BATTERY_RESUMED) == [(pytest.approx(70.0), 0, pytest.approx(0.3))]


def test_task_that_ends_sooner_leaves_a_charge_by_the_joules_that_are_billed() -> None:
    clients = [
        Client(5.0, 800, 400, latency_s=0.5, idle_w=1.0, compute_w=8.0, radio_w=2.0),
        Client(),
    ]
    grid = grid_with(battery_of(Scripted(2, {}, offline=[0, 1])), clients, flops=100.0)
    grid.send_and_receive([message_to(0, 100), message_to(0, 100)])
    billed = sum(grid.engine.energy_j.values())
    assert billed > 300
    charge = grid.charge([node_id(0), node_id(1)])
    assert charge.tolist() == pytest.approx([1 - billed / 1000, 1.0], rel=1e-12)


def test_low_client_stays_away_until_it_has_more_than_the_threshold() -> None:
    battery = battery_of(Always(1), least_start=0.1, most_start=0.1, resume=0.3)
    grid = grid_with(battery, [Client()])
    there = []
    for _ in range(3):  # at 10 %, 25 % and 40 %
        there.append(len(grid.get_node_ids()))
        grid.clock.sleep(15.0)
    assert there == [0, 0, 1]


def test_who_is_low_and_is_charged_by_less_than_it_takes_never_comes() -> None:
    # Plugs change every second, 64 of which are looked ahead: there is no end of looking.
    plugs = Scripted(1, {0: [float(t) for t in range(1, 1000)]})
    for other_w, comes in ((9.0, True), (10.0, False), (12.0, False)):
        battery = battery_of(plugs, other_w=other_w, least_start=0.1, most_start=0.1, resume=0.3)
        grid = grid_with(battery, [Client()])
        assert math.isfinite(grid.engine.charges.next_change(0, 0.0)) == comes


def test_departure_is_not_missed_where_plugs_change_too_often_to_look_ahead() -> None:
    plugs = Scripted(1, {0: [float(t) for t in range(1, 1000)]})
    fleet = fleet_of(
        [Client(flops=1.0, compute_w=1.0)],
        availability=Scripted(1, {0: [300.0]}),
        battery=battery_of(plugs),
    )
    grid = grid_of(fleet, flops=500.0)
    grid.send_and_receive([message_to(0, 10, ttl=400.0)])
    assert found(grid, Event.DEPARTURE) == [(300.0, 0, 0.0)]


def test_kinds_of_endless_capacity_are_on_the_mains() -> None:
    battery = battery_of(capacities_j={"client": math.inf}, other_w=50.0)
    grid = grid_with(battery, [Client(flops=1.0, compute_w=1e6)], flops=100.0)
    grid.send_and_receive([message_to(0, 10)])
    assert grid.get_node_ids() == [node_id(0)]
    assert grid.charge([node_id(0)]).tolist() == [1.0]


def test_lighter_load_than_was_foretold_lets_a_client_stay() -> None:
    # At 100 W it would be low after 8 s; the task takes 4 s, and nothing comes after it.
    grid = grid_with(battery_of(), [Client(flops=25.0, compute_w=100.0)], flops=100.0)
    grid.send_and_receive([message_to(0, 10)])
    grid.clock.sleep(100.0)
    assert grid.get_node_ids() == [node_id(0)]
    assert not found(grid, Event.BATTERY_LOW, Event.DEPARTURE)


def test_unread_battery_changes_nothing() -> None:
    # One that never runs down, beside none: the same events to the last bit.
    clients = [Client(3.0, 700, 300, 0.1, 1.0, 8.0, 2.0)] * 2
    endless = battery_of(Always(2), capacity_j=1e12)
    traces = []
    for battery in (None, endless):
        grid = grid_of(fleet_of(clients, battery=battery), flops=100.0)
        grid.send_and_receive([message_to(0, 100), message_to(1, 50), message_to(0, 9)])
        traces.append((grid.trace.sha256(), grid.engine.energy_j))
    assert traces[0] == traces[1]


def test_fuller_batteries_are_drawn_in_proportion_to_a_power_of_their_charge() -> None:
    charges = {1: 0.2, 2: 0.4, 3: 0.8}
    rng = np.random.default_rng(0)
    opening = Opening(
        1, [1, 2, 3], [1, 2, 3], 1, lambda purpose: rng, lambda c: np.array([charges[i] for i in c])
    )
    drawn = [ByCharge(alpha=2.0).select((), opening)[0].clients[0] for _ in range(4000)]
    share = np.bincount(drawn, minlength=4)[1:] / 4000
    assert share.tolist() == pytest.approx([1 / 21, 4 / 21, 16 / 21], abs=0.025)


def test_selection_by_charge_without_batteries_is_refused() -> None:
    opening = Opening(1, [1], [1], 1, np.random.default_rng)
    with pytest.raises(ConfigError, match="set battery=phone"):
        ByCharge().select((), opening)


@pytest.mark.parametrize(
    ("given_values", "match"),
    [
        ({"capacity_j": 0.0}, "capacity_j is 0.0; it must be finite and above 0"),
        ({"capacities_j": {"x": -1}}, "capacities_j.x is -1"),
        ({"least_start": 0.9, "most_start": 0.5}, "least_start is 0.9 and most_start 0.5"),
        ({"threshold": 0.3, "resume": 0.3}, "resume must be above it"),
        ({"knee": 1.0}, "knee is 1.0"),
        ({"other_w": NEVER}, "other_w is inf"),
        ({"plugged": "night"}, "plugged is 'night'; it must be a fl.simulation.Availability"),
    ],
)
def test_what_cannot_be_is_refused(given_values, match) -> None:
    with pytest.raises(ConfigError, match=match):
        battery_of(**given_values)


def test_batteries_of_another_fleet_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"battery.plugged is for .1,. clients"):
        fleet_of([Client(), Client()], battery=battery_of())
    with pytest.raises(ConfigError, match=r"capacities_j\.x: the fleet has no such kind of device"):
        fleet_of([Client()], battery=battery_of(capacities_j={"x": 1.0}))


def test_devices_on_the_mains_have_no_battery_unless_each_kind_is_given_one() -> None:
    islands = datacenters(1, 0)
    with pytest.raises(ConfigError, match=r"\(island\) are on the mains: leave battery out"):
        replace(islands, battery=battery_of())
    given = battery_of(capacities_j={"island": 1e9})
    assert given.capacities(replace(islands, battery=given).devices).tolist() == [1e9]
