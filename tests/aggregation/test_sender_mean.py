"""The mean over those who sent an entry: what it divides by."""

import numpy as np
import pytest

from fl.aggregation import Mean, SenderMean

SPARSE = np.array([[1.0, 0.0, 0.0, 4.0], [3.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0]])


def test_each_entry_is_divided_by_how_many_sent_it():
    np.testing.assert_array_equal(SenderMean()(SPARSE), [2.0, 5.0, 0.0, 1.0])


def test_examples_weigh_among_those_who_sent():
    np.testing.assert_allclose(SenderMean()(SPARSE, [3, 1, 1]), [1.5, 5.0, 0.0, 2.5])
    np.testing.assert_allclose(SenderMean()(SPARSE, [0, 1, 1]), [3.0, 5.0, 0.0, -2.0])
    np.testing.assert_array_equal(
        SenderMean(weighted=False)(SPARSE, [3, 1, 1]), SenderMean()(SPARSE)
    )


def test_of_disjoint_vectors_it_is_the_sum_and_of_dense_ones_the_mean():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((4, 500)).astype(np.float32)
    np.testing.assert_allclose(SenderMean()(dense), Mean()(dense), rtol=1e-5, atol=1e-7)
    disjoint = np.where(rng.integers(4, size=500) == np.arange(4)[:, None], dense, 0)
    np.testing.assert_allclose(SenderMean()(disjoint), 4 * Mean()(disjoint), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_is_kept(dtype):
    assert SenderMean()(SPARSE.astype(dtype)).dtype == dtype
