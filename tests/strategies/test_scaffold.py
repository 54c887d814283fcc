"""SCAFFOLD, server and clients together (arXiv:1910.06378)."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from heterogeneous import Learnt, cohorts
from hydra import compose, initialize_config_module
from torch import nn

from fl import simulate
from fl.clients import (
    AdamW,
    ControlVariates,
    Corrected,
    Momentum,
    Received,
    Sgd,
    StepDecay,
    TrainingApp,
)
from fl.clients.app.inbox import MEMORY_KEY
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.flower.records import record_vector, vector_record
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.simulation.world.fleets import uniform
from fl.strategies import SCAFFOLD, Exchange, FedAvg, Rounds
from fl.vectors.layout import Layout

# ---- fixture Q: clients with quadratic losses of their own ---------------------------------------

N, DIM, STEPS, LR = 8, 5, 10, 0.05


def controlled(option="II", **of_sgd):
    """SGD with control variates."""
    return Corrected(Sgd(LR, **of_sgd), ControlVariates(option))


class Losses:
    """f_i(x) = (x - c_i)^T A_i (x - c_i) / 2, A_i diagonal; full gradients."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.a = rng.uniform(0.5, 2, (N, DIM))
        self.c = 3 * rng.standard_normal((N, DIM))
        self.optimum = (self.a * self.c).sum(axis=0) / self.a.sum(axis=0)

    def error(self, x):
        return np.linalg.norm(x - self.optimum) / np.linalg.norm(self.optimum)

    def gradient(self, i, x):
        return self.a[i] * (x - self.c[i])


class Batch:
    examples = 1

    def __init__(self, a, c):
        self.a, self.c = (torch.from_numpy(v.astype(np.float32)) for v in (a, c))
        self.at = []

    def grad(self, w):
        self.at.append(w.clone())
        return self.a * (w - self.c), (self.a * (w - self.c) ** 2).sum() / 2


