"""Weights that weigh nothing, and numbers that are too large: a round changes nothing and says so.

No client ends a run, and no run is completed with a model that is not finite.
"""

from __future__ import annotations

import numpy as np
import pytest
from every_strategy import (
    AVERAGING,
    CLIENTS,
    EVENTS,
    EVERY,
    GRADIENTS,
    OUTER,
    POLLING,
    REPLICAS,
    ROUNDED,
    ROUNDS,
    SERVERLESS,
    TASKS,
    mostly_slow,
    ran,
    ran_in_vain,
)
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian

from fl import simulate
from fl import strategies as rules
from fl.aggregation import CenteredClipping, TrimmedMean, weight_of
from fl.runs.experiment import app_of
from fl.simulation.cost import CostModel
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleets import uniform
from fl.strategies import Events, FedBuff, Rounds

slow = pytest.mark.slow
QUICK = {"fedavg", "over_selection", "fedbuff", "fedasync", "quafl", "dpsgd"}


# ---- every strategy, with the client app of the experiment ---------------------------------------


def lying(change):
    """Returns a function that makes an app whose replies to `train` are changed."""

    def app(experiment):
        honest, made = app_of(experiment), ClientApp()

        @made.train()
        def train(message, context):
            reply = honest(message, context)
            if reply.has_content():
                change(context.node_config["partition-id"], reply.content)
            return reply

        @made.evaluate()
        def evaluate(message, context):
            reply = honest(message, context)
            if reply.has_content():
                change(context.node_config["partition-id"], reply.content)
            return reply

        return made

    return app


def reports(value, clients=range(CLIENTS)):
    def change(client, content):
        if client in clients:
            metrics = dict(content["metrics"]) | {"num-examples": value}
            content["metrics"] = MetricRecord({k: v for k, v in metrics.items() if v is not None})

    return change


def model_of(run):
    return {name: array.numpy() for name, array in run.arrays.items()}


WEIGHING = [*AVERAGING, *ROUNDED, *EVENTS, *TASKS]


@pytest.mark.parametrize("strategy", mostly_slow(WEIGHING, QUICK))
def test_clients_that_have_no_examples_change_nothing_and_the_run_says_so(strategy, tmp_path):
    if strategy in TASKS:
        summary = ran_in_vain(tmp_path, strategy, app=lying(reports(0)))
    else:
        nobody = ["partition._target_=every_strategy.nobody", "~partition.seed"]
        nobody.append("~partition.held_out")
        summary = ran_in_vain(tmp_path, strategy, *nobody)
    assert summary["faults"].keys() == {"no_step"}
    assert summary["final"]["unchanged_rounds"] == summary["faults"]["no_step"]
    assert summary["faults"]["no_step"] >= (1 if strategy == "fedfix" else ROUNDS)  # it has ticks


@pytest.mark.parametrize("strategy", mostly_slow(OUTER, {"diloco"}))
def test_outer_steps_of_workers_without_weight_are_not_taken(strategy, tmp_path):
    weighted = "strategy.weighted_by_key=num-examples"
    summary = ran_in_vain(tmp_path, strategy, weighted, app=lying(reports(0)))
    if strategy != "eager_updates":  # every worker steps by what it knows
        assert summary["faults"].keys() == {"no_step"}


@pytest.mark.parametrize("strategy", mostly_slow([*POLLING, *SERVERLESS, *GRADIENTS], QUICK))
def test_strategies_without_weights_do_not_mind(strategy):
    _, run = ran(strategy, *client_of(strategy), app=lying(reports(0)))
    assert run.summary["status"] == "completed"
    assert run.summary["faults"] == {}


def client_of(strategy):
    return ["client=gradient"] if strategy in GRADIENTS else []


# What a client says of its examples is no plan: a second for it would be longer than some runs.
NO_TIME = CostModel(seconds=0.0)
BAD_WEIGHTS = [10**400, float("nan"), float("inf"), -1, -(2**70), 1e300, True, [1, 2], [], None]


READING = [*AVERAGING, "over_selection", "oort", "tifl", *OUTER]
READING.remove("proxskip")  # makes no step without a reply of everybody
OTHERS = ["backup_workers", "dbw", *EVENTS, *TASKS, *POLLING, *SERVERLESS, *GRADIENTS]


