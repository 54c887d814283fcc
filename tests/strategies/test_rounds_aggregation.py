"""Rounds with an aggregator: what it is given, and what becomes of the rest."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from stand_ins import Client, fleet_of
from torch import nn

from fl import simulate
from fl.aggregation import (
    NNM,
    Bucketing,
    CenteredClipping,
    FLTrust,
    Mean,
    NearestNeighbourAveraging,
    PreAggregated,
    TrimmedMean,
)
from fl.clients import Momentum, Sgd, TrainingApp
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.execution import SerialExecutor
from fl.flower.identity import assume_identity
from fl.flower.records import from_record, layout_of
from fl.models import LogisticRegression, build
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleets import uniform
from fl.strategies import Exchange, FedAdam, FedAvg, FedAvgM, Rounds, TrustedUpdate
from fl.vectors.layout import Layout

CLIENTS = 5
START = np.array([0.5, -1.0, 2.0], dtype=np.float32)
CHANGES = np.array([[1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 1, 1], [30, -40, 50]], dtype=np.float32)


def app_with(change=lambda client, dispatch: CHANGES[client], metrics=lambda client, dispatch: {}):
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        dispatch = int(message.metadata.message_id.split(".")[1])
        w = message.content["arrays"]["w"].numpy() + np.float32(change(client, dispatch))
        reported = {"num-examples": 10, "train-loss": float(client)} | metrics(client, dispatch)
        content = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord(reported)}
        return Message(RecordDict(content), reply_to=message)

    return app


def strategy_with(aggregator, eta=1.0, **more):
    return Rounds(
        FedAvg(eta),
        aggregator=aggregator,
        min_train_nodes=CLIENTS,
        min_available_nodes=CLIENTS,
        **more,
    )


def run(strategy, rounds=1, app=None, fleet=None):
    """Returns what the simulation gave, and the models from the first."""
    models = []

    def evaluate(version, arrays):
        models.append(arrays["w"].numpy())
        return MetricRecord({"version": version})

    def server(grid, context, recorder):
        strategy.start(
            grid, ArrayRecord({"w": Array(START)}), num_rounds=rounds, evaluate_fn=evaluate
        )

    fleet = fleet or uniform(num_clients=CLIENTS, seed=0)
    simulated = simulate(server, app or app_with(), fleet, executor="serial", progress=False)
    return simulated, np.array(models)


# ---- references ----------------------------------------------------------------------------------


def test_a_rule_that_continues_gets_its_last_result():
    rule = CenteredClipping(tau=3.0)
    _, models = run(strategy_with(rule), rounds=3)
    last, w = np.zeros(3), START
    for model in models[1:]:
        last = rule(CHANGES, reference=last)
        w = w + last
        np.testing.assert_allclose(model, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [FLTrust(), NearestNeighbourAveraging(f=2)])
def test_a_rule_that_wants_the_servers_own_update_gets_that_of_its_round(rule):
    own = {1: np.array([1.0, 1.0, 0.0]), 2: np.array([0.0, 1.0, 1.0])}
    exchange = Exchange(trusted=lambda r, arrays, config: own[r].astype(np.float32))
    strategy = strategy_with(rule).within(exchange)
    _, models = run(strategy, rounds=2)
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


def test_the_strategys_f_is_given_to_any_aggregator_that_has_one():
    assert strategy_with(TrimmedMean(f=1), f=2).aggregator == TrimmedMean(f=2)
    assert strategy_with(PreAggregated([NNM()], TrimmedMean(), f=1), f=2).aggregator.f == 2
    assert strategy_with(Mean(), f=2).aggregator == Mean()
    assert strategy_with(TrimmedMean(f=1)).aggregator == TrimmedMean(f=1)


def not_a_number(client, dispatch):
    return np.full(3, np.nan) if client == 3 and dispatch == 1 else CHANGES[client]


def no_weight(client, dispatch):
    return {"num-examples": -1} if client == 3 and dispatch == 1 else {}


@pytest.mark.parametrize(
    "app",
    [
        app_with(not_a_number),
        app_with(metrics=no_weight),
        app_with(lambda c, t: np.zeros((2, 3)) if c == 3 and t == 1 else CHANGES[c]),
    ],
    ids=["not finite", "no weight", "another form"],
)
def test_what_is_left_out_is_an_event_and_counts_as_one_of_f(app):
    simulated, models = run(strategy_with(TrimmedMean(f=2)), rounds=3, app=app)
    assert simulated.summary["faults"] == {"rejected": 1}
    trace = simulated.trace
    (row,) = np.flatnonzero(np.array(trace.kind) == Event.REJECTED)
    assert (trace.client[row], trace.dispatch[row]) == (3, 1)
    # The aggregator then works with one vector, and one Byzantine vector, less.
    expected = TrimmedMean(f=1)(CHANGES[[0, 1, 2, 4]])
    np.testing.assert_allclose(models[2] - models[1], expected, rtol=1e-5)
    # In the next round it is back to what it was.
    expected = TrimmedMean(f=2)(CHANGES)
    np.testing.assert_allclose(models[3] - models[2], expected, rtol=1e-5)


@pytest.mark.parametrize(("f", "moves"), [(1, False), (2, True)])
def test_more_than_f_that_are_left_out_leave_the_model_as_it_is(f, moves):
    app = app_with(lambda c, t: np.full(3, np.nan) if c in (1, 3) else CHANGES[c])
    simulated, models = run(strategy_with(TrimmedMean(f=f)), app=app)
    expected = CHANGES[[0, 2, 4]].mean(axis=0) if moves else np.zeros(3)
    np.testing.assert_allclose(models[1], START + expected, rtol=1e-5)
    assert simulated.summary["faults"] == {"rejected": 2} | ({} if moves else {"no_step": 1})


def test_an_aggregator_that_tolerates_nobody_goes_on_with_who_is_left():
    app = app_with(lambda c, t: np.full(3, np.nan) if c in (1, 3) else CHANGES[c])
    _, models = run(strategy_with(Mean()), app=app)
    np.testing.assert_allclose(models[1], START + CHANGES[[0, 2, 4]].mean(axis=0), rtol=1e-5)


def test_an_aggregator_that_cannot_work_with_all_replies_ends_the_run():
    with pytest.raises(ConfigError, match="TrimmedMean"):
        run(strategy_with(TrimmedMean(f=3)))


def test_an_aggregator_with_too_few_replies_leaves_the_model_as_it_is():
    def change(client, dispatch):
        if client == 3:
            raise RuntimeError("out of disk")
        return CHANGES[client]

    simulated, models = run(strategy_with(TrimmedMean(f=2)), app=app_with(change))
    np.testing.assert_array_equal(models[1], START)
    assert simulated.summary["faults"] == {"client_error": 1, "no_step": 1}


def test_who_answers_first_does_not_matter():
    # Not even in the last bits, nor to an aggregator that draws by the place of a vector.
    changes = np.random.default_rng(0).standard_normal((CLIENTS, 3)).astype(np.float32)
    clients = [Client(up_bps=1e3 * (i + 1)) for i in range(CLIENTS)]
    models, arrivals = [], []
    for fleet in (fleet_of(clients), fleet_of(clients[::-1])):
        strategy = strategy_with(PreAggregated([Bucketing(s=2)], TrimmedMean(f=0)))
        app = app_with(lambda client, dispatch: changes[client])
        simulated, of_run = run(strategy, rounds=3, app=app, fleet=fleet)
        models.append(of_run)
        ends = np.array(simulated.trace.kind) == Event.UPLOAD_END
        arrivals.append(np.array(simulated.trace.client)[ends][:CLIENTS].tolist())
    assert arrivals == [[4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]
    np.testing.assert_array_equal(*models)


# ---- statistics, and entries that are no floats --------------------------------------------------


def normalised():
    """A model with running statistics and a counter."""
    return nn.BatchNorm1d(2)


def batch_norm_app():
    """Client i adds i to weights and variances, and counts i batches."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        arrays = {}
        for name, array in message.content["arrays"].items():
            values = array.numpy()
            arrays[name] = Array(np.asarray(values + np.asarray(client, values.dtype)))
        metrics = MetricRecord({"num-examples": 10 + client})
        content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


