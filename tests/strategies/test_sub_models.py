"""Rounds of clients that hold parts of the model: what is sent, what comes back, what it makes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from every_strategy import CLIENTS, PARTIAL, configured, ran
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fl.aggregation import CenteredClipping, Median
from fl.errors import ConfigError, NoStep
from fl.runs.build import build, prepare
from fl.simulation.kernel.trace import Event
from fl.strategies import SCAFFOLD, FedAvg, Rounds
from fl.strategies.drivers.events.server import GlobalModel, Sent
from fl.strategies.drivers.rounds.parts import measured
from fl.strategies.drivers.tasks import Task
from fl.strategies.round_rule import Updates, blocks
from fl.submodels import (
    CLASSES_KEY,
    MASKS_KEY,
    OWN_CLASSES_KEY,
    Fixed,
    HeteroFL,
    Place,
    SubModels,
    Units,
    Whole,
)

WHOLE = "strategy.sub_models.capacity.levels=[1]"


def updates(deltas, holds, combine=None):
    deltas = np.array(deltas, np.float32)
    more = {} if combine is None else {"combine": combine}
    return Updates(deltas, np.ones(len(deltas)), holds=np.array(holds, bool), **more)


# ---- the mean over those who hold a number -------------------------------------------------------


def test_each_number_is_the_mean_of_those_who_hold_it_and_stays_if_nobody_does():
    deltas = [[1, 2, 0, 0, 0], [3, 0, 5, 0, 0], [8, 0, 0, 7, 0]]
    holds = [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0]]
    assert updates(deltas, holds).mean().tolist() == [4, 2, 5, 7, 0]


def test_disjoint_parts_are_put_together_and_clients_may_come_in_any_order():
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 70, 500)  # more clients than a code has bits
    holds = owner[None] == np.arange(70)[:, None]
    deltas = rng.standard_normal((70, 500)).astype(np.float32) * holds
    expected = deltas.sum(axis=0)
    order = rng.permutation(70)
    np.testing.assert_array_equal(updates(deltas, holds).mean(), expected)
    np.testing.assert_array_equal(updates(deltas[order], holds[order]).mean(), expected)


def test_blocks_are_all_numbers_once_with_those_who_hold_them():
    rng = np.random.default_rng(1)
    holds = rng.random((40, 300)) < 0.1
    seen = np.zeros(300, int)
    for clients, numbers in blocks(holds):
        seen[numbers] += 1
        for j in numbers:
            assert np.flatnonzero(holds[:, j]).tolist() == clients.tolist()
    assert (seen == 1).all()


def test_an_aggregator_sees_only_those_who_hold_a_number():
    """The median over zeros of others would be 0."""
    deltas = [[1, 2], [3, 0], [8, 0], [9, 0]]
    holds = [[1, 1], [1, 0], [1, 0], [1, 0]]

    def median(x, weights, name):
        return Median()(x)

    assert updates(deltas, holds, median).mean().tolist() == [5.5, 2]


def test_numbers_with_too_few_holders_for_the_aggregator_stay():
    def combine(x, weights, name):
        if len(x) < 3:
            raise NoStep("too few")
        return x.mean(axis=0)

    some = updates([[3, 1], [3, 1], [3, 0]], [[1, 1], [1, 1], [1, 0]], combine)
    assert some.mean().tolist() == [3, 0]
    with pytest.raises(NoStep, match="too few"):
        updates([[3, 1], [3, 1]], [[1, 1], [1, 1]], combine).mean()


def test_coverage_and_mask_noise_of_a_round():
    w = np.array([3, 4, 0, 12, 100], np.float32)
    holds = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 1, 1]], bool)
    found = measured(w, holds, [slice(0, 4)])  # the last is a buffer
    assert found == {"coverage_min": 0, "uncovered": 0.25, "mask_noise": 8 / 169}


# ---- runs ----------------------------------------------------------------------------------------


def row_of(run):
    return np.concatenate([array.numpy().reshape(-1) for array in run.arrays.values()])


@pytest.mark.parametrize(
    "strategy",
    ["heterofl", *(pytest.param(name, marks=pytest.mark.slow) for name in PARTIAL[1:])],
)
def test_where_all_hold_all_it_is_fedavg_bit_for_bit(strategy):
    _, ours = ran(strategy, WHOLE)
    _, fedavg = ran("fedavg", "aggregator.weighted=false")
    assert ours.trace.sha256() == fedavg.trace.sha256()
    np.testing.assert_array_equal(row_of(ours), row_of(fedavg))


@pytest.mark.parametrize(
    ("strategy", "level", "more"),
    [
        ("heterofl", 0.5, "compressor=ef_topk_int8"),
        ("fedrolex", 0.25, "attack=ipm"),
        ("every_parameter_matters", 4, "client.rule.momentum=0.9"),
        ("every_parameter_matters", 6, "strategy.sub_models.extraction.of=units"),
    ],
)
def test_what_no_client_holds_does_not_change_in_any_bit(strategy, level, more):
    liars = ["num_byzantine=1"] if more.startswith("attack") else []
    experiment, run = ran(
        strategy, f"strategy.sub_models.capacity.levels=[{level}]", "num_rounds=1", more, *liars
    )
    first = row_of_record(experiment.initial())
    layout, exchange = experiment.app.layout, experiment.strategy.exchange
    whole = Whole(layout, exchange.units, first)
    extraction = experiment.strategy.sub_models.extraction
    part = extraction.extract(whole, level, 0, lambda _: None)
    changed = row_of(run) != first
    assert changed[part.positions].mean() > 0.01
    changed[part.positions] = False
    assert not changed.any()


def row_of_record(record):
    return np.concatenate([array.numpy().reshape(-1) for array in record.values()])


def test_a_part_costs_the_flops_memory_and_bytes_of_a_model_of_its_size():
    """An MLP of 64 inputs, 10 classes and 64 hidden units, or 16 of them."""
    levels = "strategy.sub_models.capacity.levels=[0.25]"
    experiment, run = ran("heterofl", levels, "num_rounds=1")
    _, small = ran("fedavg", "model.hidden=[16]", "num_rounds=1", "aggregator.weighted=false")
    own = build(configured("fedavg", "model.hidden=[16]")).app
    assert experiment.parts.memory_bytes() == own.memory_bytes()
    assert run.trace.sha256() == small.trace.sha256()  # times, bytes and joules of all messages


def test_masked_parts_travel_as_values_and_a_bit_for_each_weight():
    full = ran("every_parameter_matters", WHOLE, "num_rounds=1")[1].summary["totals"]
    levels = "strategy.sub_models.capacity.levels=[7]"
    half = ran("every_parameter_matters", levels, "num_rounds=1")[1].summary["totals"]
    weights, clients = 64 * 64, 4
    up = full["bytes_up"] - half["bytes_up"]
    down = full["bytes_down"] - half["bytes_down"]
    assert up / clients == pytest.approx(4 * weights / 2, rel=0.01)  # less names and shapes
    assert down / clients == pytest.approx(4 * weights / 2 - weights / 8, abs=200)


@pytest.mark.parametrize("of", ["weights", pytest.param("units", marks=pytest.mark.slow)])
def test_batched_parts_agree_with_those_trained_alone(of):
    rows = [
        row_of(
            ran(
                "every_parameter_matters",
                "strategy.sub_models.capacity.levels=[1,4,4,7]",
                f"strategy.sub_models.extraction.of={of}",
                f"client.batching='{batching}'",
            )[1]
        )
        for batching in ("off", "on")
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("strategy", ["heterofl", "fedrolex"])
def test_statistics_of_a_batch_normalisation_are_averaged_where_they_are_held(strategy):
    overrides = ["model._target_=all_kinds.Normed", "~model.hidden", "~model.dropout"]
    experiment, run = ran(strategy, *overrides, "num_rounds=2")
    layout = experiment.app.layout
    first, last = row_of_record(experiment.initial()), row_of(run)
    for entry in layout.statistics:
        place = slice(entry.offset, entry.offset + entry.size)
        assert (last[place] != first[place]).all()  # client 0 holds all
    assert run.arrays["2.num_batches_tracked"].numpy() > 0


# ---- HeteroFL's masked loss, and static batch normalisation --------------------------------------

MASKED = "strategy.sub_models.masked_loss=true"
STATIC = "strategy.sub_models.static_batch_norm=true"
NORMED = ["model._target_=all_kinds.Normed", "~model.hidden", "~model.dropout"]
SORTED = ["partition=pathological", "partition.num_classes_per_partition=2"]


def last_layer_of(run):
    weight, bias = [array.numpy() for array in run.arrays.values()][-2:]
    return np.column_stack([weight, bias])


def test_a_masked_loss_of_all_classes_is_the_loss_bit_for_bit():
    rows = [row_of(ran("heterofl", "client=sgd_momentum", *more)[1]) for more in ([], [MASKED])]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    "more",
    [
        ["strategy.clients=1"],
        ["strategy.clients=2", "attack=ipm", "num_byzantine=1"],
        ["strategy.clients=2", "compressor=qsgd"],
        ["strategy.clients=2", "aggregator=median"],
    ],
    ids=str,
)
def test_the_row_of_a_class_that_no_client_of_the_round_has_stays_bit_for_bit(more):
    decays = "client=adamw"  # which shrinks what has no gradient
    experiment, run = ran("heterofl", MASKED, *SORTED, decays, *more, "num_rounds=1")
    asked = np.unique(run.trace.client[run.trace.kind == Event.DISPATCH])
    data = experiment.data
    there = np.unique(np.concatenate([data.train.y[data.partitions[p]] for p in asked]))
    first = list(experiment.initial().values())
    before = np.column_stack([array.numpy() for array in first[-2:]])
    changed = (last_layer_of(run) != before).any(axis=1)
    assert 2 <= len(there) < 10
    assert np.flatnonzero(changed).tolist() == there.tolist()


def test_clients_with_masked_losses_train_together_as_alone():
    levels = "strategy.sub_models.capacity.levels=[1,1,0.5,0.5]"
    rows = [
        row_of(ran("heterofl", MASKED, *SORTED, levels, f"client.batching='{batching}'")[1])
        for batching in ("off", "on")
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=2e-6)


def test_a_reply_counts_for_the_classes_that_it_says_and_for_no_others():
    """Three classes, a layer of two inputs; the client has classes 0 and 2."""
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal((2, 11)).astype(np.float32)
    shapes = {"hidden": (2, 1), "head.weight": (3, 2), "head.bias": (3,)}
    ends = np.cumsum([0, 2, 6, 3])

    def record(row):
        parts = [row[a:b] for a, b in pairwise(ends)]
        return ArrayRecord(
            {n: Array(x.reshape(s)) for (n, s), x in zip(shapes.items(), parts, strict=True)}
        )

    model = GlobalModel(record(before))
    places = [Place(name, 0, np.arange(3)) for name in ("head.weight", "head.bias")]
    model.classes = Units("classes", 3, tuple(places))
    task = Task("m", 0, 0.0, Sent(0, model.w, {OWN_CLASSES_KEY: True}))

    def read(bits):
        said = {} if bits is None else {CLASSES_KEY: ArrayRecord({CLASSES_KEY: Array(bits)})}
        content = RecordDict({"arrays": record(after), "metrics": MetricRecord({}), **said})
        return model.read(task, content, "arrays", 1.0)

    update = read(np.array([0b10100000], np.uint8))
    lacks = [4, 5, 9]
    np.testing.assert_array_equal(update.x[lacks], before[lacks])
    holds = np.setdiff1d(np.arange(11), lacks)
    np.testing.assert_array_equal(update.x[holds], after[holds])
    assert update.part.positions.tolist() == holds.tolist()
    for bits in (None, np.zeros(2, np.uint8), np.zeros(1, np.int64)):
        with pytest.raises(ConfigError, match=CLASSES_KEY):
            read(bits)


def test_static_batch_normalisation_trains_the_same_weights_and_keeps_statistics_of_all_data():
    experiment, run = ran("heterofl", *NORMED, STATIC, WHOLE)
    _, tracked = ran("heterofl", *NORMED, WHOLE)
    ours, theirs = dict(run.arrays), dict(tracked.arrays)
    for name in ours:
        if not name.startswith("2."):
            np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy())
    data, weight, bias = experiment.data, ours["1.weight"].numpy(), ours["1.bias"].numpy()
    means, variances = [], []
    for p in range(data.num_partitions):
        x = data.client(p)[0].reshape(data.size(p), -1).numpy().astype(np.float64)
        for start in range(0, len(x), 50):
            h = x[start : start + 50] @ weight.T + bias
            means.append(h.mean(axis=0))
            variances.append(h.var(axis=0, ddof=1))
    assert len(means) > CLIENTS
    mean, variance = ours["2.running_mean"].numpy(), ours["2.running_var"].numpy()
    np.testing.assert_allclose(mean, np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, np.mean(variances, axis=0), rtol=1e-4, atol=1e-5)
    assert (mean != theirs["2.running_mean"].numpy()).all()
    assert run.summary["final"]["accuracy"] > 0.1


# ---- what is refused -----------------------------------------------------------------------------

PARTS = SubModels(HeteroFL(), Fixed([1.0, 0.5]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": SCAFFOLD(num_clients=4)},
        {"aggregator": CenteredClipping()},
        {"fraction_evaluate": 0.5},
        {"noise_scale": 0.9},
        {"sub_models": HeteroFL()},
    ],
    ids=str,
)
def test_what_needs_the_whole_model_of_every_client_is_refused(arguments):
    with pytest.raises(ConfigError, match="sub_models"):
        Rounds(**{"rule": FedAvg(), "sub_models": PARTS, **arguments})


@pytest.mark.parametrize(
    ("strategy", "overrides", "key"),
    [
        ("heterofl", ["compressor@downlink=ef21"], "downlink"),
        ("fedrolex", ["compressor=ef_topk_int8"], "compressor"),
        ("every_parameter_matters", ["compressor=qsgd"], "compressor"),
        ("heterofl", ["compressor=qsgd", "attack=ipm", "num_byzantine=1"], "attack"),
        ("fedrolex", ["client=momentum"], "client.rule"),
        ("heterofl", ["model=logistic"], "strategy.sub_models"),
        ("heterofl", [STATIC], "static_batch_norm"),
        ("heterofl", ["model=char_gpt", "data=stdlib", MASKED], "masked_loss"),
        ("fedconv", ["+" + MASKED], "masked_loss"),
    ],
)
def test_pairs_that_cannot_work_are_refused_by_key(strategy, overrides, key):
    with pytest.raises(ConfigError, match=key):
        build(configured(strategy, *overrides))


# A phone of this fleet has half a megabyte; the model of this test needs more than two.
SMALL = ["model.hidden=[2048]", "fleet.memory_bytes=5e5", "client.batch_size=10"]


def test_a_model_too_large_for_some_devices_is_refused_with_their_number_and_a_remedy():
    with pytest.raises(ConfigError, match=r"4 of 4 clients have too little.*strategy=heterofl"):
        prepare(configured("fedavg", *SMALL))
    with pytest.raises(ConfigError, match="of 4 clients have too little"):
        prepare(configured("heterofl", *SMALL))  # client 0 would have all of it


@pytest.mark.parametrize(
    ("strategy", "overrides"),
    [
        ("heterofl", []),
        ("fedrolex", []),
        (
            "every_parameter_matters",
            [
                "strategy.sub_models.extraction.of=units",
                "strategy.sub_models.capacity.levels=[1,4,7]",
                "fleet.memory_bytes=1.3e6",
            ],
        ),
    ],
)
def test_clients_get_parts_that_fit_their_memory(strategy, overrides):
    fleet = "strategy/capacity=by_memory"
    experiment = prepare(configured(strategy, *SMALL, fleet, *overrides))
    memory = experiment.fleet.devices.memory_bytes
    levels = set(experiment.strategy.exchange.levels)
    assert levels
    assert 1 not in levels
    assert experiment.parts.memory_bytes() <= memory.min()


def test_a_part_that_is_none_of_the_model_is_refused_by_the_client():
    experiment = build(configured("heterofl"))
    app, arrays = experiment.parts, dict(experiment.initial())
    name = next(iter(arrays))
    wide = np.zeros((65, 64), np.float32)
    record = ArrayRecord({**arrays, name: Array(wide)})
    with pytest.raises(ConfigError, match=name):
        app.read(RecordDict({"arrays": record}))
    for bits in (np.zeros(3, np.uint8), np.zeros(512, np.float32)):
        masks = ArrayRecord({name: Array(bits)})
        with pytest.raises(ConfigError, match=name):
            app.read(RecordDict({"arrays": ArrayRecord(arrays), MASKS_KEY: masks}))
