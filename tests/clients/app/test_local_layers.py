"""Layers that stay with the client: what travels, what is kept, and who trains what."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from together import train_many
from torch import nn

from fl.clients import (
    AdamW,
    ControlVariates,
    LastLayers,
    LocalFirst,
    LocalLayers,
    LowerLayers,
    Momentum,
    NamedLayers,
    NormLayers,
    Proximal,
    Received,
    Sgd,
    TrainingApp,
)
from fl.clients.app.home import STATE_KEY, Home
from fl.clients.app.inbox import MEMORY_KEY
from fl.errors import ConfigError
from fl.flower.records import model_record, vector_record
from fl.models import MLP, CharGPT, ResNet8
from fl.vectors.layout import Layout

HEAD = ("layers.2.weight", "layers.2.bias")


def values(record):
    return {name: array.numpy() for name, array in record.items()}


def state_of(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@pytest.fixture
def train(federated, message_to, context_of):
    """Trains a client of some app for some messages; returns the replies and the context."""

    def trained(model, rule, *, sizes=(12,), client=0, messages=1, arrays=None, **more):
        app = TrainingApp(model, federated(sizes), rule, batch_size=4, **more)
        context, replies = context_of(client), []
        for dispatch in range(messages):
            received = model_record(app.layout, model) if arrays is None else arrays
            content = content_with(received)
            reply = app(message_to(content, client, dispatch), context)
            replies.append(reply.content)
        return app, replies, context

    return trained


def content_with(record):
    return RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})})


# ---- which layers --------------------------------------------------------------------------------


def test_last_and_lower_layers_are_the_two_parts_of_a_model(mlp):
    last, lower = LastLayers(count=1).names(mlp), LowerLayers(shared=1).names(mlp)
    assert {*last} == {*HEAD}
    assert {*lower} | {*last} == {*mlp.state_dict()}
    assert not {*lower} & {*last}


def test_norm_layers_are_known_by_type_with_statistics_and_counters():
    class Oddly(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.Linear(2, 2)  # a name is no type
            self.downsample = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.norm1 = nn.GroupNorm(1, 2)

    batch = {f"downsample.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    batch.add("downsample.1.num_batches_tracked")
    assert {*NormLayers(kinds="batch").names(Oddly())} == batch
    assert {*NormLayers().names(Oddly())} == batch | {"norm1.weight", "norm1.bias"}


def test_a_norm_belongs_to_the_layer_before_it():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert {name.split(".")[0] for name in LastLayers(count=2).names(model)} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("layers", "key"),
    [
        (lambda: LastLayers(count=0), "count"),
        (lambda: LastLayers(first=1.0), "first"),
        (lambda: LowerLayers(shared=0), "shared"),
        (lambda: NormLayers(kinds="layer"), "kinds"),
        (lambda: NamedLayers(patterns="head"), "patterns"),
        (lambda: NamedLayers(patterns=[]), "patterns"),
        (lambda: LastLayers(count=9).names(MLP((2,), 2)), "count"),
        (lambda: NamedLayers(patterns=["head.*"]).names(MLP((2,), 2)), "patterns"),
        (lambda: LowerLayers(shared=2).names(MLP((2,), 2)), "shared"),
        (lambda: NormLayers(kinds="batch").names(ResNet8((1, 8, 8), 2)), "kinds"),
        (lambda: Home(MLP((2,), 2), NamedLayers(patterns=["*"])), "local_layers"),
    ],
)
def test_what_no_model_has_is_refused_by_its_key(layers, key):
    with pytest.raises(ConfigError, match=rf"^{key} (is|are|has) "):
        layers()


def test_a_tied_tensor_stays_if_one_of_its_names_does():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.between = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

    for name in ("first.weight", "second.weight"):
        home = Home(Tied(), NamedLayers(patterns=[name]))
        assert home.kept.layout.names == {"first.weight", "second.weight"}


# ---- what travels --------------------------------------------------------------------------------


def test_no_message_has_an_entry_that_stays_at_home(mlp, train):
    _, replies, context = train(mlp, Sgd(0.1), messages=2, local_layers=LastLayers())
    for content in replies:
        assert not {*HEAD} & {*content.array_records["arrays"]}
    kept = values(context.state[STATE_KEY])
    assert set(kept) == {*HEAD}
    assert (kept["layers.2.weight"] != state_of(mlp)["layers.2.weight"]).any()


def test_a_message_with_such_an_entry_is_refused_by_its_name(mlp, train):
    with pytest.raises(ConfigError, match=r"'layers\.2\.bias'"):
        train(mlp, Sgd(0.1), arrays=ArrayRecord(mlp.state_dict()), local_layers=LastLayers())


def test_training_goes_on_from_the_clients_own_layers_and_the_servers_others(
    mlp, train, torch_loop, federated
):
    _, replies, context = train(mlp, Sgd(0.1), messages=2, local_layers=LastLayers())
    by_hand = copy.deepcopy(mlp)
    for dispatch in range(2):
        by_hand.layers[0].load_state_dict(mlp.layers[0].state_dict())  # what the server sends
        torch_loop(
            by_hand,
            federated((12,)),
            lambda p: torch.optim.SGD(p, 0.1),
            0,
            dispatch=dispatch,
            batch_size=4,
        )
    expected = state_of(by_hand)
    got = values(replies[1].array_records["arrays"]) | values(context.state[STATE_KEY])
    assert set(got) == set(expected)
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)


class NoLayers(LocalLayers):
    def names(self, model):
        return []


def test_without_local_layers_named_nothing_changes(mlp, train):
    plain = train(mlp, Sgd(0.1))[1][0]
    named = train(mlp, Sgd(0.1), local_layers=NoLayers())[1][0]
    for name, value in values(plain.array_records["arrays"]).items():
        np.testing.assert_array_equal(value, named.array_records["arrays"][name].numpy())


def test_evaluation_is_with_the_clients_own_layers(mlp, federated, message_to, context_of):
    app = TrainingApp(mlp, federated((12,)), Sgd(0.5), batch_size=4, local_layers=LastLayers())
    context, received = context_of(), model_record(app.layout, mlp)
    before = app(message_to(content_with(received), kind="evaluate"), context)
    reply = app(message_to(content_with(received)), context)
    after = app(message_to(content_with(received), dispatch=1, kind="evaluate"), context)
    own = copy.deepcopy(mlp)
    own.load_state_dict(
        {name: torch.tensor(value) for name, value in values(context.state[STATE_KEY]).items()},
        strict=False,
    )
    x, y = federated((12,)).client(0)
    expected = nn.functional.cross_entropy(own(x), y).item()
    first, second = (r.content.metric_records["metrics"]["loss"] for r in (before, after))
    assert second == pytest.approx(expected, rel=1e-5)
    assert first != second
    assert reply.content.metric_records["metrics"]["steps"] == 3


def test_layers_that_diverged_are_not_kept(mlp, train):
    _, replies, context = train(mlp, Sgd(1e30), messages=1, local_layers=LastLayers())
    assert not np.isfinite(replies[0].array_records["arrays"]["layers.0.weight"].numpy()).all()
    assert STATE_KEY not in context.state


def test_a_client_without_examples_keeps_what_it_has(mlp, train):
    _, replies, context = train(mlp, Sgd(0.1), sizes=(0, 4), local_layers=LastLayers())
    assert STATE_KEY not in context.state
    sent = state_of(mlp)
    for name, value in values(replies[0].array_records["arrays"]).items():
        np.testing.assert_array_equal(value, sent[name])


def test_statistics_and_counters_stay_with_their_layers(train):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    _, replies, context = train(model, Sgd(0.1), messages=2, local_layers=NormLayers())
    assert set(replies[0].array_records["arrays"]) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    kept = values(context.state[STATE_KEY])
    assert kept["1.num_batches_tracked"] == 6  # three batches a message
    assert kept["1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("layers", [LastLayers(), LowerLayers()])
def test_several_clients_in_one_program_agree_with_one_by_one(
    layers, mlp, federated, message_to, context_of
):
    app = TrainingApp(
        mlp, federated((12, 12, 7)), Sgd(0.1), batch_size=4, batching="on", local_layers=layers
    )
    received = content_with(model_record(app.layout, mlp))
    alone, many = ([context_of(i) for i in range(3)] for _ in range(2))
    for dispatch in range(2):
        messages = [message_to(received, i, dispatch) for i in range(3)]
        one_by_one = [app(*each).content for each in zip(messages, alone, strict=True)]
        together = [reply.content for reply in train_many(app, messages, many)]
        sent = [each.array_records["arrays"] for each in (*one_by_one, *together)]
        kept = [context.state[STATE_KEY] for context in (*alone, *many)]
        for records in (sent, kept):
            for one, other in zip(records[:3], records[3:], strict=True):
                for name, value in values(one).items():
                    np.testing.assert_allclose(other[name].numpy(), value, rtol=1e-4, atol=2e-6)


# ---- corrections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", [ControlVariates(), Proximal(0.5)])
def test_local_layers_follow_gradients_without_correction(
    correction, mlp, federated, message_to, context_of
):
    results = []
    for given in (correction, None):
        app = TrainingApp(
            mlp, federated((4,)), Sgd(0.1), local_layers=LastLayers(), correction=given
        )
        content = content_with(model_record(app.layout, mlp))
        if given is not None and given.needs:
            content["c"] = vector_record(torch.full((app.layout.num_trainable,), 3.0))
        context = context_of()
        reply = app(message_to(content), context).content
        results.append((values(context.state[STATE_KEY]), reply.array_records))
    (corrected, sent), (plain, plainly) = results
    for name, value in plain.items():
        np.testing.assert_array_equal(corrected[name], value)
    if correction.uploads:
        assert sent["delta_c"]["vector"].shape == (app.layout.num_trainable,)
        for name, value in values(plainly["arrays"]).items():
            np.testing.assert_allclose(sent["arrays"][name].numpy(), value - 0.3, atol=1e-6)


# ---- one part after the other --------------------------------------------------------------------


class Product:
    """f(b, h) = (b h - c)^2 / 2 for weights (b, h): a batch of one example."""

    examples = 1

    def __init__(self, c):
        self.c = c

    def loss(self, w):
        return 0.5 * (w[0] * w[1] - self.c) ** 2

    def grad(self, w):
        residual = w[0] * w[1] - self.c
        return torch.stack([w[1] * residual, w[0] * residual]), self.loss(w)


def test_the_body_meets_the_new_head():
    b, h, c, eta = 2.0, 3.0, 1.0, 0.1
    rule = LocalFirst(Sgd(eta), share=0.5)
    local = torch.tensor([False, True])
    received = Received(torch.tensor([b, h]), {}, {}, {"lr": eta}, 2, local)
    w, state = received.w, rule.init(received)
    for t in range(2):
        w, state, _ = rule.step(w, state, received, Product(c), t)
    h1 = h - eta * b * (b * h - c)
    b1 = b - eta * h1 * (b * h1 - c)
    np.testing.assert_allclose(w.numpy(), [b1, h1], rtol=1e-6)


@pytest.mark.parametrize(("share", "still"), [(1.0, 0), (0.0, 1)])
def test_what_has_no_step_stands_still_to_the_last_bit(share, still):
    rule = LocalFirst(Sgd(0.1, momentum=0.9, weight_decay=0.1), share)
    received = Received(
        torch.tensor([2.0, 3.0]), {}, {}, {"lr": 0.1}, 4, torch.tensor([False, True])
    )
    w, state = received.w, rule.init(received)
    for t in range(4):
        w, state, _ = rule.step(w, state, received, Product(1.0), t)
    assert w[still] == received.w[still]
    assert w[1 - still] != received.w[1 - still]


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (Sgd(0.1, 0.9, weight_decay=0.1), partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
        (AdamW(0.01, weight_decay=0.1), partial(torch.optim.AdamW, lr=0.01)),
    ],
)
def test_it_is_torchs_optimizer_whose_parameters_are_frozen_in_turns(
    mlp, train, torch_loop, federated, rule, optimizer
):
    layers = LastLayers(first=2 / 3)
    _, (reply,), context = train(mlp, rule, local_epochs=3, local_layers=layers)
    by_hand = copy.deepcopy(mlp)

    def in_turns(_, step):
        for name, parameter in by_hand.named_parameters():
            parameter.requires_grad_((name in HEAD) == (step < 6))

    decayed = partial(optimizer, weight_decay=0.1)
    torch_loop(by_hand, federated((12,)), decayed, 0, batch_size=4, epochs=3, on_step=in_turns)
    expected = state_of(by_hand)
    got = values(reply.array_records["arrays"]) | values(context.state[STATE_KEY])
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)


def test_momentum_is_kept_for_each_part(mlp, train):
    _, _, context = train(mlp, Momentum(0.1), messages=2, local_layers=LastLayers(first=0.5))
    memory = values(context.state[MEMORY_KEY])
    mask = Home(mlp, LastLayers()).local.numpy()
    assert (memory["h.m"][~mask] == 0).all()
    assert (memory["b.m"][mask] == 0).all()
    assert (memory["h.m"][mask] != 0).any()
    assert (memory["b.m"][~mask] != 0).any()


def test_what_trains_in_turns_takes_no_correction(mlp, federated):
    with pytest.raises(ConfigError, match=r"first is 0\.5, and correction is Proximal"):
        TrainingApp(
            mlp,
            federated((4,)),
            Sgd(0.1),
            local_layers=LastLayers(first=0.5),
            correction=Proximal(0.1),
        )


# ---- frozen parameters ---------------------------------------------------------------------------


def test_frozen_parameters_do_not_travel_and_are_the_constructors(
    mlp, train, torch_loop, federated
):
    mlp.layers[0].requires_grad_(False)
    app, (reply,), _ = train(mlp, Sgd(0.1))
    assert {*reply.array_records["arrays"]} == {*HEAD} == app.layout.names
    by_hand = copy.deepcopy(mlp)
    torch_loop(by_hand, federated((12,)), lambda p: torch.optim.SGD(p, 0.1), 0, batch_size=4)
    for name, value in values(reply.array_records["arrays"]).items():
        np.testing.assert_allclose(value, state_of(by_hand)[name], rtol=1e-5, atol=1e-7)


def test_all_clients_share_one_copy_of_what_is_frozen(mlp, federated):
    mlp.layers[0].requires_grad_(False)
    app = TrainingApp(mlp, federated((12, 4)), Sgd(0.1), batching="on")
    weights = mlp.layers[0].weight.data_ptr()
    assert app._model.layers[0].weight.data_ptr() == weights
    assert app._evaluator._model.layers[0].weight.data_ptr() == weights
    assert app.choose_batching().together  # they do not stand in the way of one program


def test_frozen_parameters_may_be_of_types_that_no_record_has(mlp):
    mlp.layers[0].to(torch.bfloat16).requires_grad_(False)
    assert Layout.of(mlp, frozen=False).names == {*HEAD}


def test_what_a_tie_holds_is_frozen_with_it():
    model = CharGPT((8,), 11, width=8, layers=1, heads=2)
    model.tokens.requires_grad_(False)
    assert "tokens.weight" not in Layout.of(model, frozen=False).names
