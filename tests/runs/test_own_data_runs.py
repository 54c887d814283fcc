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
        ("num_classes", {"attack": "label_flip", "num_byzantine": 1}),
    ],
)
def test_what_needs_classes_is_refused_with_numbers(table, key, more):
    with pytest.raises(ConfigError, match=key):
        fl.run(**regression(table, **more))
