"""Evaluations on data whose clusters are known, and what a server believes of its clients."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from sklearn.metrics import adjusted_rand_score
from torch import nn

from fl.data import Examples, Source, federate
from fl.data.partition import clusters
from fl.flower.identity import node_id
from fl.flower.records import from_record
from fl.runs.cluster_evaluation import ClusterEvaluation, adjusted_rand_index
from fl.strategies import ClusterModels, Clusters
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor


@pytest.mark.parametrize("seed", range(5))
def test_the_rand_index_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 30), rng.integers(0, 3, 30)
    assert adjusted_rand_index(a, b) == pytest.approx(adjusted_rand_score(a, b))
    assert adjusted_rand_index(a, (a + 2) % 4) == 1
    zeros = np.zeros(30, int)
    assert adjusted_rand_index(zeros, zeros) == 1
    assert adjusted_rand_index(np.array([0]), np.array([0])) == 1


def signs():
    """Class 1 if x > 0 in the first cluster, and if x < 0 in the second; more of the second."""

    def examples(n, m):
        x = np.random.default_rng(n).normal(size=(n + m, 1)).astype(np.float32)
        y = np.concatenate([x[:n, 0] > 0, x[n:, 0] < 0]).astype(np.int64)
        return Examples(x, y), np.repeat([0, 1], [n, m])

    (train, of), (test, of_test) = examples(20, 30), examples(10, 30)
    return Source("signs", train, test, 2, (1,), clusters=of, test_clusters=of_test)


@pytest.fixture
def evaluation():
    data = federate(signs, partial(clusters, num_partitions=4, seed=0))
    model = nn.Linear(1, 2, bias=False)
    layout = Layout.of(model)

    def load(arrays):
        layout.load(model, as_tensor(from_record(layout, arrays)), {})

    return ClusterEvaluation(data, load, model, lambda: 0.0)


def record(w):
    return ArrayRecord({"weight": torch.tensor([[-w], [w]])})


def with_clusters(ws, mixtures, named=True, mixes=True):
    layout = Layout.of(nn.Linear(1, 2, bias=False))
    rows = np.array([[-w, w] for w in ws], np.float32)
    return ClusterModels.of(layout, rows[0], {}, Clusters(rows, mixtures, named, mixes))


def test_one_model_is_evaluated_on_all_clusters(evaluation):
    metrics = evaluation(record(1.0))
    assert metrics["accuracy"] == pytest.approx(0.25)  # 10 of 40
    assert metrics["cluster_accuracy_min"] == 0
    assert set(metrics) == {"accuracy", "loss", "cluster_accuracy_min"}


def test_each_cluster_uses_the_model_that_fits_its_training_examples(evaluation):
    u = {node_id(p): np.eye(2)[1 - p % 2] for p in range(4)}  # right but for the names
    metrics = evaluation(with_clusters([-9.0, 9.0], u))
    assert metrics["accuracy"] == 1
    assert metrics["cluster_accuracy_min"] == 1
    assert metrics["rand_index"] == 1
    assert metrics["mixture_error"] == 2
    half = {node_id(p): np.array([0.5, 0.5]) for p in range(4)}
    assert evaluation(with_clusters([9.0, 9.0], half))["mixture_error"] == 1


def test_errors_of_mixtures_are_of_methods_that_mix_and_least_over_names_that_nobody_knows(
    evaluation,
):
    u = {node_id(p): np.eye(2)[1 - p % 2] * 0.8 + 0.1 for p in range(4)}
    assert "mixture_error" not in evaluation(with_clusters([9.0, -9.0], u, False, False))
    found = evaluation(with_clusters([9.0, -9.0], u, named=False))
    assert found["mixture_error"] == pytest.approx(0.2)
    assert "mixture_error" not in evaluation(with_clusters([9.0, -9.0, 0.0], u, False))


def test_without_a_time_nothing_is_said_of_clients(evaluation):
    evaluation._now = None
    u = {node_id(0): np.array([1.0, 0.0])}
    assert "rand_index" not in evaluation(with_clusters([9.0, -9.0], u))
