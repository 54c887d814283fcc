"""Networks: what homes, cells, sites and files make of transfers, of TCP, and of peers' links."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from stand_ins import Client, fleet_of, grid_of, message_to, times

from fl.collectives import Hierarchical, RingAllReduce
from fl.errors import ConfigError
from fl.flower.identity import node_id
from fl.simulation.kernel.links import ServerLink, mathis_bps
from fl.simulation.kernel.network_port import NetworkPort
from fl.simulation.kernel.port import LinkPort
from fl.simulation.kernel.trace import Event
from fl.simulation.world.networks import (
    Background,
    Cable,
    Cells,
    Direct,
    Households,
    NetworkFile,
    NetworkModel,
    Routes,
    SimGridPlatform,
    Sites,
    Tcp,
)


def fleet(n, network, server=None, **client):
    return replace(fleet_of([Client(**client)] * n, server), network=network)


def upload_ends(fleet, size, n=None):
    grid = grid_of(fleet, reply=size)
    n = len(fleet) if n is None else n
    grid.send_and_receive([message_to(i) for i in range(n)])
    ends = times(grid.trace, Event.UPLOAD_END)
    return [ends[i, 0] for i in range(n)]


def download_ends(fleet, size):
    grid = grid_of(fleet)
    grid.send_and_receive([message_to(i, size) for i in range(len(fleet))])
    ends = times(grid.trace, Event.DOWNLOAD_END)
    return [ends[i, 0] for i in range(len(fleet))]


# ---- areas ---------------------------------------------------------------------------------------


def test_clients_of_a_home_share_its_line_and_others_do_not():
    homes = Households(size=2, down_bps=16_000, up_bps=8_000)
    assert upload_ends(fleet(5, homes), 1000) == pytest.approx([2.0, 2.0, 2.0, 2.0, 1.0])
    assert download_ends(fleet(5, homes), 1000) == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.5])


def test_a_home_has_the_line_of_its_fastest_client_if_nothing_is_said():
    clients = [Client(up_bps=bps) for bps in (2000, 8000, 3000, 1000)]
    homes = replace(fleet_of(clients), network=Households(size=3))
    assert homes.routes.capacity_bps[1::2][:2] == [8000, 1000]
    # The third takes 3000 - the level is above: 2000 and 3000, and 3000 are left for the second.
    assert upload_ends(homes, 1000)[3] == 8.0


def test_who_is_on_no_cell_has_a_line_of_its_own():
    cells = Cells(size=50, share=0.5, up_bps=8_000)
    found = fleet(200, cells, up_bps=8_000)
    on = np.array([bool(found.routes.of(i).links) for i in range(200)])
    assert 70 < on.sum() < 130
    assert found.routes.of(int(np.flatnonzero(on)[-1])).links != found.routes.of(0).links
    ends = np.array(upload_ends(found, 1000))
    assert (ends[~on] == 1.0).all()
    per_cell = on.reshape(4, 50).sum(axis=1)
    assert ends.reshape(4, 50).max(axis=1) == pytest.approx(per_cell)
    # Clients keep their cells when others are added.
    longer = fleet(300, cells, up_bps=8_000)
    assert [longer.routes.of(i) for i in range(150)] == [found.routes.of(i) for i in range(150)]


def test_sites_share_uplinks_trunks_and_backbone_and_latencies_add():
    sites = Sites(
        sites=2,
        up_bps=8_000,
        latency_s=0.25,
        regions=2,
        region_bps=8_000_000,
        region_latency_s=0.5,
        backbone_bps=12_000,
        backbone_latency_s=1.0,
    )
    server = ServerLink(latency_s=2.0)
    three = fleet(3, sites, server, latency_s=4.0)
    assert [three.latency_s(i) for i in range(3)] == [7.75] * 3
    # Message there and back: 15.5 s. Clients 0 and 2 share 8,000 of the backbone's 12,000, client 1
    # has the rest of it: all three are at 4,000, and done after 2 s.
    assert upload_ends(three, 1000) == pytest.approx([17.5] * 3)


def test_a_network_whose_only_shared_link_is_the_servers_has_the_same_times_to_the_last_bit():
    rng = np.random.default_rng(0)
    clients = [Client(up_bps=float(b), latency_s=float(s)) for b, s in rng.uniform(1, 9, (30, 2))]
    plain = fleet_of(clients, ServerLink(down_bps=40.0, latency_s=0.5))
    direct = replace(plain, network=Direct())
    assert isinstance(grid_of(direct).engine._uplink, LinkPort)
    assert upload_ends(direct, 100) == upload_ends(plain, 100)


def test_the_servers_link_by_the_network_is_the_servers_link():
    rng = np.random.default_rng(1)
    clients = [Client(up_bps=float(b), latency_s=float(s)) for b, s in rng.uniform(1, 9, (30, 2))]
    plain = fleet_of(clients, ServerLink(down_bps=40.0, latency_s=0.5))
    wide = replace(plain, network=Sites(up_bps=1e12, latency_s=0.0))
    assert isinstance(grid_of(wide).engine._uplink, NetworkPort)
    assert upload_ends(wide, 100) == pytest.approx(upload_ends(plain, 100), rel=1e-9)


# ---- TCP and background --------------------------------------------------------------------------


def test_a_window_bounds_a_flow_by_the_round_trip_of_all_links():
    sites = Sites(latency_s=0.25, tcp=Tcp(window_bytes=1000))
    assert fleet(1, sites, ServerLink(latency_s=0.5), latency_s=0.25).up_cap(0, 0) == 8000 / 2.0
    assert fleet(1, Direct(tcp=Tcp(window_bytes=1000)), up_bps=5.0).up_cap(0, 0) == 5.0


def test_loss_adds_up_along_the_route():
    @dataclass(frozen=True, kw_only=True)
    class Lossy(NetworkModel):
        def routes(self, links, server, seed):
            cables = [Cable("a", 1e9, 1e9, 0.1, loss=0.1), Cable("b", 1e9, 1e9, 0.2, loss=0.2)]
            return Routes.tree(cables, [(0, 1)], np.zeros(len(links), int), server)

    lossy = fleet(1, Lossy(), latency_s=0.2)
    assert lossy.down_cap(0, 0) == pytest.approx(mathis_bps(1.0, 1 - 0.9 * 0.8))


@pytest.mark.parametrize(("size", "waits"), [(0, 0), (1000, 0), (1001, 1), (3000, 1), (9000, 1)])
def test_slow_start_waits_until_the_pipe_is_full(size, waits):
    # R = 1000 B/s and S = 1000 B, so S / R = 1 s = RTT: from the second window on the sender has
    # more on its way than R takes in a round trip, and never waits again.
    assert Tcp(initial_window_bytes=1000).ramp_s(size, 8000.0, 1.0) == waits


def test_slow_start_is_the_sum_of_its_waits():
    size, window, rate, rtt = 50_000, 500.0, 80_000.0, 0.7
    waits, k = 0.0, 1
    while window * (2**k - 1) < size:
        waits += max(0.0, 8 * window / rate + rtt - 2 ** (k - 1) * 8 * window / rate)
        k += 1
    assert Tcp(initial_window_bytes=window).ramp_s(size, rate, rtt) == pytest.approx(waits)


def test_slow_start_delays_a_transfer_and_a_client_that_leaves_meanwhile_sends_nothing():
    slow = Direct(tcp=Tcp(initial_window_bytes=1000))
    there = fleet(1, slow, up_bps=8000.0, latency_s=0.5)
    # 0.5 for a message of nothing, 0.5 for latency, 1 RTT of waiting, 3 s of sending.
    assert upload_ends(there, 3000) == [5.0]


def test_shares_by_round_trip():
    sites = [Client(latency_s=0.1), Client(latency_s=0.3)]
    server = ServerLink(down_bps=8000)
    fair = replace(fleet_of(sites, server), network=Direct(tcp=Tcp(rtt_fairness=True)))
    grid = grid_of(fair, reply={(0, 0): 3000, (1, 0): 3000}, flops=0.0)
    grid.send_and_receive([message_to(0), message_to(1)])
    ends = times(grid.trace, Event.UPLOAD_END)
    # 0 sends from 0.2, alone until 0.6, then with 3/4 of the link: 2600 B left take 3.4667 s.
    assert ends[0, 0] == pytest.approx(0.6 + 2600 / 750)
    with pytest.raises(ConfigError, match=r"rtt_fairness.*client 0"):
        fleet(1, Direct(tcp=Tcp(rtt_fairness=True)))


def test_constant_background_takes_its_share():
    homes = Households(size=2, up_bps=8_000, background=Background(load=0.75))
    assert upload_ends(fleet(2, homes), 1000) == pytest.approx([8.0, 8.0])


def test_background_without_a_link_to_take_a_share_of_is_refused():
    with pytest.raises(ConfigError, match=r"network\.background\.load is 0\.75.*capacity"):
        fleet(2, Direct(background=Background(load=0.75)))
    assert fleet(2, Direct(background=Background(load=0.75)), ServerLink(down_bps=8e3))


def test_background_that_comes_and_goes_slows_only_while_it_is_there():
    background = Background(load=0.5, mean_on_s=2.0, mean_off_s=3.0)
    homes = fleet(2, Households(size=1, up_bps=8_000, background=background))
    load = background.of_links(len(homes.routes.capacity_bps), homes.seed)
    grid = grid_of(homes, reply=20_000)
    grid.send_and_receive([message_to(i) for i in range(2)])
    ends = times(grid.trace, Event.UPLOAD_END)
    for client in range(2):
        (link,) = homes.routes.of(client).links
        now, left = 0.0, 20.0  # s at full rate
        while True:
            rate, change = load.left(link, now), load.next_change(link, now)
            if left <= rate * (change - now):
                break
            now, left = change, left - rate * (change - now)
        assert ends[client, 0] == pytest.approx(now + left / rate)
    assert ends[0, 0] != ends[1, 0]
    assert upload_ends(homes, 20_000) == [ends[0, 0], ends[1, 0]]  # the same again


# ---- peers ---------------------------------------------------------------------------------------


def test_what_peers_of_a_home_send_each_other_does_not_leave_it():
    homes = fleet(4, Households(size=2, up_bps=8_000, down_bps=4_000, latency_s=1.0), up_bps=16_000)
    peers = homes.peers
    assert (peers.bandwidth_bps(0, 1), peers.latency_s(0, 1)) == (16_000, 0.0)
    assert (peers.bandwidth_bps(0, 2), peers.latency_s(0, 2)) == (4_000, 2.0)


def test_transfers_of_a_step_share_the_links_of_the_network():
    sites = fleet(4, Sites(sites=2, up_bps=8_000, down_bps=32_000, latency_s=0.0))
    i, j, one = np.array([0, 2, 1]), np.array([1, 3, 3]), np.ones(3)
    # Two leave the first site by its uplink; the third stays within the second one.
    assert sites.peers.rates(i, j, one, one).tolist() == [4_000, 4_000, math.inf]
    assert sites.peers.rates(i[:2], j[:2]).tolist() == [8_000, 8_000]  # each by itself


def test_a_ring_through_one_uplink_takes_as_long_as_its_transfers_one_after_the_other():
    def seconds(network):
        grid = grid_of(fleet(4, network, up_bps=8_000, down_bps=8_000))
        return grid.peers.collect(
            [node_id(k) for k in range(4)], [4000] * 4, RingAllReduce()
        ).finish_s

    # 6 steps of 1000 B; 0, 1, 0, 1: in every step two leave each of the sites.
    assert seconds(None) == pytest.approx(6.0)
    assert seconds(Sites(sites=2, up_bps=8_000, down_bps=1e9, latency_s=0.0)) == pytest.approx(12.0)
    assert seconds(Sites(sites=1, up_bps=8_000, latency_s=9.0)) == pytest.approx(6.0)


def test_transfers_to_peers_queue_on_a_link_that_they_share():
    homes = fleet(3, Households(size=2, up_bps=8_000, down_bps=1e9))
    grid = grid_of(homes)
    arrivals = [
        grid.peers.transfer(node_id(k), node_id(2), 1000, 0.0, index=0)[0] for k in (0, 1, 0)
    ]
    assert arrivals == pytest.approx([1.0, 2.0, 3.0])  # all of it is there when max-min has it
    assert grid.peers.transfer(node_id(0), node_id(1), 1000, 0.0, index=1)[0] == 0.0


def test_hierarchical_all_reduce_runs_on_a_network():
    grid = grid_of(fleet(4, Households(size=2, up_bps=8e3), up_bps=8e3, down_bps=8e3))
    nodes = [node_id(k) for k in range(4)]
    found = grid.peers.collect(nodes, [4000] * 4, Hierarchical(group_size=2))
    assert math.isfinite(found.finish_s)


# ---- files ---------------------------------------------------------------------------------------

STATED = """
links:
  backbone: {bps: 8000, latency_s: 0.5, sharing: each}
  radio: {bps: 16e3, latency_s: 0.25, sharing: both}
  line: {down_bps: 4000, up_bps: 2000}
