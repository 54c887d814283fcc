"""A client merges models in the order of its own units, by its own examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from scipy.optimize import linear_sum_assignment
from together import train_many
from torch import nn

from fl.clients import Sgd, TrainingApp
from fl.clients.app.merging import Merger, Merging, read_merging
from fl.data import Examples, FederatedData, Partitions
from fl.errors import ConfigError
from fl.execution.contract import Payload
from fl.flower.carried import carried_arrays
from fl.flower.records import from_record
from fl.models import MLP, LogisticRegression, ResNet8, flops_per_example
from fl.models.batch_statistics import take_statistics
from fl.vectors.layout import Layout
from fl.vectors.rows import as_row, as_tensor

HALF = np.array([0.5, 0.5])


@pytest.fixture
def data(federated):
    return federated((40, 25, 0), (5, 4, 3))


def mlp(seed, hidden=(9, 7)):
    torch.manual_seed(seed)
    return MLP((6,), 4, hidden=hidden)


def received(model):
    layout, state = Layout.of(model), model.state_dict()
    carried = carried_arrays({e.name: state[e.name] for e in layout.carried})
    return as_row(layout.flatten(state)), carried


def merger_of(model, data):
    return Merger(model, Layout.of(model), data, torch.device("cpu"))


def shuffled(merger, row, seed):
    rng = np.random.default_rng(seed)
    orders = merger.orders
    return orders.applied(row, {n: rng.permutation(u.width) for n, u in orders.units.items()})


@pytest.mark.parametrize("by", ["activations", "weights"])
def test_a_permuted_copy_gets_its_function_back_and_a_plain_average_does_not(data, by):
    torch.manual_seed(0)
    layers = nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)
    model = nn.Sequential(*layers)
    merger, (row, _) = merger_of(model, data), received(model)
    both = [(row, {}), (shuffled(merger, row, 1), {})]
    rows = data.partitions[0]
    merged = merger.merged(both, Merging(by, HALF), rows, 0, "task")
    np.testing.assert_array_equal(merged, row)
    plain = merger.merged(both, Merging("order", HALF), rows, 0, "task")
    np.testing.assert_array_equal(plain, (both[0][0] + both[1][0]) / 2)
    assert np.abs(plain - row).max() > 0.1


def hidden_activations(model, x):
    """Returns what the second and third layer are given, written down from the first two."""
    first, second = [m for m in model.modules() if isinstance(m, nn.Linear)][:2]
    with torch.no_grad():
        one = torch.relu(first(x))
        return one.numpy(), torch.relu(second(one)).numpy()


def test_partners_are_those_of_the_largest_sum_of_correlations(data):
    a, b = mlp(0), mlp(1)
    merger, rows = merger_of(a, data), data.partitions[0]
    x = torch.from_numpy(data.train.x[rows])
    orders = {}
    for layer, mine, other in zip(
        merger.orders.units, hidden_activations(a, x), hidden_activations(b, x), strict=True
    ):
        K = mine.shape[1]
        with np.errstate(invalid="ignore"):
            R = np.nan_to_num(np.corrcoef(mine, other, rowvar=False)[:K, K:])
        orders[layer] = linear_sum_assignment(-R)[1]
    ours, theirs = received(a), received(b)
    shares = np.array([0.75, 0.25])
    merged = merger.merged([ours, theirs], Merging("activations", shares), rows, 0, "task")
    expected = 0.75 * ours[0] + 0.25 * merger.orders.applied(theirs[0], orders)
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def test_a_client_without_examples_matches_by_weights(data):
    merger = merger_of(mlp(0), data)
    models = [received(mlp(seed)) for seed in range(3)]
    shares = np.full(3, 1 / 3)
    nothing = data.partitions[2]
    one = merger.merged(models, Merging("activations", shares), nothing, 0, "task")
    other = merger.merged(models, Merging("weights", shares), nothing, 0, "task")
    np.testing.assert_array_equal(one, other)


def images(n=24):
    rng = np.random.default_rng(0)
    pool = Examples(rng.standard_normal((n, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, n))
    return FederatedData(
        name="images",
        train=pool,
        test=pool,
        partitions=Partitions.contiguous([n - 1, 1]),
        num_classes=3,
        input_shape=(2, 6, 6),
    )


def test_residual_streams_are_matched_and_statistics_are_those_of_the_merged_model():
    data = images()
    torch.manual_seed(0)
    model = ResNet8((2, 6, 6), 3, groups=None, channels=(4, 6, 8))
    merger, own = merger_of(model, data), received(model)
    copy = shuffled(merger, own[0], 1), own[1]
    rows = data.partitions[0]
    merged = merger.merged([own, copy], Merging("activations", HALF), rows, 0, "task")
    take_statistics(model, [torch.from_numpy(data.train.x[rows])])
    expected = received(model)[0]
    assert not np.array_equal(expected, own[0])
    np.testing.assert_allclose(merged, expected, atol=1e-6)
    assert merger.keeps_statistics


def test_units_that_are_never_active_are_left_over():
    data = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].bias[:2] = -1e3  # dead
    merger, own = merger_of(model, data), received(model)
    (layer,) = merger.orders.units
    copy = merger.orders.applied(own[0], {layer: np.array([3, 1, 0, 2])}), own[1]
    rows = data.partitions[0]
    merged = merger.merged([own, copy], Merging("activations", HALF), rows, 0, "task")
    living = np.flatnonzero(np.repeat([False, False, True, True], 72))
    np.testing.assert_array_equal(merged[living], own[0][living])


# ---- in an app -----------------------------------------------------------------------------------


def content_of(models, **config):
    records = {f"arrays.{j}" if j else "arrays": m.state_dict() for j, m in enumerate(models)}
    made = {name: ArrayRecord(values) for name, values in records.items()}
    return RecordDict({**made, "config": ConfigRecord({"server-round": 1, **config})})


def test_it_trains_from_what_it_has_merged_and_says_nothing_of_a_choice(
    data, message_to, context_of
):
    models = [mlp(0), mlp(1), mlp(2)]
    app = TrainingApp(models[0], data, Sgd(0.1), batch_size=4)
    how = {"merge-by": "activations", "merge-shares": [0.5, 0.25, 0.25]}
    reply = app(message_to(content_of(models, **how), 0), context_of(0))
    assert "model" not in reply.content["metrics"]
    received_ = [received(m) for m in models]
    merging = Merging("activations", np.array(how["merge-shares"]))
    message_id = message_to(content_of(models, **how), 0).metadata.message_id
    row = app.merger.merged(received_, merging, data.partitions[0], 3, message_id)
    start = mlp(0)
    app.layout.load(start, as_tensor(row.copy()))
    alone = app(message_to(content_of([start]), 0), context_of(0))
    got, expected = (from_record(app.layout, r.content["arrays"]) for r in (reply, alone))
    np.testing.assert_array_equal(got, expected)


def test_clients_that_merge_train_together_as_they_do_alone(data, message_to, context_of):
    models = [mlp(0), mlp(1)]
    how = {"merge-by": "weights", "merge-shares": [0.5, 0.5]}
    app = TrainingApp(models[0], data, Sgd(0.1), batch_size=4, local_epochs=None, local_steps=5)
    messages = [message_to(content_of(models, **how), i) for i in (0, 1)]
    together = train_many(app, messages, [context_of(i) for i in (0, 1)])
    for i, message in enumerate(messages):
        alone = app(message, context_of(i))
        got, expected = (from_record(app.layout, r.content["arrays"]) for r in (together[i], alone))
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_merging_costs_the_passes_that_it_takes(data):
    models = [mlp(0), mlp(1), mlp(2)]
    app = TrainingApp(models[0], data, Sgd(0.1), batch_size=4)
    forward = flops_per_example(models[0], (6,), torch.float32).forward
    shares = [1 / 3] * 3

    def flops(**config):
        return app.plan(Payload(content_of(models, **config)), "train", 0, 1.0).flops

    plain = flops(**{"merge-by": "order", "merge-shares": shares})
    assert flops(**{"merge-by": "weights", "merge-shares": shares}) == plain
    matched = flops(**{"merge-by": "activations", "merge-shares": shares})
    assert matched - plain == 3 * forward * 40
    assert Merging("activations", np.ones(3)).passes(statistics=True) == 7
    assert Merging("order", np.ones(3)).passes(statistics=True) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"merge-by": "luck", "merge-shares": [0.5, 0.5]}, "'merge-by' is 'luck'"),
        ({"merge-by": 3, "merge-shares": [0.5, 0.5]}, "'merge-by' is 3"),
        ({"merge-by": "weights"}, "'merge-shares' is None; it must be 2 numbers"),
        ({"merge-by": "weights", "merge-shares": [1.0]}, "must be 2 numbers"),
        ({"merge-by": "weights", "merge-shares": [0.5, 0.6]}, "whose sum is 1"),
        ({"merge-by": "weights", "merge-shares": [0.5, "x"]}, "must be 2 numbers"),
        ({"merge-by": "weights", "merge-shares": [float("inf"), 0.5]}, "must be 2 numbers"),
    ],
)
def test_what_cannot_be_merged_so_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        read_merging(config, 2)


def test_one_model_is_not_merged():
    assert read_merging({"merge-by": "weights", "merge-shares": [1.0]}, 1) is None
    assert read_merging({}, 3) is None


def test_models_whose_units_cannot_be_matched_are_refused(data):
    with pytest.raises(ConfigError, match="LogisticRegression has no hidden units"):
        merger_of(LogisticRegression((6,), 4), data).check("weights")
    merger_of(LogisticRegression((6,), 4), data).check("order")

    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x):
            return nn.functional.linear(self.first(x), self.second.weight, self.second.bias)

        def units(self):
            return {"hidden": (5, [("first.weight", 0, 1), ("first.bias", 0, 1)])}

    unread = merger_of(Bilinear(), data)
    unread.check("weights")
    with pytest.raises(ConfigError, match="reads the units 'hidden'"):
        unread.check("activations")
