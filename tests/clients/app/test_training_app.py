"""The ClientApp against a plain PyTorch loop, and its dealings with messages."""

import pickle
import time

import cloudpickle
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from many_cases import for_each
from together import batch_key, train_many, why_alone
from torch import nn

from fl.clients import AdamW, Corrected, Finished, Proximal, Rule, Sam, Sgd, TrainingApp
from fl.clients.app.inbox import MEMORY_KEY
from fl.errors import ConfigError
from fl.execution.contract import WORK_KEY, Payload
from fl.flower.payload import payload_bytes
from fl.flower.records import from_record, model_record, to_record
from fl.models import evaluate, flops_per_example, memory_bytes, per_example_loss
from fl.vectors.layout import Layout

SIZES = (12, 7, 25)


def row(app, reply):
    return from_record(app.layout, reply.content["arrays"])


@pytest.fixture
def data(federated):
    return federated(SIZES)


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [0, 1, 2, 4])
@for_each("epochs", [1, 3])
@for_each(
    "rule, optimizer",
    [
        (Sgd(0.3), lambda p: torch.optim.SGD(p, 0.3)),
        (
            Sgd(0.1, 0.9, True, 0.01),
            lambda p: torch.optim.SGD(p, 0.1, 0.9, 0, 0.01, nesterov=True),
        ),
        (AdamW(0.02), lambda p: torch.optim.AdamW(p, 0.02)),
    ],
)
def test_training_is_a_plain_torch_loop(
    data, mlp, content_of, message_to, context_of, torch_loop, rule, optimizer, epochs, client
):
    app = TrainingApp(mlp, data, rule, batch_size=5, local_epochs=epochs)
    reply = app(message_to(content_of(mlp), client), context_of(client))
    losses: list[float] = []
    expected = torch_loop(mlp, data, optimizer, client, batch_size=5, epochs=epochs, losses=losses)
    np.testing.assert_allclose(row(app, reply), expected, rtol=1e-4, atol=1e-6)
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == SIZES[client % 3]
    assert metrics["steps"] == len(losses)
    assert metrics["train-loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_clipping_is_over_all_parameters_together(
    data, mlp, content_of, message_to, context_of, torch_loop
):
    app = TrainingApp(mlp, data, Sgd(0.5, clip_norm=0.2), batch_size=5)
    reply = app(message_to(content_of(mlp)), context_of())
    expected = torch_loop(
        mlp, data, lambda p: torch.optim.SGD(p, 0.5), 0, batch_size=5, clip_norm=0.2
    )
    np.testing.assert_allclose(row(app, reply), expected, rtol=1e-4, atol=1e-6)


def test_one_full_batch_is_a_gradient_step(data, logistic, content_of, message_to, context_of):
    app = TrainingApp(logistic, data, Sgd(1.0), batch_size=None)
    reply = app(message_to(content_of(logistic), 2), context_of(2))
    x, y = data.client(2)
    loss = per_example_loss(logistic(x), y).mean()
    gradient = torch.autograd.grad(loss, list(logistic.parameters()))
    expected = torch.cat(
        [(p - g).detach().reshape(-1) for p, g in zip(logistic.parameters(), gradient, strict=True)]
    )
    np.testing.assert_allclose(row(app, reply), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert reply.content["metrics"]["train-loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_local_steps_run_through_epochs(
    data, mlp, content_of, message_to, context_of, torch_loop, steps
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=None, local_steps=steps)
    reply = app(message_to(content_of(mlp)), context_of())
    expected = torch_loop(
        mlp, data, lambda p: torch.optim.SGD(p, 0.3), 0, batch_size=5, steps=steps
    )
    np.testing.assert_allclose(row(app, reply), expected, rtol=1e-4, atol=1e-6)
    assert reply.content["metrics"]["steps"] == steps


def test_without_shuffling_batches_follow_the_data(
    data, mlp, content_of, message_to, context_of, torch_loop
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2, shuffle=False)
    reply = app(message_to(content_of(mlp)), context_of())
    expected = torch_loop(
        mlp, data, lambda p: torch.optim.SGD(p, 0.3), 0, batch_size=5, epochs=2, shuffle=False
    )
    np.testing.assert_allclose(row(app, reply), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "same_as"),
    [
        ({"lr": 0.05}, {"rule": Sgd(0.05)}),
        ({"lr": 1}, {"rule": Sgd(1.0)}),
        ({"local_epochs": 4}, {"local_epochs": 4}),
        ({"local_steps": 2}, {"local_epochs": None, "local_steps": 2}),
        ({"unknown": 3, "another": "x", "list": [1.0]}, {}),
        ({"proximal_mu": 0.0}, {}),
    ],
)
def test_the_message_overrides_the_constructor(
    data, mlp, content_of, message_to, context_of, config, same_as
):
    told = TrainingApp(mlp, data, Sgd(0.3), batch_size=5)
    built = TrainingApp(mlp, data, **{"rule": Sgd(0.3), "batch_size": 5, **same_as})
    got = told(message_to(content_of(mlp, **config)), context_of())
    expected = built(message_to(content_of(mlp)), context_of())
    assert row(told, got).tobytes() == row(built, expected).tobytes()
    assert got.content["metrics"] == expected.content["metrics"]


