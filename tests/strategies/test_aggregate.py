"""Rounds with an aggregation rule: what the rule is given, and what becomes of the rest."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl import simulate
from fl.aggregation import (
    NNM,
    CenteredClipping,
    Chain,
    FLTrust,
    Mean,
    NearestNeighbourAveraging,
    TrimmedMean,
)
from fl.clients import Momentum, Sgd, TrainingApp
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.execution import SerialExecutor
from fl.flower.identity import assume_identity
from fl.flower.records import from_record, layout_of
from fl.models import LogisticRegression, build
from fl.simulation.fleets import uniform
from fl.simulation.trace import Event
from fl.strategies import Aggregate, TrustedUpdate

CLIENTS = 5
START = np.array([0.5, -1.0, 2.0], dtype=np.float32)
CHANGES = np.array([[1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 1, 1], [30, -40, 50]], dtype=np.float32)


def app_with(change=lambda client, dispatch: CHANGES[client], metrics=lambda client: {}):
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        dispatch = int(message.metadata.message_id.split(".")[1])
        w = message.content["arrays"]["w"].numpy() + np.float32(change(client, dispatch))
        reported = {"num-examples": 10, "train-loss": float(client)} | metrics(client)
        content = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord(reported)}
        return Message(RecordDict(content), reply_to=message)

    return app


def strategy_with(rule, **more):
    return Aggregate(
        rule=rule,
        fraction_evaluate=0.0,
        min_train_nodes=CLIENTS,
        min_available_nodes=CLIENTS,
        **more,
    )


def run(strategy, rounds=1, app=None):
    """Returns what the simulation gave, the models from the first, and the strategy's result."""
    models, results = [], []

    def server(grid, context, recorder):
        result = strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=rounds,
            evaluate_fn=lambda r, arrays: models.append(arrays["w"].numpy()),
        )
        results.append(result)

    fleet = uniform(num_clients=CLIENTS, seed=0)
    simulated = simulate(server, app or app_with(), fleet, executor="serial", progress=False)
    return simulated, np.array(models), results[0]


# ---- references ----------------------------------------------------------------------------------


def test_a_rule_that_continues_gets_its_last_result():
    rule = CenteredClipping(tau=3.0)
    _, models, _ = run(strategy_with(rule), rounds=3)
    last, w = np.zeros(3), START
    for model in models[1:]:
        last = rule(CHANGES, reference=last)
        w = w + last
        np.testing.assert_allclose(model, w, rtol=1e-5)


@pytest.mark.parametrize("rule", [FLTrust(), NearestNeighbourAveraging(f=2)])
def test_a_rule_that_wants_the_servers_own_update_gets_that_of_its_round(rule):
    strategy = strategy_with(rule)
    own = {1: np.array([1.0, 1.0, 0.0]), 2: np.array([0.0, 1.0, 1.0])}
    strategy.trusted = lambda r, arrays, config: own[r].astype(np.float32)
    _, models, _ = run(strategy, rounds=2)
    for r in (1, 2):
        step = rule(CHANGES.astype(np.float64), reference=own[r])
        np.testing.assert_allclose(models[r] - models[r - 1], step, rtol=1e-5, atol=1e-6)


def test_without_an_update_of_its_own_such_a_rule_is_refused():
    with pytest.raises(ConfigError, match="FLTrust wants an update of the server's own data"):
        run(strategy_with(FLTrust()))


DATA = federate(load_digits, partial(partition.iid, num_partitions=4, seed=0))
MODEL = partial(build, LogisticRegression, DATA.input_shape, DATA.num_classes, 0)


@pytest.mark.parametrize("rule", [Sgd(0.1), Momentum(0.1, 0.5)], ids=["sgd", "momentum"])
def test_the_trusted_update_is_the_clients_rule_on_examples_of_the_servers_own(rule):
    app = TrainingApp(MODEL, DATA, rule, batch_size=None, local_epochs=None, local_steps=2)
    trusted = TrustedUpdate(app, MODEL, DATA, examples=50, seed=3)
    assume_identity()  # as a run has
    root = trusted._app.data
    # 50 distinct examples of the training set, with their labels
    assert root.partitions.sizes.tolist() == [50]
    known = {x.tobytes(): y for x, y in zip(DATA.train.x, DATA.train.y, strict=True)}
    assert all(known[x.tobytes()] == y for x, y in zip(root.train.x, root.train.y, strict=True))
    assert len({x.tobytes() for x in root.train.x}) == 50
    # full batches in closed form: softmax regression from zeros
    x, y = root.client(0)
    x = x.reshape(50, -1).double().numpy()
    targets = np.eye(10)[y.numpy()]
    arrays = ArrayRecord(MODEL().state_dict())
    names = list(arrays)
    m = [np.zeros((10, 64)), np.zeros(10)]
    for server_round in (1, 2):
        w = [np.zeros((10, 64)), np.zeros(10)]
        for _ in range(2):
            logits = x @ w[0].T + w[1]
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            residual = (p / p.sum(axis=1, keepdims=True) - targets) / 50
            g = [residual.T @ x, residual.sum(axis=0)]
            m = [0.5 * a + 0.5 * b for a, b in zip(m, g, strict=True)]
            step = m if isinstance(rule, Momentum) else g
            w = [a - 0.1 * b for a, b in zip(w, step, strict=True)]
        got = trusted(server_round, arrays, {"server-round": server_round, "deadline-s": 1e-9})
        expected = np.concatenate([part.ravel() for part in w])
        assert [arrays[name].shape for name in names] == [(10, 64), (10,)]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_more_root_examples_than_there_are_is_refused():
    app = TrainingApp(MODEL, DATA, Sgd(0.1))
    with pytest.raises(ConfigError, match=r"root_examples is 2000, of 1438 training examples"):
        TrustedUpdate(app, MODEL, DATA, examples=2000, seed=0)


