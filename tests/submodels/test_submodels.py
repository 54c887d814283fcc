"""Units of models, extraction rules, and parts (HeteroFL, FedRolex, Every Parameter Matters)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from many_cases import for_each
from torch import nn
from torch.func import functional_call

from fl.errors import ConfigError
from fl.models import MLP, CharGPT, CharLSTM, LeafCNN, LogisticRegression, ResNet8
from fl.submodels import (
    ByMemory,
    EveryParameterMatters,
    FederatedDropout,
    FedRolex,
    Fixed,
    HeteroFL,
    InTurn,
    Redrawn,
    SubModels,
    Whole,
    importance,
    resized,
    slice_of,
    units_of,
)
from fl.vectors.layout import Layout

IMAGE = (1, 12, 12)


def conv(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


class HeteroFLsCNN(nn.Module):
    """The network of HeteroFL on MNIST, of which Flower's baseline counts the parameters."""

    def __init__(self, channels=(64, 128, 256, 512)):
        super().__init__()
        a, b, c, d = channels
        pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(
            *conv(1, a), pool, *conv(a, b), pool, *conv(b, c), pool, *conv(c, d)
        )
        self.classifier = nn.Linear(d, 10)

    def forward(self, x):
        return self.classifier(self.features(x).mean(dim=(-2, -1)))


class Concatenated(nn.Module):
    """Two layers read the input side by side, and one reads both."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 6), nn.Linear(10, 3)

    def forward(self, x):
        return self.c(torch.relu(torch.cat([self.b(x), self.a(x)], dim=-1)))


class Uncalled(nn.Module):
    """Reads a weight without calling its layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(x @ self.a.weight.T)


MODELS = {
    "mlp": (lambda: MLP(IMAGE, 10, [16, 12]), IMAGE),
    "leaf_cnn": (lambda: LeafCNN(IMAGE, 10, width=24), IMAGE),
    "resnet8": (lambda: ResNet8(IMAGE, 10, channels=(4, 8, 16)), IMAGE),
    "batch norm": (lambda: HeteroFLsCNN((4, 8, 8, 4)), IMAGE),
    "char_gpt": (lambda: CharGPT((6,), 9, width=16, layers=2, heads=2), (6,)),
    "concatenated": (Concatenated, (5,)),
}


def whole_of(name, seed=0):
    make, shape = MODELS[name]
    torch.manual_seed(seed)
    model = make()
    layout = Layout.of(model)
    tokens = name == "char_gpt"
    units = units_of(model, layout, shape, tokens=tokens)
    x = torch.randint(9, (3, *shape)) if tokens else torch.randn(3, *shape)
    return model.eval(), Whole(layout, units, layout.flatten(model.state_dict()).numpy()), x


def half(units):
    """Every second unit of each layer."""
    return {layer.name: np.arange(0, layer.width, 2) for layer in units}


def entries(layout, row, model):
    counters = {e.name: model.state_dict()[e.name] for e in layout.carried}
    return layout.unflatten(torch.from_numpy(row), counters)


@pytest.mark.parametrize("name", MODELS)
def test_a_part_is_a_model_of_its_own_that_is_trained_by_the_same_code(name):
    model, whole, x = whole_of(name)
    part = slice_of(whole.layout, whole.units, half(whole.units))
    small = resized(model, whole.layout, part.size)
    assert Layout.of(small).entries == part.layout.entries
    small.load_state_dict(entries(part.layout, part.of(whole.w), model))
    assert small(x).shape == model(x).shape
    trained = sum(p.numel() for p in small.parameters())
    assert trained < 0.8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "leaf_cnn", "batch norm", "concatenated"])
def test_a_part_computes_what_the_whole_does_with_the_other_units_zeroed(name):
    """A channel of zeros stays zero where each is normalised by itself, without an offset."""
    model, whole, x = whole_of(name)
    part = slice_of(whole.layout, whole.units, half(whole.units))
    zeroed = part.put(np.zeros_like(whole.w), part.of(whole.w))
    for entry in whole.layout.statistics:  # a variance of 0 would divide by nothing
        zeroed[entry.offset : entry.offset + entry.size] = float("var" in entry.name)
        whole.w[entry.offset : entry.offset + entry.size] = float("var" in entry.name)
    small = resized(model, whole.layout, part.size).eval()
    with torch.no_grad():
        ours = functional_call(small, entries(part.layout, part.of(whole.w), model), (x,))
        full = functional_call(model, entries(whole.layout, zeroed, model), (x,))
    torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-6)