class Run:
    """What a run was: the models, and c, the clients' c_i and who was asked, after every round."""

    def __init__(self, rule, client, *, clients=N, rounds=3, losses=None, seed=0, lie=None):
        self.losses = losses or Losses()
        self.models, self.c, self.asked = [], [], defaultdict(list)
        self.c_i, self.after = np.zeros((N, DIM)), []
        app = ClientApp()

        @app.train()
        def train(message, context):
            return self.reply(client, message, context, lie)

        def server(grid, context, recorder):
            strategy = Rounds(rule, clients=clients, seed=seed)
            strategy.start(
                grid,
                ArrayRecord({"w": torch.zeros(DIM)}),
                num_rounds=rounds,
                evaluate_fn=self.evaluate,
            )

        fleet = uniform(num_clients=N, seed=0)
        self.result = simulate(server, app, fleet, executor="serial", progress=False)

    def evaluate(self, version, arrays):
        self.models.append(arrays["w"].numpy().astype(float))
        self.after.append(self.c_i.copy())

    def reply(self, rule, message, context, lie):
        i, content = context.node_config["partition-id"], message.content
        round_ = content["config"]["server-round"] - 1
        self.asked[round_].append(i)
        w = torch.from_numpy(content["arrays"]["w"].numpy().copy())
        server = {name: record_vector(content[name], DIM, name) for name in rule.needs}
        if server:
            self.c = [*self.c[:round_], server["c"].numpy().astype(float)]
        memory = rule.first_memory(w, rule.scalars({}))
        if MEMORY_KEY in context.state:
            memory = {k: torch.from_numpy(a.numpy()) for k, a in context.state[MEMORY_KEY].items()}
        received = Received(w, server, memory, rule.scalars({}))
        state, batch = rule.init(received), Batch(self.losses.a[i], self.losses.c[i])
        for t in range(STEPS):
            w, state, _ = rule.step(w, state, received, batch, t)
        done = rule.finish(w, state, received, STEPS)
        if done.memory:
            kept = {k: v.clone() for k, v in done.memory.items()}
            context.state[MEMORY_KEY] = ArrayRecord(kept)
            self.c_i[i] = done.memory.get("c_i", torch.zeros(DIM)).numpy()
        metrics = MetricRecord({"num-examples": 1 + i, "train-loss": 0.0, "steps": STEPS})
        extras = {name: vector_record(v) for name, v in done.extras.items()}
        reply = RecordDict({"arrays": ArrayRecord({"w": w}), "metrics": metrics, **extras})
        if lie is not None:
            lie(i, round_, reply)
        return Message(reply, reply_to=message)


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("clients", [2, N], ids=["2 of 8", "all"])
def test_it_is_algorithm_1_for_50_rounds(option, clients):
    losses, asked, eta = Losses(), cohorts(clients, 50), 0.8
    x, c, c_i, models = np.zeros(DIM), np.zeros(DIM), np.zeros((N, DIM)), [np.zeros(DIM)]
    for cohort in asked:
        y, new = np.tile(x, (N, 1)), c_i.copy()
        for i in cohort:
            for _ in range(STEPS):
                y[i] = y[i] - LR * (losses.gradient(i, y[i]) - c_i[i] + c)
            new[i] = {
                "I": losses.gradient(i, x),
                "II": c_i[i] - c + (x - y[i]) / (STEPS * LR),
            }[option]
        x = x + eta * (y[cohort] - x).mean(axis=0)
        c, c_i = c + (new - c_i).sum(axis=0) / N, new
        models.append(x)
    learnt = Learnt(SCAFFOLD(num_clients=N, eta=eta), controlled(option), asked)
    np.testing.assert_allclose(learnt.models, models, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize(("clients", "rounds"), [(2, 120), (N, 30)], ids=["2 of 8", "all"])
def test_it_finds_the_optimum_of_clients_that_differ(option, clients, rounds):
    rule = SCAFFOLD(num_clients=N)
    run = Run(rule, controlled(option), clients=clients, rounds=rounds)
    assert run.losses.error(run.models[-1]) < 1e-5


def test_fedavg_finds_another_point_with_all_clients_and_none_with_few():
    def equal(i, r, reply):
        reply["metrics"]["num-examples"] = 1

    # K steps of gradient descent take 1 - (1 - lr a)^K of the way to c_i.
    run = Run(FedAvg(), Sgd(LR), rounds=30, lie=equal)
    way = 1 - (1 - LR * run.losses.a) ** STEPS
    drifted = (way * run.losses.c).sum(axis=0) / way.sum(axis=0)
    np.testing.assert_allclose(run.models[-1], drifted, atol=1e-5)
    assert run.losses.error(drifted) > 0.01
    run = Run(FedAvg(), Sgd(LR), clients=2, rounds=120, lie=equal)
    assert min(run.losses.error(model) for model in run.models) > 0.1


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("clients", [2, 3, N])
def test_after_every_round_c_is_the_mean_of_all_clients_c_i(option, clients):
    run = Run(SCAFFOLD(num_clients=N), controlled(option), clients=clients, rounds=25)
    assert len(run.c) == 25
    for r in range(25):  # what round r is sent is what round r - 1 has left
        assert len(run.asked[r]) == clients
        np.testing.assert_allclose(run.c[r], run.after[r].mean(axis=0), atol=1e-6)
    assert not run.c[0].any()
    assert all(c.any() for c in run.c[1:])
    if clients < N:  # somebody's c_i is from an earlier round than the last, or still 0
        never = [i for i in range(N) if i not in run.asked[0]]
        assert not run.after[1][never].any()


def test_a_client_that_brings_no_model_leaves_c_and_the_model_to_the_others():
    def lie(i, r, reply):
        if i == 3:
            reply["delta_c"] = vector_record(torch.full((DIM,), torch.nan))

    run = Run(SCAFFOLD(num_clients=N), controlled(), rounds=2, lie=lie)
    assert run.result.trace.faults() == {"rejected": 2}
    others = np.delete(run.after[1], 3, axis=0)
    np.testing.assert_allclose(run.c[1], others.sum(axis=0) / N, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda reply: reply.pop("delta_c"),
        lambda reply: reply.update(delta_c=vector_record(torch.zeros(DIM + 1))),
        lambda reply: reply.update(delta_c=MetricRecord({"a": 1.0})),
        lambda reply: reply.update(delta_c=ArrayRecord({"vector": torch.zeros(DIM).int()})),
    ],
    ids=["missing", "another length", "no arrays", "no floats"],
)
def test_a_reply_without_a_control_variate_of_the_right_form_is_left_out(wrong):
    lie = lambda i, r, reply: wrong(reply) if i == 0 else None  # noqa: E731
    run = Run(SCAFFOLD(num_clients=N), controlled(), rounds=2, lie=lie)
    assert run.result.trace.faults() == {"rejected": 2}


# ---- what a client's control variate is ----------------------------------------------------------


class Recorded:
    """Batches whose gradients are drawn, and noted with the point where they were taken."""

    def __init__(self, seed=3):
        self.rng, self.gradients, self.points, self.examples = (
            np.random.default_rng(seed),
            [],
            [],
            0,
        )

    def __call__(self, examples):
        self.examples = examples
        self.centre = torch.from_numpy(self.rng.standard_normal(DIM))
        return self

    def grad(self, w):
        g = w - self.centre
        self.points.append(w)
        self.gradients.append((self.examples, g))
        return g, (g**2).sum() / 2