def test_proximal_without_mu_is_sgd_bit_for_bit(data, mlp, content_of, message_to, context_of):
    replies = [
        TrainingApp(mlp, data, Sgd(0.3, 0.9), correction=correction, batch_size=5, local_epochs=3)(
            message_to(content_of(mlp, proximal_mu=0.0)), context_of()
        )
        for correction in (None, Proximal(0.4))
    ]
    assert replies[0].content["arrays"] == replies[1].content["arrays"]


def test_flowers_fedprox_reaches_the_proximal_term(data, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3), correction=Proximal(), batch_size=5, local_epochs=3)
    start = app.layout.flatten(mlp.state_dict()).numpy()

    def distance(mu):
        reply = app(message_to(content_of(mlp, proximal_mu=mu)), context_of())
        return np.linalg.norm(row(app, reply) - start)

    assert distance(0.0) > 1.5 * distance(2.0)


def test_clients_without_a_proximal_term_refuse_to_ignore_mu(
    data, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3))
    content = content_of(mlp, proximal_mu=0.1)
    with pytest.raises(ConfigError, match=r"proximal-mu 0\.1"):
        app(message_to(content), context_of())
    with pytest.raises(ConfigError, match="client/correction=proximal"):
        app.plan(Payload(content), "train", 0, 1e-9)


def test_training_repeats_bit_for_bit_and_depends_on_seed_message_and_client(
    federated, mlp, content_of, message_to, context_of
):
    data = federated((12,))  # all clients share one partition
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2)

    def train(client=0, dispatch=0, seed=3):
        message = message_to(content_of(mlp), client, dispatch)
        return row(app, app(message, context_of(client, seed))).tobytes()

    base = train()
    assert train(dispatch=1) != base
    assert train(seed=4) != base
    assert train(client=1) != base
    assert train() == base
    again = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2)
    assert row(again, again(message_to(content_of(mlp)), context_of())).tobytes() == base


def test_inputs_are_not_changed(data, mlp, content_of, message_to, context_of):
    mlp.eval()
    app = TrainingApp(mlp, data, Sgd(0.3, momentum=0.9), batch_size=5)
    assert not mlp.training
    start = app.layout.flatten(mlp.state_dict())
    kept = (start.clone(), data.train.x.copy(), data.train.y.copy())
    given = {k: v.clone() for k, v in mlp.state_dict().items()}
    for arrays in (mlp, to_record(app.layout, start)):
        content = content_of(arrays)
        app(message_to(content), context_of())
        train_many(app, [message_to(content, i) for i in (0, 1)], [context_of(i) for i in (0, 1)])
    assert torch.equal(start, kept[0])
    np.testing.assert_array_equal(data.train.x, kept[1])
    np.testing.assert_array_equal(data.train.y, kept[2])
    assert all(torch.equal(given[k], v) for k, v in mlp.state_dict().items())


def test_building_and_running_an_app_draws_no_global_random_numbers(
    data, content_of, message_to, context_of
):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    content = content_of(model)
    before = torch.get_rng_state()
    app = TrainingApp(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)), data, Sgd(0.1)
    )
    app(message_to(content), context_of())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_a_function_of_the_task(data, content_of, message_to, context_of):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    app = TrainingApp(model, data, Sgd(0.1), batch_size=None, shuffle=False)
    first = row(app, app(message_to(content_of(model)), context_of()))
    torch.manual_seed(99)
    again = row(app, app(message_to(content_of(model)), context_of()))
    other = row(app, app(message_to(content_of(model), dispatch=1), context_of()))
    assert first.tobytes() == again.tobytes()
    assert not np.allclose(first, other)
    assert batch_key(app, message_to(content_of(model)), context_of()) is None
    assert "dropout" in why_alone(app, message_to(content_of(model)), context_of())


