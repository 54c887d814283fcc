"""Runs on tables of a user's own."""

import csv

import numpy as np
import pytest

import fl
from fl.errors import ConfigError

FEW = dict(executor="serial", fleet="uniform", progress=False, num_rounds=2)


@pytest.fixture
def table(tmp_path):
    """Four clients' rows: y = 3 x_0 - 2 x_1 + 5, exactly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)).round(3)
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "a", "b", "y", "sign"])
        for i, (a, b) in enumerate(x.tolist()):
            y = 3 * a - 2 * b + 5
            writer.writerow([i % 4, a, b, y, "above" if y > 5 else "below"])
    return str(path)


def regression(path, **more):
    return {
        **{"data": "table", "data.path": path, "data.target": "y", "data.features": ["a", "b"]},
        **{"data.task": "regression", "data.client": "who", "partition": "natural"},
        **{"num_clients": 4, "model.hidden": [], "target": None, **FEW, **more},
    }


def test_a_linear_model_finds_a_linear_target(table):
    """Least squares has the answer; full steps of all clients are gradient descent on it."""
    more = {"client.rule.lr": 0.4, "client.batch_size": None, "strategy.fraction_train": 1.0}
    run = fl.run(**regression(table, num_rounds=15, evaluate_every=15, **more))
    last = run.frame().iloc[-1]
    assert last.rmse < 0.02
    assert last.mae <= last.rmse
    assert run.frame().iloc[0].rmse > 2  # of a target whose deviation is 3.6


def test_clients_train_a_regression_alike_alone_and_together(table):
    runs = [fl.run(**regression(table, **{"client.batching": mode})) for mode in ("on", "off")]
    losses = [run.frame().loss.iloc[-1] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_clients_and_the_server_report_is_what_was_asked_for(table):
    keys = {"data": "table", "data.path": table, "data.target": "sign", "data.client": "who"}
    keys |= {"partition": "natural", "num_clients": 4, "metrics": ["f1", "auc"]}
    keys |= {"strategy.fraction_evaluate": 1.0, "personal.every": 2, "target.metric": "auc"}
    run = fl.run(**keys, **FEW)
    last = run.frame().iloc[-1]
    for name in ("f1", "auc", "client_f1", "client_auc", "personal_f1", "global_auc"):
        assert 0 < last[name] <= 1


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("target.metric", {"target": {"metric": "accuracy", "value": 0.9}}),
        ("metrics", {"metrics": ["f1"]}),
        ("metrics", {"metrics": "f1"}),
        ("selection", {"selection": "tifl"}),
        ("personal.every", {"personal.every": 1}),
        ("partition", {"partition": "dirichlet"}),
        ("task regression", {"attack": "label_flip", "num_byzantine": 1}),
    ],
)
def test_what_needs_classes_is_refused_with_numbers(table, key, more):
    with pytest.raises(ConfigError, match=key):
        fl.run(**regression(table, **more))


@pytest.fixture
def labels(tmp_path):
    """Two labels, each a half-plane of the inputs, of which rows may have none, one or both."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    path = tmp_path / "labels.npz"
    np.savez(path, x=x, y=np.stack([x[:, 0] > 0, x.sum(axis=1) > 0.3], axis=1))
    return str(path)


def multi_label(path, **more):
    return {
        **{"data": "arrays", "data.path": path, "data.task": "multi-label", "partition": "iid"},
        **{"num_clients": 4, "model.hidden": [], "target": None, **FEW, **more},
    }


def test_labels_that_planes_divide_are_learnt(labels, tmp_path):
    metrics = ["f1", "f1_micro", "auc", "map"]
    more = {"client.rule.lr": 2.0, "strategy.fraction_train": 1.0, "metrics": metrics}
    more |= {"strategy.fraction_evaluate": 1.0, "num_rounds": 12, "evaluate_every": 12}
    runs = [
        fl.run(**multi_label(labels, **more, **{"client.batching": mode})) for mode in ("on", "off")
    ]
    last = runs[0].frame().iloc[-1]
    for name in ("accuracy", *metrics, "client_map"):
        assert last[name] > 0.95
    assert last.loss == pytest.approx(runs[1].frame().loss.iloc[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("partition=dirichlet", {"partition": "dirichlet"}),
        ("task multi-label", {"attack": "label_flip", "num_byzantine": 1}),
        ("metrics has 'confusion'", {"metrics": ["confusion"]}),
        (r"\(n,\)", {"data.task": "regression"}),
    ],
)
def test_what_needs_one_class_is_refused_with_labels(labels, key, more):
    with pytest.raises(ConfigError, match=key):
        fl.run(**multi_label(labels, **more))


def test_a_metric_is_asked_for_once(table):
    with pytest.raises(ConfigError, match=r"metrics is .*'f1' is there more than once"):
        fl.run(data="digits", metrics=["f1", "auc", "f1"], **FEW)


def test_the_confusion_matrix_counts_the_final_models_classes(tmp_path):
    keys = {"data": "digits", "metrics": ["confusion"], "num_clients": 4, "views": True, **FEW}
    run = fl.run(directory=tmp_path / "run", **keys)
    counts = np.loadtxt(tmp_path / "run" / "confusion.csv", delimiter=",")
    assert counts.shape == (10, 10)
    assert np.trace(counts) / counts.sum() == pytest.approx(run.frame().accuracy.iloc[-1])
    assert (tmp_path / "run" / "plots" / "confusion.png").is_file()
    assert "confusion" not in run.frame()
    with pytest.raises(ConfigError, match="metrics has 'confusion', and layers stay"):
        fl.run(**{**keys, "client/local_layers": "last", "target": None})
