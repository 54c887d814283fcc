"""What the rules are made of: inner products, order statistics, rows as combinations."""

import numpy as np
import pytest
from aggregation_members import F5, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from many_cases import for_each

from fl.aggregation import Rows
from fl.aggregation import gram as gram_module
from fl.aggregation import order_statistics as order
from fl.aggregation.gram import CHUNK, centred, gram, squared_distances

LONG = 3 * CHUNK + 17


def wide(x):
    x = x.astype(np.float64)
    return x @ x.T


# ---- inner products ------------------------------------------------------------------------------


def used_types(monkeypatch):
    """The types the products are computed in, apart from the sample of the first columns."""
    used = []
    exact = gram_module._accumulate

    def spy(x, index, dtype):
        if x.shape[1] > gram_module._SAMPLE:
            used.append(np.dtype(dtype).name)
        return exact(x, index, dtype)

    monkeypatch.setattr(gram_module, "_accumulate", spy)
    return used


def test_the_distances_of_the_fixture():
    expected = [
        [0, 2, 6.25, 6.25, 181],
        [2, 0, 7.25, 9.25, 145],
        [6.25, 7.25, 0, 0.5, 181.25],
        [6.25, 9.25, 0.5, 0, 200.25],
        [181, 145, 181.25, 200.25, 0],
    ]
    np.testing.assert_array_equal(Rows(F5).squared_distances, expected)
    np.testing.assert_array_equal(Rows(F5.astype(np.float32)).squared_distances, expected)


def test_vectors_that_are_apart_are_multiplied_in_float32(monkeypatch):
    used = used_types(monkeypatch)
    x = gaussian(0, 6, LONG).astype(np.float32)
    result = gram(x)
    assert used == ["float32"]
    np.testing.assert_allclose(result, wide(x), rtol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x + 100.0,  # all close together, as full models are
        lambda x: np.vstack([x, x[:1] + 1e-3]),  # a near copy
        lambda x: np.vstack([x, np.full((1, x.shape[1]), 1e20)]),  # squares overflow
        lambda x: x * 1e-25,  # squares underflow
        lambda x: np.vstack([x, x[:1] * 1e-20]),
    ],
    ids=["close", "near copy", "huge", "tiny", "one tiny"],
)
def test_vectors_float32_has_no_room_for_are_multiplied_in_float64(monkeypatch, spoil):
    used = used_types(monkeypatch)
    x = spoil(gaussian(0, 6, LONG)).astype(np.float32)
    result = gram(x)
    assert used[-1] == "float64"
    np.testing.assert_allclose(result, wide(x), rtol=1e-12)


def test_a_near_copy_in_the_last_columns_is_found_although_the_first_look_fine(monkeypatch):
    used = used_types(monkeypatch)
    x = gaussian(0, 6, LONG).astype(np.float32)
    x[:, gram_module._SAMPLE :] += 1000.0
    result = gram(x)
    assert used == ["float32", "float64"]
    np.testing.assert_allclose(result, wide(x), rtol=1e-12)


@for_each("spread", [1.0, 1e-2, 1e-4])
def test_distances_are_good_to_four_digits_however_close_the_vectors_are(spread):
    x = (gaussian(1, 8, LONG) * spread + 3.0).astype(np.float32)
    exact = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(gram(x)), exact, rtol=1e-4, atol=0)


def test_copies_have_equal_products_to_the_last_bit_and_distance_zero(monkeypatch):
    used = used_types(monkeypatch)
    x = gaussian(2, 9, LONG).astype(np.float32)
    x[4] = x[7] = x[1]
    products = gram(x)
    assert used == ["float32"]
    for copy in (4, 7):
        np.testing.assert_array_equal(products[copy], products[1])
        assert squared_distances(products)[copy, 1] == 0.0
    assert np.linalg.norm(x[0].astype(float) - x[1]) ** 2 == pytest.approx(
        squared_distances(products)[0, 1], rel=1e-5
    )