def test_batchnorm_statistics_are_updated_as_in_torch(
    data, content_of, message_to, context_of, torch_loop
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    app = TrainingApp(model, data, Sgd(0.1, weight_decay=0.1), batch_size=4, local_epochs=2)
    content = content_of(model)
    assert batch_key(app, message_to(content), context_of()) is None
    assert "1.running_mean" in why_alone(app, message_to(content), context_of())
    with pytest.raises(ConfigError, match=r"1\.running_mean"):
        train_many(app, [message_to(content, i) for i in (0, 1)], [context_of(i) for i in (0, 1)])

    reply = app(message_to(content), context_of())
    expected = torch_loop(
        model, data, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1), 0, batch_size=4, epochs=2
    )
    np.testing.assert_allclose(row(app, reply), expected, rtol=1e-4, atol=1e-6)
    again = app(message_to(content), context_of())
    assert row(app, again).tobytes() == row(app, reply).tobytes()  # nothing was left behind
    counter = reply.content["arrays"]["1.num_batches_tracked"].numpy()
    assert counter == model.state_dict()["1.num_batches_tracked"] == 6
    assert counter.dtype == np.int64


def test_frozen_parameters_stay(data, mlp, content_of, message_to, context_of):
    mlp.layers[0].weight.requires_grad_(False)
    before = mlp.layers[0].weight.clone()
    app = TrainingApp(mlp, data, Sgd(0.3, weight_decay=0.5), batch_size=5)
    reply = app(message_to(content_of(model_record(app.layout, mlp))), context_of())
    state = reply.content["arrays"].to_torch_state_dict()
    assert "layers.0.weight" not in state
    assert torch.equal(mlp.layers[0].weight, before)
    assert not torch.equal(state["layers.0.bias"], mlp.layers[0].bias)


# ---- partial work --------------------------------------------------------------------------------


def test_partial_work_is_the_beginning_of_full_work(
    data, mlp, content_of, message_to, context_of, torch_loop
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=4)
    content = content_of(mlp, deadline_s=1.0)
    content[WORK_KEY] = ConfigRecord({"steps": 5})
    reply = app(message_to(content), context_of())
    expected = torch_loop(mlp, data, lambda p: torch.optim.SGD(p, 0.3), 0, batch_size=5, steps=5)
    np.testing.assert_allclose(row(app, reply), expected, rtol=1e-4, atol=1e-6)
    assert reply.content["metrics"]["steps"] == 5
    assert reply.content["metrics"]["num-examples"] == 12
    assert set(reply.content) == {"arrays", "metrics"}


def test_a_work_record_without_steps_is_refused(data, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3))
    content = content_of(mlp)
    content[WORK_KEY] = ConfigRecord({"seconds": 3.0})
    with pytest.raises(ConfigError, match=r"'fl.work' has no 'steps', only \['seconds'\]"):
        app(message_to(content), context_of())


def test_more_time_than_work_changes_nothing(data, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5)
    content = content_of(mlp, deadline_s=1e9)
    content[WORK_KEY] = ConfigRecord({"steps": 999})
    full = app(message_to(content_of(mlp)), context_of())
    assert row(app, app(message_to(content), context_of())).tobytes() == row(app, full).tobytes()


@pytest.mark.parametrize("together", [False, True])
@for_each("cause", ["no steps", "no examples"])
def test_a_client_that_does_nothing_returns_the_model_at_weight_zero(
    federated, mlp, content_of, message_to, context_of, together, cause
):
    app = TrainingApp(mlp, federated((12, 0)), Sgd(0.3), batch_size=5)
    content = content_of(mlp)
    client = 1
    if cause == "no steps":
        client, content[WORK_KEY] = 0, ConfigRecord({"steps": 0})
    message, context = message_to(content, client), context_of(client)
    reply = train_many(app, [message], [context])[0] if together else app(message, context)
    np.testing.assert_array_equal(row(app, reply), app.layout.flatten(mlp.state_dict()).numpy())
    assert reply.content["metrics"] == {"num-examples": 0, "train-loss": 0.0, "steps": 0}


def test_without_a_simulator_the_clock_stops_the_work(
    data, logistic, content_of, message_to, context_of
):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = logistic

        def forward(self, x):
            time.sleep(0.02)
            return self.inner(x)

    app = TrainingApp(Slow(), data, Sgd(0.3), batch_size=1, local_epochs=100)
    content = content_of(Slow(), deadline_s=0.2)
    message = message_to(content)
    assert "wall time" in why_alone(app, message, context_of()) or app._trainer.not_batchable
    reply = app(message, context_of())
    assert 1 <= reply.content["metrics"]["steps"] <= 10  # of hundreds, each of at least 0.02 s

    content = content_of(Slow(), deadline_s=1e-6)
    assert app(message_to(content), context_of()).content["metrics"]["steps"] == 1


