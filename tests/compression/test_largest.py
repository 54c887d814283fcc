import numpy as np
import pytest
from many_cases import for_each

from fl.compression.largest import largest, largest_in_rows
from fl.errors import ConfigError


def by_sorting(x, k):
    """The k largest magnitudes; ties by index, because the sort is stable."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


@pytest.mark.parametrize("d", [1, 2, 100, 5_000, 40_000, 100_001])
def test_selection_is_that_of_a_stable_sort(d):
    r = np.random.default_rng(d)
    for x in (
        r.standard_normal(d),
        r.integers(-3, 4, d),  # nearly all tied
        np.zeros(d),
        np.where(np.arange(d) % 7 == 0, 1000.0, r.standard_normal(d)),  # in step with a sample
        np.sort(r.standard_t(1, d)),
    ):
        x = x.astype(np.float32)
        for k in {1, max(d // 100, 1), max(d // 3, 1), d}:
            assert np.array_equal(largest(x, k), by_sorting(x, k))


def test_a_guess_that_was_too_high_still_gives_the_exact_answer():
    """All large entries where a strided sample looks, and k beyond them."""
    d = 100_000
    x = np.full(d, 0.5, dtype=np.float32)
    x[:: d // (1 << 13)] = 9.0
    k = d // 10  # more than the 8334 that were looked at
    assert np.array_equal(largest(x, k), by_sorting(x, k))


@pytest.mark.parametrize("k", [1, 3, 16])
def test_selection_in_rows_is_that_of_each_row(k):
    r = np.random.default_rng(k)
    for x in (r.standard_normal((50, 16)), r.integers(-2, 3, (50, 16))):
        x = x.astype(np.float32)
        expected = np.array([by_sorting(row, k) for row in x])
        assert np.array_equal(largest_in_rows(x, k), expected)


@pytest.mark.parametrize("d", [10, 100_000])
@for_each("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_an_entry_that_is_not_finite_is_always_found(d, bad):
    for at in (0, 1, d - 1):
        x = np.ones(d, dtype=np.float32)
        x[at] = bad
        with pytest.raises(ConfigError, match="finite"):
            largest(x, 1)
        with pytest.raises(ConfigError, match="finite"):
            largest_in_rows(x.reshape(5, -1), 1)
