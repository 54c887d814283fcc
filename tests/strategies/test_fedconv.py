"""FedConv, and the server that trains on public data: filters, shapes, and what they come to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_strategy import configured, ran
from torch import nn
from torch.nn import functional as F

from fl.errors import ConfigError
from fl.models import evaluate
from fl.runs.build import build
from fl.strategies import FedConv, ServerTraining, Updates
from fl.submodels import Filter, HeteroFL, Resizing, Whole, resized, units_of
from fl.vectors.layout import Layout

SMALL = [
    "strategy.rule.public_examples=20",
    "strategy.rule.server_epochs=1",
    "strategy.rule.filter_epochs=2",
    "strategy.rule.weight_epochs=1",
    "model.hidden=[8]",
]


class Net(nn.Module):
    """A convolution with normalisation, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 16, 3)

    def forward(self, x):
        """Logits, shape (B, 3), of images of 1 x 4 x 4."""
        x = F.relu(self.conv2(F.relu(self.bn(self.conv1(x)))))
        return self.linear(x.flatten(1))


def resizing(level=0.75, p=1.0, q=1.0):
    torch.manual_seed(0)
    model = Net()
    layout = Layout.of(model, frozen=False)
    units = units_of(model, layout, (1, 4, 4), tokens=False)
    w = layout.flatten(model.state_dict())
    whole = Whole(layout, units, w.numpy())
    part = HeteroFL().extract(whole, level, 0, lambda name: np.random.default_rng(0))
    return Resizing(layout, part, p, q), w


def entries_of(layout, row):
    return {e.name: row[e.offset : e.offset + e.size].view(e.shape) for e in layout.floats}


# ---- filters -------------------------------------------------------------------------------------


def test_filters_have_the_sizes_that_make_a_part_and_the_whole_of_it():
    made, w = resizing()
    filters = made.drawn(np.random.default_rng(0))
    assert filters["conv2.weight"].v.shape == (9, 3, 2)  # 8 x 4 to 6 x 3, at 9 places
    assert filters["linear.weight"].v.shape == (1, 1, 33)  # classes stay; 128 inputs to 96
    assert filters["conv1.bias"].v.shape == (1, 1, 2)
    assert filters.keys().isdisjoint({"bn.running_mean", "bn.running_var"})
    small = made.small(filters, w)
    assert small.shape == (made.part.layout.size,)
    assert made.large(filters, small).shape == w.shape


def test_a_filter_is_the_convolution_of_the_authors_modules():
    """Their projection, skip connection and weight-normalised kernel, by PyTorch's own modules."""
    made, w = resizing(p=0.85, q=0.001)
    filter = made.drawn(np.random.default_rng(0))["conv2.weight"]
    x = entries_of(made.layout, w)["conv2.weight"]
    small = made.small({"conv2.weight": filter}, w)
    found = entries_of(made.part.layout, small)["conv2.weight"]
    for i in range(3):
        for j in range(3):
            place = 3 * i + j
            projection = nn.Conv2d(1, 1, 1)
            projection.weight.data[:] = filter.a[place]
            projection.bias.data[:] = filter.b[place]
            inner = nn.Conv2d(1, 1, (3, 2), bias=False)
            inner.weight.data[0, 0] = filter.v[place]
            kernel = nn.utils.parametrizations.weight_norm(inner)
            image = x[None, :, :, i, j]
            image = kernel(projection(image) + image)
            image = torch.where(image > 0, 0.85 * image, 0.001 * image)
            torch.testing.assert_close(found[:, :, i, j], image[0], rtol=1e-5, atol=1e-6)


def test_the_dilation_is_the_transpose_of_the_compression_on_linear_layers():
    """<K x, y> = <x, K' y>, the definition of a transpose."""
    made, w = resizing()
    drawn = made.drawn(np.random.default_rng(0))["linear.weight"]
    plain = {"linear.weight": drawn._replace(a=torch.ones(1, 1, 1), b=torch.zeros(1, 1, 1))}
    y = torch.randn(made.part.layout.size)
    of, into = entries_of(made.layout, w), entries_of(made.part.layout, y)
    small = entries_of(made.part.layout, made.small(plain, w))["linear.weight"]
    large = entries_of(made.layout, made.large(plain, y))["linear.weight"]
    left, right = (small * into["linear.weight"]).sum(), (large * of["linear.weight"]).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-5)


def test_filters_that_do_nothing_at_full_size_return_the_model():
    made, w = resizing(level=1)
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    filters = {}
    for name, drawn in made.drawn(np.random.default_rng(0)).items():
        P = len(drawn.a)
        skips = len(entries_of(made.layout, w)[name].shape) > 2  # x is added already
        a = (zero if skips else one).expand(P, 1, 1)
        filters[name] = Filter(a, zero.expand(P, 1, 1), *[one.expand(P, 1, 1)] * 2)
    torch.testing.assert_close(made.small(filters, w), w, rtol=0, atol=0)
    torch.testing.assert_close(made.large(filters, w), w, rtol=0, atol=0)


# ---- the rule ------------------------------------------------------------------------------------


class NoLearning:
    """Public data from which nothing is learnt."""

    def fit(self, parameters, model, part, **how):
        """Calls the model, and leaves the parameters."""
        assert model().shape == (part.layout.size if part is not None else D,)

    def draws(self, *key):
        """Returns a generator."""
        return np.random.default_rng(len(key))


MADE, W0 = resizing()
D = len(W0)


def state_of(rule):
    whole = Whole(MADE.layout, (), W0.numpy())
    return rule.prepared(rule.init_parts(whole, (None, MADE.part)), NoLearning())


