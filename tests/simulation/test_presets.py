"""The presets: reproducible columns, published figures, and their configuration files."""

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

import fl
from fl.errors import ConfigError
from fl.simulation.kernel.shared_link import SharedLink
from fl.simulation.world.availability import Diurnal, ExponentialOnOff, TraceAvailability
from fl.simulation.world.faults import Faults, GilbertElliott
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets import (
    NetworkClass,
    PhoneClass,
    cross_silo,
    datacenters,
    durations,
    mobile,
    serverless,
    trace,
    uniform,
    volunteers,
)
from fl.simulation.world.fleets.datacenters import ARCHETYPES, REGIONS, wide_area
from fl.simulation.world.fleets.mobile import NETWORKS, PHONES
from fl.simulation.world.fleets.trace import FEMNIST_FORWARD_FLOPS, MEDIAN_PHONE_FLOPS
from fl.simulation.world.measurements import (
    read_capacity,
    read_city_latency,
    read_link_speeds,
    read_scores,
    read_worker_seconds,
)

CONF = Path(fl.__file__).parent / "conf"
PRESETS = sorted(path.stem for path in (CONF / "fleet").glob("*.yaml"))
SLOWDOWNS = sorted(path.stem for path in (CONF / "fleet" / "slowdown").glob("*.yaml"))
AVAILABILITIES = sorted(path.stem for path in (CONF / "fleet" / "availability").glob("*.yaml"))
SCORES = {"slow": 100, "middle": 400, "fast": 1600}
SPEEDS = {
    "u1": {"down_u": 1000.0, "down_sigma": 100.0, "up_u": 500.0, "up_sigma": 50.0},
    "u2": {"down_u": 4000.0, "down_sigma": 0.0, "up_u": 2000.0, "up_sigma": 10.0},
}
CAPACITY = {
    1: {"computation": 20.0, "communication": 5000.0},
    2: {"computation": 80, "communication": 1000},
}
LATENCY = "0.2,10,40\n30,0.1,-0.5\n20,8,0.3\n"


@pytest.fixture
def traces(tmp_path):
    """A folder in the layout of FL_DATA_DIR, with small files of our own."""
    folder = tmp_path / "data" / "traces"
    folder.mkdir(parents=True)
    (folder / "flash_benchmark2score.json").write_text(json.dumps(SCORES))
    (folder / "flash_speed_distri.json").write_text(json.dumps(SPEEDS))
    (folder / "city_latency_ms.csv").write_text(LATENCY)
    (folder / "capacity.json").write_text(json.dumps(CAPACITY))
    seconds = {
        f"load_{load:.3f}": np.arange(1, 601).reshape(30, 20) * (1 + load)
        for load in (0, 0.25, 0.5)
    }
    np.savez(folder / "lambda_worker_seconds.npz", **seconds)
    return folder


@pytest.fixture
def make(traces):
    """Each preset as a function of (n, seed), whatever files it needs."""
    files = {
        "score_file": traces / "flash_benchmark2score.json",
        "speed_file": traces / "flash_speed_distri.json",
        "latency_file": traces / "city_latency_ms.csv",
    }
    return {
        "uniform": lambda n, seed: uniform(n, seed, speed_spread=5.0),
        "mobile": mobile,
        "cross_silo": cross_silo,
        "datacenters": datacenters,
        "durations": durations,
        "serverless": lambda n, seed: serverless(
            n, seed, path=str(traces / "lambda_worker_seconds.npz"), wrap=True
        ),
        "trace": lambda n, seed: trace(n, seed, **{k: str(v) for k, v in files.items()}),
        "volunteers": volunteers,
    }


def columns(fleet):
    devices, links = fleet.devices, fleet.links
    named = {
        name: getattr(part, name)
        for part, names in (
            (devices, ("kind", "flops", "memory_bytes", "idle_w", "compute_w", "radio_w")),
            (links, ("down_bps", "up_bps", "latency_s", "loss", "down_sigma_bps", "up_sigma_bps")),
            (links, ("reachable",)),
        )
        for name in names
    }
    return {name: column for name, column in named.items() if column is not None}


