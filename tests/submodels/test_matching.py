"""Units in another order: models stay what they compute, and partners are found again."""

from itertools import permutations

import numpy as np
import pytest
import torch

from fl.errors import ConfigError
from fl.models import MLP, CharGPT, LeafCNN, ResNet8
from fl.submodels import Orders, Place, assigned, indices, units_of
from fl.vectors.layout import Layout
from fl.vectors.rows import as_row, as_tensor

MODELS = {
    "mlp": (lambda: MLP((5,), 3, hidden=(7, 6)), (5,)),
    "leaf_cnn": (lambda: LeafCNN((1, 8, 8), 3), (1, 8, 8)),
    "batch norm": (lambda: ResNet8((2, 6, 6), 3, groups=None, channels=(4, 6, 8)), (2, 6, 6)),
    "group norm": (lambda: ResNet8((2, 6, 6), 3, groups=2, channels=(4, 6, 8)), (2, 6, 6)),
    "char_gpt": (lambda: CharGPT((6,), 11, width=8, layers=2, heads=2), (6,)),
}


def made(name, seed=0):
    """Returns a model whose numbers are all unlike, its layout, and what brings it to orders."""
    build, shape = MODELS[name]
    torch.manual_seed(seed)
    model = build()
    layout = Layout.of(model)
    tokens = name == "char_gpt"
    orders = Orders(layout, units_of(model, layout, shape, tokens=tokens))
    row = as_row(layout.flatten(model.state_dict())).copy()
    rng = np.random.default_rng(seed)
    for entry in layout.floats:
        place = slice(entry.offset, entry.offset + entry.size)
        row[place] += rng.uniform(0.0, 0.3, entry.size).astype(np.float32)  # variances stay above 0
    for entry in layout.tied:
        first = next(e for e in layout.floats if e.name == entry.tied_to)
        row[entry.offset : entry.offset + entry.size] = row[
            first.offset : first.offset + first.size
        ]
    inputs = torch.randint(0, 11, (9, 6)) if tokens else torch.randn(9, *shape)
    return model, layout, orders, row, inputs


def outputs(model, layout, row, x):
    carried = {e.name: torch.zeros(e.shape, dtype=torch.int64) for e in layout.carried}
    layout.load(model, as_tensor(row), carried)
    with torch.no_grad():
        return model.eval()(x).double().numpy()


def another_order(orders, rng):
    return {name: rng.permutation(layer.width) for name, layer in orders.units.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_another_order_computes_the_same(name):
    model, layout, orders, row, x = made(name)
    moved = orders.applied(row, another_order(orders, np.random.default_rng(1)))
    assert np.mean(moved != row) > 0.5
    before, after = (outputs(model, layout, w, x) for w in (row, moved))
    np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())


@pytest.mark.parametrize("name", ["mlp", "batch norm", "group norm", "char_gpt"])
def test_weights_give_a_model_in_another_order_its_own_back(name):
    _, _, orders, row, _ = made(name)
    moved = orders.applied(row, another_order(orders, np.random.default_rng(1)))
    found = orders.by_weights(row, moved, np.random.default_rng(2))
    np.testing.assert_array_equal(orders.applied(moved, found), row)


def test_an_order_and_its_inverse_cancel():
    _, _, orders, row, _ = made("group norm")
    there = another_order(orders, np.random.default_rng(3))
    back = {name: np.argsort(pi) for name, pi in there.items()}
    np.testing.assert_array_equal(orders.applied(orders.applied(row, there), back), row)


def test_the_documents_block_of_correlations_is_assigned_as_there():
    R = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 0.1], [0.2, 0.4, 0.7]])
    assert assigned(R).tolist() == [1, 0, 2]


def test_weights_of_one_hidden_layer_are_as_close_as_in_any_order():
    torch.manual_seed(0)
    a, b = MLP((3,), 2, hidden=(4,)), MLP((3,), 2, hidden=(4,))
    layout = Layout.of(a)
    orders = Orders(layout, units_of(a, layout, (3,), tokens=False))
    x, y = (as_row(layout.flatten(m.state_dict())) for m in (a, b))
    (layer,) = orders.units
    distances = {
        pi: np.linalg.norm(x - orders.applied(y, {layer: np.array(pi)}))
        for pi in permutations(range(4))
    }
    found = orders.by_weights(x, y, np.random.default_rng(0))
    assert tuple(found[layer]) == min(distances, key=distances.get) != (0, 1, 2, 3)


def test_of_several_layers_no_single_one_can_come_closer():
    _, _, orders, x, _ = made("mlp", seed=0)
    y = made("mlp", seed=1)[3]
    found = orders.by_weights(x, y, np.random.default_rng(0))
    least = np.linalg.norm(x - orders.applied(y, found))
    assert least < np.linalg.norm(x - y)
    rng = np.random.default_rng(5)
    for name, pi in found.items():
        for _ in range(40):
            i, j = rng.choice(len(pi), 2, replace=False)
            swapped = pi.copy()
            swapped[[i, j]] = pi[[j, i]]
            assert np.linalg.norm(x - orders.applied(y, {**found, name: swapped})) >= least - 1e-9


def test_units_that_are_somewhere_more_often_than_others_are_refused():
    assert indices(Place("w", 0, np.array([1, -1, 0, 0, 1])), 2).tolist() == [[2, 3], [0, 4]]
    with pytest.raises(ConfigError, match=r"have \[1, 2\] numbers along dimension 0"):
        indices(Place("w", 0, np.array([1, 0, 0])), 2)
