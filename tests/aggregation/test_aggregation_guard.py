"""The guard before every rule: anything at all may come in, only vectors get through."""

import numpy as np
import pytest
from aggregation_members import AGGREGATORS, F5, call, gaussian, member, tolerant
from hypothesis import given, settings
from hypothesis import strategies as st
from many_cases import for_each

from fl.aggregation import Guard, Krum, MultiKrum, Rows
from fl.errors import ConfigError, NoStep, NotFinite

X = F5.astype(np.float32)


def test_a_matrix_of_vectors_passes_as_it_is():
    admitted = Guard(1)(X, size=2)
    assert admitted.x is X
    assert admitted.kept.tolist() == [0, 1, 2, 3, 4]
    assert admitted.f == 1
    assert admitted.dropped == ()


BAD = [  # with what a user is told of it
    (None, "missing"),
    ([1.0, 2.0], "list"),
    (b"\x00" * 8, "bytes"),
    (3.5, "float"),
    (np.ones(2), "float64"),
    (np.ones(2, dtype=np.int32), "int32"),
    (np.array(["a", "b"]), "<U1"),
    (np.array([None, 1]), "object"),
    (np.ones(2, dtype=np.complex64), "complex64"),
    (np.ones(3, dtype=np.float32), "(3,)"),
    (np.ones((1, 2), dtype=np.float32), "(1, 2)"),
    (np.float32(1.0), "float32"),
    (np.array(1.0, dtype=np.float32), "()"),
    (np.array([1.0, np.nan], dtype=np.float32), "nan at index 1"),
    (np.array([-np.inf, np.inf], dtype=np.float32), "-inf at index 0"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_is_no_vector_is_left_out_with_the_reason(bad, reason):
    admitted = Guard(1)([X[0], bad, X[1], X[2]], size=2)
    np.testing.assert_array_equal(admitted.x, X[:3])
    assert admitted.kept.tolist() == [0, 2, 3]
    assert [dropped.index for dropped in admitted.dropped] == [1]
    assert reason in admitted.dropped[0].reason
    assert admitted.f == 0


def test_rows_of_a_matrix_that_are_not_finite_are_left_out():
    x = X.copy()
    x[1, 0], x[3, 1] = np.inf, np.nan
    admitted = Guard(2)(x, size=2)
    np.testing.assert_array_equal(admitted.x, X[[0, 2, 4]])
    assert admitted.kept.tolist() == [0, 2, 4]
    assert admitted.f == 0
    assert [(one.index, one.diverged) for one in admitted.dropped] == [(1, True), (3, True)]


def test_large_numbers_whose_sum_overflows_are_finite():
    x = np.full((2, 100), 3e38, dtype=np.float32)
    assert Guard(0)(x, size=100).dropped == ()


@for_each("form", [list, np.array])
def test_more_than_f_left_out_is_an_error_with_the_reasons(form):
    x = X.copy()
    x[0] = x[2] = x[4] = np.nan
    with pytest.raises(ConfigError, match=r"3 of 5.* f=2") as info:
        Guard(2)(form(list(x)), size=2)
    assert all(f"reply {i}: " in str(info.value) for i in (0, 2, 4))


@for_each("n", [0, 1, 3])
def test_nothing_left_is_no_step_and_no_divergence(n):
    with pytest.raises(NoStep) as info:
        Guard(5)([None] * n, size=2)
    assert not isinstance(info.value, NotFinite)


def test_a_matrix_of_another_length_has_no_row_of_the_right_one():
    with pytest.raises(ConfigError, match=r"shape \(2,\), not \(3,\)"):
        Guard(1)(X, size=3)


@pytest.mark.parametrize(
    "count", [-1, np.nan, np.inf, "10", None, 1j, True, [3], 10**400, np.float64("nan")]
)
def test_a_client_whose_number_of_examples_is_none_is_left_out(count):
    admitted = Guard(1)(list(X), size=2, weights=[1, 2, count, 4, 5])
    assert [dropped.index for dropped in admitted.dropped] == [2]
    assert "number of examples" in admitted.dropped[0].reason
    np.testing.assert_array_equal(admitted.weights, (1, 2, 4, 5))
    Rows(admitted.x, admitted.weights)  # takes them


def test_weights_follow_their_vectors():
    x = X.copy()
    x[0] = np.nan
    admitted = Guard(1)(x, size=2, weights=[7, 1, 2, 3, 4])
    np.testing.assert_array_equal(admitted.weights, (1, 2, 3, 4))
    with pytest.raises(ConfigError, match=r"3 .* 5 "):
        Guard(1)(x, size=2, weights=[1, 2, 3])


def test_leaving_out_is_the_same_as_an_infinite_distance():
    """Rules that count n - f see no difference between a vector left out and one far away."""
    x = gaussian(0)
    far = x.copy()
    far[3] = 1e9
    x[3] = np.nan
    admitted = Guard(2)(x, size=7, dtype=np.float64)
    for rule in (Krum(2), MultiKrum(2), MultiKrum(2, m="n-f")):
        np.testing.assert_allclose(rule.tolerating(admitted.f)(admitted.x), rule(far), rtol=1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
@for_each("bad", [np.nan, np.inf, -np.inf])
def test_with_at_most_f_bad_inputs_every_rule_gives_finite_numbers(name, bad):
    rule = tolerant(member("aggregator", name), 11)
    f = getattr(rule, "f", 2)
    x = gaussian(1).astype(np.float32)
    reference = None if rule.reference == "unused" else x[10].copy()
    x[:f] = bad
    admitted = Guard(f)(x, size=7)
    assert len(admitted.dropped) == f
    result = call(rule.tolerating(admitted.f), admitted.x, reference)
    assert np.isfinite(result).all()


def anything(d):
    """Arrays of any type and shape, special numbers, and things that are no arrays."""
    special = st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 1.0])
    vectors = st.lists(special, min_size=d, max_size=d).map(lambda v: np.array(v, np.float32))
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    types = st.sampled_from(["f2", "f4", "f8", "i1", "u8", "c16", "?", "O", "S3", "U2", "M8[s]"])
    arrays = st.builds(np.zeros, shapes, types)
    objects = st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
        st.lists(st.floats(), max_size=4),
    )  # fmt: skip
    return st.one_of(vectors, arrays, objects)