def test_a_deadline_in_wall_time_is_not_batched(data, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3))
    message = message_to(content_of(mlp, deadline_s=1.0))
    assert batch_key(app, message, context_of()) is None
    other = message_to(message.content, 1)
    with pytest.raises(ConfigError, match="clock"):
        train_many(app, [message, other], [context_of(), context_of(1)])
    message.content[WORK_KEY] = ConfigRecord({"steps": 1})
    assert batch_key(app, message, context_of()) is not None


# ---- plans ---------------------------------------------------------------------------------------


def test_planned_flops_are_those_of_every_example_of_every_step(data, mlp, content_of):
    per_example = flops_per_example(mlp, (6,)).training
    assert per_example == 2 * 3 * (6 * 5 + 5 * 4) - 2 * 6 * 5  # no gradient of the input
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2)
    for partition, size in enumerate(SIZES):
        work = app.plan(Payload(content_of(mlp)), "train", partition, 1e-9)
        assert work.flops == per_example * size * 2
        assert work.steps is None
        assert work.work is None
    # 3 batches of 5, 5 and 2, then one more of 5
    assert (
        app.plan(Payload(content_of(mlp, local_steps=4)), "train", 0, 1e-9).flops
        == per_example * 17
    )
    assert app.plan(Payload(content_of(mlp, local_epochs=1)), "train.default", 3, 1).flops == (
        per_example * 12
    )


def test_a_last_batch_that_is_left_out_is_not_charged(data, mlp, content_of):
    app = TrainingApp(mlp, data, Sgd(0.1), batch_size=5, local_epochs=2, drop_last=True)
    per_example = flops_per_example(mlp, data.input_shape).training
    # Of 12, 7 and 25 examples two, one and five batches of 5.
    flops = [app.plan(Payload(content_of(mlp)), "train", p, 1e-9).flops for p in range(3)]
    assert flops == [2 * 10 * per_example, 2 * 5 * per_example, 2 * 25 * per_example]


def test_a_model_that_wants_two_examples_trains_where_the_last_one_alone_is_left_out(
    federated, content_of, message_to, context_of
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    data = federated((9,))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        TrainingApp(model, data, Sgd(0.1), batch_size=4)(
            message_to(content_of(model)), context_of(0)
        )
    app = TrainingApp(model, data, Sgd(0.1), batch_size=4, drop_last=True)
    reply = app(message_to(content_of(model)), context_of(0))
    assert reply.content["metrics"]["steps"] == 2


@pytest.mark.parametrize(
    ("sizes", "arguments", "config", "remedy"),
    [
        ((8, 9), {}, {}, "client 1 would come upon a smaller one .* set drop_last to true"),
        ((8, 9), {"batch_size": 1}, {}, "raise batch_size"),
        ((8, 1), {"drop_last": True}, {}, "give every client 2 examples"),
        ((8, 9), {"drop_last": True}, {}, None),
        ((8, 0), {}, {}, None),  # a client without examples trains on none
        ((8, 9), {}, {"local-steps": 2}, None),  # the last batch is not reached
        ((8, 9), {}, {"local-steps": 3}, "set drop_last to true"),
    ],
)
def test_batches_too_small_for_the_model_are_foreseen(
    federated, mlp, sizes, arguments, config, remedy
):
    app = TrainingApp(mlp, federated(sizes), Sgd(0.1), **{"batch_size": 4, **arguments})
    app.check_batches(config, 1)
    if remedy is None:
        app.check_batches(config, 2)
    else:
        with pytest.raises(ConfigError, match=remedy):
            app.check_batches(config, 2)


def test_a_step_of_two_gradients_costs_twice(data, mlp, content_of):
    work = [
        TrainingApp(mlp, data, rule, batch_size=5).plan(Payload(content_of(mlp)), "train", 0, 1e-9)
        for rule in (Sgd(0.3), Sam(0.3))
    ]
    assert work[1].flops == 2 * work[0].flops > 0


@pytest.mark.parametrize(
    ("affordable_examples", "steps", "examples"),
    [
        (4.9, 1, 5),
        (5, 1, 5),
        (9.9, 1, 5),
        (10, 2, 10),
        (12, 3, 12),
        (16.9, 3, 12),
        (17, 4, 17),
        (99, 6, 24),
    ],
)
def test_a_deadline_fits_whole_steps_and_at_least_one(
    data, mlp, content_of, affordable_examples, steps, examples
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2)
    seconds_per_flop = 3e-7
    per_example = flops_per_example(mlp, (6,)).training
    deadline = affordable_examples * per_example * seconds_per_flop
    work = app.plan(Payload(content_of(mlp, deadline_s=deadline)), "train", 0, seconds_per_flop)
    assert work.work == {"steps": steps}
    assert work.flops == per_example * examples


@pytest.mark.parametrize(
    "rule", [Sgd(0.3, momentum=0.9), Sam(0.3), Corrected(Sgd(0.3), Proximal(0.1))]
)
def test_the_plan_knows_the_size_of_a_reply_that_is_a_model_and_metrics(
    data, mlp, content_of, message_to, context_of, rule
):
    app = TrainingApp(mlp, data, rule, batch_size=5)
    content = content_of(mlp, local_steps=3)
    reply = app(message_to(content), context_of())
    assert app.plan(Payload(content), "train", 0, 1e-9).reply_bytes == payload_bytes(reply.content)


def test_the_plan_knows_no_size_where_clients_keep_something_or_mods_are_around(data, mlp):
    apps = [
        TrainingApp(mlp, data, AdamW(0.02, keep_moments=True)),
        TrainingApp(
            mlp, data, Sgd(0.3), mods=[lambda message, context, call: call(message, context)]
        ),
        TrainingApp(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), data, Sgd(0.3)),
    ]
    assert [app._reply_bytes for app in apps] == [None] * 3
    assert TrainingApp(mlp, data, Sgd(0.3))._reply_bytes