@pytest.mark.parametrize(
    "rule",
    [FedAvg(eta=0.5), FedAvgM(eta=2.0, beta=0.9), FedAdam(eta=3.0)],
    ids=lambda rule: type(rule).__name__,
)
def test_statistics_move_by_the_aggregate_and_counters_by_the_median_whatever_the_rule(rule):
    strategy = Rounds(rule, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    initial = ArrayRecord(normalised().state_dict())
    strategy = strategy.within(Exchange(layout=Layout.of(normalised())))
    models = []

    def server(grid, context, recorder):
        strategy.start(grid, initial, num_rounds=3, evaluate_fn=lambda r, a: models.append(a))

    fleet = uniform(num_clients=CLIENTS, seed=0)
    simulate(server, batch_norm_app(), fleet, executor="serial", progress=False)
    weights = 10 + np.arange(CLIENTS)
    mean = weights @ np.arange(CLIENTS) / weights.sum()
    for r, model in enumerate(models):
        np.testing.assert_allclose(model["running_mean"].numpy(), r * mean, rtol=1e-5)
        np.testing.assert_allclose(model["running_var"].numpy(), 1 + r * mean, rtol=1e-5)
        assert model["num_batches_tracked"].numpy() == 2 * r  # the median of 0, ..., 4
        assert model["num_batches_tracked"].dtype == "int64"
    moved = models[1]["weight"].numpy() - models[0]["weight"].numpy()
    assert (abs(moved - mean) > 0.1).all()  # what is trained moves as the rule says


# ---- large models --------------------------------------------------------------------------------


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr("fl.vectors.layout.LARGE_BYTES", 0)


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_large_models_are_averaged_as_small_ones_are(eta):
    examples = np.array([10, 20, 5, 1, 4])
    app = app_with(metrics=lambda client, dispatch: {"num-examples": int(examples[client])})
    simulated, models = run(strategy_with(Mean(), eta=eta), rounds=2, app=app)
    step = eta * (examples @ CHANGES) / examples.sum()
    np.testing.assert_allclose(np.diff(models, axis=0), [step, step], rtol=1e-5)
    loss = (examples @ np.arange(5.0)) / examples.sum()
    assert simulated.history[-1]["train_loss"] == pytest.approx(loss)


@pytest.mark.usefixtures("all_are_large")
def test_a_large_model_that_is_none_is_left_out_with_its_reason(caplog):
    app = app_with(lambda client, dispatch: np.full(3, np.nan) if client == 3 else CHANGES[client])
    simulated, models = run(strategy_with(Mean()), app=app)
    assert "3 of 3 values that are not finite" in caplog.text
    assert simulated.trace.faults() == {"rejected": 1}
    expected = np.delete(CHANGES, 3, 0).mean(axis=0)  # all have ten examples
    np.testing.assert_allclose(models[1], START + expected, rtol=1e-5)


@pytest.mark.usefixtures("all_are_large")
def test_large_models_without_weight_change_nothing(caplog):
    app = app_with(metrics=lambda client, dispatch: {"num-examples": 0})
    simulated, models = run(strategy_with(Mean()), app=app)
    np.testing.assert_array_equal(models[1], START)
    assert "no weight is positive" in caplog.text
    assert simulated.trace.faults() == {"no_step": 1}


class Watching(SerialExecutor):
    """Counts the models of earlier replies that are in memory when a client trains."""

    def __init__(self):
        super().__init__()
        self.models = []
        self.alive = []

    def result(self, request):
        self.alive.append(sum(model() is not None for model in self.models))
        outcome = super().result(request)
        row = from_record(layout_of(outcome.content["arrays"]), outcome.content["arrays"])
        self.models.append(weakref.ref(row))
        return outcome


def alive(large, monkeypatch):
    if large:
        monkeypatch.setattr("fl.vectors.layout.LARGE_BYTES", 0)
        monkeypatch.setattr("fl.simulation.grid.LARGE_BYTES", 0)
    app = TrainingApp(MODEL, DATA, Sgd(0.1), batching="off")
    strategy = Rounds(FedAvg())
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
        {"train-loss": 10**400},
        {"num-examples": 0},
    ],
    ids=["list", "too large", "no weight"],
)
def test_metrics_of_another_form_than_most_are_not_averaged(odd):
    app = app_with(metrics=lambda client, dispatch: odd if client == 1 else {})
    simulated, _ = run(strategy_with(TrimmedMean(f=1)), app=app)
    assert simulated.history[-1]["train_loss"] == pytest.approx((0 + 2 + 3 + 4) / 4)


