"""The mean of rows, which is written once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from many_cases import for_each

from fl.aggregation import Mean
from fl.randomness import generator
from fl.vectors.rows import mean, weighted_sum
from fl.vectors.threads import limit_blas


def rows(n, d, dtype):
    return generator(0, "rows").normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@for_each("weights", [None, np.array([3.0, 0.0, 1.0, 2.0**60, 5.0])])
def test_the_mean_is_that_of_rational_numbers_but_for_rounding(weights, dtype):
    x = rows(5, 11, dtype)
    w = [Fraction(1)] * 5 if weights is None else [Fraction(one) for one in weights]
    for j, got in enumerate(mean(x, weights)):
        terms = [w_i * Fraction(float(x_ij)) for w_i, x_ij in zip(w, x[:, j], strict=True)]
        bound = 6 * np.finfo(dtype).eps * float(sum(map(abs, terms)) / sum(w))
        assert abs(float(sum(terms) / sum(w)) - got) <= bound
    assert mean(x, weights).dtype == dtype


@pytest.mark.parametrize("d", [7, 650, 20_003])
def test_the_same_rows_have_the_same_sum_wherever_they_are_in_memory(d):
    x, a = rows(30, d, np.float32), rows(1, 30, np.float32)[0]
    with limit_blas(1):
        whole = weighted_sum(a, x)
        for offset in range(1, 9):
            room = np.empty(x.size + offset, np.float32)
            room[offset:] = x.ravel()
            moved = room[offset:].reshape(x.shape)
            np.testing.assert_array_equal(weighted_sum(a, moved), whole)


@pytest.mark.parametrize("weights", [None, np.array([3.0, 0.5, 1.0, 2.0])])
def test_the_aggregator_is_the_same_to_the_last_bit(weights):
    x = rows(4, 1001, np.float32)
    np.testing.assert_array_equal(Mean()(x, weights), mean(x, weights))