def test_a_head_keeps_its_place_among_queries_keys_and_values():
    _, whole, _ = whole_of("char_gpt")  # two heads of width 8
    layer = next(g for g in whole.units if g.name == "blocks.0.asked")
    part = slice_of(whole.layout, [layer], {layer.name: np.arange(3)})
    entry = next(e for e in whole.layout.entries if e.name == "blocks.0.asked.weight")
    small = next(e for e in part.layout.entries if e.name == entry.name)
    rows = part.positions[small.offset : small.offset + small.size : 16] - entry.offset
    assert (rows // 16).tolist() == [8 * h + j for h in range(6) for j in range(3)]


@pytest.mark.parametrize(
    ("level", "parameters"),
    [(1.0, 1_556_874), (0.5, 391_370), (0.25, 98_922), (0.125, 25_274), (0.0625, 6_594)],
)
def test_heterofl_has_the_parameters_that_were_published_for_its_levels(level, parameters):
    """Flower's baseline of HeteroFL, table of models on MNIST."""
    model = HeteroFLsCNN()
    layout = Layout.of(model)
    units = units_of(model, layout, (1, 28, 28), tokens=False)
    whole = Whole(layout, units, np.zeros(layout.size, np.float32))
    assert HeteroFL().extract(whole, level, 0, lambda _: None).layout.num_trainable == parameters


@pytest.mark.parametrize("model", [CharLSTM((6,), 9), LogisticRegression(IMAGE, 10)])
def test_a_model_without_units_that_are_known_is_left_whole(model):
    shape, tokens = ((6,), True) if isinstance(model, CharLSTM) else (IMAGE, False)
    assert units_of(model, Layout.of(model), shape, tokens=tokens) == ()


def test_weights_that_are_read_past_their_layer_are_refused():
    model = Uncalled()
    with pytest.raises(ConfigError, match=r"'a'.*units"):
        units_of(model, Layout.of(model), (5,), tokens=False)


def test_units_of_layers_that_do_not_travel_are_refused():
    model = MLP((4,), 3, [6])
    model.layers[2].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"layers\.2\.weight.*frozen"):
        units_of(model, Layout.of(model, frozen=False), (4,), tokens=False)


def test_units_that_a_model_declares_and_does_not_have_are_refused():
    model = MLP((4,), 3, [6])
    model.units = lambda: {"hidden": (4, [("layers.0.weight", 0, 1)])}
    with pytest.raises(ConfigError, match=r"layers.0.weight.*\(6, 4\)"):
        units_of(model, Layout.of(model), (4,), tokens=False)


def test_the_input_stays_whole_where_it_is_added_to_what_a_layer_makes():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.c(x + self.b(torch.relu(self.a(x))))

    model = Residual()
    (layer,) = units_of(model, Layout.of(model), (5,), tokens=False)
    assert (layer.name, layer.width) == ("a", 8)


# ---- extraction ----------------------------------------------------------------------------------


def index_set(rule, width, level, t=0, weights=None, seed=0):
    rng = np.random.default_rng([seed, t])
    return rule.index_set(width, level, t, np.arange(width) if weights is None else weights, rng)


@pytest.mark.parametrize("rule", [HeteroFL(), FedRolex(), FederatedDropout()])
def test_level_one_is_all_units_in_their_order(rule):
    for t in range(5):
        assert index_set(rule, 7, 1.0, t).tolist() == list(range(7))


@pytest.mark.parametrize("width", [5, 8])
@for_each("level", [0.2, 0.5, 0.75])
def test_a_window_covers_every_unit_equally_often_in_as_many_rounds_as_there_are(width, level):
    counts = np.zeros(width, int)
    for t in range(3, 3 + width):
        counts[index_set(FedRolex(), width, level, t)] += 1
    m = int(np.ceil(level * width))
    assert counts.tolist() == [m] * width
    assert index_set(FedRolex(), width, level, 4).tolist() == (
        index_set(FedRolex(), width, level, 4 + width).tolist()
    )


def test_a_smaller_prefix_is_inside_a_larger_one():
    sets = [set(index_set(HeteroFL(), 13, r).tolist()) for r in (1.0, 0.5, 0.25, 0.125, 0.0625)]
    assert all(b <= a for a, b in itertools.pairwise(sets))
    assert [len(s) for s in sets] == [13, 7, 4, 2, 1]


def test_random_units_are_others_in_every_round():
    sets = {tuple(index_set(FederatedDropout(), 20, 0.5, t).tolist()) for t in range(20)}
    assert len(sets) == 20
    assert all(len(s) == len(set(s)) == 10 for s in sets)


# Quarters by rank of 8 values whose ranks are 7 - i: q4 = units 0, 1; q1 = units 6, 7.
TYPES = {1: "01234567", 2: "014567", 3: "012367", 4: "012345", 5: "0167", 6: "0145", 7: "0123"}


@pytest.mark.parametrize("level", TYPES)
def test_a_type_leaves_out_its_quarters_by_magnitude(level):
    values = np.array([8.0, -7, 6, -5, 4, -3, 2, -1])
    held = index_set(EveryParameterMatters(of="units"), 8, level, weights=values)
    assert "".join(map(str, held)) == TYPES[level]