@pytest.mark.parametrize("strategy", mostly_slow(READING, QUICK))
def test_a_weight_that_is_none_costs_its_client_a_reply_and_nobody_else(strategy):
    values = iter(BAD_WEIGHTS * 10)
    weighted = ["strategy.weighted_by_key=num-examples"] if strategy in OUTER else []
    if strategy == "fedavg":
        weighted.append("aggregator=mean")

    def change(client, content):
        if client == 1:
            reports(next(values))(client, content)

    _, run = ran(
        strategy,
        f"num_rounds={len(BAD_WEIGHTS)}",
        "target=null",
        "personal.every=null",
        *weighted,
        app=lying(change),
        cost_model=NO_TIME,
    )
    assert run.summary["status"] == "completed"
    rarely = strategy in OUTER or strategy == "tifl"  # it is asked
    assert run.summary["faults"]["rejected"] >= (1 if rarely else len(BAD_WEIGHTS) // 2)
    assert all(np.isfinite(array).all() for array in model_of(run).values())


@pytest.mark.parametrize("value", [10**400, -1, 0, None])
def test_a_client_that_reports_no_examples_is_left_out_of_personal_evaluation(value):
    _, run = ran("ditto", app=lying(reports(value, clients=[1])), cost_model=NO_TIME)
    last = run.summary["final"]
    assert (last["personal_clients"], last["personal_left_out"]) == (CLIENTS - 1, 1)


@pytest.mark.parametrize("strategy", mostly_slow(OTHERS, QUICK))
def test_a_weight_that_nobody_reads_ends_no_run(strategy):
    values = iter(BAD_WEIGHTS * 100)

    def change(client, content):
        if client == 1:
            reports(next(values))(client, content)

    _, run = ran(strategy, *client_of(strategy), app=lying(change))
    assert run.summary["status"] == "completed"


def scaled(size, clients=range(CLIENTS)):
    """Models whose numbers are finite, and whose sums or differences are not."""

    def change(client, content):
        if client not in clients:
            return
        for key, record in content.array_records.items():
            arrays = {}
            for name, array in record.items():
                values = array.numpy()
                signs = np.where(np.arange(values.size) % 2, 1, -1).reshape(values.shape)
                # Not quite the same from all, or the mean of equal weights would be 0.
                own = size * (1 - client / 1000) * (-1) ** client
                arrays[name] = Array((signs * own).astype(values.dtype))
            content[key] = ArrayRecord(arrays)

    return change


@pytest.mark.parametrize("size", [3.4e38, pytest.param(1e20, marks=slow)])
@pytest.mark.parametrize("strategy", mostly_slow([s for s in EVERY if s not in REPLICAS], QUICK))
def test_finite_updates_whose_sum_is_not_leave_the_last_finite_model(strategy, size, tmp_path):
    if strategy == "qfedavg":  # whose step is as small as the updates are large: none, in float32
        ran_in_vain(tmp_path, strategy, app=lying(scaled(size)))
        return
    _, run = ran(strategy, *client_of(strategy), app=lying(scaled(size)))
    assert run.summary["status"] in ("completed", "diverged")
    assert all(np.isfinite(array).all() for array in model_of(run).values())
    if run.summary["status"] == "diverged":
        assert run.summary["faults"]["not_finite"] >= 1
        assert "not" in run.summary["error"]


RATES = {
    "fedast": "tasks.digits.client.rule.lr",
    "sync_st": "tasks.digits.client.rule.lr",
    "onebit_adam": "strategy.rule.lr",
    "demo": "strategy.rule.lr",
    "just_one_byte": "strategy.rule.lr",
    "data_parallel": "strategy.rule.optimizer.lr",
    "gradient_tracking": "strategy.rule.eta",
    "d2": "strategy.rule.eta",
    "extra": "strategy.rule.eta",
    "beer": "strategy.rule.eta",
}
# These take one step before the server looks, and are at something huge and finite.
ONE_STEP = ["backup_workers", "dbw", "proxskip", *GRADIENTS]
BOUNDED = {"fedhyper_sl"}  # whose server keeps the rate within bounds, and learns


LINKS = ["fedavg compressor=int8", "fedbuff compressor=ef_topk", "diloco compressor=int8"]


@pytest.mark.parametrize(
    "strategy", mostly_slow([s for s in [*EVERY, *LINKS] if s not in BOUNDED], {*QUICK, LINKS[0]})
)
def test_a_learning_rate_that_is_far_too_large_ends_in_diverged(strategy):
    # Every client's model is NaN after its first steps: what there is left is the first model.
    strategy, *links = strategy.split()
    rate = [f"{RATES.get(strategy, 'client.rule.lr')}=1e30", *links]
    if strategy in TASKS:
        rate.append("num_rounds=20")  # of both models, of which one is well
    if strategy == "fedamd":
        rate.append("strategy.rule.p=0.1")  # or all may be anchors, who take no step
    _, run = ran(strategy, *rate, *client_of(strategy))
    assert all(np.isfinite(array).all() for array in model_of(run).values())
    if run.summary["status"] != "completed" or strategy not in ONE_STEP:
        assert run.summary["status"] == "diverged"
        assert "lower the learning rate" in run.summary["error"]


# ---- scripts, with anybody's ClientApp -----------------------------------------------------------

START = np.array([1.0, -2.0], dtype=np.float32)


def scripted(strategy, reply, rounds=3, evaluate=None):
    """Returns the run of a strategy whose clients answer `reply(client, round, w)`."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        w = message.content["arrays"]["w"].numpy()
        turn = message.content["config"]["server-round"]
        model, weight = reply(context.node_config["partition-id"], turn, w)
        content = RecordDict({"arrays": ArrayRecord({"w": Array(model.astype(np.float32))})})
        content["metrics"] = MetricRecord({"num-examples": weight, "train-loss": 0.5})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluated(message, context):
        weight = evaluate(context.node_config["partition-id"])
        content = RecordDict({"metrics": MetricRecord({"num-examples": weight, "loss": 0.25})})
        return Message(content, reply_to=message)

    models = []

    def server(grid, context, recorder):
        def seen(version, arrays):
            models.append(arrays["w"].numpy())
            return MetricRecord({"mean": float(models[-1].mean())})

        result = strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=rounds,
            timeout=1000,
            evaluate_fn=recorder.recording(seen),
        )
        recorder.final(result.arrays)

    fleet = uniform(num_clients=CLIENTS, seed=0)
    return simulate(server, app, fleet, executor="serial", progress=False), models


def everybody(kind, **more):
    return kind(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, **more)


def one_step_up(client, turn, w):
    return w + 1, 10


@pytest.mark.parametrize("kind", [FedAvg, FedAdam, FedMedian])
def test_flowers_own_strategies_change_nothing_without_weights(kind):
    strategy = everybody(kind)
    run, models = scripted(strategy, lambda c, t, w: (w + 1, 0), evaluate=lambda c: 0)
    assert run.summary["status"] == "completed"
    assert run.summary["faults"] == {"no_step": 3}
    np.testing.assert_array_equal(models, [START] * 4)


def test_flowers_own_strategies_see_what_they_always_saw_where_all_is_well():
    run, models = scripted(
        everybody(FedAvg),
        lambda c, t, w: (w + c, c),
        evaluate=lambda c: c,  # client 0 weighs 0
    )
    mean = sum(c * c for c in range(CLIENTS)) / sum(range(CLIENTS))
    np.testing.assert_allclose(models, [START + mean * t for t in range(4)], rtol=1e-6)
    assert run.summary["faults"] == {}
    assert run.history[-1]["client_loss"] == 0.25


def huge_in_round_two(client, turn, w):
    """The mean is finite; ten times it is not."""
    return (w + 1, 10) if turn != 2 else (np.full_like(w, 3.0e38), 10)


STEPPING = [
    lambda: everybody(FedAvgM, server_learning_rate=10.0, server_momentum=0.9, fraction_evaluate=0),
    lambda: everybody(FedAdam, eta=1e39, beta_1=0.0, tau=1.0, fraction_evaluate=0.0),
    lambda: Rounds(rules.FedAvg(eta=10.0), clients=CLIENTS),
    lambda: Rounds(rules.FedAvg(eta=10.0), clients=CLIENTS, aggregator=CenteredClipping(tau=1e38)),
    lambda: Rounds(rules.FedAvgM(eta=10.0), clients=CLIENTS),
    lambda: Rounds(rules.FedAdam(eta=1e38, beta_1=0.0, tau=1.0), clients=CLIENTS),
    lambda: Events(FedBuff(CLIENTS, rules.FedAvgM(eta=10.0))),
    lambda: Events(FedBuff(CLIENTS, rules.FedAdam(eta=1e38, beta_1=0.0, tau=1.0))),
    lambda: Events(rules.CA2FL(CLIENTS, rules.FedAvg(eta=10.0), population=CLIENTS)),
]
NAMES = [
    "Flower's fedavgm",
    "Flower's fedadam",
    "mean",
    "clipping",
    "fedavgm",
    "fedadam",
    "fedbuff",
    "fedbuff with fedadam",
    "ca2fl",
]


@pytest.mark.parametrize("strategy", STEPPING[:1] + STEPPING[2:], ids=NAMES[:1] + NAMES[2:])
def test_a_step_that_is_not_finite_leaves_nothing_behind(strategy):
    # Neither in the model nor in a momentum: it is as if the round had not been.
    run, models = scripted(strategy(), huge_in_round_two, rounds=4)
    assert run.summary["status"] == "completed"  # later steps were taken
    assert run.summary["faults"] == {"not_finite": 1}
    assert run.history[-1]["unchanged_rounds"] == 1
    _, without = scripted(strategy(), one_step_up, rounds=3)
    np.testing.assert_array_equal(models[2], models[1])
    np.testing.assert_allclose([models[i] for i in (0, 1, 3, 4)], without, rtol=1e-6)


@pytest.mark.parametrize("strategy", STEPPING, ids=NAMES)
def test_a_run_whose_last_step_is_not_finite_is_diverged_and_keeps_the_model_before(strategy):
    run, models = scripted(strategy(), huge_in_round_two, rounds=2)
    assert run.summary["status"] == "diverged"
    assert "not finite" in run.summary["error"] or "not be finite" in run.summary["error"]
    np.testing.assert_array_equal(models[2], models[1])
    np.testing.assert_array_equal(run.arrays["w"].numpy(), models[1])


def test_an_app_that_ends_with_nan_of_its_own_making_is_not_completed():
    def server(grid, context, recorder):
        recorder.final(ArrayRecord({"w": Array(START * np.float32(np.nan))}))

    run = simulate(
        server, ClientApp(), uniform(num_clients=2, seed=0), executor="serial", progress=False
    )
    assert run.summary["status"] == "diverged"
    assert "'w'" in run.summary["error"]


def test_an_unchanged_round_is_an_event_of_the_trace_with_its_number():
    run, _ = scripted(everybody(FedAvg, fraction_evaluate=0.0), lambda c, t, w: (w, 10 * (t != 2)))
    rows = np.array(run.trace.kind) == Event.NO_STEP
    assert np.array(run.trace.value)[rows].tolist() == [2.0]
    assert np.array(run.trace.client)[rows].tolist() == [-1]


def test_a_robust_rule_whose_tolerance_is_exceeded_changes_nothing():
    def reply(client, turn, w):
        return (w * np.nan, 10) if client < turn else (w + 1, 10)  # one bad, two, three

    strategy = Rounds(rules.FedAvg(), clients=CLIENTS, aggregator=TrimmedMean(f=1))
    run, models = scripted(strategy, reply)
    np.testing.assert_allclose(models, [START, START + 1, START + 1, START + 1])
    assert run.summary["faults"] == {"rejected": 6, "no_step": 2}


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (0, 0.0),
        (3, 3.0),
        (2.5, 2.5),
        (np.int64(7), 7.0),
        (2**63, 2.0**63),
        (2**63 + 1025, None),
        (10**400, None),
        (1e300, None),
        (-1, None),
        (-0.5, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("10", None),
        ([1], None),
        (None, None),
    ],
)
def test_a_weight_is_a_finite_number_of_at_least_zero(value, weight):
    assert weight_of(value) == weight