@pytest.mark.parametrize(
    ("elapsed_examples", "steps", "examples"), [(0, 0, 0), (4.9, 0, 0), (5, 1, 5), (99, 6, 24)]
)
def test_an_interrupted_device_has_done_the_whole_steps_that_fit_before_the_message_came(
    data, mlp, content_of, elapsed_examples, steps, examples
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2)
    per_example = flops_per_example(mlp, (6,)).training
    content = content_of(mlp, elapsed_s=elapsed_examples * per_example * 3e-7)
    work = app.plan(Payload(content), "train", 0, 3e-7)
    assert work.work == {"steps": steps}
    assert work.flops == 0
    assert work.past_flops == per_example * examples


def test_on_a_real_device_that_has_not_begun_no_time_elapsed_means_no_step(
    data, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3))
    reply = app(message_to(content_of(mlp, elapsed_s=0.0)), context_of())
    assert reply.content["metrics"]["steps"] == 0
    assert app(message_to(content_of(mlp, elapsed_s=1e-9)), context_of()).content["metrics"][
        "steps"
    ]


def test_on_an_infinitely_fast_device_everything_fits(data, mlp, content_of):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5, local_epochs=2)
    assert app.plan(Payload(content_of(mlp, deadline_s=1e-9)), "train", 0, 0.0).steps == 6


def test_a_step_with_two_gradients_costs_twice(data, mlp, content_of):
    class Sam(Sgd):
        gradients_per_step = 2.0

    once, twice = (
        TrainingApp(mlp, data, rule, batch_size=5)
        .plan(Payload(content_of(mlp)), "train", 0, 1.0)
        .flops
        for rule in (Sgd(0.1), Sam(0.1))
    )
    assert twice == 2 * once


def test_evaluation_costs_forward_passes_and_queries_nothing(federated, mlp, content_of):
    app = TrainingApp(mlp, federated((12, 7), (3, 5)), Sgd(0.3))
    forward = flops_per_example(mlp, (6,)).forward
    assert app.plan(Payload(content_of(mlp)), "evaluate", 1, 1.0).flops == 5 * forward
    assert app.plan(Payload(RecordDict()), "query", 1, 1.0).flops == 0


def test_memory_is_that_of_the_largest_batch(data, mlp):
    def memory(batch_size, rule=None):
        return TrainingApp(mlp, data, rule or Sgd(0.1), batch_size=batch_size).memory_bytes()

    assert memory(5) == memory_bytes(mlp, (6,), 5)
    assert memory(None) == memory(1000) == memory_bytes(mlp, (6,), 25)
    assert memory(5, AdamW()) == memory_bytes(mlp, (6,), 5, 2)