def test_the_authors_permutation_is_that_of_one_argsort():
    values = np.array([0.5, -2.0, 1.0, 0.1, 3.0, -1.0, 2.0, -0.2])
    ranks = np.argsort(values)  # 1 5 7 3 0 2 6 4: no rank of the value that stands there
    expected = np.flatnonzero(ranks >= 2).tolist()  # type 4 is without the first quarter
    assert (
        index_set(EveryParameterMatters("units", "permutation"), 8, 4, weights=values).tolist()
        == expected
    )


def test_what_magnitude_leaves_out_is_no_more_than_what_a_permutation_does():
    _model, whole, _ = whole_of("mlp")
    noise = {}
    for rank in ("magnitude", "permutation"):
        part = EveryParameterMatters("weights", rank).extract(whole, 7, 0, lambda _: None)
        left = part.put(np.zeros_like(whole.w), part.of(whole.w))
        noise[rank] = np.square(whole.w - left).sum() / np.square(whole.w).sum()
    assert 0 < noise["magnitude"] < 0.5 * noise["permutation"]
    hidden = {"layers.0.weight", "layers.2.weight"}
    assert part.bitmaps.keys() == hidden
    bits = np.unpackbits(part.bitmaps["layers.0.weight"], count=16 * 144)
    assert bits.sum() == 16 * 144 // 2


def test_importance_is_the_norm_of_all_that_a_unit_has():
    model = MLP((2,), 2, [3])
    layout = Layout.of(model)
    (layer,) = units_of(model, layout, (2,), tokens=False)
    # weights (3, 2), biases (3,), weights (2, 3), biases (2,)
    w = np.array([3, 4, 0, 0, 1, 0, 0, 2, 0, 0, 0, 2, 0, 0, 2, 9, 9], np.float32)
    expected = np.sqrt([25, 4, 1 + 4 + 4])
    np.testing.assert_allclose(importance(layout, layer, w), expected)


@pytest.mark.parametrize(
    ("extraction", "level"),
    [
        (HeteroFL(), 0.0),
        (FedRolex(), 1.5),
        (EveryParameterMatters(), 8),
        (EveryParameterMatters(), 0.5),
    ],
)
def test_a_level_that_the_extraction_does_not_know_is_refused(extraction, level):
    with pytest.raises(ConfigError, match=rf"levels.*{level}"):
        SubModels(extraction, Fixed([level]))


def test_a_layer_of_fewer_than_four_units_has_no_quarters():
    with pytest.raises(ConfigError, match="3 units"):
        index_set(EveryParameterMatters(of="units"), 3, 2)


# ---- capacity ------------------------------------------------------------------------------------


def test_levels_go_by_client_by_place_or_by_a_draw():
    rng = np.random.default_rng(0)
    levels = [1.0, 0.5, 0.25]
    assert [Fixed(levels).level(i, 9, rng) for i in range(4)] == [1.0, 0.5, 0.25, 1.0]
    assert [InTurn(levels).level(9, k, rng) for k in range(4)] == [1.0, 0.5, 0.25, 1.0]
    drawn = [Redrawn(levels).level(0, 0, rng) for _ in range(3000)]
    assert np.unique(drawn, return_counts=True)[1] == pytest.approx([1000] * 3, rel=0.1)


def test_a_device_gets_the_first_level_that_fits_and_says_so_if_none_does():
    needs, memory = {1.0: 100.0, 0.5: 40.0, 0.25: 20.0}, np.array([100.0, 99, 40, 25, 19])
    capacity = ByMemory([1.0, 0.5, 0.25])
    assert capacity.fitting(needs, memory) == (1.0, 0.5, 0.5, 0.25, 0.25)
    assert (capacity.needed(needs, memory) > memory).tolist() == [False] * 4 + [True]
    assert Fixed([1.0, 0.25]).needed(needs, memory).tolist() == [100, 20, 100, 20, 100]
    assert Redrawn([0.5, 0.25]).needed(needs, memory).tolist() == [40] * 5


@pytest.mark.parametrize(
    "held", [[2, 1], [0, 0, 1], [0, 99], [-1, 0], [], [0.0, 1.0], [[0, 1]], [True, False]], ids=str
)
def test_what_are_no_units_of_a_layer_is_refused_by_the_rule_that_gave_them(held):
    class Own(HeteroFL):
        def index_set(self, width, level, server_round, weights, rng):
            return np.array(held)

    model = MLP((4,), 3, hidden=[5])
    layout = Layout.of(model)
    units = units_of(model, layout, (4,), tokens=False)
    whole = Whole(layout, units, np.zeros(layout.size, np.float32))
    with pytest.raises(ConfigError, match=r"Own.*units 0 to 4"):
        Own().extract(whole, 0.5, 0, lambda _: None)
