"""A client that is sent several models takes the one with the lowest loss on its examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from together import train_many
from torch import nn

from fl.clients import Sgd, TrainingApp
from fl.clients.app.choosing import chosen_model, shares_of
from fl.data import Examples, FederatedData, Partitions
from fl.errors import ConfigError
from fl.execution.contract import Payload
from fl.flower.payload import payload_bytes
from fl.flower.records import from_record
from fl.models import MLP, evaluate, flops_per_example

SIZES = (12, 7, 0)
K = 3


@pytest.fixture
def data(federated):
    return federated(SIZES, (5, 4, 3))


@pytest.fixture
def models():
    made = []
    for seed in range(K):
        torch.manual_seed(seed)
        made.append(MLP((6,), 4, hidden=(5,)))
    return made


def content_of(models):
    records = {f"arrays.{j}" if j else "arrays": m.state_dict() for j, m in enumerate(models)}
    made = {name: ArrayRecord(values) for name, values in records.items()}
    return RecordDict({**made, "config": ConfigRecord({"server-round": 1})})


def constant(*logits):
    """A model that always says the same."""
    model = nn.Linear(1, len(logits))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor(logits))
    return model


def best(models, data, client):
    return int(np.argmin([evaluate(model, data.client(client)).loss for model in models]))


@pytest.mark.parametrize("client", [0, 1])
def test_it_trains_from_the_best_and_says_which(data, models, message_to, context_of, client):
    app = TrainingApp(models[0], data, Sgd(0.1), batch_size=4)
    j = best(models, data, client)
    order = [*range(j), *range(j + 1, K), j]  # the best one is the last
    reply = app(message_to(content_of([models[i] for i in order]), client), context_of(client))
    assert reply.content["metrics"]["model"] == K - 1
    alone = app(message_to(content_of([models[j]]), client), context_of(client))
    assert "model" not in alone.content["metrics"]
    got, expected = (from_record(app.layout, r.content["arrays"]) for r in (reply, alone))
    np.testing.assert_array_equal(got, expected)


def test_of_equal_models_it_takes_the_first_and_without_examples_as_well(
    data, models, message_to, context_of
):
    app = TrainingApp(models[0], data, Sgd(0.1))
    for sent, client in (([models[1]] * K, 0), (models, 2)):
        reply = app(message_to(content_of(sent), client), context_of(client))
        assert reply.content["metrics"]["model"] == 0


def test_a_model_whose_loss_is_no_number_is_not_taken(data, models, message_to, context_of):
    huge = MLP((6,), 4, hidden=(5,))
    with torch.no_grad():
        for parameter in huge.parameters():
            parameter.fill_(1e30)
    app = TrainingApp(models[0], data, Sgd(0.1))
    reply = app(message_to(content_of([huge, models[1]])), context_of())
    assert reply.content["metrics"]["model"] == 1


def test_together_each_client_takes_its_own(data, models, message_to, context_of):
    app = TrainingApp(models[0], data, Sgd(0.1), batch_size=4, batching="on")
    content = content_of(models)
    messages = [message_to(content, client) for client in (0, 1)]
    replies = train_many(app, messages, [context_of(0), context_of(1)])
    for client, reply in enumerate(replies):
        assert reply.content["metrics"]["model"] == best(models, data, client)
        alone = app(messages[client], context_of(client))
        got, expected = (from_record(app.layout, r.content["arrays"]) for r in (reply, alone))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6)


def test_choosing_costs_a_forward_pass_of_every_model_over_all_examples(
    data, models, message_to, context_of
):
    app = TrainingApp(models[0], data, Sgd(0.1), batch_size=4, local_epochs=1)
    one, several = Payload(content_of(models[:1])), Payload(content_of(models))
    forward = flops_per_example(models[0], (6,), torch.float32).forward
    for kind in ("train", "evaluate"):
        plans = [app.plan(payload, kind, 0, 1e-9) for payload in (one, several)]
        assert plans[1].flops - plans[0].flops == K * forward * SIZES[0]
    reply = app(message_to(several.content), context_of())
    assert app.plan(several, "train", 0, 1e-9).reply_bytes == payload_bytes(reply.content)
    assert several.size > 2.9 * one.size - 500


def test_it_evaluates_the_model_that_it_would_take(data, models, message_to, context_of):
    app = TrainingApp(models[0], data, Sgd(0.1))
    reply = app(message_to(content_of(models), kind="evaluate"), context_of())
    expected = evaluate(models[best(models, data, 0)], data.client_test(0))
    assert reply.content["metrics"]["loss"] == pytest.approx(expected.loss)


def test_statistics_are_those_of_the_model_that_is_taken(data, message_to, context_of):
    def made(mean):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
        model[0].running_mean.fill_(mean)
        return model

    models = [made(50.0), made(0.0)]
    app = TrainingApp(models[0], data, Sgd(1e-9), batch_size=None)
    reply = app(message_to(content_of(models)), context_of())
    assert reply.content["metrics"]["model"] == 1
    trained = reply.content["arrays"]["0.running_mean"].numpy()
    x, _ = data.client(0)
    np.testing.assert_allclose(trained, 0.1 * x.mean(dim=0).numpy(), atol=1e-6)


def test_shares_are_those_of_the_examples_that_each_model_fits_best(message_to, context_of):
    """Of 10 examples 3 are of class 0, 7 of class 1; each model knows one class, the last none."""
    examples = Examples(np.zeros((10, 1), np.float32), np.repeat([0, 1], [3, 7]))
    dealt = Partitions.contiguous((10, 0))
    data = FederatedData("votes", examples, examples, dealt, 3, (1,))
    models = [constant(0.0, 9.0, 0.0), constant(9.0, 0.0, 0.0), constant(0.0, 0.0, 9.0)]
    content = content_of(models)
    content["config"]["mixture-smoothing"] = 0.5
    app = TrainingApp(models[0], data, Sgd(1e-9), batch_size=None)
    reply = app(message_to(content, 0), context_of(0))
    u = np.array([0.7, 0.3, 0.5]) / 1.5
    np.testing.assert_allclose(reply.content["metrics"]["mixture"], u)
    assert "model" not in reply.content["metrics"]
    mix = sum(
        share * from_record(app.layout, ArrayRecord(m.state_dict()))
        for share, m in zip(u, models, strict=True)
    )
    np.testing.assert_allclose(from_record(app.layout, reply.content["arrays"]), mix, atol=1e-6)
    evaluated = app(message_to(content, 0, kind="evaluate"), context_of(0))
    mixed = constant(*mix[-3:].tolist())
    loss = evaluate(mixed, data.client(0)).loss
    assert evaluated.content["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    nobody = app(message_to(content, 1), context_of(1)).content["metrics"]
    np.testing.assert_allclose(nobody["mixture"], 1 / 3)
    assert nobody["num-examples"] == 0
    equal = content_of([models[0]] * 3)
    equal["config"]["mixture-smoothing"] = 1e-4
    first = app(message_to(equal, 0), context_of(0)).content["metrics"]["mixture"]
    np.testing.assert_allclose(first, np.array([1, 1e-4, 1e-4]) / 1.0002)


@pytest.mark.parametrize(
    "said", [None, 0.5, [1.0], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], "ab"], ids=str
)
def test_what_are_no_shares_is_refused(said):
    with pytest.raises(ConfigError, match="mixture"):
        shares_of({} if said is None else {"mixture": said}, 2)
    np.testing.assert_array_equal(shares_of({"mixture": [0.25, 0.75]}, 2), [0.25, 0.75])


@pytest.mark.parametrize("said", [None, -1, 3, 1.0, True, "1"])
def test_what_is_no_index_is_refused(said):
    with pytest.raises(ConfigError, match="model"):
        chosen_model({} if said is None else {"model": said}, 3)
    assert chosen_model({"model": 2}, 3) == 2
    assert chosen_model({}, 1) == 0