hosts:
  mast: {route: [radio, backbone], clients: [0, 2-3]}
  hut: {route: [line, backbone], clients: 1}
"""


def stated(tmp_path, text, n=4):
    path = tmp_path / "network.yaml"
    path.write_text(text, "utf-8")
    return fleet(n, NetworkFile(path=str(path)))


def test_a_file_states_links_hosts_and_routes(tmp_path):
    found = stated(tmp_path, STATED)
    assert [found.latency_s(i) for i in range(4)] == [0.75, 0.5, 0.75, 0.75]
    assert [found.up_cap(i, 0) for i in range(2)] == [8000, 8000]  # the backbone, for each
    # There and back 1.5 s; three of 16,000 on the radio; the line has 2,000 up.
    assert upload_ends(found, 2000) == pytest.approx([4.5, 9.0, 4.5, 4.5])
    assert found.peers.bandwidth_bps(0, 1) == 4000
    assert found.peers.latency_s(0, 1) == 0.25
    # A radio channel carries both directions: two downloads at 8,000 each, with nothing up.
    assert found.routes.to(0).links == found.routes.of(0).links


def test_hosts_take_clients_in_turn_if_none_is_named(tmp_path):
    text = "links: {a: {bps: 1e3}, b: {bps: 2e3}}\nhosts: {x: {route: [a]}, y: {route: [b]}}"
    found = stated(tmp_path, text, n=5)
    assert found.routes.place.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[line, backbone]", "[lane, backbone]"), ["hut", "lane", "line"]),
        (("route: [line, backbone], ", ""), ["hut", "no route"]),
        (("[line, backbone]", "[line, line]"), ["hut", "once"]),
        (("clients: 1", "clients: []"), ["client 1", "no host"]),
        (("clients: 1", "clients: 0"), ["hut", "client 0"]),
        (("clients: 1", "clients: 4"), ["hut", "4", "0 to 3"]),
        (("clients: 1", "clients: north"), ["hut", "north"]),
        (("clients: 1", "clients: 1-"), ["hut", "1-", "range"]),
        (("clients: 1", f"clients: 1-{'9' * 5000}"), ["hut", "range"]),
        (("clients: 1", f"clients: {'9' * 5000}"), ["path is", "no YAML"]),
        (("  hut:", "  mast:"), ["twice"]),
        (("clients: 1", "clients: &own [*own]"), ["hut", "range"]),
        (("bps: 8000,", "bps: 0,"), ["backbone", "0", "bps of link"]),
        (("bps: 8000,", ""), ["backbone", "bps"]),
        (("bps: 8000,", "bps: fast,"), ["backbone", "fast"]),
        (("latency_s: 0.5", "latency_s: -1"), ["backbone", "latency_s", "-1"]),
        (("sharing: each", "sharing: some"), ["backbone", "some", "duplex"]),
        (("sharing: each", "jitter: 1"), ["backbone", "jitter"]),
        (("hosts:", "places:"), ["places", "hosts"]),
        (("links:", "links: ["), ["no YAML"]),
    ],
)
def test_a_file_that_states_what_cannot_be_is_refused_by_place(tmp_path, change, says):
    assert change[0] in STATED
    with pytest.raises(ConfigError) as refused:
        stated(tmp_path, STATED.replace(*change, 1))
    assert all(word in str(refused.value) for word in says)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"path is 'nowhere\.yaml'"):
        fleet(1, NetworkFile(path="nowhere.yaml"))


PLATFORM = """<?xml version="1.0"?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
  <zone id="world" routing="Dijkstra">
    <host id="server" speed="1Gf"/>
    <router id="core"/>
    <link id="trunk" bandwidth="1kBps" latency="250ms"/>
    <link id="last" bandwidth="1MBps" latency="0.5s" sharing_policy="FATPIPE"/>
    <host id="a" speed="1Gf"><prop id="ram" value="1"/></host>
    <host id="b" speed="1Gf"/>
    <route src="server" dst="core"><link_ctn id="trunk"/></route>
    <route src="core" dst="a"><link_ctn id="last"/></route>
    <route src="core" dst="b"><link_ctn id="last"/></route>
  </zone>