@given(bad=st.lists(anything(7), min_size=2, max_size=2), seed=st.integers(0, 1000))
@settings(max_examples=100)
def test_two_hundred_malformed_replies_neither_crash_nor_reach_the_result(bad, seed):
    x = gaussian(seed).astype(np.float32)
    replies = [*x[:4], bad[0], *x[4:9], bad[1]]
    admitted = Guard(2)(replies, size=7)
    result = MultiKrum(2).tolerating(admitted.f)(admitted.x)
    # what gets through was a finite vector, and the rule deals with it
    assert np.abs(result).max() <= np.abs(x[:9]).max() or len(admitted.dropped) < 2
    assert np.isfinite(result).all()
    assert {dropped.index for dropped in admitted.dropped} <= {4, 10}


def test_a_guard_needs_a_count():
    with pytest.raises(ConfigError, match="at least 0"):
        Guard(-1)


def test_without_a_tolerance_there_is_none_to_exceed():
    x = X.copy()
    x[0] = x[2] = x[4] = np.nan
    admitted = Guard(0)(x, size=2)
    assert admitted.kept.tolist() == [1, 3]
    assert admitted.f == 0


def test_what_is_left_out_is_told_also_if_it_is_too_much():
    x, told = X.copy(), []
    x[0] = x[2] = np.nan
    with pytest.raises(NoStep):
        Guard(1)(x, size=2, left_out=told.extend)
    assert [dropped.index for dropped in told] == [0, 2]


def test_replies_that_are_all_not_finite_are_a_divergence_and_others_are_none():
    with pytest.raises(NotFinite):
        Guard(1)(X * np.nan, size=2)
    with pytest.raises(NoStep) as info:
        Guard(1)([*(X[:4] * np.nan), None], size=2)
    assert not isinstance(info.value, NotFinite)


def test_weights_that_are_all_zero_bring_no_step():
    with pytest.raises(NoStep):
        Guard(1)(X, size=2, weights=[0] * 5)
    assert Guard(1)(X, size=2, weights=[0, 0, 1, 0, 0]).weights.tolist() == [0, 0, 1, 0, 0]
