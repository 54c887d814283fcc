"""Power states: the laws in closed form, the choice of caps, and what tasks under them take."""

from __future__ import annotations

import math
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from stand_ins import Client, fleet_of, grid_of, message_to

import fl
from fl.errors import ConfigError
from fl.flower.identity import node_id
from fl.runs.groups import content
from fl.simulation.cohorts import needs_events
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import Always
from fl.simulation.world.battery import Battery
from fl.simulation.world.power import (
    CAP_KEY,
    Dvfs,
    MeasuredCurve,
    Power,
    cheapest_cap,
    cost_of,
)

V100 = MeasuredCurve([0.4, 0.6, 1.0], [0.5, 0.8, 1.0], [0.45, 0.65, 1.0])


def energy_per_work(curve, cap: float) -> float:
    return curve.draw(cap) / curve.speed(cap)


def test_half_speed_takes_static_power_and_an_eighth_of_the_rest() -> None:
    curve = Dvfs(static=0.2)
    cap = 0.2 + 0.8 / 8
    assert curve.speed(cap) == pytest.approx(0.5, rel=1e-14)
    assert curve.draw(cap) == cap
    assert curve.speed(1.0) == curve.draw(1.0) == 1.0


def test_least_energy_is_at_the_clock_that_calculus_gives() -> None:
    # 50 W static of 250 at full clock: E(f) = 50 / f + 200 f^2 is least at (50 / 400)^(1/3) = 0.5,
    # where it is 150 J against 250.
    curve = Dvfs(static=0.2, least_speed=0.2)
    cap = cheapest_cap(curve, eta=1.0)
    assert curve.speed(cap) == pytest.approx(0.5, abs=1e-3)
    assert 250 * energy_per_work(curve, cap) == pytest.approx(150, rel=1e-5)


@pytest.mark.parametrize("curve", [Dvfs(), V100])
def test_time_alone_chooses_full_power(curve) -> None:
    assert cheapest_cap(curve, eta=0.0) == 1.0
    assert cost_of(curve, 1.0, 0.5) == 1.0


def test_measured_curve_is_linear_between_its_points() -> None:
    assert V100.speed(0.5) == pytest.approx(0.65)
    assert V100.draw(0.8) == pytest.approx(0.825)
    assert V100.speed(0.6) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["v100", "a40", "rtx6000", "p100"])
def test_curves_of_the_presets_save_energy_at_a_cap_of_55_to_80_percent(name) -> None:
    node = content("power", name).curve
    curve = MeasuredCurve(node.caps, node.speeds, node.draws)
    best = cheapest_cap(curve, eta=1.0)
    assert 0.5 <= best <= 0.8
    assert 0.7 < energy_per_work(curve, best) < 0.9


def test_cubic_law_is_within_thirty_percent_of_a_phone_that_was_measured() -> None:
    node = content("power", "nexus_one").curve
    measured, law = MeasuredCurve(node.caps, node.speeds, node.draws), Dvfs(static=0.2)
    for cap in measured.candidates:
        speed = measured.speed(cap)
        power = 0.2 + 0.8 * speed**3  # what the law says of this clock
        assert law.speed(power) == pytest.approx(speed)
        assert -0.29 < power / measured.draw(cap) - 1 < 0.04
    assert measured.speed(cheapest_cap(measured, eta=1.0)) == 0.4609


def test_a40_below_forty_percent_takes_more_energy_than_at_full_power() -> None:
    node = content("power", "a40").curve
    curve = MeasuredCurve(node.caps, node.speeds, node.draws)
    assert energy_per_work(curve, 0.35) > 1.3


def test_deadline_chooses_the_lowest_cap_that_is_in_time() -> None:
    power = Power(Dvfs(static=0.2), choice="deadline", within_s=10.0)
    state = power.state("client", 8.0)
    assert 8.0 / state.speed == pytest.approx(10.0, rel=1e-9)
    assert power.state("client", 11.0).cap == 1.0  # it cannot be met
    # Below the cap of least energy a lower one would cost more.
    assert power.state("client", 1e-3).cap == cheapest_cap(power.curve, 1.0)
    assert power.state("client", None).cap == 1.0


def test_cap_halves_the_speed_and_the_trace_says_so() -> None:
    cap = 0.2 + 0.8 / 8
    clients = [Client(flops=100.0, compute_w=10.0)]
    runs = []
    for power in (None, Power(Dvfs(static=0.2), cap=cap)):
        grid = grid_of(fleet_of(clients, power=power), flops=300.0)
        grid.send_and_receive([message_to(0, 10)])
        runs.append(grid)
    full, half = runs
    assert full.clock.now() == 3.0
    assert half.clock.now() == pytest.approx(6.0, rel=1e-14)
    assert full.engine.energy_j["compute"] == 30.0
    assert half.engine.energy_j["compute"] == pytest.approx(6.0 * 10.0 * cap, rel=1e-14)
    assert Event.POWER not in full.trace.kinds
    chosen = half.trace.value[half.trace.kind == Event.POWER]
    assert chosen.tolist() == [cap]