def test_a_metric_is_averaged_over_those_that_report_it():
    app = app_with(metrics=lambda client, dispatch: {"more": 7.0} if client == 1 else {})
    simulated, _ = run(strategy_with(TrimmedMean(f=1)), app=app)
    assert simulated.history[-1]["train_loss"] == pytest.approx(2.0)
    assert simulated.history[-1]["train_more"] == 7.0


def test_with_losses_that_are_not_finite_the_model_moves_all_the_same():
    app = app_with(metrics=lambda client, dispatch: {"train-loss": float("inf")})
    simulated, models = run(strategy_with(TrimmedMean(f=1)), app=app)
    assert simulated.history[-1]["train_loss"] == float("inf")
    assert (models[1] != models[0]).any()


def test_metrics_of_replies_that_are_left_out_are_not_averaged():
    app = app_with(lambda c, t: np.full(3, np.nan) if c == 4 else CHANGES[c])
    simulated, _ = run(strategy_with(TrimmedMean(f=1)), app=app)
    assert simulated.history[-1]["train_loss"] == pytest.approx((0 + 1 + 2 + 3) / 4)


def test_what_clients_find_of_a_model_is_in_the_row_of_that_model():
    app = app_with()

    @app.evaluate()
    def evaluate(message, context):
        w = message.content["arrays"]["w"].numpy()
        metrics = MetricRecord({"num-examples": 1, "loss": float(w[0])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    strategy = strategy_with(Mean(), fraction_evaluate=1.0)
    simulated, models = run(strategy, rounds=3, app=app)
    rows = simulated.history
    assert [row.get("round") for row in rows] == [0, 1, 2, 3]
    assert [row.get("client_loss") for row in rows] == [None, *models[1:, 0].tolist()]