def task(rule, sizes=(4, 4, 4, 2), seed=3):
    """Returns what a client received and what it ended with, and its batches."""
    rng = np.random.default_rng(seed)
    w, c, c_i = (torch.from_numpy(rng.standard_normal(DIM)) for _ in range(3))
    scalars = rule.scalars({})
    received = Received(w, {"c": c}, {**rule.first_memory(w, scalars), "c_i": c_i}, scalars)
    batches, state = Recorded(), rule.init(received)
    for t, examples in enumerate(sizes):
        w, state, _ = rule.step(w, state, received, batches(examples), t)
    return received, rule.finish(w, state, received, len(sizes)), batches


def test_option_ii_is_the_mean_of_the_tasks_gradients():
    received, done, batches = task(controlled())
    mean = sum(g for _, g in batches.gradients) / 4
    torch.testing.assert_close(done.memory["c_i"], mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        done.extras["delta_c"], mean - received.memory["c_i"], rtol=1e-9, atol=1e-9
    )


MORE = {
    "momentum": Sgd(LR, momentum=0.9),
    "decay": Sgd(LR, weight_decay=0.3),
    "worker momentum": Momentum(LR),
    "adamw": AdamW(LR),
}


@pytest.mark.parametrize("optimizer", MORE.values(), ids=MORE)
def test_option_ii_is_the_mean_of_the_tasks_gradients_whatever_the_optimizer_makes_of_them(
    optimizer,
):
    received, done, batches = task(Corrected(optimizer, ControlVariates()))
    mean = sum(g for _, g in batches.gradients) / 4
    torch.testing.assert_close(done.memory["c_i"], mean, rtol=1e-9, atol=1e-9)
    told = received.memory["c_i"] - received.server["c"] + (received.w - done.w) / (4 * LR)
    assert (told - mean).abs().max() > 0.05  # the paper's formula, which is SGD's


@pytest.mark.parametrize("optimizer", [Sgd(LR / 4, momentum=0.75), Momentum(LR)])
def test_with_momentum_it_finds_the_optimum_of_clients_that_differ(optimizer):
    rule = Corrected(optimizer, ControlVariates())
    run = Run(SCAFFOLD(num_clients=N), rule, clients=2, rounds=200)
    assert run.losses.error(run.models[-1]) < 1e-5


def test_option_ii_weighs_gradients_by_the_rates_of_their_steps():
    rule = controlled(step_schedule=StepDecay(2, 0.5))
    _, done, batches = task(rule)
    rates = [1.0, 1.0, 0.5, 0.5]
    mean = sum(r * g for r, (_, g) in zip(rates, batches.gradients, strict=True)) / sum(rates)
    torch.testing.assert_close(done.memory["c_i"], mean, rtol=1e-9, atol=1e-9)


