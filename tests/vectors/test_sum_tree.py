"""Sums along a tree are those of the vectors, whatever the tree."""

import numpy as np
import pytest
from many_cases import for_each

from fl.aggregation import Mean
from fl.errors import NoStep
from fl.vectors.sum_tree import leaves_of, mean_of_tree, sum_of_tree


def a_tree(rng, names):
    """A random tree over names, in their order."""
    if len(names) == 1:
        return names[0]
    cuts = np.sort(rng.choice(np.arange(1, len(names)), rng.integers(1, len(names)), False))
    return tuple(a_tree(rng, list(part)) for part in np.split(np.array(names), cuts))


@for_each("seed", range(20))
def test_any_tree_of_weighted_sums_is_the_flat_mean(seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 12)), 50
    x = rng.normal(size=(n, d)).astype(np.float32)
    weights = rng.integers(1, 1000, n).astype(np.float64)
    names = [str(i) for i in rng.permutation(n)]
    tree = a_tree(rng, names)
    assert leaves_of((tree,)) == names
    places = {str(i): i for i in range(n)}
    exact = weights @ x.astype(np.float64) / weights.sum()
    np.testing.assert_allclose(mean_of_tree(tree, x, weights, places), exact, rtol=0, atol=3e-6)
    np.testing.assert_allclose(Mean()(x, weights), exact, rtol=0, atol=3e-6)


def test_an_aggregator_adds_in_its_order_in_float32():
    x = np.array([[1.0], [2.0**-24], [2.0**-24]], np.float32)
    weights, places = np.ones(3), {"a": 0, "b": 1, "c": 2}
    one_by_one, _ = sum_of_tree(("a", "b", "c"), x, weights, places)
    small_first, _ = sum_of_tree(("a", ("b", "c")), x, weights, places)
    assert one_by_one.tolist() == [1.0]
    assert small_first.tolist() == [1.0 + 2.0**-23]


def test_what_is_not_there_counts_nothing():
    x = np.array([[4.0], [2.0]], np.float32)
    tree = (("a", "lost"), ("b",))
    assert mean_of_tree(tree, x, np.array([1.0, 3.0]), {"a": 0, "b": 1}).tolist() == [2.5]
    with pytest.raises(NoStep, match="no weight is positive"):
        mean_of_tree((("lost",),), x, np.ones(2), {"a": 0})