def test_rows_that_agree_in_the_probed_entries_alone_are_no_copies():
    x = np.zeros((3, 1000), dtype=np.float32)
    x[1, 1] = 1.0  # between two probes
    x[2, 1] = 2.0
    np.testing.assert_array_equal(np.diagonal(gram(x)), (0, 1, 4))


def test_centred_products_are_those_of_the_differences():
    x, p = gaussian(3), np.random.default_rng(0).dirichlet(np.ones(11))
    away = x - p @ x
    np.testing.assert_allclose(centred(wide(x), p), away @ away.T, atol=1e-10)


def test_a_vector_without_share_does_not_disturb_centred_products():
    x, p = gaussian(3), np.full(11, 0.1)
    x[0], p[0] = 1e12, 0.0
    honest = x[1:] - x[1:].mean(axis=0)
    np.testing.assert_allclose(centred(wide(x), p)[1:, 1:], honest @ honest.T, atol=1e-9)


# ---- order statistics ----------------------------------------------------------------------------


@for_each("n", range(1, 20))
def test_the_network_sorts_all_zero_one_columns(n):
    """The zero-one principle: a network that sorts these sorts everything (Knuth, 5.3.4)."""
    if n <= 12:
        columns = (np.arange(2**n) >> np.arange(n)[:, None] & 1).astype(np.float32)
    else:
        columns = np.random.default_rng(n).integers(0, 2, (n, 4096)).astype(np.float32)
    ordered = np.array(order.ordered(columns.copy(), ("value",) * n))
    np.testing.assert_array_equal(ordered, np.sort(columns, axis=0))


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60))
@settings(max_examples=60)
def test_pruned_networks_give_the_places_asked_for(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 40)).astype(np.float32)
    x[rng.integers(0, n, n // 2)] = x[0]  # copies
    ranked = np.sort(x, axis=0)
    np.testing.assert_array_equal(order.lower_median(x.copy()), ranked[(n - 1) // 2])
    np.testing.assert_allclose(order.median(x.copy()), np.median(x, axis=0), rtol=1e-6, atol=1e-7)
    f = int(rng.integers(0, (n - 1) // 2 + 1))
    expected = ranked[f : n - f].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(order.trimmed_mean(x.copy(), f), expected, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60))
@settings(max_examples=80)
def test_mean_around_the_median_by_its_definition(seed, n):
    """Below and above the number of rows at which the method changes."""
    rng = np.random.default_rng(seed)
    keep = int(rng.integers(1, n + 1))
    x = np.round(rng.standard_normal((n, 30)), 1)  # ties within and across sides
    middle = np.median(x, axis=0)
    expected = []
    for column, m in zip(x.T, middle, strict=True):
        # nearest first, of equals the smaller; differences as the rule takes them
        nearest = sorted(column, key=lambda v, m=m: (v - m if v > m else m - v, v))
        expected.append(np.mean(nearest[:keep]))
    result = order.mean_around(x.copy(), keep, "median")
    # Rounding may make one of two equal differences larger: then either number may be kept.
    different = ~np.isclose(result, expected, rtol=1e-9, atol=1e-9)
    for i in np.flatnonzero(different):
        away = np.sort(np.abs(x[:, i] - middle[i]))
        assert keep < n
        assert away[keep] - away[keep - 1] < 1e-12


def test_pruning_leaves_out_most_of_the_network_where_little_is_asked():
    n = 32
    full = len(list(order.batcher(n)))
    assert full == 191  # Knuth's count for 32
    everything = order.network(("value",) * n)
    largest = order.network(("nothing",) * (n - 1) + ("value",))
    nothing_but_the_sum = order.network(("summed",) * n)
    assert len(everything) == full
    assert len(largest) == n - 1
    assert nothing_but_the_sum == ()


@for_each("n", [5, 60])
def test_outliers_do_not_take_the_digits_of_the_numbers_kept(n):
    x = np.ones((n, 3), dtype=np.float32)
    x[0], x[1] = 3e38, -3e38
    np.testing.assert_array_equal(order.mean_around(x.copy(), n - 2, "median"), 1.0)
    np.testing.assert_array_equal(order.trimmed_mean(x.copy(), 1), 1.0)


@for_each("n", [4, 60])
def test_the_midpoint_of_the_largest_floats_does_not_overflow(n):
    x = np.full((n, 2), 3e38, dtype=np.float32)
    np.testing.assert_array_equal(order.median(x.copy()), x[0])


# ---- rows ----------------------------------------------------------------------------------------


def combinations_of(x):
    """Rows made in every way, with the same made on the data."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, len(x)))
    factors = rng.standard_normal(len(x))
    index = np.array([3, 3, 0, 1])
    rows = Rows(x)
    return [
        (rows, x),
        (rows.take(index), x[index]),
        (rows.scaled(factors), factors[:, None] * x),
        (rows.mixed(mix, None), mix @ x),
        (rows.scaled(factors).take(index), (factors[:, None] * x)[index]),
        (rows.take(index).scaled(factors[:4]), factors[:4, None] * x[index]),
        (rows.mixed(mix, None).take(index[1:]), (mix @ x)[index[1:]]),
        (rows.take(index).mixed(mix[:, :4], None), mix[:, :4] @ x[index]),
        (rows.mixed(mix, None).mixed(mix[:, :4], None), mix[:, :4] @ (mix @ x)),
    ]


@for_each("which", range(9))
@for_each("dtype", [np.float32, np.float64])
def test_rows_answer_as_if_the_vectors_had_been_made(which, dtype):
    x = gaussian(4, d=9000).astype(dtype)
    rows, made = combinations_of(x)[which]
    made = made.astype(np.float64)
    v = np.random.default_rng(1).standard_normal(9000).astype(dtype)
    a = np.random.default_rng(2).standard_normal(len(made))
    close = {"rtol": 2e-4, "atol": 2e-2} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-8}
    assert len(rows) == len(made)
    np.testing.assert_allclose(rows.gram, made @ made.T, **close)
    np.testing.assert_allclose(rows.norms, np.linalg.norm(made, axis=1), **close)
    np.testing.assert_allclose(rows.inner(v), made @ v, **close)
    expected = np.linalg.norm(made - v, axis=1)
    np.testing.assert_allclose(rows.distances_to(v), expected, **close)
    np.testing.assert_allclose(rows.combine(a), a @ made, **close)
    sums = rows.by_coordinate(lambda block: block.sum(axis=0))
    np.testing.assert_allclose(sums, made.sum(axis=0), **close)


def test_norms_are_right_at_the_ends_of_float32():
    x = np.array([[3e38, 3e38], [1e-30, 1e-30], [0.0, 0.0], [3.0, 4.0]], dtype=np.float32)
    expected = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(Rows(x).norms, expected, rtol=1e-6)
    v = np.array([3e38, -3e38], dtype=np.float32)
    expected = np.linalg.norm(x.astype(np.float64) - v, axis=1)
    np.testing.assert_allclose(Rows(x).distances_to(v), expected, rtol=1e-6)
    np.testing.assert_allclose(Rows(x).inner(v), x.astype(np.float64) @ v, rtol=1e-6)


@for_each("length", [1e-44, 1e-38, 1e38])
def test_vectors_of_any_length_can_be_brought_to_length_one(length):
    x = np.array([[length, 0.0], [0.0, 1.0]], dtype=np.float32)
    factors = 1.0 / Rows(x).norms
    rows = Rows(x).scaled(factors)
    np.testing.assert_allclose(rows.combine(np.ones(2)), (1, 1), rtol=1e-6)
    sums = rows.by_coordinate(lambda block: block.sum(axis=0))
    np.testing.assert_allclose(sums, (1, 1), rtol=1e-6)
    np.testing.assert_allclose(rows.mixed(np.ones((1, 2)), None).combine(np.ones(1)), (1, 1), 1e-6)
    mixed = rows.mixed(np.ones((1, 2)), None).by_coordinate(lambda block: block[0].copy())
    np.testing.assert_allclose(mixed, (1, 1), rtol=1e-6)