def test_option_i_is_the_mean_gradient_of_the_tasks_examples_at_the_received_model():
    received, done, batches = task(controlled("I"))
    there = [
        (n, g)
        for (n, g), w in zip(batches.gradients, batches.points, strict=True)
        if torch.equal(w, received.w)
    ]
    assert [n for n, _ in there] == [4, 4, 4, 4, 2]  # the first step begins there as well
    mean = sum(n * g for n, g in there[1:]) / 14
    torch.testing.assert_close(done.memory["c_i"], mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("option", ["I", "II"])
def test_steps_go_against_the_corrected_gradient(option):
    received, done, batches = task(controlled(option))
    steps = batches.gradients if option == "II" else batches.gradients[::2]
    correction = received.server["c"] - received.memory["c_i"]
    w = received.w - LR * sum(g + correction for _, g in steps)
    torch.testing.assert_close(done.w, w, rtol=1e-9, atol=1e-9)


class Uncontrolled(ControlVariates):
    """Keeps its control variate at 0."""

    def finish(self, w, state, received):
        done = super().finish(w, state, received)
        zero = torch.zeros_like(w)
        return done._replace(extras={"delta_c": zero}, memory={"c_i": zero})


def test_with_all_control_variates_at_0_it_is_fedavg_with_equal_weights():
    run = Run(SCAFFOLD(num_clients=N), Corrected(Sgd(LR), Uncontrolled()), clients=3, rounds=6)

    def same(i, r, reply):
        reply["metrics"]["num-examples"] = 1

    fedavg = Run(FedAvg(), Sgd(LR), clients=3, rounds=6, lie=same)
    np.testing.assert_allclose(run.models, fedavg.models, rtol=1e-6, atol=1e-6)


# ---- with the clients of the package -------------------------------------------------------------


def config_of(*overrides):
    common = ["num_clients=8", "num_rounds=4", "fleet=uniform", "executor=serial"]
    common += ["client.local_epochs=null", "client.local_steps=3", "strategy.min_train_nodes=3"]
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", overrides=[*common, *overrides])


def ran(*overrides, around=lambda app: app):
    """Returns the experiment and its run; `around` makes what clients run of its app."""
    config = config_of(*overrides)
    experiment = build(config)

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    app = around(app_of(experiment))
    return experiment, simulate(
        server, app, experiment.fleet, executor="serial", progress=False, seed=config.seed
    )


@pytest.mark.parametrize("option", ["I", "II"])
def test_an_experiments_c_is_the_mean_of_what_its_clients_keep(option):
    sent, kept, changes = {}, {}, defaultdict(float)

    def around(ours):
        app = ClientApp()

        @app.train()
        def train(message, context):
            r, i = message.content["config"]["server-round"], context.node_config["partition-id"]
            if r not in sent:  # the first of the round: all of the round before have replied
                total = sum(kept.values()) if kept else 0.0
                sent[r] = (message.content["c"]["vector"].numpy(), total / 8)
            reply = ours(message, context)
            changes[i] = changes[i] + reply.content["delta_c"]["vector"].numpy()
            kept[i] = context.state[MEMORY_KEY]["c_i"].numpy().astype(float)
            return reply

        return app

    ran("strategy=scaffold", f"client.correction.option={option}", "num_rounds=6", around=around)
    assert len(sent) == 6
    assert 3 < len(kept) <= 8
    for r, (c, mean) in sent.items():
        assert c.any() == (r > 1)
        np.testing.assert_allclose(c, mean, atol=1e-7)
    for i, c_i in kept.items():
        np.testing.assert_allclose(changes[i], c_i, atol=1e-6)


def test_clients_train_together_as_they_train_alone():
    runs = [ran("strategy=scaffold", f"client.batching='{mode}'")[1] for mode in ("on", "off")]
    models = [
        np.concatenate([array.numpy().ravel() for array in run.arrays.values()]) for run in runs
    ]
    np.testing.assert_allclose(models[0], models[1], rtol=1e-4, atol=1e-5)
    assert runs[0].summary["totals"]["bytes_up"] == runs[1].summary["totals"]["bytes_up"]


def test_it_sends_a_second_vector_both_ways_and_is_charged_for_it():
    experiment, scaffold = ran("strategy=scaffold")
    _, fedavg = ran("strategy=fedavg")
    d = experiment.app.layout.size
    for way in ("bytes_down", "bytes_up"):
        more = scaffold.summary["totals"][way] - fedavg.summary["totals"][way]
        each = more / (4 * 3)  # rounds, clients
        assert 4 * d <= each <= 4 * d + 160  # and its names, and the header of an array


def test_entries_that_are_not_trained_have_no_control_variate():
    data = federate(load_digits, partial(partition.iid, num_partitions=4, seed=0))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

    layout = Layout.of(model())
    strategy = Rounds(SCAFFOLD(num_clients=4), min_train_nodes=4).within(Exchange(layout=layout))
    app = TrainingApp(model, data, Sgd(0.1), correction=ControlVariates(), batch_size=64)
    models = []

    def server(grid, context, recorder):
        initial = ArrayRecord(model().state_dict())
        strategy.start(grid, initial, num_rounds=3, evaluate_fn=lambda r, a: models.append(a))

    run = simulate(server, app, uniform(4, seed=0), executor="serial", progress=False)
    assert run.trace.faults() == {}
    assert strategy.state.c.shape == (layout.num_trainable,)
    assert layout.num_trainable < layout.size
    assert (models[-1]["2.running_mean"].numpy() != models[0]["2.running_mean"].numpy()).all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["strategy=scaffold", "~client/correction"],
            "SCAFFOLD.*'delta_c'",
        ),
        (
            ["strategy=fedavg", "client/correction=control_variates"],
            "FedAvg .* 'c'",
        ),
        (["strategy=fedbuff", "client/correction=control_variates"], "FedBuff .* 'c'"),
        (["strategy=dpsgd", "client/correction=control_variates"], "DPSGD .* 'c'"),
    ],
    ids=["server alone", "clients alone", "without rounds", "without a server"],
)
def test_one_half_of_it_is_refused_before_anything_starts(overrides, words):
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides=overrides)
    with pytest.raises(ConfigError, match=words):
        build(config)


def test_what_it_says_it_sends_is_what_it_sends():
    rule = SCAFFOLD(num_clients=3)
    assert set(rule.broadcast(rule.init(np.zeros(4, np.float32), 4))) == set(rule.carries)
    assert set(rule.needs) == set(ControlVariates().uploads)
    assert set(rule.carries) == set(ControlVariates().needs)