# ---- what holds for every preset -----------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_client_is_the_same_whatever_the_size_of_the_fleet(make, name):
    few, many = make[name](7, 3), make[name](1000, 3)
    for column, values in columns(few).items():
        assert values.tolist() == columns(many)[column][:7].tolist(), column
    for client in range(7):
        for ask in ("compute_seconds", "down_cap", "up_cap", "latency_s"):
            arguments = {"compute_seconds": (client, 4, 1e9), "latency_s": (client,)}.get(
                ask, (client, 4)
            )
            assert getattr(few, ask)(*arguments) == getattr(many, ask)(*arguments)
        assert few.availability.next_change(client, 0.0) == many.availability.next_change(
            client, 0.0
        )
        assert few.faults.draw(3, client, 1) == many.faults.draw(3, client, 1)
        assert few.peers.bandwidth_bps(client, 0) == many.peers.bandwidth_bps(client, 0)


@pytest.mark.parametrize("name", ["uniform", "mobile", "cross_silo", "trace"])
def test_another_seed_is_another_fleet(make, name):
    assert make[name](50, 1).devices.flops.tolist() != make[name](50, 2).devices.flops.tolist()


@pytest.mark.parametrize("name", PRESETS)
def test_a_fleet_without_clients_is_refused(make, name):
    with pytest.raises(ConfigError, match="num_clients is 0"):
        make[name](0, 0)


def compose_fleet(folder, *overrides):
    (folder / "config.yaml").write_text(
        f"defaults: [_self_, fleet: uniform]\nhydra: {{searchpath: ['file://{CONF}']}}\n"
        "num_clients: 6\nseed: 5\n"
    )
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", overrides=list(overrides)).fleet


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_builds_the_fleet_of_the_function_s_defaults(
    make, name, tmp_path, traces, monkeypatch
):
    monkeypatch.setenv("FL_DATA_DIR", str(traces.parent))
    config = compose_fleet(tmp_path, f"fleet={name}")
    built = instantiate(config)
    assert isinstance(built, Fleet)
    assert (built.name, built.seed, len(built)) == (name, 5, 6)
    function = get_method(config._target_)
    parameters = inspect.signature(function).parameters
    plain = {k: v for k, v in OmegaConf.to_container(config, resolve=True).items() if k[0] != "_"}
    of_groups = {"datacenters": {"checkpointing"}, "mobile": {"radio"}}  # null by default
    absent = of_groups.get(name, set())
    assert plain.keys() | absent == set(parameters), "keys equal arguments"
    for key, value in plain.items():
        default = parameters[key].default
        if (
            key in ("availability", "client_slowdown", "faults", "task_slowdown")
            or default is inspect.Parameter.empty
        ):
            continue
        if key in ("phones", "networks", "machines"):
            default = {
                kind: {"_target_": v["_target_"], **vars(default[kind])}
                for kind, v in value.items()
            }
        if not key.endswith("_file"):
            assert value == (list(default) if isinstance(default, tuple) else default), key
    if name not in ("serverless", "trace"):
        same = function(6, 5)
        assert built.faults == same.faults
        assert type(built.availability) is type(same.availability)
        assert built.availability.online(1e4).tolist() == same.availability.online(1e4).tolist()
        for column, values in columns(built).items():
            assert values.tolist() == columns(same)[column].tolist(), column


@pytest.mark.parametrize("availability", AVAILABILITIES)
@pytest.mark.parametrize("name", ["uniform", "mobile"])
def test_every_availability_goes_with_a_preset(name, availability, tmp_path):
    path = tmp_path / "behave.json"
    path.write_text(json.dumps({"a": {"active": [1], "inactive": [5], "finish_time": 9}}))
    overrides = [f"fleet={name}", f"fleet/availability={availability}"]
    if availability in ("bernoulli", "markov", "cyclic"):  # by the labels of the root's data
        overrides += ["~fleet.availability.rates", f"+fleet.availability.rates={[0.5] * 6}"]
    if availability == "preemption_trace":
        path.write_text("0,add,a\n9000,remove,a\n")
    if availability in ("behaviour", "preemption_trace"):
        overrides.append(f"fleet.availability.path={path}")
    built = instantiate(compose_fleet(tmp_path, *overrides))
    assert built.availability.online(2.0).shape == (6,)


@pytest.mark.parametrize("name", PRESETS)
def test_faults_are_set_from_the_command_line(name, tmp_path, traces, monkeypatch):
    monkeypatch.setenv("FL_DATA_DIR", str(traces.parent))
    chain = "{_target_: fl.simulation.world.faults.GilbertElliott, p: 0.1, r: 0.5, factor: 3}"
    config = compose_fleet(
        tmp_path, f"fleet={name}", "fleet.faults.dropout=0.25", f"fleet.faults.slowdown={chain}"
    )
    faults = instantiate(config).faults
    assert faults.dropout == 0.25
    assert faults.slowdown == GilbertElliott(0.1, 0.5, 3)


