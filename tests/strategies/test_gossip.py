"""Synchronous gossip: closed forms, equivalences, and virtual times worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from networks import A3, B3, BEST3, LR, Q3, W3, Given, attacked, record, run
from stand_ins import Client, Scripted, ScriptedFaults

from fl.aggregation import Mean, Median
from fl.attacks import SignFlip
from fl.errors import ConfigError
from fl.flower.identity import assume_identity
from fl.flower.private import give_id
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults, TaskFaults
from fl.strategies import DPSGD, DFedAvg, Gossip
from fl.strategies.drivers.peers.gossip_run import GossipRun
from fl.topologies import Complete, DirectedRing, ExponentialGraph, Isolated, Path, Ring

A, B, W = np.array(A3), np.array(B3), np.array(W3)
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def still(i, x):
    """A client that learns nothing."""
    return x


# ---- what the models are -------------------------------------------------------------------------


def test_dpsgd_has_the_fixed_point_of_combine_then_adapt():
    ran = run(Gossip(DPSGD(), topology=Q3), num_rounds=300)
    fixed = np.linalg.solve(np.eye(3) - W + LR * np.diag(A), LR * A * B)
    np.testing.assert_allclose(fixed, [1.480144, 1.776173, 2.989170], rtol=1e-6)  # the document's
    np.testing.assert_allclose(ran.models[-1][:, 0], fixed, **TIGHT)
    assert abs(fixed.mean() - BEST3) > 0.2  # biased, as long as the step is constant


def test_dfedavg_with_one_step_has_the_fixed_point_of_adapt_then_combine():
    ran = run(Gossip(DFedAvg(), topology=Q3), num_rounds=300)
    np.testing.assert_allclose(
        ran.models[-1][:, 0], [1.606715, 1.959233, 2.824940], rtol=1e-5, atol=1e-5
    )


def test_dpsgd_is_x_to_wx_minus_lr_g_in_every_round():
    ran = run(Gossip(DPSGD(), topology=Q3), num_rounds=5)
    x = np.zeros(3)
    for model in ran.models:
        np.testing.assert_allclose(model[:, 0], x, **TIGHT)
        x = W @ x - LR * A * (x - B)


def test_two_local_steps_of_dfedavgm_are_the_documents():
    velocity = {}

    def heavy_ball(i, x):  # y <- y - eta g + theta (y - y_before), from rest in every round
        before = x
        for _ in range(2):
            x, before = x - 0.1 * A3[i] * (x - B3[i]) + 0.9 * (x - before), x
        velocity[i] = x
        return x.astype(np.float32)

    ran = run(Gossip(DFedAvg(), topology=Q3), num_rounds=1, x0=(0.5,), change=heavy_ball)
    np.testing.assert_allclose([velocity[i][0] for i in range(3)], [0.36, 0.77, 3.23], **TIGHT)
    np.testing.assert_allclose(ran.models[1][:, 0], [0.565, 1.18, 2.615], **TIGHT)


def sam(rho):
    def step(i, x):
        for _ in range(2):
            g = A3[i] * (x[:1] - B3[i])
            x = x - 0.1 * A3[i] * (x[:1] + rho * np.sign(g) - B3[i])
        return x.astype(np.float32)

    return step


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [0.551, 0.956, 1.931]), (4, [0.961625, 1.078344, 1.398031])],
)
def test_dfedsam_and_its_four_gossip_steps_are_the_documents(steps, expected):
    ran = run(
        Gossip(DFedAvg(gossip_steps=steps), topology=Q3), num_rounds=1, x0=(0.5,), change=sam(0.1)
    )
    np.testing.assert_allclose(ran.models[1][:, 0], expected, **TIGHT)
    assert ran.models[1][:, 0].mean() == pytest.approx(1.146, rel=1e-6)


@pytest.mark.parametrize("method", [DPSGD, DFedAvg])
def test_on_the_complete_graph_gossip_is_synchronous_sgd_and_so_fedavg(method):
    n, centres = 8, np.linspace(-3, 4, 8)
    ran = run(Gossip(method(), topology=Complete(n)), a=np.ones(n), b=centres, num_rounds=6)
    x = 0.0
    for t, model in enumerate(ran.models):
        np.testing.assert_allclose(model.mean(axis=0), [x, x], **TIGHT)
        if method is DFedAvg or t == 0:  # D-PSGD's nodes are one own gradient apart
            np.testing.assert_allclose(model, np.full((n, 2), x), **TIGHT)
        x -= LR * (x - centres).mean()


def test_without_neighbours_every_node_learns_alone():
    alone = Given.of(np.eye(3))
    for method in (DPSGD, DFedAvg):
        ran = run(Gossip(method(), topology=alone), num_rounds=10, step_s=[1.0, 2.0, 5.0])
        shrunk = (1 - LR * A) ** 10
        np.testing.assert_allclose(ran.models[-1][:, 0], B * (1 - shrunk), **TIGHT)
        assert ran.times[-1] == 50.0
        assert ran.grid.engine.bytes_up == 0


def test_gossip_preserves_the_mean_and_reaches_it():
    start = iter(np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32))
    first = {}

    def change(i, x):
        return first.setdefault(i, next(start)) if i not in first else x

    ran = run(
        Gossip(DFedAvg(), topology=Ring(8)),
        a=np.ones(8),
        b=np.zeros(8),
        num_rounds=90,
        change=change,
    )
    mean = np.stack([first[i] for i in range(8)]).mean(axis=0)
    for model in ran.models[1:]:
        np.testing.assert_allclose(model.mean(axis=0), mean, **TIGHT)
    np.testing.assert_allclose(ran.models[-1], np.tile(mean, (8, 1)), **TIGHT)
    rates = [
        ran.facts[t + 1]["consensus_rms"] / ran.facts[t]["consensus_rms"] for t in range(20, 25)
    ]
    assert rates == pytest.approx([(1 + 2 * math.cos(2 * math.pi / 8)) / 3] * 5, rel=1e-3)


def test_many_gossip_steps_reach_consensus_in_one_round():
    ran = run(Gossip(DFedAvg(gossip_steps=60), topology=Q3), num_rounds=2)
    assert ran.facts[1]["consensus_rms"] < 1e-6
    x = 0.0
    for model in ran.models:
        np.testing.assert_allclose(model[:, 0], x, **TIGHT)
        x -= LR * (A * (x - B)).mean()


def test_a_topology_that_changes_uses_the_next_matrix_in_every_exchange():
    first = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    second = [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    once = {}

    def change(i, x):
        return x if once.setdefault(i, 0) else (once.update({i: 1}), np.full_like(x, i))[1]

    ran = run(Gossip(DFedAvg(), topology=Given.of(first, second)), num_rounds=3, change=change)
    assert ran.models[1][:, 0].tolist() == [0.5, 0.5, 2.0]
    assert ran.models[2][:, 0].tolist() == [0.5, 1.25, 1.25]
    assert ran.models[3][:, 0].tolist() == [0.875, 0.875, 1.25]
    both = Gossip(DFedAvg(gossip_steps=2), topology=Given.of(first, second))
    once.clear()
    ran = run(both, num_rounds=1, change=change)
    assert ran.models[1][:, 0].tolist() == [0.5, 1.25, 1.25]


def test_consensus_distance_is_the_mean_squared_distance_to_the_mean():
    ran = run(Gossip(DPSGD(), topology=Q3), num_rounds=3)
    for model, facts in zip(ran.models, ran.facts, strict=True):
        expected = ((model - model.mean(axis=0)) ** 2).sum(axis=1).mean()
        assert facts["consensus_distance"] == pytest.approx(expected, rel=1e-5, abs=1e-12)
        assert facts["consensus_rms"] == pytest.approx(math.sqrt(expected), rel=1e-5, abs=1e-6)


# ---- when it happens -----------------------------------------------------------------------------

# 8000 bit/s up are 1000 bytes/s; a model of 2 numbers weighs 8 bytes, a header of 128, and "w".
SIZE = 137
UP = 8.0 * SIZE


def test_a_round_on_a_ring_takes_work_and_transfers_worked_out_by_hand():
    # Two payloads leave at once and share the uplink: 2 s each; both ends are 0.25 s away.
    clients = [Client(flops=1.0, up_bps=UP, latency_s=0.25) for _ in range(4)]
    ran = run(
        Gossip(DFedAvg(), topology=Ring(4)),
        a=np.ones(4),
        b=np.arange(4),
        num_rounds=3,
        clients=clients,
        step_s=[3.0] * 4,
    )
    assert ran.times == [0.0, 5.5, 11.0, 16.5]
    assert ran.begun() == {(i, k): 5.5 * k for i in range(4) for k in range(3)}
    assert ran.grid.engine.bytes_up == 3 * 8 * SIZE  # a round: 8 directed edges
    assert ran.grid.engine.bytes_down == 0


@pytest.mark.parametrize(("work_s", "round_s"), [(3.0, 3.0), (1.0, 2.5)])
def test_dpsgd_sends_while_it_trains(work_s, round_s):
    clients = [Client(flops=1.0, up_bps=UP, latency_s=0.25) for _ in range(4)]
    ran = run(
        Gossip(DPSGD(), topology=Ring(4)),
        a=np.ones(4),
        b=np.arange(4),
        num_rounds=3,
        clients=clients,
        step_s=[work_s] * 4,
    )
    assert ran.times == [round_s * t for t in range(4)]


def test_gossip_steps_follow_one_another():
    clients = [Client(flops=1.0, up_bps=UP, latency_s=0.25) for _ in range(4)]
    ran = run(
        Gossip(DFedAvg(gossip_steps=3), topology=Ring(4)),
        a=np.ones(4),
        b=np.arange(4),
        num_rounds=2,
        clients=clients,
        step_s=[3.0] * 4,
    )
    assert ran.times == [0.0, 10.5, 21.0]
    assert ran.grid.engine.bytes_up == 2 * 3 * 8 * SIZE


def test_a_receivers_downlink_is_shared_by_what_it_hears():
    # On a path of 3 the middle node hears two at a time: 2 s each; the ends hear it after 1 s.
    clients = [Client(flops=1.0, down_bps=UP) for _ in range(3)]
    ran = run(Gossip(DFedAvg(), topology=Path(3)), num_rounds=2, clients=clients)
    begun = ran.begun()
    assert [begun[i, 1] for i in range(3)] == [2.0, 3.0, 2.0]
    # Ends are done at 3, and heard by the middle at 5; the middle, done at 4, is heard at 5.
    assert ran.times == [0.0, 3.0, 5.0]


def test_a_straggler_holds_back_its_k_hop_neighbours_k_rounds_later():
    slow = {(0, 0): 11.0}  # node 0's first task, 10 s longer than all others
    n = 9
    ran = run(
        Gossip(DFedAvg(), topology=Ring(n)),
        a=np.ones(n),
        b=np.arange(n),
        num_rounds=7,
        step_s=lambda i, k: slow.get((i, k), 1.0),
    )
    begun = ran.begun()
    for i in range(n):
        hops = min(i, n - i)
        for t in range(1, 7):
            # Round t of node i needs what node 0 did in round 0 if it is at most t hops away.
            assert begun[i, t] == t + (10.0 if hops <= t else 0.0), (i, t)
    assert ran.times == [0.0, *(10.0 + t for t in range(1, 8))]


def test_a_neighbour_that_has_gone_on_is_mixed_as_it_was_in_the_same_round():
    # Node 0 is four times as slow; what node 1 and 2 do meanwhile must not change the result.
    speeds = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 7.0, 2.0)]
    runs = [run(Gossip(DFedAvg(), topology=Q3), num_rounds=8, step_s=s) for s in speeds]
    runs += [run(Gossip(DPSGD(), topology=Q3), num_rounds=8, step_s=s) for s in speeds]
    for same in (runs[:3], runs[3:]):
        for other in same[1:]:
            assert all(
                np.array_equal(x, y) for x, y in zip(same[0].models, other.models, strict=True)
            )


def watch_mixing(monkeypatch, look):
    """Has `look` see the step of gossip and the nodes of every mix."""
    mix = GossipRun._mix

    def watched(running, step, nodes):
        look(step, nodes)
        mix(running, step, nodes)

    monkeypatch.setattr(GossipRun, "_mix", watched)


def test_rows_are_let_go_of_when_nobody_needs_them(monkeypatch):
    seen = []
    watch_mixing(monkeypatch, lambda step, nodes: seen.append(len(step.rows)))
    method = Gossip(DFedAvg(), topology=Ring(6))
    run(method, a=np.ones(6), b=np.arange(6), num_rounds=30, step_s=[1, 2, 3, 4, 5, 6.0])
    assert max(seen) <= 6


def test_all_rows_that_are_complete_at_one_instant_are_mixed_at_once(monkeypatch):
    calls = []
    watch_mixing(monkeypatch, lambda step, nodes: calls.append(len(nodes)))
    run(Gossip(DFedAvg(), topology=Ring(6)), a=np.ones(6), b=np.arange(6), num_rounds=5)
    assert calls == [6] * 5


# ---- who is not there ----------------------------------------------------------------------------


def constants(i, x):
    return np.full_like(x, (1.0, 10.0, 100.0)[i])


def test_a_node_that_is_away_keeps_its_model_and_the_others_mix_without_it():
    away = Scripted(3, {2: [1.5]}, offline={2})  # comes at 1.5 s
    ran = run(Gossip(DFedAvg(), topology=Q3), num_rounds=3, change=constants, availability=away)
    # Round 1 at 1 s, without node 2: the middle one takes its quarter itself.
    np.testing.assert_allclose(ran.models[1][:, 0], [5.5, 0.5 + 0.5 * 10, 0.0], **TIGHT)
    # Round 2 began at 1 s, still without it; in round 3 it is back.
    np.testing.assert_allclose(ran.models[2][:, 0], [5.5, 5.5, 0.0], **TIGHT)
    np.testing.assert_allclose(ran.models[3][:, 0], W @ [1, 10, 100], **TIGHT)
    assert [f.get("absent_nodes") for f in ran.facts] == [None, 1.0, 1.0, 0.0]
    assert ran.grid.trace.faults() == {"absent": 2}
    assert [(e[0], e[2], e[5]) for e in ran.of(Event.ABSENT)] == [(0.0, 2, 1.0), (1.0, 2, 2.0)]
    assert ran.times == [0.0, 1.0, 2.0, 3.0]
    # Nothing is sent to or from it: 2 payloads in each of two rounds, 4 in the last.
    assert ran.grid.engine.bytes_up == 8 * SIZE


def test_who_is_away_does_not_change_the_mean_of_who_is_there():
    away = Scripted(8, {}, offline={2, 5})
    models = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    ran = run(
        Gossip(DFedAvg(), topology=Ring(8)),
        a=np.ones(8),
        b=np.zeros(8),
        num_rounds=1,
        change=lambda i, x: models[i],
        availability=away,
    )
    there = [i for i in range(8) if i not in (2, 5)]
    np.testing.assert_allclose(
        ran.models[1][there].mean(axis=0), models[there].mean(axis=0), **TIGHT
    )
    assert not ran.models[1][[2, 5]].any()


def test_a_node_that_fails_is_missed_from_when_it_is_known():
    faults = ScriptedFaults(script={(2, 0): TaskFaults(dropout_at=0.5)}, detection_s=3.0)
    ran = run(Gossip(DFedAvg(), topology=Q3), num_rounds=2, change=constants, faults=faults)
    np.testing.assert_allclose(ran.models[1][:, 0], [5.5, 5.5, 0.0], **TIGHT)
    np.testing.assert_allclose(ran.models[2][:, 0], W @ [1, 10, 100], **TIGHT)
    # It dropped out at 0.5 s, which shows at 3.5 s. Node 0 does not wait for it in round 1.
    assert ran.begun() == {(0, 0): 0, (1, 0): 0, (2, 0): 0, (0, 1): 1, (1, 1): 3.5, (2, 1): 3.5}
    assert ran.grid.trace.faults() == {"dropout": 1, "absent": 1}


def test_a_lost_payload_leaves_its_weight_with_the_receiver():
    class Loses(Faults):
        def loses_transfer(self, seed, source, target, index):
            return (source, target, index) == (2, 1, 0)

    ran = run(Gossip(DFedAvg(), topology=Q3), num_rounds=2, change=constants, faults=Loses())
    np.testing.assert_allclose(ran.models[1][:, 0], [5.5, 5.5, 0.25 * 10 + 75], **TIGHT)
    np.testing.assert_allclose(ran.models[2][:, 0], W @ [1, 10, 100], **TIGHT)
    assert [f.get("lost_payloads") for f in ran.facts] == [None, 1.0, 0.0]
    assert ran.grid.trace.faults() == {"transfer_lost": 1}
    assert ran.grid.engine.bytes_up == 8 * SIZE  # what is lost has been sent


def test_while_everybody_is_away_time_passes_until_somebody_comes():
    away = Scripted(3, {i: [25.0] for i in range(3)}, offline={0, 1, 2})
    ran = run(Gossip(DFedAvg(), topology=Q3), num_rounds=4, availability=away)
    # Looked for at 0, 10, 20 and 30 s.
    assert ran.times == [0.0, 31.0, 32.0, 33.0, 34.0]


@pytest.mark.parametrize("method", [DPSGD, DFedAvg])
def test_storms_of_faults_end_no_run_early_and_lose_no_reply(method):
    from fl.simulation.world.availability import ExponentialOnOff

    n = 12
    ran = run(
        Gossip(method(), topology=Ring(n)),
        a=np.ones(n),
        b=np.arange(n),
        num_rounds=60,
        availability=ExponentialOnOff(n, 0, mean_on_s=20.0, mean_off_s=5.0),
        faults=Faults(dropout=0.1, crash=0.1, message_loss=0.1, detection_s=1.0),
        timeout=50.0,
    )
    assert len(ran.models) == 61
    assert all(np.isfinite(model).all() for model in ran.models)
    faults = ran.grid.trace.faults()
    assert {"dropout", "crash", "departure", "transfer_lost", "absent"} <= set(faults)
    counts = ran.grid.trace.counts
    failed = sum(faults[name] for name in ("dropout", "crash", "departure"))
    assert counts[Event.DISPATCH] == counts[Event.APPLIED] + failed
    assert counts[Event.DISPATCH] + faults["absent"] - failed == 60 * n


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gossip(DPSGD(), topology=ExponentialGraph(6, directed=True)), None),
        (lambda: Gossip(DFedAvg(gossip_steps=0), topology=Ring(5)), "gossip_steps is 0"),
        (lambda: Gossip(DFedAvg(), topology=Ring(5), evaluated_nodes=0), "evaluated_nodes is 0"),
        (lambda: Gossip(DFedAvg(), topology=Ring(5), retry_s=-1.0), "retry_s is -1"),
        (lambda: Gossip(DPSGD(), topology=Given.of(W3, kind="columns")), "use strategy=sgp"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    if words is None:
        assert make().topology.directed
        return
    with pytest.raises(ConfigError, match=words):
        make()


def test_more_nodes_than_clients_are_refused_with_the_number_there_is():
    with pytest.raises(ConfigError, match=r"topology\.num_nodes=3"):
        run(Gossip(DFedAvg(), topology=Ring(4)), num_rounds=1, clients=[Client()] * 3)


def test_directed_edges_carry_one_payload_each():
    n = 5
    ran = run(
        Gossip(DFedAvg(), topology=DirectedRing(n)), a=np.ones(n), b=np.arange(n), num_rounds=2
    )
    assert ran.grid.engine.bytes_up == 2 * n * SIZE


# ---- on a deployment -----------------------------------------------------------------------------


class WallGrid:
    """Three clients with ids of their own, which have answered as soon as they are asked."""

    ids = (77, 12, 45)  # node 0 is 12, node 1 is 45, node 2 is 77

    def __init__(self):
        self.replies = {}
        self.sent = 0
        self.polls = 0

    def get_node_ids(self):
        self.polls += 1
        return list(self.ids) if self.polls > 1 else [12]  # the others connect later

    def push_messages(self, messages):
        names = []
        for message in messages:
            i = sorted(self.ids).index(message.metadata.dst_node_id)
            x = message.content["arrays"].to_numpy_ndarrays()[0]
            name = str(self.sent)
            self.sent += 1
            give_id(message, name)
            content = RecordDict(
                {
                    "arrays": record(x - LR * A3[i] * (x - B3[i])),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            )
            self.replies[name] = Message(content, reply_to=message)
            names.append(name)
        return names

    def pull_messages(self, names):
        return [self.replies.pop(name) for name in list(names) if name in self.replies]


def test_on_a_deployment_the_server_relays_and_the_result_is_the_same():
    grid = WallGrid()
    method = Gossip(DFedAvg(), topology=Q3, retry_s=0.01)
    assume_identity()
    result = method.start(grid, record([0.0, 0.0]), num_rounds=5)
    simulated = run(Gossip(DFedAvg(), topology=Q3), num_rounds=5)
    np.testing.assert_allclose(
        np.stack([state.x for state in method.states]), simulated.models[-1], rtol=1e-6, atol=1e-7
    )
    mean = result.arrays.to_numpy_ndarrays()[0]
    np.testing.assert_allclose(mean, simulated.models[-1].mean(axis=0), rtol=1e-6)
    assert grid.sent == 15


def test_attacks_are_for_the_simulator():
    method = Gossip(DFedAvg(), topology=Q3, retry_s=0.01)
    method = attacked(method, SignFlip(), [0])
    with pytest.raises(ConfigError, match="on the simulator only"):
        method.start(WallGrid(), record([0.0, 0.0]), num_rounds=1)


def test_nodes_that_hear_nobody_have_no_aggregator():
    with pytest.raises(ConfigError, match=r"aggregator is .*edian.*topology"):
        Gossip(DFedAvg(), topology=Isolated(3), aggregator=Median())
    alone = Gossip(DFedAvg(), topology=Isolated(3), aggregator=Mean(weighted=True))
    assert alone.traits.alone
    assert not Gossip(DFedAvg(), topology=Ring(3), aggregator=Median()).traits.alone
