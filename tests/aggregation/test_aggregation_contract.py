"""What every rule and every chain with a configuration must do, new ones without a new test."""

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from aggregation_members import (
    AGGREGATORS,
    FOLDING,
    MEMBERS,
    PRE_AGGREGATIONS,
    call,
    configuration,
    gaussian,
    member,
    reference_of,
    tolerant,
)
from many_cases import for_each

from fl.aggregation import Mean, PreAggregated
from fl.errors import ConfigError


def test_every_rule_asked_for_has_a_configuration():
    asked = (
        "mean median trimmed_mean meamed geometric_median krum multi_krum bulyan centered_clipping "
        "caf mda smea monna faba norm_clipping fltrust sign_majority flag"
    )
    assert set(asked.split()) <= set(AGGREGATORS)
    assert set(["nnm", "bucketing", "resampling", "arc"]) <= set(PRE_AGGREGATIONS)


@pytest.mark.parametrize(
    ("group", "name"),
    [("aggregator", name) for name in MEMBERS]
    + [("preaggregation", name) for name in PRE_AGGREGATIONS],
)
def test_a_configuration_names_every_argument_with_its_default(group, name):
    written = configuration(group, name)
    made = member(group, name)
    keys = {key for key in written if not key.startswith("_")}
    given = {"f"} if group == "preaggregation" else set()  # by the chain
    assert keys == {field.name for field in fields(made)} - given


def test_a_preset_is_what_its_parts_are_on_the_command_line():
    assert member("aggregator", "nnm_krum") == member("aggregator", "nnm_krum_of_parts")


@for_each("dtype", [np.float32, np.float64])
def test_the_result_has_the_length_and_type_of_the_inputs(aggregator, dtype):
    x = gaussian(0).astype(dtype)
    result = call(tolerant(aggregator, 11), x)
    assert result.shape == (7,)
    assert result.dtype == dtype
    assert np.isfinite(result).all()


def test_the_inputs_are_not_written_to(aggregator):
    x = gaussian(1)
    before = x.copy()
    x.flags.writeable = False
    reference = reference_of(aggregator, x)
    if reference is not None:
        reference.flags.writeable = False
    call(tolerant(aggregator, 11), x, reference)
    np.testing.assert_array_equal(x, before)


def test_the_result_is_not_a_view_of_an_input(aggregator):
    x = gaussian(1)
    reference = reference_of(aggregator, x)
    result = call(tolerant(aggregator, 11), x, reference)
    assert not np.shares_memory(result, x)
    assert reference is None or not np.shares_memory(result, reference)


def test_one_seed_gives_one_result(aggregator):
    x, rule = gaussian(2), tolerant(aggregator, 11)
    np.testing.assert_array_equal(call(rule, x, seed=5), call(rule, x, seed=5))