@pytest.mark.parametrize(
    "name",
    [
        *PRESETS,
        *(f"availability/{name}" for name in AVAILABILITIES),
        *(f"slowdown/{name}" for name in SLOWDOWNS),
    ],
)
def test_every_configuration_opens_with_a_command_and_explains_its_keys(name):
    lines = (CONF / "fleet" / f"{name}.yaml").read_text().splitlines()
    key = "/".join(["fleet", *name.split("/")[:-1]])
    assert lines[0].startswith(("# fl ", "# FL_DATA_DIR=... fl "))
    place = r"@fleet\.(client|task)_slowdown" if key == "fleet/slowdown" else ""
    assert re.search(f" {key}{place}={name.split('/')[-1]}", lines[0])
    assert lines[1].startswith("# ")


@pytest.mark.parametrize("name", SLOWDOWNS)
def test_a_slowdown_divides_the_speed(name, tmp_path):
    chosen = f"fleet/slowdown@fleet.client_slowdown={name}"
    built = instantiate(compose_fleet(tmp_path, chosen, "fleet.flops=8"))
    at_1e9 = instantiate(compose_fleet(tmp_path, chosen)).devices.flops
    assert built.devices.flops == pytest.approx(at_1e9 * 8 / 1e9)
    assert (at_1e9 == 1e9).all() == (name == "constant")


# ---- size ----------------------------------------------------------------------------------------


def test_a_million_phones_take_a_hundred_bytes_each():
    fleet = mobile(1_000_000, 0)
    assert sum(column.nbytes for column in columns(fleet).values()) / len(fleet) <= 100
    assert fleet.availability.online(0.0).shape == (1_000_000,)


def test_equal_clients_take_no_memory_each():
    fleet = uniform(10_000_000, 0)
    assert all(column.strides == (0,) for column in columns(fleet).values())


# ---- uniform -------------------------------------------------------------------------------------


def test_uniform_clients_are_equal_and_exact():
    fleet = uniform(5, 0, flops=2e9, down_bps=4e6, up_bps=1e6, latency_s=0.25)
    assert [fleet.compute_seconds(c, 3, 1e9) for c in range(5)] == [0.5] * 5
    assert fleet.server.down_bps == fleet.server.up_bps == math.inf
    link = SharedLink(fleet.server.up_bps)
    for client in range(5):
        link.add(0.25, client, 8e6, fleet.down_cap(client, 0))
    assert link.next_completion() == 0.25 + 8e6 / 4e6
    assert link.pop_completed(link.next_completion()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("spread", [1.0, 5.0, 50.0])
def test_speeds_are_log_uniform_between_the_fastest_and_a_fraction_of_it(spread):
    speeds = uniform(20_000, 0, flops=3e9, speed_spread=spread).devices.flops
    assert speeds.max() <= 3e9
    assert speeds.min() >= 3e9 / spread
    assert speeds.max() / speeds.min() == pytest.approx(spread, rel=0.01)
    if spread > 1:
        place = np.log(speeds / 3e9) / -np.log(spread)
        assert np.histogram(place, 10, (0, 1))[0] == pytest.approx(2000, abs=4 * math.sqrt(1800))


@pytest.mark.parametrize("spread", [0.5, 0.0, math.nan, math.inf])
def test_a_spread_below_one_is_refused(spread):
    with pytest.raises(ConfigError, match="speed_spread"):
        uniform(3, 0, speed_spread=spread)


def test_a_server_link_a_client_cannot_have_is_refused():
    with pytest.raises(ConfigError, match=r"server\.down_bps is 0"):
        uniform(3, 0, server_down_bps=0)
    with pytest.raises(ConfigError, match=r"links\.up_bps of client 0 \(client\) is -1"):
        uniform(3, 0, up_bps=-1.0)


# ---- mobile --------------------------------------------------------------------------------------


def femnist_cnn_flops():
    """FLOPs of one training example of FLASH's FEMNIST CNN, layer by layer."""
    conv1 = 28 * 28 * 32 * (5 * 5 * 1)
    conv2 = 14 * 14 * 64 * (5 * 5 * 32)
    dense = 7 * 7 * 64 * 2048
    logits = 2048 * 62
    forward = 2 * (conv1 + conv2 + dense + logits)
    return forward, 3 * forward - 2 * conv1  # no gradient with respect to the image


def test_phone_speeds_follow_from_the_measured_training_times():
    forward, training = femnist_cnn_flops()
    assert forward == FEMNIST_FORWARD_FLOPS
    speeds = [10 * training / seconds for seconds in (1.642, 0.588, 0.179)]
    assert [phone.flops for phone in PHONES.values()] == pytest.approx(speeds, rel=1e-3)
    assert pytest.approx(speeds[1], rel=1e-3) == MEDIAN_PHONE_FLOPS


@pytest.mark.slow
def test_the_flop_counter_counts_that_cnn_alike():
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    cnn = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, 62),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(
            cnn(torch.zeros(10, 1, 28, 28)), torch.zeros(10, dtype=int)
        ).backward()
    assert counter.get_total_flops() == 10 * femnist_cnn_flops()[1]