def test_a_client_without_examples_plans_no_work(federated, mlp, content_of):
    app = TrainingApp(mlp, federated((12, 0)), Sgd(0.3))
    work = app.plan(Payload(content_of(mlp, deadline_s=1.0)), "train", 1, 1e-9)
    assert (work.flops, work.steps) == (0.0, 0)


# ---- evaluation and queries ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["test", "train", None])
def test_evaluation_is_on_the_clients_own_examples(
    federated, mlp, content_of, message_to, context_of, where
):
    data = federated((12, 7), (3, 5))
    app = TrainingApp(mlp, data, Sgd(0.3), evaluate_on=where)
    reply = app(message_to(content_of(mlp), 1, kind="evaluate"), context_of(1))
    examples = data.client(1) if where == "train" else data.client_test(1)
    expected = evaluate(mlp, examples)
    assert reply.content["metrics"] == {
        "num-examples": 7 if where == "train" else 5,
        "loss": expected.loss,
        "accuracy": expected.score,
    }
    assert set(reply.content) == {"metrics"}


@pytest.mark.parametrize(("on", "examples", "count"), [("train", 4, 4), ("test", 9, 5)])
def test_a_message_says_on_which_and_on_how_many_examples_it_is_evaluated(
    federated, mlp, content_of, message_to, context_of, on, examples, count
):
    data = federated((12, 7), (3, 5))
    app = TrainingApp(mlp, data, Sgd(0.3))
    content = content_of(mlp, evaluate_on=on, evaluate_examples=examples)
    assert (
        app.plan(Payload(content), "evaluate", 1, 1.0).flops
        == count * flops_per_example(mlp, (6,)).forward
    )
    losses = []
    for dispatch in range(300):
        reply = app(message_to(content, 1, dispatch, kind="evaluate"), context_of(1))
        assert reply.content["metrics"]["num-examples"] == count
        losses.append(reply.content["metrics"]["loss"])
    whole = evaluate(mlp, data.client(1) if on == "train" else data.client_test(1))
    # Each batch is drawn anew and uniformly: the mean of their losses is that of all examples.
    error = np.std(losses) / np.sqrt(len(losses))
    assert np.mean(losses) == pytest.approx(whole.loss, abs=4 * error + 1e-6)
    assert (len(set(losses)) > 1) == (examples == 4)


@pytest.mark.parametrize("config", [{"evaluate_on": "all"}, {"evaluate_examples": 0}])
def test_an_evaluation_that_cannot_be_is_refused(data, mlp, content_of, config):
    app, payload = TrainingApp(mlp, data, Sgd(0.3)), Payload(content_of(mlp, **config))
    with pytest.raises(ConfigError, match=next(iter(config)).replace("_", "-")):
        app.plan(payload, "evaluate", 0, 1.0)


def test_evaluation_uses_running_statistics_and_leaves_training_mode(
    data, content_of, message_to, context_of
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    model(torch.randn(9, 6))
    app = TrainingApp(model, data, Sgd(0.3))
    reply = app(message_to(content_of(model), kind="evaluate"), context_of())
    assert reply.content["metrics"]["loss"] == evaluate(model, data.client(0)).loss
    assert app._model.training


def test_evaluation_without_examples_weighs_nothing(
    federated, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, federated((12, 0)), Sgd(0.3))
    reply = app(message_to(content_of(mlp), 1, kind="evaluate"), context_of(1))
    assert reply.content["metrics"] == {"num-examples": 0, "loss": 0.0, "accuracy": 0.0}


def test_a_query_tells_sizes(data, mlp, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3))
    reply = app(message_to(RecordDict(), 4, kind="query"), context_of(4))
    told = {"num-examples": 7, "num-partitions": 3, "partition-id": 4}
    assert reply.content["metrics"] == told


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": -0.1}, "'lr' is -0.1"),
        ({"local_epochs": 0}, "'local-epochs' is 0; it must be at least 1"),
        ({"local_epochs": 1.5}, "'local-epochs' is 1.5; it must be a whole number"),
        ({"local_epochs": True}, "'local-epochs' is True"),
        ({"local_steps": -1}, "'local-steps' is -1"),
        ({"local_steps": "all"}, "'local-steps' is 'all'"),
        ({"local_steps": 1, "local_epochs": 1}, "local-epochs 1 and local-steps 1; send one"),
        ({"deadline_s": 0.0}, "'deadline-s' is 0.0; it must be finite and above 0"),
        ({"deadline_s": float("nan")}, "'deadline-s' is nan"),
        ({"elapsed_s": -1.0}, "'elapsed-s' is -1.0; it must be finite and at least 0"),
        ({"deadline_s": 1.0, "elapsed_s": 1.0}, "deadline-s 1.0 and elapsed-s 1.0; send one"),
    ],
)
def test_a_bad_value_in_the_message_is_refused(
    data, mlp, content_of, message_to, context_of, config, message
):
    app = TrainingApp(mlp, data, Sgd(0.3))
    content = content_of(mlp, **config)
    with pytest.raises(ConfigError, match=message):
        app(message_to(content), context_of())
    with pytest.raises(ConfigError, match=message):
        app.plan(Payload(content), "train", 0, 1e-9)
    assert batch_key(app, message_to(content), context_of()) is None
    with pytest.raises(ConfigError, match=message):
        train_many(app, [message_to(content)], [context_of()])


