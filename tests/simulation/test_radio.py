"""Radios by state: published numbers in closed form, and what the engine bills of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import NEVER, Client, Scripted, fleet_of, grid_of, message_to

import fl
from fl.errors import ConfigError
from fl.flower.identity import node_id
from fl.simulation.cohorts import needs_events
from fl.simulation.kernel.airtime import Airtime
from fl.simulation.world.battery import Battery
from fl.simulation.world.fleets.mobile import mobile
from fl.simulation.world.radio import Radio, Radios

# Huang et al., MobiSys 2012: LTE.
LTE = Radio(
    base_w=1.28804,
    down_j_per_bit=51.97e-9,
    up_j_per_bit=438.39e-9,
    tail_s=11.576,
    tail_w=1.060,
    promotion_j=0.260 * 1.2107,
)
PLAIN = Radio(2.0, 0.25, 0.5, tail_s=10.0, tail_w=0.75, promotion_j=0.125)


def with_radios(fleet, *radios: Radio):
    kinds = radios or (PLAIN,)
    return replace(fleet, radios=Radios(np.arange(len(fleet)) % len(kinds), kinds))


def airtime(radio: Radio, idle_w: float = 0.0) -> Airtime:
    fleet = with_radios(fleet_of([Client(idle_w=idle_w)]), radio)
    return Airtime(fleet, fleet.radios)


def test_ten_megabytes_over_lte_take_the_joules_of_the_paper() -> None:
    seconds = 80 / 6  # at 6 Mbit/s
    assert LTE.transfer_j(seconds, 0.0, 80e6) == pytest.approx(52.2, abs=0.05)
    assert LTE.ready_j(math.inf) == pytest.approx(12.3 + 0.3, abs=0.05)
    assert airtime(LTE).joules(0, 5.0, 5.0 + seconds, seconds, up_bits=80e6) == pytest.approx(
        64.9, abs=0.1
    )


def test_transfers_closer_than_the_tail_share_one_and_wake_nothing_up() -> None:
    near, far = airtime(PLAIN), airtime(PLAIN)
    first = near.joules(0, 1.0, 2.0, 1.0)
    assert far.joules(0, 1.0, 2.0, 1.0) == first == 2.0 + 7.5 + 0.125
    assert near.joules(0, 5.0, 6.0, 1.0) == 2.0 + 3 * 0.75  # ready from 2 to 5, then for 10 s more
    assert far.joules(0, 12.0, 13.0, 1.0) == 2.0 + 7.5  # ready to the end, and not asleep
    assert far.joules(0, 23.5, 24.5, 1.0) == first


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.01, 5)), min_size=1, max_size=8),
    st.floats(0, 20),
)
def test_tails_are_paid_for_the_seconds_in_which_nothing_is_sent_and_the_radio_is_ready(
    gaps: list[tuple[float, float]], tail_s: float
) -> None:
    ready, used, now, ready_s, last = (
        airtime(Radio(0.0, tail_s=tail_s, tail_w=1.0)),
        0.0,
        0.0,
        0.0,
        0.0,
    )
    for i, (gap, length) in enumerate(gaps):
        now += gap
        if i:
            ready_s += min(now - last, tail_s)
        before, used = used, used + ready.joules(0, now, now + length, length)
        assert used >= before
        now = last = now + length
    assert used == pytest.approx(ready_s + tail_s, abs=1e-9)


def test_engine_bills_bits_seconds_and_tails() -> None:
    client = Client(flops=1.0, down_bps=8.0, up_bps=16.0, idle_w=1.0, compute_w=5.0, radio_w=99.0)
    grid = grid_of(with_radios(fleet_of([client])), flops=3.0, reply=20)
    grid.send_and_receive([message_to(0, 10)])
    # 10 bytes down in 10 s, 3 s at work while the radio is ready, 20 bytes up in 10 s.
    down, up = 10 * (1.0 + 2.0) + 80 * 0.25, 10 * (1.0 + 2.0) + 160 * 0.5
    once = down + up + 0.125 + 0.75 * (3 + 10)
    assert grid.engine.energy_j == {"compute": 15.0, "radio": once, "idle": 0.0}
    grid.send_and_receive([message_to(0, 10)])  # at once
    assert grid.engine.energy_j["radio"] == 2 * once - 0.125 - 7.5


def test_states_that_draw_one_power_are_the_flat_power() -> None:
    client = Client(
        flops=7.0, down_bps=999.0, up_bps=77.0, latency_s=0.3, idle_w=0.25, radio_w=1.25
    )
    flat = fleet_of([client])
    runs = []
    for fleet in (flat, with_radios(flat, Radio(base_w=1.0))):
        grid = grid_of(fleet, flops=301.7, reply=12)
        grid.send_and_receive([message_to(0, 10)])
        runs.append(grid)
    assert runs[0].clock.now() == runs[1].clock.now()
    assert runs[1].engine.energy_j["radio"] == pytest.approx(
        runs[0].engine.energy_j["radio"], rel=1e-14
    )


def test_who_leaves_in_an_upload_pays_for_the_bits_that_went() -> None:
    client = Client(down_bps=NEVER, up_bps=8.0)
    fleet = fleet_of([client], availability=Scripted(1, {0: [4.0]}))
    grid = grid_of(with_radios(fleet, Radio(0.0, up_j_per_bit=1.0)), reply=20)
    grid.send_and_receive([message_to(0, 10)], timeout=30.0)
    assert grid.engine.energy_j["radio"] == 32.0  # of 160 bits


def test_battery_pays_what_is_billed() -> None:
    unplugged = Scripted(1, {}, offline=[0])
    battery = Battery(unplugged, capacity_j=1000.0, other_w=0.0, least_start=1.0)
    client = Client(flops=1.0, down_bps=8.0, up_bps=16.0, idle_w=1.0, compute_w=5.0)
    grid = grid_of(with_radios(fleet_of([client], battery=battery)), flops=3.0, reply=20)
    grid.send_and_receive([message_to(0, 10)])
    charge = grid.engine.charges.charge_of(np.array([0])).item()
    assert 1000 * (1 - charge) == pytest.approx(sum(grid.engine.energy_j.values()), rel=1e-12)


def test_peers_pay_for_what_they_send_and_receive() -> None:
    clients = [Client(down_bps=8.0, up_bps=8.0)] * 2
    sends, hears = Radio(0.0, up_j_per_bit=1.0), Radio(0.0, down_j_per_bit=10.0)
    grid = grid_of(with_radios(fleet_of(clients), sends, hears))
    grid.peers.transfer(node_id(0), node_id(1), 5, 0.0)
    assert grid.engine.energy_j["radio"] == 40 + 400


@pytest.mark.parametrize(
    ("radio", "match"),
    [
        ({"wifi": PLAIN, "4g": PLAIN}, "radio has none for '5g'"),
        ({"wifi": PLAIN, "4g": PLAIN, "5g": PLAIN, "6g": PLAIN}, "'6g', which is no network"),
        ({"wifi": PLAIN, "4g": PLAIN, "5g": 1.0}, "radio.5g is 1.0; it must be"),
    ],
)
def test_a_fleet_has_a_radio_for_each_network(radio: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        mobile(3, 0, radio=radio)


def test_what_no_radio_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="tail_w is -1"):
        Radio(1.0, tail_w=-1.0)
    with pytest.raises(ConfigError, match=r"radios are for \(2,\) clients, the fleet has 1"):
        replace(fleet_of([Client()]), radios=Radios(np.array([0, 0]), [PLAIN]))
    with pytest.raises(ConfigError, match="kinds go from 0 to 1"):
        Radios(np.array([0, 1]), [PLAIN])


FEW = ["executor=serial", "progress=false", "views=false", "target=null", "model=logistic"]
FEW += ["partition=iid", "num_clients=6", "num_rounds=1", "fleet/availability=always"]


def test_states_change_the_joules_of_phones_and_no_time() -> None:
    flat, states = (fl.run(*FEW, *more) for more in ([], ["fleet/radio=states"]))
    assert states.summary["totals"]["virtual_s"] == flat.summary["totals"]["virtual_s"]
    joules = [run.summary["totals"]["energy_j"] for run in (flat, states)]
    assert joules[0]["compute"] == joules[1]["compute"]
    assert joules[1]["radio"] > joules[0]["radio"]


def test_key_of_a_radio_that_cannot_be_is_named_in_full() -> None:
    with pytest.raises(ConfigError, match=r"tail_s is -1"):
        fl.run(*FEW, "fleet/radio=states", "fleet.radio={4g:{tail_s:-1}}")


def test_rounds_with_states_take_events() -> None:
    app: Any = object()
    assert needs_events(with_radios(fleet_of([Client()])), (app, app), runtime=False)
