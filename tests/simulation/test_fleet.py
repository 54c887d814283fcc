"""A fleet: task times, energy, and the checks of its columns."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.randomness import normals
from fl.simulation.kernel.links import Links, PeerLinks, ServerLink, mathis_bps
from fl.simulation.world.availability import Always
from fl.simulation.world.devices import Devices, MeasuredSeconds
from fl.simulation.world.faults import Faults, GilbertElliott
from fl.simulation.world.fleet import Fleet

N = 5


def fleet(**changes):
    full = lambda value: np.full(N, float(value))  # noqa: E731
    devices = Devices(
        kind=np.array([0, 1, 1, 0, 1]),
        kinds=("big", "small"),
        flops=np.array([4e9, 1e9, 1e9, 4e9, 2e9]),
        memory_bytes=np.array([8e9, 2e9, 2e9, 8e9, 1e9]),
        idle_w=full(1),
        compute_w=np.array([10.0, 4.0, 4.0, 10.0, 5.0]),
        radio_w=full(2),
    )
    links = Links(full(8e6), full(4e6), full(0.02), full(0))
    parts = {
        "name": "test",
        "seed": 7,
        "devices": devices,
        "links": links,
        "server": ServerLink(latency_s=0.03),
        "availability": Always(N),
    }
    return Fleet(**{**parts, **changes})


def test_a_task_takes_its_flops_over_the_speed():
    assert len(fleet()) == N
    assert fleet().compute_seconds(0, 3, 2e9) == 0.5
    assert fleet().compute_seconds(1, 3, 2e9) == 2.0
    assert fleet().compute_seconds(1, 3, 0.0) == 0.0
    assert fleet().seconds_per_flop(4, 0) == 1 / 2e9


def test_jitter_is_log_normal_of_mean_one_and_independent_per_task():
    sigma = 0.5
    base = fleet()
    jittery = replace(base, devices=replace(base.devices, jitter=sigma))
    factors = np.array([jittery.compute_seconds(1, k, 1e9) for k in range(20_000)])
    z = (np.log(factors) + sigma**2 / 2) / sigma
    assert np.mean(factors) == pytest.approx(1.0, abs=4 * 0.54 / math.sqrt(20_000))
    assert np.mean(z) == pytest.approx(0.0, abs=0.03)
    assert np.std(z) == pytest.approx(1.0, abs=0.03)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.03
    # the scalar draw is that of the vector form
    assert z[:50] == pytest.approx(normals(7, "jitter", np.full(50, 1), np.arange(50)), abs=1e-9)


def test_a_slow_spell_multiplies_the_time_by_the_factor_that_is_exposed():
    slow = fleet(faults=Faults(slowdown=GilbertElliott(0.4, 0.4, 3.0)))
    factors = [slow.slowdown(2, k) for k in range(40)]
    assert set(factors) == {1.0, 3.0}
    assert [slow.compute_seconds(2, k, 1e9) for k in range(40)] == factors
    assert [slow.faults.draw(7, 2, k).slowdown for k in range(40)] == factors
    assert fleet().slowdown(2, 0) == 1.0


def test_measured_times_replace_speed_and_jitter_but_not_slow_spells():
    seconds = np.arange(1.0, 1 + 3 * N).reshape(3, N)
    base = fleet()
    measured = fleet(
        task_seconds=MeasuredSeconds(seconds),
        devices=replace(base.devices, jitter=1.0),
        faults=Faults(slowdown=GilbertElliott(1.0, 1.0, 2.0)),
    )
    for k in range(3):
        assert measured.compute_seconds(4, k, 1e12) == seconds[k, 4] * measured.slowdown(4, k)
    assert measured.compute_seconds(4, 2, 0.0) == 0.0
    assert math.isnan(measured.seconds_per_flop(4, 0))
    with pytest.raises(ConfigError, match="3 rounds"):
        measured.compute_seconds(4, 3, 1e12)


@pytest.mark.parametrize("flops", [-1.0, math.nan, math.inf])
def test_work_that_cannot_be_is_refused(flops):
    with pytest.raises(ConfigError, match="FLOPs"):
        fleet().compute_seconds(0, 0, flops)


def test_energy_is_power_times_time_in_each_state():
    assert fleet().energy_j(0, compute_s=3.0, radio_s=5.0, idle_s=7.0) == 10 * 3 + 2 * 5 + 1 * 7
    assert fleet().energy_j(4, compute_s=3.0, radio_s=0.0, idle_s=0.0) == 15


def test_latency_and_round_trip_count_both_links():
    lossy = fleet()
    lossy = replace(lossy, links=replace(lossy.links, loss=np.full(N, 0.02)))
    assert lossy.latency_s(0) == pytest.approx(0.05)
    assert lossy.down_cap(0, 0) == mathis_bps(0.1, 0.02)
    assert lossy.up_cap(0, 0) == mathis_bps(0.1, 0.02)
    assert (fleet().down_cap(0, 0), fleet().up_cap(0, 0)) == (8e6, 4e6)


def test_peers_reach_each_other_through_their_access_links_unless_edges_are_given():
    assert fleet().peers.bandwidth_bps(0, 1) == 4e6
    assert fleet().peers.latency_s(0, 1) == pytest.approx(0.04)
    edges = PeerLinks(fleet().links, np.zeros(N, int), np.array([[1e6]]), np.array([[0.5]]))
    assert fleet(edges=edges).peers is edges


BAD = [
    ("devices", "flops", 0.0),
    ("devices", "flops", math.inf),
    ("devices", "flops", math.nan),
    ("devices", "memory_bytes", -1.0),
    ("devices", "idle_w", -0.5),
    ("devices", "compute_w", math.nan),
    ("devices", "radio_w", math.inf),
    ("links", "down_bps", 0.0),
    ("links", "down_bps", math.nan),
    ("links", "up_bps", -5.0),
    ("links", "latency_s", -0.1),
    ("links", "latency_s", math.inf),
    ("links", "loss", 1.0),
    ("links", "loss", -0.01),
    ("links", "down_sigma_bps", -1.0),
    ("links", "up_sigma_bps", math.nan),
]


@pytest.mark.parametrize(("part", "name", "value"), BAD)
def test_a_bad_entry_is_named_with_column_client_value_and_number(part, name, value):
    columns = getattr(fleet(), part)
    column = np.ones(N) * 0.5 if name.endswith("sigma_bps") else getattr(columns, name).copy()
    column[[2, 4]] = value
    message = rf"{part}\.{name} of client 2 \(small\) is {value};.* \(2 of 5 clients"
    with pytest.raises(ConfigError, match=message):
        fleet(**{part: replace(columns, **{name: column})})


def test_bandwidth_may_be_infinite():
    links = replace(fleet().links, down_bps=np.full(N, math.inf), up_bps=np.full(N, math.inf))
    assert fleet(links=links).down_cap(0, 0) == math.inf


@pytest.mark.parametrize(
    "column", [np.ones(N - 1), np.ones((N, 1)), np.ones(N, dtype=np.float32), np.ones(N, dtype=int)]
)
def test_a_column_of_another_shape_or_dtype_is_refused(column):
    with pytest.raises(ConfigError, match=r"links\.down_bps has shape"):
        fleet(links=replace(fleet().links, down_bps=column))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (np.zeros(N), "integer"),
        (np.zeros(N - 1, dtype=int), "one row per client"),
        (np.array([0, 1, 2, 0, 0]), "goes from 0 to 2, but there are 2"),
        (np.array([0, 1, -1, 0, 0]), "goes from -1 to 1"),
    ],
)
def test_kinds_that_do_not_exist_are_refused(kind, message):
    with pytest.raises(ConfigError, match=message):
        fleet(devices=replace(fleet().devices, kind=kind))


@pytest.mark.parametrize("jitter", [-0.1, math.nan, math.inf])
def test_jitter_out_of_range_is_refused(jitter):
    with pytest.raises(ConfigError, match="jitter"):
        fleet(devices=replace(fleet().devices, jitter=jitter))


def test_an_availability_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="num_clients"):
        fleet(availability=Always(N + 1))


def test_measured_times_of_too_few_workers_are_refused():
    with pytest.raises(ConfigError, match=r"num_clients is 5.* 4 workers"):
        fleet(task_seconds=MeasuredSeconds(np.ones((2, 4))))


def test_too_little_memory_names_the_smallest_kind_and_how_many_are_affected():
    fleet().check_memory(1e9)
    with pytest.raises(ConfigError, match=r"needs 1\.5e\+09 .*'small'.*has 1e\+09 .*1 of 5"):
        fleet().check_memory(1.5e9)
    with pytest.raises(ConfigError, match="3 of 5"):
        fleet().check_memory(4e9)
