"""Gradient codes: any n - s workers give the whole sum, and fewer do not."""

from itertools import combinations

import numpy as np
import pytest

from fl.errors import ConfigError, NoStep
from fl.strategies.gradient_codes import CyclicCode, RepetitionCode

CODES = [
    *(RepetitionCode(n, s) for n, s in [(1, 0), (4, 0), (4, 1), (6, 2), (8, 3), (6, 5)]),
    *(CyclicCode(n, s) for n, s in [(1, 0), (4, 0), (5, 1), (7, 2), (8, 3), (6, 5)]),
]


def without(n, *missing):
    """Returns flags of the workers that are there."""
    return ~np.isin(np.arange(n), missing)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_any_n_less_s_workers_give_the_sum_of_all_chunks(code):
    g = np.random.default_rng(1).standard_normal((code.n, 3))
    sent = code.matrix @ g
    for few in range(code.s + 1):
        for missing in combinations(range(code.n), few):
            there = without(code.n, *missing)
            assert code.decodes(there)
            a = code.decode(there)
            assert not a[~there].any()  # of those that have not come nothing is used
            assert np.allclose(a @ sent, g.sum(axis=0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_worker_sends_a_combination_of_the_s_plus_1_chunks_that_it_holds(code):
    assert code.chunks.shape == code.coefficients.shape == (code.n, code.s + 1)
    assert np.count_nonzero(code.matrix) == code.n * (code.s + 1)
    # Every chunk is with s + 1 workers: fewer could all be stragglers.
    assert (np.count_nonzero(code.matrix, axis=0) == code.s + 1).all()


def test_the_cyclic_code_is_as_algorithm_2_makes_it():
    code = CyclicCode(7, 2, seed=3)
    assert (np.diag(code.matrix) == 1).all()
    # Its rows span a space of n - s dimensions that has the vector of ones in it.
    assert np.linalg.matrix_rank(code.matrix, tol=1e-9) == 5
    assert np.linalg.matrix_rank(np.vstack([code.matrix, np.ones(7)]), tol=1e-9) == 5
    assert not np.array_equal(code.matrix, CyclicCode(7, 2, seed=4).matrix)
    assert np.array_equal(code.matrix, CyclicCode(7, 2, seed=3).matrix)


def test_repetition_bears_more_stragglers_if_no_group_lacks_all():
    code = RepetitionCode(6, 2)
    assert code.decodes(without(6, 0, 1, 3, 5))
    assert code.decode(without(6, 0, 1, 3, 5)).tolist() == [0, 0, 1, 0, 1, 0]
    assert not code.decodes(without(6, 0, 1, 2))


@pytest.mark.parametrize("code", [RepetitionCode(6, 2), CyclicCode(6, 2)], ids=str)
def test_too_few_workers_are_refused_by_number(code):
    with pytest.raises(NoStep, match=r"3 of 6 workers do not give the sum .* bears 2 stragglers"):
        code.decode(without(6, 0, 1, 2))


def test_a_code_says_which_numbers_of_workers_it_is_for():
    with pytest.raises(ConfigError, match="s is 2, and groups of 3 do not make up 8 workers"):
        RepetitionCode(8, 2)
    with pytest.raises(ConfigError, match="s is 4; it must be below the number of workers, 4"):
        CyclicCode(4, 4)
    with pytest.raises(ConfigError, match="s is -1"):
        CyclicCode(4, -1)