def test_phones_and_networks_are_mixed_in_their_shares():
    fleet, n = mobile(40_000, 0), 40_000
    for index, phone in enumerate(PHONES.values()):
        mine = fleet.devices.kind == index
        assert mine.mean() == pytest.approx(phone.share, abs=4 * math.sqrt(0.25 / n))
        assert np.median(fleet.devices.flops[mine]) == pytest.approx(phone.flops, rel=0.02)
        assert np.std(np.log(fleet.devices.flops[mine])) == pytest.approx(0.2, rel=0.05)
    for net in NETWORKS.values():
        mine = fleet.devices.radio_w == net.radio_w
        assert mine.mean() == pytest.approx(net.share, abs=4 * math.sqrt(0.25 / n))
        assert np.median(fleet.links.down_bps[mine]) == pytest.approx(net.down_bps, rel=0.05)
        assert np.median(fleet.links.up_bps[mine]) == pytest.approx(net.up_bps, rel=0.05)
        assert set(fleet.links.latency_s[mine]) == {net.latency_s}
    # a phone's class says nothing about its network
    assert abs(np.corrcoef(fleet.devices.kind, fleet.devices.radio_w)[0, 1]) < 0.03


def test_a_phone_s_transfers_vary_around_its_link_s_bandwidth():
    fleet = mobile(3, 0, transfer_variation=0.1)
    caps = np.array([fleet.down_cap(1, k) for k in range(2000)]) / fleet.links.down_bps[1]
    assert np.mean(caps) == pytest.approx(1.0, abs=0.01)
    assert np.std(caps) == pytest.approx(0.1, rel=0.1)
    steady = mobile(3, 0, transfer_variation=0.0)
    assert steady.down_cap(1, 0) == steady.down_cap(1, 1) == steady.links.down_bps[1]


def test_mobile_takes_other_phones_networks_availability_and_faults():
    fleet = mobile(
        100,
        0,
        phones={"only": PhoneClass(1, 1e9, 1e9, 0.1, 1.0)},
        networks={"lossy": NetworkClass(1, 1e7, 1e7, 0.05, 1.0, loss=0.01)},
        availability=ExponentialOnOff(100, 0, 10.0, 10.0),
        faults=Faults(),
        speed_sigma=0.0,
    )
    assert fleet.devices.kinds == ("only",)
    assert set(fleet.devices.flops) == {1e9}
    assert fleet.down_cap(0, 0) <= 11680 / 0.1 * math.sqrt(1.5) / 0.1
    assert isinstance(mobile(3, 0).availability, Diurnal)


def test_shares_are_relative_and_a_share_of_zero_is_nobody():
    phone = PhoneClass(3, 1e9, 1e9, 0.1, 1.0)
    phones = {"none": replace(phone, share=0), "three": phone, "one": replace(phone, share=1)}
    counts = np.bincount(mobile(20_000, 0, phones=phones).devices.kind, minlength=3)
    assert counts == pytest.approx([0, 15_000, 5_000], abs=4 * math.sqrt(20_000 * 3 / 16))


@pytest.mark.parametrize("share", [-0.1, math.nan, 0.0])
def test_shares_that_cannot_be_are_refused(share):
    with pytest.raises(ConfigError, match="shares of device-class"):
        mobile(3, 0, phones={"only": PhoneClass(share, 1e9, 1e9, 0.1, 1.0)})


