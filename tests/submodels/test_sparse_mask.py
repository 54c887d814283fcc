"""How many numbers the layers of a sparse model have, and which at first."""

from __future__ import annotations

import math

import numpy as np
import pytest
from many_cases import for_each
from torch import nn

from fl.errors import ConfigError
from fl.models import MLP, ResNet8
from fl.submodels import SparseMask, by_magnitude, part_of
from fl.vectors.layout import Layout


def layout(*widths):
    return Layout.of(MLP((widths[0],), widths[-1], hidden=widths[1:-1]))


MODELS = [layout(64, 64, 10), layout(7, 5, 3), Layout.of(ResNet8((3, 8, 8), 10))]


@pytest.mark.parametrize("model", range(3))
@for_each("density", [0.25, 0.5, 0.9, 1.0])
@for_each("distribution", ["erk", "uniform"])
def test_a_sparse_model_has_as_many_numbers_as_its_density_says(model, density, distribution):
    layout = MODELS[model]
    if model == 1 and density == 0.25:
        density = 0.4  # a quarter of 58 numbers is not much more than its eight biases
    layers = SparseMask(density, distribution).layers(layout)
    names = {layer.name for layer in layers}
    whole = sum(entry.size for entry in layout.trainable if entry.name not in names)
    assert whole + sum(layer.held for layer in layers) == math.floor(density * layout.size)
    assert all(1 <= one.held <= one.place.stop - one.place.start for one in layers)


def test_erk_shares_are_proportional_to_the_sum_of_a_tensor_s_sides_over_their_product():
    """Of 64 x 64 and 10 x 64, 128 to 74 of what is left of a tenth of 4,810 after 74 biases."""
    erk = SparseMask(0.1).layers(layout(64, 64, 10))
    left = 481 - 74
    assert [layer.held for layer in erk] == [round(left * 128 / 202), round(left * 74 / 202)]
    uniform = SparseMask(0.1, "uniform").layers(layout(64, 64, 10))
    assert [one.held for one in uniform] == [round(left * 64 / 74), round(left * 10 / 74)]


def test_a_tensor_that_would_have_more_than_all_lacks_nothing_and_the_others_pay():
    """Half of 1,100 numbers: 110 to 40 would be 396 of 1,000, and 144 of 30."""
    model = nn.Sequential(nn.Linear(10, 100, bias=False), nn.Linear(100, 10, bias=False))
    model[1] = nn.Linear(10, 3, bias=False)
    layers = SparseMask(0.5).layers(Layout.of(model))
    assert [layer.held for layer in layers] == [515 - 30, 30]


def test_the_first_mask_has_the_largest_numbers_of_each_layer_and_all_biases():
    where = layout(3, 2, 2)  # 6 weights, 2 biases, 4 weights, 2 biases
    w = np.array([1, -9, 2, 8, -3, 0, 0, 0, 5, -7, 6, 0, 0, 0], np.float32)
    layers = SparseMask(0.65).layers(where)
    assert [layer.held for layer in layers] == [3, 2]
    mask = by_magnitude(layers, w)
    assert mask.astype(int).tolist() == [0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    part = part_of(where, layers, mask)
    assert part.of(w).tolist() == [-9, 8, -3, 0, 0, -7, 6, 0, 0]


def test_tensors_that_are_one_lack_the_same_numbers():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    where = Layout.of(model)
    layers = SparseMask(0.6).layers(where)
    part = part_of(where, layers, by_magnitude(layers, np.arange(where.size, dtype=np.float32)))
    assert (part.bitmaps["1.weight"] == part.bitmaps["0.weight"]).all()
    assert part.size == ((14,), (14,))  # of 24, a layer that counts once


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"density": 0}, "density"),
        ({"density": 1.5}, "density"),
        ({"density": True}, "density"),
        ({"distribution": "er"}, "distribution"),
        ({"gamma": 1.0}, "gamma"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, key):
    with pytest.raises(ConfigError, match=key):
        SparseMask(**arguments)


def test_a_density_below_what_is_always_there_is_refused_with_the_least():
    with pytest.raises(ConfigError, match=r"density is 0.01.*at least 0\.0158"):
        SparseMask(0.01).layers(
            layout(64, 64, 10)
        )  # 74 biases and a number of two tensors, of 4,810
    with pytest.raises(ConfigError, match="no matrix"):
        SparseMask(0.5).layers(Layout.of_vector("x", 5))
