"""Forged updates under any strategy: what is sent, what it is made of, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedMedian

from fl import simulate
from fl.aggregation import CenteredClipping, Mean, Median, TrimmedMean
from fl.attacks import ALIE, IPM, Attack, Constant, Forged, Gauss, Mimic, Optimized, OwnSignFlip
from fl.attacks.attack import Scene
from fl.attacks.optimized import Damage
from fl.errors import ConfigError
from fl.simulation.availability import Always
from fl.simulation.faults import Faults
from fl.simulation.fleets import mobile, uniform
from fl.simulation.trace import Event
from fl.strategies import Aggregate, Attacked

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


def stock(kind=FedAvg, **more):
    arguments = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 2} | more
    return kind(min_available_nodes=CLIENTS, **arguments)


def robust(rule, **more):
    return Aggregate(
        rule=rule, fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=CLIENTS, **more
    )


def run(strategy, *, rounds=1, fleet=None, app=None, models=None):
    def server(grid, context, recorder):
        result = strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=rounds,
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
    got = model(run(Attacked(stock(), IPM(eps), BYZANTINE)))
    mu = CHANGES[HONEST].mean(axis=0)
    np.testing.assert_allclose(got, START + (h - f * eps) / CLIENTS * mu, rtol=1e-6)


def test_a_stock_strategy_of_flower_gets_forged_models_like_any_other():
    got = model(run(Attacked(stock(FedMedian), Constant(100.0), BYZANTINE)))
    updates = CHANGES.copy()
    updates[list(BYZANTINE)] = 100.0
    np.testing.assert_allclose(got, START + np.median(updates, axis=0), rtol=1e-6)


def test_clients_that_know_their_own_update_only_flip_that():
    got = model(run(Attacked(stock(), OwnSignFlip(3.0), BYZANTINE)))
    updates = CHANGES.copy()
    updates[list(BYZANTINE)] *= -3.0
    np.testing.assert_allclose(got, START + updates.mean(axis=0), rtol=1e-6)


def test_a_forged_model_that_is_no_number_reaches_the_guard():
    strategy = Attacked(robust(TrimmedMean(f=2)), Constant(np.nan), BYZANTINE)
    result = run(strategy)
    np.testing.assert_allclose(model(result), START + CHANGES[HONEST].mean(axis=0), rtol=1e-6)
    assert result.trace.faults() == {"forged": 2, "rejected": 2}


def test_more_unusable_replies_than_f_leave_the_model_as_it_is():
    strategy = Attacked(robust(TrimmedMean(f=1)), Constant(np.nan), BYZANTINE)
    result = run(strategy)
    np.testing.assert_array_equal(model(result) if result.arrays else START, START)
    assert result.trace.faults() == {"forged": 2, "rejected": 2, "no_step": 1}


# ---- what the attack sees ------------------------------------------------------------------------


def test_the_attack_sees_the_changes_in_the_order_of_clients_whatever_comes_first():
    # Phones of different speed: replies arrive in another order than that of the clients.
    spy = Spy()
    fleet = mobile(CLIENTS, 5, availability=Always(CLIENTS), faults=Faults())
    result = run(Attacked(stock(), spy, BYZANTINE), fleet=fleet, rounds=2)
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
    run(Attacked(stock(), Mimic(warmup=1), BYZANTINE), rounds=3, models=models)
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
    same = [model(run(Attacked(stock(), Gauss(), BYZANTINE, seed=s))) for s in (3, 3, 4)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).all()


def test_only_byzantine_clients_of_the_sample_count():
    spy = Spy()
    strategy = stock(fraction_train=0.01, min_train_nodes=3)
    result = run(Attacked(strategy, spy, BYZANTINE), rounds=12)
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
    result = run(Attacked(stock(), spy, BYZANTINE), app=app_with(fail))
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
    result = run(Attacked(robust(TrimmedMean(f=2)), spy, BYZANTINE), app=app_with(wrong))
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
    run(Attacked(robust(TrimmedMean(f=2)), spy, BYZANTINE), app=app_with(infinite))
    np.testing.assert_allclose(spy.seen[0][0], CHANGES[HONEST[1:]], rtol=1e-6)


def test_without_an_honest_reply_byzantine_clients_send_what_they_have():
    result = run(Attacked(stock(), IPM(), tuple(range(CLIENTS))))
    np.testing.assert_allclose(model(result), START + CHANGES.mean(axis=0), rtol=1e-6)
    assert result.trace.faults() == {}


# ---- what the attack knows of the server ---------------------------------------------------------


def test_an_optimized_attack_is_given_the_rule_with_f_and_moves_it_as_far_as_it_found():
    rule, attack = TrimmedMean(f=2), Optimized(ALIE(z=0.0))
    got = model(run(Attacked(robust(rule), attack, BYZANTINE)))
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
    run(Attacked(robust(rule), Knowing(), BYZANTINE), rounds=3, models=models)
    steps = np.diff([START, *models[1:]], axis=0)
    np.testing.assert_array_equal(seen[0], np.zeros(3))
    np.testing.assert_allclose(seen[1:], steps[:2], rtol=1e-5)


def test_with_too_few_replies_for_the_rule_the_round_is_the_strategys_matter():
    # Two of seven stay silent: the rule cannot work with five, and says so, not the attack.
    def fail(client, message):
        if client in (0, 2):
            raise RuntimeError("out of disk")

    strategy = Attacked(robust(TrimmedMean(f=3)), Optimized(IPM()), BYZANTINE)
    result = run(strategy, app=app_with(fail))
    np.testing.assert_array_equal(model(result) if result.arrays else START, START)
    assert result.trace.faults() == {"client_error": 2, "no_step": 1}


# ---- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [IPM(), Constant(np.inf)])
def test_time_bytes_and_energy_are_those_of_an_honest_run(attack):
    plain = run(robust(Median()), rounds=2).summary
    attacked = run(Attacked(robust(TrimmedMean(f=2)), attack, BYZANTINE), rounds=2).summary
    for name in ("virtual_s", "bytes_down", "bytes_up", "energy_j", "client_updates"):
        assert attacked["totals"][name] == plain["totals"][name]


def test_every_forged_reply_is_an_event_of_its_task():
    trace = run(Attacked(stock(), IPM(), BYZANTINE), rounds=3).trace
    rows = np.array(trace.kind) == Event.FORGED
    found = list(zip(np.array(trace.client)[rows], np.array(trace.dispatch)[rows], strict=True))
    assert found == [(c, r) for r in range(3) for c in BYZANTINE]
    times = np.array(trace.time)
    for r in range(3):  # when the round's last reply is there
        ends = times[(np.array(trace.kind) == Event.UPLOAD_END) & (np.array(trace.dispatch) == r)]
        assert (times[rows][2 * r : 2 * r + 2] == ends.max()).all()


# ---- what is refused -----------------------------------------------------------------------------


class WallGrid(Grid):
    """A grid as a deployment has it: no virtual clock."""

    run = None
    set_run = create_message = get_node_ids = push_messages = None
    pull_messages = send_and_receive = None

    def __init__(self):
        pass


def test_a_deployment_is_refused():
    strategy = Attacked(stock(), OwnSignFlip(), BYZANTINE)
    with pytest.raises(
        ConfigError, match="runs on the simulator only, and WallGrid is a real grid"
    ):
        strategy.start(WallGrid(), ArrayRecord({"w": Array(START)}), num_rounds=1)


def test_a_strategy_that_drives_itself_is_refused():
    class Events(FedAvg):
        def start(self, *args, **kwargs):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="Events does not work in rounds"):
        Attacked(Events(), IPM(), BYZANTINE)


def test_an_attack_on_a_rule_that_does_not_show_is_refused():
    with pytest.raises(ConfigError, match="FedAvg does not show: use strategy=fedavg"):
        Attacked(stock(), Optimized(IPM()), BYZANTINE)
    Attacked(robust(Mean()), Optimized(IPM()), BYZANTINE)