@pytest.mark.parametrize("name", ["speed_sigma", "link_sigma", "transfer_variation"])
def test_a_negative_spread_is_refused(name):
    with pytest.raises(ConfigError, match=r"is -0\.1|of client 0"):
        mobile(3, 0, **{name: -0.1})


# ---- cross_silo ----------------------------------------------------------------------------------


def test_silos_have_links_between_the_bounds_and_are_always_on():
    fleet = cross_silo(2000, 0)
    assert fleet.links.down_bps.min() >= 100e6
    assert fleet.links.down_bps.max() <= 1e9
    place = np.log10(fleet.links.down_bps / 100e6)
    assert np.histogram(place, 4, (0, 1))[0] == pytest.approx(500, abs=80)
    assert fleet.links.latency_s.min() >= 0.002
    assert fleet.links.latency_s.max() <= 0.020
    assert fleet.availability.online(1e6).all()
    servers = fleet.devices.kind == fleet.devices.kinds.index("server")
    assert servers.mean() == pytest.approx(0.5, abs=0.05)
    assert (fleet.devices.flops[servers] == 4.7e12).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"server_share": 1.5}, "server_share"),
        ({"slowest_bps": 2e9}, "slowest_bps"),
        ({"fastest_bps": math.inf}, "fastest_bps"),
        ({"min_latency_s": 1.0}, "min_latency_s"),
        ({"min_latency_s": -1.0}, "min_latency_s"),
    ],
)
def test_silos_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cross_silo(3, 0, **arguments)


# ---- datacenters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "ms", "mbps"),
    [
        # a sample of the published table, as printed in the notes on DiLoCo
        (("belgium", "germany"), 4, 2083),
        (("germany", "london"), 6.6, 1621),
        (("los-angeles", "oregon"), 12.4, 1018),
        (("iowa", "oregon"), 19.3, 776),
        (("canada", "iowa"), 14, 650),
        (("iowa", "los-angeles"), 23.4, 528),
        (("canada", "oregon"), 30.5, 405),
        (("japan", "taiwan"), 19.2, 659),
        (("singapore", "taiwan"), 23.2, 532),
        (("japan", "singapore"), 35.6, 335),
        (("australia", "singapore"), 48, 256),
        (("australia", "japan"), 58, 118),
        (("germany", "iowa"), 53.5, 229),
        (("iowa", "netherlands"), 51, 235),
        (("oregon", "london"), 64, 182),
        (("germany", "los-angeles"), 73, 157),
        (("japan", "oregon"), 46.2, 262),
        (("japan", "los-angeles"), 50, 239),
        (("iowa", "japan"), 72.5, 120),
        (("germany", "japan"), 112, 95),
        (("germany", "singapore"), 80, 107),
        (("singapore", "london"), 85, 135),
        (("taiwan", "london"), 109.5, 77),
        (("australia", "germany"), 125.5, 90),
        (("australia", "los-angeles"), 69, 126),
    ],
)
def test_wide_area_links_are_those_of_the_published_table(pair, ms, mbps):
    bps, delay = wide_area(pair)
    assert bps[0, 1] == bps[1, 0] == mbps * 1e6
    assert delay[0, 1] == delay[1, 0] == pytest.approx(ms / 1000)


def test_the_whole_table_is_symmetric_with_fast_sites_and_a_window_in_flight():
    bps, delay = wide_area(REGIONS)
    assert (bps == bps.T).all()
    assert (delay == delay.T).all()
    assert set(np.diag(bps)) == {17.18e9}
    assert set(np.diag(delay)) == {0.001}
    product = (bps * delay / 8e6)[np.triu_indices(12, 1)]  # MB
    assert np.median(product) == pytest.approx(1.4, abs=0.1)


def test_islands_are_in_their_regions_in_turn_and_edges_join_them():
    fleet = datacenters(6, 0, regions=["germany", "iowa", "japan"], server_region="london")
    assert fleet.links.down_bps[:4].tolist() == [1621e6, 188e6, 76e6, 1621e6]
    assert fleet.links.latency_s[1] == pytest.approx(0.0481)
    peers = fleet.peers
    assert peers.bandwidth_bps(0, 4) == 229e6
    assert peers.latency_s(0, 4) == pytest.approx(0.0535)
    assert peers.bandwidth_bps(0, 3) == 17.18e9  # both in Germany
    assert fleet.devices.flops[0] == 8 * 312e12 * 0.4
    assert fleet.energy_j(0, 1.0, 0.0, 0.0) == 8 * 400 + 800
    assert datacenters(2, 0).links.latency_s[0] == 0.001  # the server is with the first region