# ---- f, and what is left out ---------------------------------------------------------------------


def test_the_strategys_f_is_given_to_any_rule_that_has_one():
    assert strategy_with(TrimmedMean(f=1), f=2).rule == TrimmedMean(f=2)
    assert strategy_with(Chain([NNM()], TrimmedMean(), f=1), f=2).rule.f == 2
    assert strategy_with(Mean(), f=2).rule == Mean()
    assert strategy_with(TrimmedMean(f=1)).rule == TrimmedMean(f=1)


def test_what_is_left_out_is_an_event_and_counted():
    def change(client, dispatch):
        return np.full(3, np.nan) if client == 3 and dispatch == 1 else CHANGES[client]

    simulated, models, _ = run(strategy_with(TrimmedMean(f=2)), rounds=3, app=app_with(change))
    assert simulated.summary["faults"] == {"rejected": 1}
    trace = simulated.trace
    (row,) = np.flatnonzero(np.array(trace.kind) == Event.REJECTED)
    assert (trace.client[row], trace.dispatch[row]) == (3, 1)
    # The rule then works with one vector, and one Byzantine vector, less.
    expected = TrimmedMean(f=1)(CHANGES[[0, 1, 2, 4]])
    np.testing.assert_allclose(models[2] - models[1], expected, rtol=1e-5)


# ---- large models --------------------------------------------------------------------------------


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr("fl.vectors.layout.LARGE_BYTES", 0)


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_large_models_are_averaged_as_small_ones_are(eta):
    examples = np.array([10, 20, 5, 1, 4])
    app = app_with(metrics=lambda client: {"num-examples": int(examples[client])})
    _, models, result = run(strategy_with(Mean(), eta=eta), rounds=2, app=app)
    step = eta * (examples @ CHANGES) / examples.sum()
    np.testing.assert_allclose(np.diff(models, axis=0), [step, step], rtol=1e-5)
    loss = (examples @ np.arange(5.0)) / examples.sum()
    assert dict(result.train_metrics_clientapp[2]) == {"train-loss": pytest.approx(loss)}


@pytest.mark.usefixtures("all_are_large")
def test_a_large_model_that_is_none_is_left_out_with_its_reason(caplog):
    app = app_with(lambda client, dispatch: np.full(3, np.nan) if client == 3 else CHANGES[client])
    simulated, models, _ = run(strategy_with(Mean()), app=app)
    assert "3 of 3 numbers are not finite" in caplog.text
    assert simulated.trace.faults() == {"rejected": 1}
    expected = np.delete(CHANGES, 3, 0).mean(axis=0)  # all have ten examples
    np.testing.assert_allclose(models[1], START + expected, rtol=1e-5)


@pytest.mark.usefixtures("all_are_large")
def test_large_models_without_weight_change_nothing(caplog):
    app = app_with(metrics=lambda client: {"num-examples": 0})
    simulated, models, _ = run(strategy_with(Mean()), app=app)
    np.testing.assert_array_equal(models[1], START)
    assert "no weight is positive" in caplog.text
    assert simulated.trace.faults() == {"no_step": 1}


class Watching(SerialExecutor):
    """Counts the models of earlier replies that are in memory when a client trains."""

    def __init__(self):
        super().__init__()
        self.models = []
        self.alive = []

    def result(self, assignment):
        self.alive.append(sum(model() is not None for model in self.models))
        outcome = super().result(assignment)
        row = from_record(layout_of(outcome.content["arrays"]), outcome.content["arrays"])
        self.models.append(weakref.ref(row))
        return outcome


def alive(large, monkeypatch):
    if large:
        monkeypatch.setattr("fl.vectors.layout.LARGE_BYTES", 0)
        monkeypatch.setattr("fl.simulation.grid.LARGE_BYTES", 0)
    app = TrainingApp(MODEL, DATA, Sgd(0.1), batching="off")
    strategy = Aggregate(rule=Mean(), fraction_evaluate=0.0)
    executor = Watching()

    def server(grid, context, recorder):
        strategy.start(grid, ArrayRecord(MODEL().state_dict()), num_rounds=2)

    simulate(server, app, uniform(num_clients=4, seed=0), executor=executor, progress=False)
    return executor.alive


def test_of_large_models_no_reply_waits_in_memory_for_the_others(monkeypatch):
    assert alive(True, monkeypatch) == [0] * 8


def test_of_small_models_all_replies_of_a_round_are_in_memory(monkeypatch):
    assert max(alive(False, monkeypatch)) >= 3


# ---- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        {"train-loss": [1.0, 2.0]},
        {"train-loss": float("nan")},
        {"train-loss": 10**400},
        {"num-examples": 0},
        {"more": 1.0},
    ],
    ids=str,
)
def test_metrics_of_another_form_than_most_are_not_averaged(odd):
    app = app_with(metrics=lambda client: odd if client == 1 else {})
    _, _, result = run(strategy_with(TrimmedMean(f=1)), app=app)
    assert dict(result.train_metrics_clientapp[1]) == {"train-loss": pytest.approx(9 / 4)}


def test_without_usable_metrics_the_model_moves_all_the_same():
    app = app_with(metrics=lambda client: {"train-loss": float("inf")})
    _, models, result = run(strategy_with(TrimmedMean(f=1)), app=app)
    assert 1 not in result.train_metrics_clientapp
    assert (models[1] != models[0]).any()