def test_a_message_without_a_model_is_refused(data, mlp, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3))
    content = RecordDict({"weights": ArrayRecord(mlp.state_dict())})
    for kind in ("train", "evaluate"):
        with pytest.raises(ConfigError, match=r"no ArrayRecord 'arrays', only \['weights'\]"):
            app(message_to(content, kind=kind), context_of())


def test_a_model_that_does_not_fit_or_is_not_finite_is_refused(
    data, mlp, logistic, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3))
    broken = content_of(mlp)
    bias = broken["arrays"]["layers.0.bias"].numpy()
    bias[2] = np.nan
    broken["arrays"]["layers.0.bias"] = Array(bias)
    for content, message in (
        (content_of(logistic), r"missing \['layers.0.bias'"),
        (broken, "'layers.0.bias' has 1 of 5 values that are not finite"),
    ):
        for kind in ("train", "evaluate"):
            with pytest.raises(ConfigError, match=message):
                app(message_to(content, kind=kind), context_of())
        assert batch_key(app, message_to(content), context_of()) is None


def test_a_model_that_diverges_is_returned_as_it_is(
    data, logistic, content_of, message_to, context_of
):
    app = TrainingApp(logistic, data, Sgd(1e38, weight_decay=1.0), batch_size=5)
    reply = app(message_to(content_of(logistic)), context_of())
    result = from_record(app.layout, reply.content["arrays"], finite=False)
    assert not np.isfinite(result).all()
    assert not np.isfinite(reply.content["metrics"]["train-loss"])
    assert set(reply.content["metrics"]) == {"num-examples", "train-loss", "steps"}


