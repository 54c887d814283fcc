"""Agreement with the strategies of Flower that aggregate robustly, through the named options."""

from types import SimpleNamespace

import numpy as np
import pytest
from aggregation_members import gaussian
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan as FlowerBulyan
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg
from flwr.serverapp.strategy import Krum as FlowerKrum
from flwr.serverapp.strategy import MultiKrum as FlowerMultiKrum

from fl.aggregation import Bulyan, Krum, Mean, Median, MultiKrum, TrimmedMean

SHAPES = {"weight": (3, 4), "bias": (4,)}
SIZES = [int(np.prod(shape)) for shape in SHAPES.values()]
CASES = [(seed, n, dtype) for seed in range(4) for n in (11, 14) for dtype in (np.float32, float)]


def flower(strategy, x, counts):
    """What a Flower strategy makes of the rows of x, sent as models of two tensors."""
    replies = []
    for row, count in zip(x, counts, strict=True):
        parts = np.split(row, np.cumsum(SIZES)[:-1])
        arrays = {
            name: Array(np.ascontiguousarray(part.reshape(shape)))
            for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
        }
        content = RecordDict(
            {
                "arrays": ArrayRecord(arrays),
                "metrics": MetricRecord({"num-examples": int(count)}),
            }
        )
        replies.append(SimpleNamespace(content=content, has_error=lambda: False))
    arrays, _ = strategy.aggregate_train(1, replies)
    return np.concatenate([array.numpy().ravel() for array in arrays.values()])


def check(strategy, rule, seed, n, dtype, weighted=False):
    x = gaussian(seed, n, sum(SIZES)).astype(dtype)
    counts = np.random.default_rng(seed).integers(1, 100, n)
    expected = flower(strategy, x, counts)
    result = rule(x, weights=counts if weighted else None)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("seed", "n", "dtype"), CASES)
def test_mean_agrees_with_fedavg(seed, n, dtype):
    check(FedAvg(), Mean(), seed, n, dtype, weighted=True)


@pytest.mark.parametrize(("seed", "n", "dtype"), CASES)
def test_median_agrees_with_fedmedian(seed, n, dtype):
    check(FedMedian(), Median(), seed, n, dtype)


@pytest.mark.parametrize("f", [0, 1, 3, 5])
@pytest.mark.parametrize(("seed", "n", "dtype"), CASES)
def test_trimmed_mean_agrees_with_fedtrimmedavg(seed, n, dtype, f):
    # a quarter of a vector more, because Flower rounds beta n down; a half may reach beta = 0.5
    check(FedTrimmedAvg(beta=(f + 0.25) / n), TrimmedMean(f), seed, n, dtype)


@pytest.mark.parametrize("f", [0, 1, 4])
@pytest.mark.parametrize(("seed", "n", "dtype"), CASES)
def test_krum_agrees_with_flower(seed, n, dtype, f):
    check(FlowerKrum(num_malicious_nodes=f), Krum(f), seed, n, dtype)


@pytest.mark.parametrize("m", [1, 4, 9])
@pytest.mark.parametrize(("seed", "n", "dtype"), CASES)
def test_multi_krum_agrees_with_flower_which_weighs_by_examples(seed, n, dtype, m):
    strategy = FlowerMultiKrum(num_malicious_nodes=2, num_nodes_to_select=m)
    check(strategy, MultiKrum(2, m=m, weighted=True), seed, n, dtype, weighted=True)


@pytest.mark.parametrize("f", [0, 1, 2])
@pytest.mark.parametrize(("seed", "n", "dtype"), CASES)
def test_bulyan_in_one_shot_agrees_with_flower(seed, n, dtype, f, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # Flower's runs n times, for 0.1 s each
    rule = Bulyan(f, selection="one-shot")
    check(FlowerBulyan(num_malicious_nodes=f), rule, seed, n, dtype)


def test_unequal_counts_change_what_multi_krum_makes_of_the_same_vectors():
    x = gaussian(0)
    counts = [1000] + [1] * 10
    weighted, plain = (MultiKrum(2, m=9, weighted=w)(x, weights=counts) for w in (True, False))
    assert not np.allclose(weighted, plain)


def test_flower_skips_a_round_of_too_few_replies_where_bulyan_here_raises():
    arrays, _ = FlowerBulyan(num_malicious_nodes=2).aggregate_train(
        1,
        [
            SimpleNamespace(
                content=RecordDict(
                    {
                        "arrays": ArrayRecord([np.zeros(2)]),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                has_error=lambda: False,
            )
        ]
        * 10,
    )
    assert arrays is None
    with pytest.raises(ValueError, match=r"needs n >= 4 f \+ 3"):
        Bulyan(2)(np.zeros((10, 2)))