def test_clients_of_a_level_are_sent_what_its_filters_make_in_the_place_of_their_part():
    rule = FedConv(positive_slope=0.5)
    state = state_of(rule)
    whole, small = rule.models(state)
    np.testing.assert_array_equal(whole, W0.numpy())
    made = Resizing(MADE.layout, MADE.part, 0.5, 1e-3)
    np.testing.assert_array_equal(MADE.part.of(small), made.small(state.filters[1], W0).numpy())
    outside = np.ones(D, bool)
    outside[MADE.part.positions] = False
    assert not small[outside].any()


def test_without_learning_it_is_the_weighted_mean_of_whole_models_and_of_dilated_ones():
    """omega = 1; a client without examples does not count."""
    rule, rng = FedConv(), np.random.default_rng(3)
    state = state_of(rule)
    models, weights = [0, 1, 0], np.array([1.0, 3, 0])
    holds = np.ones((3, D), bool)
    holds[1] = False
    holds[1, MADE.part.positions] = True
    deltas = rng.standard_normal((3, D)).astype(np.float32) * holds
    brought = Updates(
        deltas, weights, clients=[7, 8, 9], models=models, holds=holds, public=NoLearning()
    )
    new = rule.step(state, brought)
    y = MADE.part.of(state.sent[1] + deltas[1])
    made = Resizing(MADE.layout, MADE.part, 0.85, 1e-3)
    large = made.large(new.dilations[8], torch.from_numpy(y)).numpy()
    expected = (state.sent[0] + deltas[0] + 3 * large) / 4
    np.testing.assert_allclose(new.w, expected, rtol=1e-5, atol=1e-6)
    assert list(new.omega) == [7, 8]
    assert all((omega == 1).all() for omega in new.omega.values())
    assert new.filters is state.filters


def test_where_all_are_whole_and_nothing_is_learnt_it_is_fedavg():
    nothing = [f"strategy.rule.{k}_epochs=0" for k in ("server", "filter", "weight")]
    _, ours = ran("fedconv", "strategy.sub_models.capacity.levels=[1]", *nothing)
    _, fedavg = ran("fedavg", "model=mlp", "model.hidden=[8]")
    assert ours.trace.sha256() == fedavg.trace.sha256()
    for name, array in fedavg.arrays.items():
        np.testing.assert_allclose(ours.arrays[name].numpy(), array.numpy(), rtol=1e-5, atol=1e-6)


def test_filters_learn_to_reduce_the_loss_on_public_data_and_runs_are_repeated():
    experiment, run = ran("fedconv", *SMALL, "num_rounds=2")
    _, again = ran("fedconv", *SMALL, "num_rounds=2")
    assert run.trace.sha256() == again.trace.sha256()
    for name, array in run.arrays.items():
        np.testing.assert_array_equal(array.numpy(), again.arrays[name].numpy())
    exchange, layout = experiment.strategy.exchange, experiment.app.layout
    w = layout.flatten(experiment.model().state_dict()).numpy()
    whole = Whole(layout, exchange.units, w)
    part = HeteroFL().extract(whole, 0.75, 0, lambda name: np.random.default_rng(0))

    def loss(epochs):
        rule = FedConv(server_epochs=0, filter_epochs=epochs, filter_lr=0.01)
        state = rule.prepared(rule.init_parts(whole, (part,)), exchange.public)
        module = resized(experiment.model(), layout, part.size)
        part.layout.load(module, torch.from_numpy(part.of(state.sent[0])))
        return evaluate(module, exchange.public.examples).loss

    assert loss(60) < loss(0) - 0.05


def test_the_server_alone_learns_from_public_data_and_clients_do_not_count():
    alone = ["strategy.rule.eta=0", "strategy.rule.server_lr=0.01"]
    _, one = ran("server_training", *alone)
    _, other = ran("server_training", *alone, "client.rule.lr=0.5")
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array.numpy(), other.arrays[name].numpy())
    first, last = (one.history[i]["loss"] for i in (0, -1))
    assert last < first


def test_without_a_step_of_the_server_it_is_fedavg():
    class Public(NoLearning):
        def fit(self, parameters, model, part, **how):
            pass

    rule = ServerTraining()
    deltas = np.array([[1, 2], [5, 6]], np.float32)
    state = rule.init(np.zeros(2, np.float32), 2)
    new = rule.step(state, Updates(deltas, np.array([1.0, 3]), public=Public()))
    assert new.w.tolist() == [4, 5]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "override", "key"),
    [
        ("fedconv", "strategy.rule.public_examples=0", "public_examples is 0"),
        ("fedconv", "strategy.rule.filter_lr=0", "filter_lr is 0"),
        ("fedconv", "strategy.rule.public_examples=100000", "public_examples is 100000"),
        (
            "fedconv",
            "strategy.sub_models.extraction._target_=fl.submodels.FedRolex",
            "sub_models.extraction is FedRolex",
        ),
        ("fedconv", "strategy.sub_models=null", "sub_models is null"),
        ("server_training", "strategy.rule.eta=-1", "eta is -1"),
    ],
)
def test_what_cannot_be_is_named_before_the_start(strategy, override, key):
    with pytest.raises(ConfigError, match=key):
        build(configured(strategy, override))


def test_a_server_without_examples_is_told(monkeypatch):
    monkeypatch.setattr("fl.runs.build._public", lambda *given: None)
    with pytest.raises(ConfigError, match="`public`"):
        ran("server_training")