def test_rows_may_lie_anywhere_in_memory(aggregator):
    x, rule = gaussian(3), tolerant(aggregator, 11)
    spread = np.zeros((22, 14))
    spread[::2, ::2] = x
    expected = call(rule, x)
    np.testing.assert_allclose(call(rule, spread[::2, ::2]), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(call(rule, np.asfortranarray(x)), expected, rtol=1e-12, atol=1e-12)


def test_float32_gives_what_float64_gives(aggregator):
    # long enough that float32 products are used
    x = gaussian(4, d=20_000).astype(np.float32)
    rule = tolerant(aggregator, 11)
    wide = call(rule, x.astype(np.float64), reference_of(rule, x))
    np.testing.assert_allclose(call(rule, x), wide, rtol=2e-4, atol=2e-5)


def test_less_memory_is_taken_than_one_copy_of_the_matrix(aggregator):
    n, d = 24, 300_000
    x = gaussian(5, n=n, d=d).astype(np.float32)
    x[0] = x[1]  # copies are handled apart
    rule, reference = tolerant(aggregator, n), reference_of(aggregator, x)
    tracemalloc.start()
    call(rule, x, reference)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * x.nbytes


def test_weights_count_only_where_the_rule_says_so(aggregator, aggregator_name):
    x, rule = gaussian(6), tolerant(aggregator, 11)
    last = rule.rule if isinstance(rule, PreAggregated) else rule
    weights = np.arange(1, 12)
    same = np.allclose(call(rule, x), call(rule, x, weights=weights), rtol=1e-12, atol=0)
    assert same != getattr(last, "weighted", False), aggregator_name


@for_each("f", [-1, 1.5, True, "1"])
def test_an_f_that_is_no_count_is_refused(aggregator, f):
    if "f" in {field.name for field in fields(aggregator)}:
        with pytest.raises(ConfigError, match="must be an integer of at least 0"):
            aggregator.tolerating(f)


def test_what_is_no_matrix_of_floats_is_refused(aggregator):
    for x, match in [
        ([[1.0, 2.0]], "list"),
        (np.ones((3, 2), dtype=np.int64), "int64"),
        (np.ones(3), "shape"),
        (np.ones((0, 3)), "shape"),
        (np.ones((3, 0)), "shape"),
    ]:
        with pytest.raises(ConfigError, match=match):
            aggregator(x)


@for_each("bad", [np.nan, np.inf, -np.inf])
def test_a_result_is_never_anything_but_finite_numbers(aggregator, bad):
    """Without the guard, a rule may cope or raise, but not return what is no number."""
    x, rule = gaussian(7), tolerant(aggregator, 11)
    x[5, 3] = bad
    try:
        assert np.isfinite(call(rule, x)).all()
    except ConfigError as error:
        if "Guard" not in str(error):
            raise


@for_each("value", [1e30, 3e38, -3e38, 1e-30, 1e-44])
def test_numbers_at_the_ends_of_float32_do_no_harm(aggregator, value):
    x = gaussian(8, d=10_000).astype(np.float32)
    rule = tolerant(aggregator, 11)
    x[4] = value
    assert np.isfinite(call(rule, x, reference_of(rule, gaussian(8, d=10_000)))).all()


def test_a_reference_of_another_length_is_refused(aggregator):
    with pytest.raises(ConfigError, match="reference of shape"):
        call(tolerant(aggregator, 11), gaussian(0), np.ones(3))


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([1.0, 2.0], "shape"),
        ([1.0, -1.0, 1.0], "not negative"),
        ([0.0, 0.0, 0.0], "no weight is positive"),
        ([1.0, np.nan, 1.0], "finite"),
    ],
)
def test_impossible_weights_are_refused(weights, match):
    with pytest.raises(ConfigError, match=match):
        Mean()(np.ones((3, 2)), weights=weights)


def test_weights_may_be_as_large_as_floats_are():
    x = np.array([[1.0], [3.0], [100.0]])
    result = Mean()(x, weights=[1e308, 1e308, 0.0])
    np.testing.assert_allclose(result, [2.0])


# ---- one vector after the other ------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDING)
@for_each("weights", [[1] * 6, [5, 0, 1, 100, 3, 7]])
def test_vectors_one_after_the_other_give_what_they_give_together(name, weights):
    x = gaussian(5, n=6, d=20_000).astype(np.float32)
    rule = tolerant(member("aggregator", name), 6)
    fold = rule.fold(20_000)
    for row, weight in zip(x, weights, strict=True):
        fold.add(row, weight)
    expected = call(rule, x.astype(np.float64), weights=weights)
    np.testing.assert_allclose(fold.result(), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_takes_vectors_one_after_the_other():
    assert "mean" in FOLDING


def test_a_mean_without_weight_or_too_large_is_refused():
    fold = Mean().fold(2)
    fold.add(np.ones(2, np.float32), 0)
    with pytest.raises(ConfigError, match="no weight is positive"):
        fold.result()
    fold.add(np.full(2, 3e38, np.float32), 1)
    with np.errstate(over="ignore"):
        fold.add(np.full(2, -3e38, np.float32), 1)
    with pytest.raises(ConfigError, match="the result is not finite"):
        fold.result()