def test_parallel_flows_add_up_to_what_a_site_has():
    assert wide_area(["iowa", "oregon"], 8)[0][0, 1] == 8 * 776e6
    assert wide_area(["iowa", "oregon"], 100)[0][0, 1] == 17.18e9
    assert datacenters(2, 0, access_bps=1e9, parallel_flows=8).peers.bandwidth_bps(0, 1) == 1e9


@pytest.mark.parametrize("name", ARCHETYPES)
def test_archetypes_are_the_same_link_everywhere(name):
    fleet = datacenters(4, 0, network=name)
    bps, delay = ARCHETYPES[name]
    assert set(fleet.links.up_bps) == {bps}
    assert set(fleet.links.latency_s) == {delay}
    assert (fleet.peers.bandwidth_bps(1, 2), fleet.peers.latency_s(1, 2)) == (bps, delay)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "fast"}, "network is 'fast'; it is geo or one of high"),
        ({"regions": ["mars"]}, "mars"),
        ({"regions": []}, "regions"),
        ({"server_region": "mars"}, "mars"),
        ({"parallel_flows": 0}, "parallel_flows"),
        ({"network": "low", "parallel_flows": 2}, "parallel_flows"),
        ({"utilisation": 0.0}, "utilisation"),
        ({"gpus": 0}, "gpus"),
        ({"window_bytes": 1e-300}, "window_bytes is 1e-300"),
    ],
)
def test_datacenters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        datacenters(3, 0, **arguments)


# ---- serverless ----------------------------------------------------------------------------------


def test_functions_take_the_measured_seconds_at_the_load(traces):
    path = str(traces / "lambda_worker_seconds.npz")
    fleet = serverless(20, 0, path=path, load=0.25)
    for client, k in ((0, 0), (19, 29), (7, 3)):
        assert fleet.compute_seconds(client, k, 1e15) == (20 * k + client + 1) * 1.25
    with pytest.raises(ConfigError, match=r"num_clients is 21, but .* has 20 workers"):
        serverless(21, 0, path=path)
    with pytest.raises(ConfigError, match=r"task number 31, but .* has 30 rounds"):
        fleet.compute_seconds(0, 30, 1e9)
    wrapped = serverless(45, 0, path=path, wrap=True)
    assert wrapped.compute_seconds(44, 31, 1e9) == (20 * 1 + 4 + 1) * 1.5
    with pytest.raises(ConfigError, match=r"no array load_0\.300; it has load_0\.000, load_0\.250"):
        serverless(3, 0, path=path, load=0.3)


def test_an_array_file_that_holds_objects_is_refused(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, **{"load_0.000": np.array([[object()]])})
    with pytest.raises(ConfigError, match="plain arrays"):
        read_worker_seconds(path, 0.0)
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ConfigError, match="plain arrays"):
        read_worker_seconds(tmp_path / "text.npz", 0.0)


# ---- trace ---------------------------------------------------------------------------------------


def test_phone_scores_scale_the_median_phone(traces):
    fleet = trace(
        3000, 0,
        score_file=str(traces / "flash_benchmark2score.json"),
        speed_file=str(traces / "flash_speed_distri.json"),
        median_flops=1e9,
    )  # fmt: skip
    values, counts = np.unique(fleet.devices.flops, return_counts=True)
    assert values.tolist() == [0.25e9, 1e9, 4e9]
    assert counts == pytest.approx(1000, abs=110)


def test_a_link_is_that_of_a_recorded_user_times_one_factor(traces):
    files = {
        "score_file": str(traces / "flash_benchmark2score.json"),
        "speed_file": str(traces / "flash_speed_distri.json"),
    }
    links = trace(500, 0, link_sigma=0.0, **files).links
    rows = np.stack([links.down_bps, links.down_sigma_bps, links.up_bps, links.up_sigma_bps], 1)
    users = {tuple(8000.0 * v for v in user.values()) for user in SPEEDS.values()}
    assert {tuple(row) for row in rows} == users  # kB/s are 8000 bit/s
    spread = trace(500, 0, link_sigma=0.4, **files).links
    factor = spread.down_bps / links.down_bps
    assert np.std(np.log(factor)) == pytest.approx(0.4, rel=0.1)
    assert spread.up_sigma_bps / links.up_sigma_bps == pytest.approx(factor)