def test_a_node_without_partition_or_seed_says_what_to_do(
    data, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3))
    context = context_of()
    context.run_config = {}
    with pytest.raises(ConfigError, match=r"run_config\['fl.seed'\] is None.*pyproject.toml"):
        app(message_to(content_of(mlp)), context)
    context = context_of()
    context.node_config = {}
    with pytest.raises(ConfigError, match=r"node_config\['partition-id'\] is None.*SuperNode"):
        app(message_to(content_of(mlp)), context)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, at least 1, or null"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"local_epochs": 0}, "local_epochs is 0"),
        ({"local_epochs": None}, "local_epochs is None and local_steps is None; set one"),
        ({"local_steps": 3}, "local_epochs is 1 and local_steps is 3; set one"),
        ({"evaluate_on": "all"}, "evaluate_on is 'all'"),
        ({"evaluate_on": "test"}, "no held-out examples for each client: set it to 'train'"),
    ],
)
def test_a_bad_argument_is_refused(data, mlp, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TrainingApp(mlp, data, Sgd(0.3), **arguments)


# ---- rules with more machinery -------------------------------------------------------------------


class Scaffold(Rule):
    """SCAFFOLD, option II: shows that a rule with server vector, memory and upload fits."""

    needs = ("c",)
    uploads = ("c-change",)
    lr = 0.2

    def first_memory(self, w, scalars):
        return {"c_i": torch.zeros_like(w)}

    def init(self, received):
        return ()

    def step(self, w, state, received, batch, t):
        g, loss = batch.grad(w)
        return w - self.lr * (g - received.memory["c_i"] + received.server["c"]), state, loss

    def finish(self, w, state, received, steps):
        old, c = received.memory["c_i"], received.server["c"]
        new = old - c + (received.w - w) / (steps * self.lr)
        return Finished(w, {"c-change": new - old}, {"c_i": new})


@pytest.fixture
def scaffold_content(mlp, content_of):
    from fl.flower.records import vector_record

    d = Layout.of(mlp).num_trainable
    content = content_of(mlp)
    content["c"] = vector_record(torch.linspace(-0.1, 0.1, d))
    return content


def test_a_control_variate_is_the_mean_of_the_local_gradients(
    data, mlp, scaffold_content, message_to, context_of
):
    # methods reference 1.4, test (b): option II telescopes to the mean of the K gradients
    gradients = []

    class Watched(Scaffold):
        def step(self, w, state, received, batch, t):
            gradients.append(batch.grad(w)[0])
            return super().step(w, state, received, batch, t)

    app = TrainingApp(mlp, data, Watched(), batch_size=5)
    context = context_of()
    reply = app(message_to(scaffold_content), context)
    memory = context.state[MEMORY_KEY]["c_i"].numpy()
    np.testing.assert_allclose(memory, torch.stack(gradients).mean(0).numpy(), atol=1e-6)
    np.testing.assert_array_equal(reply.content["c-change"]["vector"].numpy(), memory)


def test_memory_survives_a_real_nodes_state_and_is_used_next_time(
    data, mlp, scaffold_content, message_to, context_of
):
    app = TrainingApp(mlp, data, Scaffold(), batch_size=5)
    kept, fresh = context_of(), context_of()
    app(message_to(scaffold_content), kept)
    kept.state = recorddict_from_proto(recorddict_to_proto(kept.state))
    with_memory = row(app, app(message_to(scaffold_content, dispatch=1), kept))
    without = row(app, app(message_to(scaffold_content, dispatch=1), fresh))
    assert not np.allclose(with_memory, without)


def test_a_missing_or_wrong_server_vector_is_refused(
    data, mlp, content_of, scaffold_content, message_to, context_of
):
    app = TrainingApp(mlp, data, Scaffold())
    with pytest.raises(ConfigError, match=r"Scaffold needs the record 'c'"):
        app(message_to(content_of(mlp)), context_of())
    scaffold_content["c"] = ArrayRecord([np.zeros(3, np.float32)])
    with pytest.raises(ConfigError, match="record 'c'"):
        app(message_to(scaffold_content), context_of())


def test_a_client_of_no_steps_uploads_no_change(
    data, mlp, scaffold_content, message_to, context_of
):
    app = TrainingApp(mlp, data, Scaffold())
    scaffold_content[WORK_KEY] = ConfigRecord({"steps": 0})
    context = context_of()
    reply = app(message_to(scaffold_content), context)
    assert not reply.content["c-change"]["vector"].numpy().any()
    assert MEMORY_KEY not in context.state


def test_a_foreign_record_under_the_rules_key_is_refused(
    data, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3))
    context = context_of()
    context.state[MEMORY_KEY] = MetricRecord({"a": 1})
    with pytest.raises(ConfigError, match="the key belongs to the client rule"):
        app(message_to(content_of(mlp)), context)


# ---- elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dumps", [cloudpickle.dumps])
def test_an_app_travels_to_other_processes_without_its_caches(
    data, mlp, content_of, message_to, context_of, dumps
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5)
    fresh = len(dumps(app))
    expected = row(app, app(message_to(content_of(mlp)), context_of()))
    assert len(dumps(app)) < fresh + 2000
    again = pickle.loads(dumps(app))
    got = row(again, again(message_to(content_of(mlp)), context_of()))
    assert got.tobytes() == expected.tobytes()


def test_examples_too_large_to_keep_converted_give_the_same_result(
    data, mlp, content_of, message_to, context_of, monkeypatch
):
    results = []
    for limit in (2**30, 0):
        monkeypatch.setattr("fl.clients.app.examples.MAX_POOL_BYTES", limit)
        app = TrainingApp(mlp, data, Sgd(0.3), batch_size=5)
        results.append(row(app, app(message_to(content_of(mlp)), context_of())).tobytes())
    assert results[0] == results[1]


def test_mods_wrap_the_handlers_and_switch_batching_off(
    data, mlp, content_of, message_to, context_of
):
    seen = []

    def mod(message, context, call_next):
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    app = TrainingApp(mlp, data, Sgd(0.3), mods=[mod])
    app(message_to(content_of(mlp)), context_of())
    assert seen == ["train"]
    assert why_alone(app, message_to(content_of(mlp)), context_of()) == (
        "mods see one message at a time"
    )


def test_only_training_is_batched(data, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, data, Sgd(0.3))
    assert batch_key(app, message_to(content_of(mlp), kind="evaluate"), context_of()) is None
    assert batch_key(app, message_to(content_of(mlp), kind="train.other"), context_of()) is None
    assert batch_key(app, message_to(content_of(mlp)), context_of()) is not None