</platform>
"""


def platform(tmp_path, text, n=3, host="server", **factors):
    path = tmp_path / "platform.xml"
    path.write_text(text, "utf-8")
    return fleet(n, SimGridPlatform(path=str(path), server_host=host, **factors))


def test_a_simgrid_platform_is_a_network(tmp_path):
    found = platform(tmp_path, PLATFORM)
    assert [found.latency_s(i) for i in range(3)] == [0.75] * 3
    assert upload_ends(found, 1000) == pytest.approx([1.5 + 3.0] * 3)  # one trunk of 1000 B/s
    assert found.peers.latency_s(0, 1) == 1.0
    slow = platform(tmp_path, PLATFORM, bandwidth_factor=0.5, latency_factor=2.0)
    assert upload_ends(slow, 1000) == pytest.approx([3.0 + 6.0] * 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('<link_ctn id="trunk"/>', '<link_ctn id="trank"/>'), ["line 11", "trank"]),
        (('dst="core"><', 'dst="care"><'), ["line 11", "care"]),
        (('<route src="core" dst="b"><link_ctn id="last"/></route>', ""), ["no route", "'b'"]),
        (('bandwidth="1kBps"', 'bandwidth="0kBps"'), ["line 7", "trunk", "0.0"]),
        (('bandwidth="1kBps"', 'bandwidth="wide"'), ["line 7", "wide"]),
        (('latency="250ms"', 'latency="long"'), ["line 7", "long"]),
        (('routing="Dijkstra"', 'routing="Vivaldi"'), ["line 4", "Vivaldi"]),
        (('version="4.1"', 'version="3"'), ["line 3", "'3'"]),
        (('<host id="b" speed="1Gf"/>', '<host id="a" speed="1Gf"/>'), ["line 10", "'a'"]),
        (('<host id="b" speed="1Gf"/>', '<cabinet id="b"/>'), ["line 10", "cabinet"]),
        (("</platform>", ""), ["no XML"]),
        (
            ('dtd">', 'dtd" [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'),
            ["entity"],
        ),
        (
            (
                '<host id="b" speed="1Gf"/>',
                '<cluster id="b" prefix="" suffix="" radical="0-999999999" bw="1" lat="0"/>',
            ),
            ["line 10", "1000000"],
        ),
    ],
)
def test_a_platform_that_cannot_be_read_is_refused_by_line(tmp_path, change, says):
    assert change[0] in PLATFORM
    with pytest.raises(ConfigError) as refused:
        platform(tmp_path, PLATFORM.replace(*change, 1))
    assert all(word in str(refused.value) for word in says)


def test_a_platform_without_the_servers_host_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"server_host is 'c'.*server, a, b"):
        platform(tmp_path, PLATFORM, host="c")


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Households(size=0), "size is 0"),
        (lambda: Households(down_bps=0.0), r"down_bps is 0\.0"),
        (lambda: Cells(share=1.5), r"share is 1\.5"),
        (lambda: Cells(up_bps=math.nan), "up_bps is nan"),
        (lambda: Sites(sites=2, regions=3), "regions is 3"),
        (lambda: Sites(latency_s=-1.0), r"latency_s is -1\.0"),
        (lambda: Tcp(window_bytes=0), "window_bytes is 0"),
        (lambda: Tcp(window_bytes=10, initial_window_bytes=20), "initial_window_bytes is 20"),
        (lambda: Background(load=1.0), r"load is 1\.0"),
        (lambda: Background(load=0.1, mean_on_s=1.0), "mean_off_s is None"),
        (lambda: Direct(tcp=3), "tcp is 3"),
        (lambda: fleet(2, network=3), "network is 3"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(made, says):
    with pytest.raises(ConfigError, match=says):
        made()


def test_a_client_at_no_place_is_refused():
    class Short(NetworkModel):
        def routes(self, links, server, seed):
            return Routes.tree([], [()], np.arange(len(links)), server)

    with pytest.raises(ConfigError, match="client 1 is at place 1"):
        fleet(3, Short())
