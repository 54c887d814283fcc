"""Forged updates: what is sent, what it is made of, over compressed links, and what is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import quadratics
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result
from hydra import compose, initialize_config_module
from stand_ins import driven

from fl import simulate
from fl.aggregation import Aggregator, CenteredClipping, Median, TrimmedMean
from fl.attacks import (
    ALIE,
    IPM,
    Attack,
    ConstantUpdate,
    Forged,
    Gauss,
    Mimic,
    Optimized,
    OwnSignFlip,
)
from fl.attacks.attack import Scene
from fl.attacks.optimized import Damage
from fl.clients import Sgd, TrainingApp, Uplink
from fl.clients.app.uplink import PAYLOAD_KEY
from fl.compression import EF21, Cast, ErrorFeedback, Identity, TopK
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.flower.identity import client_of
from fl.flower.records import from_record
from fl.models import LogisticRegression
from fl.models import build as build_model
from fl.runs.build import build
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import Always
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleets import mobile, uniform
from fl.strategies import Exchange, FedAvg, FedBuff, Foreign, Rounds, driver_of
from fl.strategies.staleness import Polynomial
from fl.vectors.layout import Layout

CLIENTS = 7
BYZANTINE = (1, 4)
HONEST = [c for c in range(CLIENTS) if c not in BYZANTINE]
START = np.array([0.5, -1.0, 2.0], dtype=np.float32)


def change_of(client, dispatch=0):
    """What a client makes of the model: different for each, and in each round."""
    return (np.array([1.0, 2.0, -1.0]) * (client + 1) + 0.25 * dispatch).astype(np.float32)


CHANGES = np.stack([change_of(c) for c in range(CLIENTS)])


def app_with(misbehave=lambda client, message: None):
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        content = misbehave(client, message)
        if content is None:
            dispatch = int(message.metadata.message_id.split(".")[1])
            w = message.content["arrays"]["w"].numpy() + change_of(client, dispatch)
            content = RecordDict(
                {
                    "arrays": ArrayRecord({"w": Array(w)}),
                    "metrics": MetricRecord({"num-examples": 10, "train-loss": 0.5}),
                }
            )
        return Message(content, reply_to=message)

    return app


def rounds(aggregator=None, **more):
    arguments = {"fraction_train": 1.0, "min_train_nodes": 2, "min_available_nodes": CLIENTS}
    return Rounds(FedAvg(), aggregator=aggregator, **(arguments | more))


def attacked(strategy, attack, byzantine=BYZANTINE, **more):
    return strategy.within(Exchange(attack=attack, byzantine=frozenset(byzantine), **more))


def run(strategy, *, num_rounds=1, fleet=None, app=None, models=None):
    def server(grid, context, recorder):
        result = strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=num_rounds,
            timeout=1000,
            evaluate_fn=lambda r, arrays: (
                None if models is None else models.append(arrays["w"].numpy())
            ),
        )
        recorder.final(result.arrays)

    return simulate(
        server,
        app or app_with(),
        fleet or uniform(num_clients=CLIENTS, seed=0),
        executor="serial",
        progress=False,
    )


def model(result):
    return result.arrays["w"].numpy()


class Spy(Attack):
    """Sends what it was told to, and keeps what it was shown."""

    knowledge = "honest-vectors"

    def __init__(self):
        self.seen = []

    def forge(self, honest, own, scene: Scene):
        self.seen.append((honest.copy(), own.copy(), scene))
        return Forged(np.zeros_like(own), {"round": np.array(len(self.seen))})


# ---- what the strategy gets ----------------------------------------------------------------------


def test_the_mean_under_ipm_is_what_its_formula_says():
    # (h mu - f eps mu) / n, with mu the mean of the honest changes.
    eps, h, f = 0.5, len(HONEST), len(BYZANTINE)
    got = model(run(attacked(rounds(), IPM(eps))))
    mu = CHANGES[HONEST].mean(axis=0)
    np.testing.assert_allclose(got, START + (h - f * eps) / CLIENTS * mu, rtol=1e-6)


def test_an_aggregator_gets_forged_updates_like_any_other():
    got = model(run(attacked(rounds(Median()), ConstantUpdate(100.0))))
    updates = CHANGES.copy()
    updates[list(BYZANTINE)] = 100.0
    np.testing.assert_allclose(got, START + np.median(updates, axis=0), rtol=1e-6)


def test_clients_that_know_their_own_update_only_flip_that():
    got = model(run(attacked(rounds(), OwnSignFlip(3.0))))
    updates = CHANGES.copy()
    updates[list(BYZANTINE)] *= -3.0
    np.testing.assert_allclose(got, START + updates.mean(axis=0), rtol=1e-6)


def test_a_forged_model_that_is_no_number_reaches_the_guard():
    strategy = attacked(rounds(TrimmedMean(f=2)), ConstantUpdate(np.nan))
    result = run(strategy)
    np.testing.assert_allclose(model(result), START + CHANGES[HONEST].mean(axis=0), rtol=1e-6)
    assert result.trace.faults() == {"forged": 2, "rejected": 2}


def test_more_unusable_replies_than_f_leave_the_model_as_it_is():
    strategy = attacked(rounds(TrimmedMean(f=1)), ConstantUpdate(np.nan))
    result = run(strategy)
    np.testing.assert_array_equal(model(result) if result.arrays else START, START)
    assert result.trace.faults() == {"forged": 2, "rejected": 2, "no_step": 1}


# ---- what the attack sees ------------------------------------------------------------------------


def test_the_attack_sees_the_changes_in_the_order_of_clients_whatever_comes_first():
    # Phones of different speed: replies arrive in another order than that of the clients.
    spy = Spy()
    fleet = mobile(CLIENTS, 5, availability=Always(CLIENTS), faults=Faults())
    result = run(attacked(rounds(), spy), fleet=fleet, num_rounds=2)
    arrivals = [
        client
        for kind, client in zip(result.trace.kind, result.trace.client, strict=True)
        if kind == Event.UPLOAD_END
    ]
    assert sorted(arrivals[:CLIENTS]) != arrivals[:CLIENTS]
    for r, (honest, own, scene) in enumerate(spy.seen):
        np.testing.assert_allclose(honest, [change_of(c, r) for c in HONEST], rtol=1e-5)
        np.testing.assert_allclose(own, [change_of(c, r) for c in BYZANTINE], rtol=1e-5)
        assert scene.f == 2
        assert dict(scene.memory) == ({} if r == 0 else {"round": np.array(1)})


def test_mimic_keeps_its_target_from_round_to_round():
    models = []
    run(attacked(rounds(), Mimic(warmup=1)), num_rounds=3, models=models)
    targets = []
    for r, step in enumerate(np.diff([START, *models[1:]], axis=0)):
        updates = np.stack([change_of(c, r) for c in range(CLIENTS)])
        mimicked = (updates[HONEST].sum(axis=0) + 2 * updates) / CLIENTS
        targets.append(int(np.argmin(np.abs(mimicked - step).sum(axis=1))))
        np.testing.assert_allclose(step, mimicked[targets[-1]], rtol=1e-5)
    # The changes lie on a line, so the farthest is at one of its ends.
    assert targets[0] in (HONEST[0], HONEST[-1])
    assert targets == 3 * targets[:1]


def test_one_seed_gives_one_attack_and_another_seed_another():
    same = [model(run(attacked(rounds(), Gauss(), BYZANTINE, seed=s))) for s in (3, 3, 4)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).all()


def test_only_byzantine_clients_of_the_sample_count():
    spy = Spy()
    strategy = rounds(fraction_train=0.01, min_train_nodes=3)
    result = run(attacked(strategy, spy), num_rounds=12)
    sizes = {(len(own), len(honest)) for honest, own, _ in spy.seen}
    assert sizes == {(1, 2), (2, 1)}
    forged = sum(len(own) for _, own, _ in spy.seen)
    assert 0 < len(spy.seen) < 12
    assert result.trace.counts[Event.FORGED] == forged


def test_who_does_not_reply_forges_nothing():
    def fail(client, message):
        if client == BYZANTINE[0]:
            raise RuntimeError("out of disk")

    spy = Spy()
    result = run(attacked(rounds(), spy), app=app_with(fail))
    ((honest, own, scene),) = spy.seen
    assert (len(honest), len(own), scene.f) == (5, 1, 1)
    assert result.trace.faults() == {"client_error": 1, "forged": 1}


@pytest.mark.parametrize("client", [HONEST[0], BYZANTINE[0]])
def test_a_reply_that_is_no_model_is_neither_seen_nor_forged(client):
    def wrong(c, message):
        if c == client:
            record = ArrayRecord({"w": Array(np.zeros(9, np.float32))})
            return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})

    spy = Spy()
    result = run(attacked(rounds(TrimmedMean(f=2)), spy), app=app_with(wrong))
    ((honest, own, _),) = spy.seen
    assert len(honest) + len(own) == CLIENTS - 1
    assert np.isfinite(honest).all()
    assert result.trace.faults() == {"forged": len(own), "rejected": 1}


def test_an_honest_update_that_is_not_finite_is_not_shown():
    def infinite(client, message):
        if client == HONEST[0]:
            record = ArrayRecord({"w": Array(np.full(3, np.inf, np.float32))})
            return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})

    spy = Spy()
    run(attacked(rounds(TrimmedMean(f=2)), spy), app=app_with(infinite))
    np.testing.assert_allclose(spy.seen[0][0], CHANGES[HONEST[1:]], rtol=1e-6)


def test_without_an_honest_reply_byzantine_clients_send_what_they_have():
    result = run(attacked(rounds(), IPM(), tuple(range(CLIENTS))))
    np.testing.assert_allclose(model(result), START + CHANGES.mean(axis=0), rtol=1e-6)
    assert result.trace.faults() == {}


# ---- what the attack knows of the server ---------------------------------------------------------


def test_an_optimized_attack_is_given_the_rule_with_f_and_moves_it_as_far_as_it_found():
    rule, attack = TrimmedMean(f=2), Optimized(ALIE(z=0.0))
    got = model(run(attacked(rounds(rule), attack)))
    honest = CHANGES[HONEST]
    rows = attack(honest, CHANGES[list(BYZANTINE)], Scene(2, aggregator=rule)).rows
    np.testing.assert_allclose(got, START + rule(np.vstack([honest, rows])), rtol=1e-5)
    moved = Damage(honest, Scene(2, aggregator=rule))
    assert moved(rows[0]) > moved(honest.mean(axis=0))


def test_an_optimized_attack_knows_the_centre_a_rule_continues_from():
    rule, seen = CenteredClipping(tau=2.0), []

    class Knowing(Spy):
        knowledge = "aggregation"

        def forge(self, honest, own, scene):
            seen.append(scene.reference.copy())
            return super().forge(honest, own, scene)

    models = []
    run(attacked(rounds(rule), Knowing()), num_rounds=3, models=models)
    steps = np.diff([START, *models[1:]], axis=0)
    np.testing.assert_array_equal(seen[0], np.zeros(3))
    np.testing.assert_allclose(seen[1:], steps[:2], rtol=1e-5)


def test_with_too_few_replies_for_the_rule_the_round_is_the_strategys_matter():
    # Two of seven stay silent: the rule cannot work with five, and says so, not the attack.
    def fail(client, message):
        if client in (0, 2):
            raise RuntimeError("out of disk")

    strategy = attacked(rounds(TrimmedMean(f=3)), Optimized(IPM()))
    result = run(strategy, app=app_with(fail))
    np.testing.assert_array_equal(model(result) if result.arrays else START, START)
    assert result.trace.faults() == {"client_error": 2, "no_step": 1}


# ---- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [IPM(), ConstantUpdate(np.inf)])
def test_time_bytes_and_energy_are_those_of_an_honest_run(attack):
    plain = run(rounds(Median()), num_rounds=2).summary
    under = run(attacked(rounds(TrimmedMean(f=2)), attack), num_rounds=2).summary
    for name in ("virtual_s", "bytes_down", "bytes_up", "energy_j", "client_updates"):
        assert under["totals"][name] == plain["totals"][name]


def test_every_forged_reply_is_an_event_of_its_task():
    trace = run(attacked(rounds(), IPM()), num_rounds=3).trace
    rows = np.array(trace.kind) == Event.FORGED
    found = list(zip(np.array(trace.client)[rows], np.array(trace.dispatch)[rows], strict=True))
    assert found == [(c, r) for r in range(3) for c in BYZANTINE]
    times = np.array(trace.time)
    for r in range(3):  # when the round's last reply is there
        ends = times[(np.array(trace.kind) == Event.UPLOAD_END) & (np.array(trace.dispatch) == r)]
        assert (times[rows][2 * r : 2 * r + 2] == ends.max()).all()


# ---- strategies without rounds -------------------------------------------------------------------

CENTRES = (1.0, -2.0, 4.0, 0.5)
LIAR = 2


def test_a_full_buffer_of_clients_at_one_speed_follows_the_closed_form():
    # w <- w + lr / n (sum_h (c_i - w) - s sum_b (c_j - w)): a fixed point that the liar shifts.
    n, s, steps = len(CENTRES), 0.5, 12
    strategy = attacked(driven(FedBuff, buffer_size=n, concurrency=n), OwnSignFlip(s), (LIAR,))
    ran = quadratics.run(strategy, CENTRES, [2.0] * n, num_rounds=steps)
    signs = np.array([-s if i == LIAR else 1.0 for i in range(n)])
    fixed = signs @ CENTRES / signs.sum()
    contraction = 1 - quadratics.LR * signs.sum() / n
    expected = [fixed * (1 - contraction**t) for t in range(steps + 1)]
    np.testing.assert_allclose(np.array(ran.models)[:, 0], expected, atol=1e-5)
    assert ran.grid.trace.faults() == {"forged": steps}


def test_stale_forged_updates_weigh_what_honest_ones_of_their_age_would():
    s, age = 2.0, Polynomial(0.5)
    strategy = attacked(
        driven(FedBuff, buffer_size=1, concurrency=3, staleness=age), OwnSignFlip(s), (LIAR,)
    )
    ran = quadratics.run(strategy, CENTRES, [1.0, 1.7, 2.9, 0.6], num_rounds=40)
    w = [0.0]
    for _, client, tau in ran.applied():
        change = quadratics.LR * (CENTRES[client] - w[-1 - tau])
        w.append(w[-1] + age(tau) * (-s * change if client == LIAR else change))
    assert {client for _, client, _ in ran.applied()} == set(range(4))
    assert max(tau for _, _, tau in ran.applied()) > 1
    np.testing.assert_allclose(np.array(ran.models)[:, 0], w, atol=1e-5)


def test_without_rounds_the_attack_knows_the_latest_change_of_each_honest_client():
    eps, age = 0.7, Polynomial(0)
    strategy = attacked(
        driven(FedBuff, buffer_size=1, concurrency=4, server_optimizer=FedAvg(0.5), staleness=age),
        IPM(eps),
        (LIAR,),
    )
    ran = quadratics.run(strategy, CENTRES, [1.0, 1.7, 0.4, 0.6], num_rounds=40)
    w, latest = [0.0], {}
    for _, client, tau in ran.applied():
        change = quadratics.LR * (CENTRES[client] - w[-1 - tau])
        if client != LIAR:
            latest[client] = change
        elif latest:  # the liar is the first to answer, and then has nothing to go by
            change = -eps * np.mean(list(latest.values()))
        w.append(w[-1] + 0.5 * change)
    forged = sum(client == LIAR for _, client, _ in ran.applied())
    assert ran.applied()[0][1] == LIAR
    assert ran.grid.trace.faults() == {"forged": forged - 1}
    np.testing.assert_allclose(np.array(ran.models)[:, 0], w, atol=1e-5)


# ---- compressed links ----------------------------------------------------------------------------

DATA = federate(load_digits, partial(partition.iid, num_partitions=4, seed=0))
MODEL = partial(
    build_model, partial(LogisticRegression, init="glorot"), DATA.input_shape, DATA.num_classes, 0
)
LAYOUT = Layout.of(MODEL())
SOME = (1, 2)


@dataclass(frozen=True)
class Watching(Aggregator):
    """Keeps what it is given, and moves nothing."""

    seen: list = field(default_factory=list)
    invariances = frozenset()

    def apply(self, rows, context):
        self.seen.append(np.stack([rows.combine(one) for one in np.eye(len(rows))]))
        return np.zeros(rows.d, np.float32)


def learn(
    channel=None,
    attack=None,
    aggregator=None,
    *,
    clients=4,
    byzantine=SOME,
    num_rounds=3,
    strategy=None,
):
    """Returns the model, the faults and all payloads that clients sent, by client and round."""
    if strategy is None:
        strategy = Rounds(FedAvg(), aggregator=aggregator, min_train_nodes=clients)
    between = Exchange(
        channel, attack=attack, byzantine=frozenset(byzantine), num_clients=clients, layout=LAYOUT
    )
    ours = TrainingApp(MODEL, DATA, Sgd(lr=0.1), uplink=channel and Uplink(channel))
    app, sent = ClientApp(), {}

    @app.train()
    def train(message, context):
        reply = ours(message, context)
        name = (context.node_config["partition-id"], message.content["config"]["server-round"])
        arrays = reply.content["arrays"]
        sent[name] = arrays[PAYLOAD_KEY].data if PAYLOAD_KEY in arrays else b""
        return reply

    def server(grid, context, recorder):
        strategy.within(between).start(
            grid, ArrayRecord(MODEL().state_dict()), num_rounds=num_rounds
        )

    result = simulate(
        server, app, uniform(num_clients=clients, seed=0), executor="serial", progress=False
    )
    return from_record(LAYOUT, result.arrays), result.trace.faults(), sent


@pytest.mark.parametrize("attack", [IPM(0.5), OwnSignFlip(2.0), Gauss()], ids=repr)
def test_through_an_exact_compressor_an_attack_does_what_it_does_without(attack):
    plain, faults, _ = learn(None, attack)
    packed, packed_faults, _ = learn(Identity(), attack)
    assert faults == packed_faults == {"forged": 6}
    np.testing.assert_allclose(packed, plain, rtol=1e-5, atol=1e-5)


def test_through_top_k_a_forged_update_is_as_sparse_as_an_honest_one():
    start = from_record(LAYOUT, ArrayRecord(MODEL().state_dict()))
    honest, _, _ = learn(None, clients=1, num_rounds=1)
    change = -3 * (honest - start)
    k = round(0.05 * LAYOUT.size)
    expected = np.where(abs(change) >= np.sort(abs(change))[-k], change, 0)
    one = {"clients": 1, "byzantine": (0,), "num_rounds": 1}
    model, _, _ = learn(TopK(density=0.05), OwnSignFlip(3.0), **one)
    assert np.count_nonzero(model - start) == k
    np.testing.assert_allclose(model - start, expected, atol=1e-6)


def test_what_top_k_has_left_of_a_forged_update_comes_with_the_next():
    # Half of equal entries are sent; the other half are then twice as large, and are sent next.
    value, watching = 0.01, Watching()
    one = {"clients": 1, "byzantine": (0,), "num_rounds": 2}
    learn(ErrorFeedback(TopK(density=0.5)), ConstantUpdate(value), watching, **one)
    first, second = (rows[0] for rows in watching.seen)
    sent = first != 0
    assert sent.sum() == LAYOUT.size // 2
    np.testing.assert_allclose(first, np.where(sent, value, 0), atol=1e-7)
    np.testing.assert_allclose(second, np.where(sent, 0, 2 * value), atol=1e-7)


@pytest.mark.parametrize("channel", [ErrorFeedback(TopK(density=0.1)), EF21(TopK(density=0.1))])
def test_a_client_that_lies_compresses_and_remembers_as_if_it_did_not(channel):
    # The model never moves, so that what clients do depends on nothing but their memory.
    watching = Watching()
    _, _, honest = learn(channel, aggregator=watching)
    spy = Spy()
    _, faults, under_attack = learn(channel, spy, Watching())
    assert faults == {"forged": 6}
    assert len(honest) == 12
    assert under_attack == honest  # what is sent, which depends on the memory of the client
    for (_, own, _), rows in zip(spy.seen, watching.seen, strict=True):  # and of the server
        assert {row.tobytes() for row in own} <= {row.tobytes() for row in rows}


@pytest.mark.parametrize(
    ("channel", "value"), [(TopK(density=0.1), np.nan), (Cast("fp16"), 1e30)], ids=repr
)
def test_a_forged_change_that_no_payload_holds_is_a_fault_and_counts_as_one_of_f(channel, value):
    # Of four, two are left: the mean of both is what the trimmed mean with f = 0 gives.
    model, faults, _ = learn(channel, ConstantUpdate(value), TrimmedMean(f=2), num_rounds=1)
    assert faults == {"forged": 2, "rejected": 2}
    spy = Spy()
    learn(channel, spy, num_rounds=1)
    start = from_record(LAYOUT, ArrayRecord(MODEL().state_dict()))
    np.testing.assert_allclose(model - start, spy.seen[0][0].mean(axis=0), atol=1e-6)


def test_an_attack_over_an_uplink_needs_the_layout_of_the_model():
    with pytest.raises(ConfigError, match="layout"):
        Exchange(TopK(density=0.1), attack=IPM(), num_clients=CLIENTS)


# ---- strategies of Flower's and of anybody's -----------------------------------------------------


def flowers(kind=flower.FedAvg, clients=4):
    asked = {"fraction_train": 1.0, "min_train_nodes": clients, "min_available_nodes": clients}
    return driver_of(kind(fraction_evaluate=0.0, **asked))


@pytest.mark.parametrize("channel", [None, ErrorFeedback(TopK(density=0.1))], ids=["", "ef_topk"])
@pytest.mark.parametrize("attack", [IPM(0.5), ALIE(z=1.0), OwnSignFlip(2.0), Gauss()], ids=repr)
def test_under_a_strategy_of_flowers_an_attack_sends_what_it_does_under_ours(attack, channel):
    ours, our_faults, our_payloads = learn(channel, attack)
    theirs, faults, payloads = learn(channel, attack, strategy=flowers())
    assert faults == our_faults == {"forged": 6}
    # The models of later rounds differ by rounding, and so do the last bits of what is sent.
    first = [name for name in payloads if name[1] == 1]
    assert {name: payloads[name] for name in first} == {n: our_payloads[n] for n in first}
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_mimic_keeps_its_target_under_a_strategy_of_flowers():
    ours, _, _ = learn(None, Mimic())
    theirs, _, _ = learn(None, Mimic(), strategy=flowers())
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


class Reading(flower.FedAvg):
    """Keeps the replies that it is shown."""

    def aggregate_train(self, server_round, replies):
        self.shown = list(replies)
        return super().aggregate_train(server_round, self.shown)


def shown_by(attack, byzantine=BYZANTINE):
    strategy = flowers(Reading, CLIENTS)
    run(attacked(strategy, attack, byzantine))
    return {client_of(reply.metadata.src_node_id): reply for reply in strategy.inner.shown}


def test_a_strategy_of_anybodys_is_shown_forged_models_and_honest_replies_as_they_are():
    shown = shown_by(OwnSignFlip(2.0))
    untouched = shown_by(OwnSignFlip(2.0), byzantine=())
    assert sorted(shown) == list(range(CLIENTS))
    for client, reply in shown.items():
        sign = -2 if client in BYZANTINE else 1
        model = reply.content["arrays"]["w"].numpy()
        np.testing.assert_allclose(model, START + sign * change_of(client), rtol=1e-6)
        assert reply.content["metrics"] == untouched[client].content["metrics"]
    for client in HONEST:
        assert shown[client].content == untouched[client].content


class Pulling(flower.FedAvg):
    """Pulls replies one by one, as a strategy without rounds, and takes each for the model."""

    def start(self, grid, initial_arrays, **given):
        nodes, w, got = list(grid.get_node_ids()), initial_arrays, {}
        content = RecordDict({"arrays": w, "config": ConfigRecord({"server-round": 1})})
        names = list(grid.push_messages([Message(content, node, "train") for node in nodes]))
        while len(got) < len(nodes):
            time.sleep(1.0)  # virtual
            for reply in grid.pull_messages(names):
                got[client_of(reply.metadata.src_node_id)] = reply.content["arrays"]["w"].numpy()
        self.got = got
        return Result(arrays=w)


def test_replies_that_are_pulled_are_forged_one_by_one():
    strategy = driver_of(Pulling())
    result = run(attacked(strategy, OwnSignFlip(2.0)))
    assert result.trace.counts[Event.FORGED] == len(BYZANTINE)
    for client, model in strategy.inner.got.items():
        sign = -2 if client in BYZANTINE else 1
        np.testing.assert_allclose(model, START + sign * change_of(client), rtol=1e-6)


def test_an_attack_that_asks_for_the_rule_is_refused_where_none_is_shown():
    with pytest.raises(ConfigError, match=r"attack is Optimized.*FedAvg"):
        attacked(flowers(), Optimized(IPM()))


def test_messages_without_a_model_are_told_before_anything_is_sent():
    strategy = Foreign(flower.FedAvg(), arrays_key="weights")
    with pytest.raises(ConfigError, match=r"attack is IPM.*'weights'"):
        run(attacked(strategy, IPM()))


# ---- what is refused -----------------------------------------------------------------------------


class WallGrid(Grid):
    """A grid as a deployment has it: no virtual clock."""

    run = None
    set_run = create_message = get_node_ids = push_messages = None
    pull_messages = send_and_receive = None

    def __init__(self):
        pass


def test_a_deployment_is_refused():
    strategy = attacked(rounds(), OwnSignFlip())
    with pytest.raises(ConfigError, match=r"OwnSignFlip.*WallGrid"):
        strategy.start(WallGrid(), ArrayRecord({"w": Array(START)}), num_rounds=1)


def built(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides=["num_byzantine=2", *overrides])
    return build(config).strategy


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "oort", "tifl", "fedbuff", "favas"])
@pytest.mark.parametrize("more", [[], ["compressor=ef_topk"]], ids=["", "ef_topk"])
def test_a_configuration_sets_the_attack_on_any_strategy_with_a_server(strategy, more):
    strategy = built(f"strategy={strategy}", "attack=ipm", *more)
    assert isinstance(strategy.exchange.attack, IPM)
    assert len(strategy.exchange.byzantine) == 2