def test_full_power_is_no_cap_to_the_last_bit() -> None:
    clients = [Client(flops=7.0, compute_w=3.3, radio_w=1.1, down_bps=999.0, up_bps=77.0)]
    plain, capped = (
        grid_of(fleet_of(clients, power=power), flops=301.7) for power in (None, Power(Dvfs()))
    )
    for grid in (plain, capped):
        grid.send_and_receive([message_to(0, 10)])
    assert plain.clock.now() == capped.clock.now()
    assert plain.engine.energy_j == capped.engine.energy_j


def test_server_chooses_the_cap_of_each_task() -> None:
    power = Power(Dvfs(static=0.0, least_speed=0.1))
    grid = grid_of(fleet_of([Client(flops=100.0)] * 2, power=power), flops=300.0)
    caps = {0: 0.125, 1: 1e-9}  # of the second, what the curve allows
    grid.send_and_receive(
        Message(RecordDict({"config": ConfigRecord({CAP_KEY: cap})}), node_id(client), "train")
        for client, cap in caps.items()
    )
    seconds = grid.trace.value[grid.trace.kind == Event.COMPUTE_START]
    assert seconds.tolist() == pytest.approx([3 / 0.5, 3 / 0.1], rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.5, math.nan, "0.5", True])
def test_cap_of_a_message_that_is_no_share_is_refused(value) -> None:
    grid = grid_of(fleet_of([Client()], power=Power(Dvfs())), flops=1.0)
    content = RecordDict({"config": ConfigRecord({CAP_KEY: value})})
    with pytest.raises(ConfigError, match=r"a message's power-cap is .*; it must be a"):
        grid.push_messages([Message(content, node_id(0), "train")])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Power(Dvfs(), cap=0.1), "cap is 0.1; it must be at least 0.2216"),
        (lambda: Power(Dvfs(), caps={"a": 2.0}), "caps.a is 2.0; it must be above 0 and at most 1"),
        (lambda: Power(Dvfs(), choice="least"), "choice is 'least'; it must be one of fixed, cost"),
        (lambda: Power("dvfs"), "curve is 'dvfs'; it must have least"),
        (lambda: Dvfs(static=1.0), "curve.static is 1.0"),
        (lambda: MeasuredCurve([0.5, 1], [0.9, 0.8], [0.5, 1]), "curve.speeds is .* not fall"),
        (lambda: MeasuredCurve([0.5, 0.9], [0.9, 1], [0.5, 1]), "curve.caps is .* end with 1"),
        (lambda: MeasuredCurve([1.0], [1.0], [1.0]), "1 caps, 1 speeds and 1 draws"),
        (
            lambda: fleet_of([Client()], power=Power(Dvfs(), caps={"x": 0.5})),
            "no such kind of device",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, match) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


FEW = ["executor=serial", "progress=false", "views=false", "target=null", "fleet=uniform"]
FEW += ["model=logistic", "partition=iid", "num_clients=3", "num_rounds=1"]
FEW += ["strategy.fraction_train=1.0", "strategy.min_train_nodes=1"]


def test_cap_that_every_message_has_is_that_of_every_task() -> None:
    run = fl.run(*FEW, "power=dvfs", "+train_config.power-cap=0.3")
    caps = run.trace.value[run.trace.kind == Event.POWER]
    assert caps.tolist() == [0.3] * 3


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["+train_config.power-cap=0.3"], "only power reads it: set power=dvfs"),
        (
            ["power=dvfs", "+train_config.power-cap=3"],
            "train_config.power-cap is 3; it must be a share",
        ),
        (["power=dvfs", "power.eta=0.3"], r"power.choice=cost reads it"),
        (["power=dvfs", "+power.caps.phone=0.5"], r"caps\.phone: the fleet has no such kind"),
        (["selection=by_charge"], "there are none: set battery=phone"),
        (["battery=phone", "battery.resume=0.1"], "resume must be above it"),
    ],
)
def test_configuration_that_cannot_be_is_refused_before_anything_starts(overrides, match) -> None:
    with pytest.raises(ConfigError, match=match):
        fl.run(*FEW, *overrides)


def test_rounds_with_power_states_or_batteries_take_events() -> None:
    app: Any = object()
    for parts in ({"power": Power(Dvfs())}, {"battery": Battery(Always(1))}):
        fleet = fleet_of([Client()], **parts)
        assert needs_events(fleet, (app, app), runtime=False)
    assert not needs_events(fleet_of([Client()]), (app, app), runtime=False)