def test_fedscale_capacities_are_inference_milliseconds_and_kilobits(traces):
    fleet = trace(5, 0, capacity_file=str(traces / "capacity.json"), forward_flops=1e6)
    # three times the forward FLOPs of a sample in three times its inference time
    assert fleet.devices.flops.tolist() == pytest.approx(
        [1e6 / c for c in (0.02, 0.08, 0.02, 0.08, 0.02)]
    )
    assert fleet.links.down_bps.tolist() == [5e6, 1e6, 5e6, 1e6, 5e6]
    assert fleet.links.up_bps.tolist() == fleet.links.down_bps.tolist()


def test_clients_are_in_cities_in_turn(traces):
    files = {
        "capacity_file": str(traces / "capacity.json"),
        "latency_file": str(traces / "city_latency_ms.csv"),
    }
    fleet = trace(4, 0, server_city=1, **files)
    assert fleet.links.latency_s.tolist() == pytest.approx([0.020, 0.0001, 0.004, 0.020])
    assert fleet.peers.latency_s(0, 1) == pytest.approx(0.010)
    assert fleet.peers.latency_s(1, 0) == pytest.approx(0.030)
    assert fleet.peers.latency_s(1, 2) == 0.0  # a negative measurement
    assert fleet.peers.bandwidth_bps(0, 1) == 1e6
    with pytest.raises(ConfigError, match="server_city is 3"):
        trace(4, 0, server_city=3, **files)


def test_recorded_behaviour_goes_with_recorded_devices(traces, tmp_path):
    path = tmp_path / "behave"
    path.write_text(json.dumps({"a": {"active": [1], "inactive": [5], "finish_time": 9}}))
    availability = TraceAvailability.from_file(4, str(path))
    fleet = trace(4, 0, capacity_file=str(traces / "capacity.json"), availability=availability)
    assert fleet.availability.online(10.5).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "score_file or capacity_file"),
        ({"score_file": "flash_benchmark2score.json"}, "speed_file or capacity_file"),
        ({"capacity_file": "nowhere.json"}, "cannot read"),
    ],
)
def test_missing_files_are_refused(traces, files, message):
    with pytest.raises(ConfigError, match=message):
        trace(3, 0, **{key: str(traces / name) for key, name in files.items()})


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_scores, {"a": 0}, "score 0"),
        (read_scores, {"a": "x"}, "score 'x'"),
        (read_scores, {}, "at least one"),
        (read_scores, [1, 2], "must hold a dict"),
        (read_link_speeds, {"u": {"down_u": 1}}, "down_sigma"),
        (read_link_speeds, {"u": {**SPEEDS["u1"], "up_u": -1}}, r"up_u -8000|up_u -1"),
        (read_link_speeds, {"u": {**SPEEDS["u1"], "up_sigma": -1}}, "negative"),
        (read_capacity, {"d": {"computation": 0, "communication": 1}}, "computation 0"),
        (read_capacity, {"d": {"computation": True, "communication": 1}}, "computation True"),
    ],
)
def test_entries_that_cannot_be_are_refused(tmp_path, reader, content, message):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        reader(path)


@pytest.mark.parametrize("text", ["1,2\n3,4\n5,6\n", "1,x\n2,3\n", "1,nan\n2,3\n"])
def test_a_latency_file_that_is_no_square_matrix_is_refused(tmp_path, text):
    path = tmp_path / "latency.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"matrix"):
        read_city_latency(path)


# ---- the published files themselves --------------------------------------------------------------


def test_the_published_files_are_read_as_described(data_dir):
    folder = data_dir / "traces"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: the measured traces are not part of the project")
    scores = read_scores(folder / "flash_benchmark2score.json")
    assert (len(scores), scores.min(), np.median(scores), scores.max()) == (307, 212, 4638, 76206)
    speeds = read_link_speeds(folder / "flash_speed_distri.json") / 8000
    assert np.median(speeds, axis=0)[[0, 2]] == pytest.approx([4318, 3286], abs=1)
    assert np.median(speeds[:, 1] / speeds[:, 0]) == pytest.approx(0.37, abs=0.005)
    latency = read_city_latency(folder / "city_latency_ms.csv")
    assert latency.shape == (227, 227)
    assert latency.min() == 0.0
    assert latency.max() == pytest.approx(0.8118, abs=1e-4)
    for load in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert read_worker_seconds(folder / "lambda_worker_seconds.npz", load).shape == (30, 256)
