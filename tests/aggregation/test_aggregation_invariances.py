"""The table of invariances, for every rule and chain with a configuration."""

from itertools import combinations

import numpy as np
import pytest
from aggregation_members import (
    AGGREGATORS,
    call,
    gaussian,
    member,
    reference_of,
    tolerant,
    with_outliers,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from many_cases import for_each
from scipy.optimize import nnls
from scipy.stats import ortho_group

from fl.aggregation import MDA, Bulyan, CenteredClipping, GeometricMedian, PreAggregated, Rows

SEEDS = st.integers(0, 10_000)

# Section 0.3 of the method reference: what holds, and what it says does not. Rules it says nothing
# about are added by their formulas.
COORDINATES = {"permutation", "translation", "scaling", "separable"}
DISTANCES = {"permutation", "translation", "scaling", "rotation"}
TABLE = {
    "mean": (COORDINATES | {"rotation"}, set()),
    "median": (COORDINATES, {"rotation"}),
    "trimmed_mean": (COORDINATES, {"rotation"}),
    "meamed": (COORDINATES, {"rotation"}),
    "mda": (DISTANCES, {"separable"}),
    "smea": (DISTANCES, {"separable"}),
    "caf": (DISTANCES, {"separable"}),
    "faba": (DISTANCES, {"separable"}),
    "monna": (DISTANCES, {"separable"}),
    "krum": (DISTANCES, {"separable"}),
    "multi_krum": (DISTANCES, {"separable"}),
    "geometric_median": ({"permutation", "translation", "rotation", "resilient"}, {"separable"}),
    "centered_clipping": ({"permutation", "translation", "rotation"}, {"scaling", "separable"}),
    "norm_clipping": ({"permutation", "rotation"}, {"translation", "scaling", "separable"}),
    "fltrust": ({"permutation", "rotation"}, {"translation", "scaling", "separable"}),
    "flag": ({"permutation", "scaling", "rotation"}, {"translation", "separable"}),
    "flag_repo": ({"permutation", "rotation"}, {"translation", "scaling", "separable"}),
    "sign_majority": ({"permutation", "separable"}, {"translation", "scaling", "rotation"}),
    "sender_mean": ({"permutation", "separable", "scaling"}, set()),  # dense vectors hide the rest
    # Coordinates of vectors that distances selected: neither.
    "bulyan": ({"permutation", "translation", "scaling"}, {"rotation", "separable"}),
    "norm_elimination": ({"permutation", "scaling", "rotation"}, {"translation", "separable"}),
    "nnm_krum": (DISTANCES, {"separable"}),
    "nnm_median": ({"permutation", "translation", "scaling"}, {"rotation", "separable"}),
    "bucketing_median": ({"translation", "scaling", "separable"}, {"permutation", "rotation"}),
    "bucketing_krum": ({"translation", "scaling", "rotation"}, {"permutation", "separable"}),
    "resampling_trimmed_mean": ({"translation", "scaling"}, {"permutation", "rotation"}),
    "arc_nnm_trimmed_mean": ({"permutation", "scaling"}, {"translation", "rotation"}),
    "clipping_trimmed_mean": ({"permutation"}, {"translation", "scaling", "rotation"}),
}
# Rules in which several choices may be equally good, and the first is taken. MDA: subsets of one
# diameter. Bulyan: its last calls of Krum have one neighbour, and the two nearest have each other.
FIRST_OF_EQUALS = ("mda", "bulyan")


def sharp(rule):
    """Centered clipping with a radius that clips the vectors of these tests."""
    if isinstance(rule, CenteredClipping):
        return CenteredClipping(tau=2.0, iterations=rule.iterations)
    return rule


def is_decided(rule, x):
    """Whether no two choices of the rule are equally good."""
    if isinstance(rule, Bulyan):
        D = Rows(x).squared_distances
        left = list(range(len(x)))
        for pick in rule.select(Rows(x)):
            k = max(1, len(left) - rule.f - 2)
            scores = np.sort(np.sort(D[np.ix_(left, left)], axis=1)[:, 1 : k + 1].sum(axis=1))
            if len(left) > 1 and scores[1] - scores[0] < 1e-9:
                return False
            left.remove(pick)
        return True
    if not isinstance(rule, MDA):
        return True
    D = Rows(x).squared_distances
    n = len(x)
    diameters = [
        D[np.ix_(subset, subset)].max() for subset in map(list, combinations(range(n), n - rule.f))
    ]
    return np.sum(np.array(diameters) <= min(diameters) * (1 + 1e-9)) == 1


def permuted(rule, x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    return call(rule, x), call(rule, x[order], reference_of(rule, x))


def translated(rule, x, seed):
    shift = np.random.default_rng(seed).standard_normal(x.shape[1]) * 10
    reference = reference_of(rule, x)
    moved = None if reference is None else reference + shift
    return call(rule, x, reference) + shift, call(rule, x + shift, moved)


def scaled(rule, x, seed):
    factor = np.random.default_rng(seed).uniform(3.0, 50.0)
    reference = reference_of(rule, x)
    # FLTrust has the scale of its reference: what is asked is whether it has that of the vectors.
    other = reference if rule.reference == "trusted-update" else reference_of(rule, factor * x)
    if rule.reference == "last-result":
        other = factor * reference
    return factor * call(rule, x, reference), call(rule, factor * x, other)


def rotated(rule, x, seed):
    Q = ortho_group.rvs(x.shape[1], random_state=seed)
    reference = reference_of(rule, x)
    turned = None if reference is None else reference @ Q
    return call(rule, x, reference) @ Q, call(rule, x @ Q, turned)


def separated(rule, x, seed):
    half = x.shape[1] // 2
    reference = reference_of(rule, x)
    parts = [
        call(rule, x[:, part], None if reference is None else reference[part])
        for part in (slice(None, half), slice(half, None))
    ]
    return np.concatenate(parts), call(rule, x, reference)


PROBES = {
    "permutation": permuted,
    "translation": translated,
    "scaling": scaled,
    "rotation": rotated,
    "separable": separated,
}


@pytest.mark.parametrize("name", TABLE)
def test_a_rule_says_of_itself_what_the_table_says(name):
    holds, does_not = TABLE[name]
    says = member("aggregator", name).invariances
    assert holds <= says
    assert not does_not & says


@pytest.mark.parametrize(
    ("name", "invariance"),
    [
        (name, invariance)
        for name in AGGREGATORS
        for invariance in PROBES
        if invariance in member("aggregator", name).invariances
    ],
)
def test_what_a_rule_says_of_itself_holds(name, invariance):
    n = 15 if name == "bulyan" else 11  # with f = 3 it has two neighbours in each step
    rule = sharp(tolerant(member("aggregator", name), n, most=3 if n == 15 else 2))

    @given(seed=SEEDS, outliers=st.booleans())
    @settings(max_examples=12)
    def holds(seed, outliers):
        x = with_outliers(seed, getattr(rule, "f", 2), n) if outliers else gaussian(seed, n)
        assume(is_decided(rule, x))
        expected, result = PROBES[invariance](rule, x, seed)
        np.testing.assert_allclose(result, expected, rtol=1e-7, atol=1e-7)

    holds()


@pytest.mark.parametrize(
    ("name", "refuted"),
    [
        (name, invariance)
        for name, (_, does_not) in TABLE.items()
        for invariance in sorted(does_not)
    ],
)
def test_what_the_table_denies_does_not_hold(name, refuted):
    rule = sharp(tolerant(member("aggregator", name), 11))
    differ = [
        not np.allclose(*PROBES[refuted](rule, gaussian(seed), seed), rtol=1e-6, atol=1e-6)
        for seed in range(20)
    ]
    assert any(differ)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_the_vote_of_signs_does_not_see_scale(seed):
    rule, x = member("aggregator", "sign_majority"), gaussian(seed)
    np.testing.assert_array_equal(rule(x), rule(x * 17.0))
    np.testing.assert_array_equal(rule(-x), -rule(x))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_fltrust_has_the_scale_of_the_trusted_update_alone(seed):
    rule, x = member("aggregator", "fltrust"), gaussian(seed)
    g0 = np.random.default_rng(seed).standard_normal(7)
    scales = np.random.default_rng(seed + 1).uniform(0.1, 10.0, (11, 1))
    np.testing.assert_allclose(rule(x * scales, reference=g0), rule(x, reference=g0), atol=1e-12)
    np.testing.assert_allclose(rule(x, reference=3 * g0), 3 * rule(x, reference=g0), atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_the_median_from_zero_is_not_equivariant_under_translation(seed):
    x = gaussian(seed)
    rule = GeometricMedian(start="zero", nu=0.1, iterations=3)
    expected, result = translated(rule, x, seed)
    assert "translation" not in rule.invariances
    assert not np.allclose(expected, result)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_tau_and_nu_scale_with_the_vectors(seed):
    x = gaussian(seed)
    clip, clip5 = CenteredClipping(tau=2.0, iterations=3), CenteredClipping(tau=10.0, iterations=3)
    np.testing.assert_allclose(clip5(5 * x), 5 * clip(x), atol=1e-10)
    median, median5 = (GeometricMedian(nu=nu, tolerance=0, iterations=6) for nu in (1.0, 5.0))
    np.testing.assert_allclose(median5(5 * x), 5 * median(x), atol=1e-10)


# ---- equal inputs, no Byzantine input, far inputs, hulls -----------------------------------------

# Their result has a length of its own: of the signs, of the trusted update, of the clipping norm,
# of unit vectors.
NOT_IDEMPOTENT = {
    "sign_majority",
    "fltrust",
    "norm_clipping",
    "clipping_trimmed_mean",
    "flag_repo",
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_equal_inputs_are_returned(name):
    rule = tolerant(member("aggregator", name), 11)
    vector = np.array([0.5, -3.25, 1e-3, 0.0, 2.0])
    result = call(rule, np.tile(vector, (11, 1)))
    assert np.allclose(result, vector, rtol=1e-9, atol=1e-9) == (name not in NOT_IDEMPOTENT)


@pytest.mark.parametrize(
    "name",
    ["trimmed_mean", "meamed", "mda", "smea", "caf", "faba", "monna", "bulyan", "norm_elimination"]
    + [name for name in AGGREGATORS if name.startswith("nnm_")],
)
def test_with_no_byzantine_input_it_is_the_mean(name):
    x = gaussian(3)
    rule = member("aggregator", name).tolerating(0)
    np.testing.assert_allclose(call(rule, x), x.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("name", AGGREGATORS)
@for_each("dtype", [np.float32, np.float64])
def test_f_far_inputs_cannot_move_the_result_far(name, dtype):
    rule = sharp(tolerant(member("aggregator", name), 11))
    f = getattr(rule, "f", 2)
    x = gaussian(9).astype(dtype)
    # the own vector and the last result are honest
    reference = None if rule.reference == "unused" else x[10].copy()
    norms = np.linalg.norm(x, axis=1).max()
    direction = np.random.default_rng(1).standard_normal((f, 7))
    reached = []
    for far in (1e2, 1e6, 1e12):
        for spread in (np.ones((f, 1)), np.arange(1, f + 1)[:, None], -np.ones((f, 1))):
            attacked = x.copy()
            attacked[:f] = far * spread * direction[0] + direction
            reached.append(np.linalg.norm(call(rule, attacked, reference)))
    bounded = max(reached) < 20 * norms
    assert bounded == ("resilient" in rule.invariances)


def test_by_default_no_minority_moves_the_geometric_median_far_whatever_it_says_of_itself():
    x, weights = gaussian(9), np.ones(11)
    weights[:5] = 1e9  # examples that the Byzantine clients claim to have
    for far in (1e2, 1e6, 1e12):
        x[:5] = far
        assert np.linalg.norm(GeometricMedian()(x, weights=weights)) < 50
        assert np.linalg.norm(GeometricMedian(weighted=True)(x, weights=weights)) > 0.9 * far


@pytest.mark.parametrize("start", ["half", "zero"])
def test_the_geometric_median_is_bounded_from_a_start_that_is(start):
    x = gaussian(9)
    rule = GeometricMedian(start=start)
    assert "resilient" in rule.invariances
    for far in (1e2, 1e6, 1e12):
        x[:5] = far
        assert np.linalg.norm(rule(x)) < 50


@pytest.mark.parametrize("name", AGGREGATORS)
@for_each("seed", range(4))
def test_results_lie_in_the_hull_or_box_of_the_inputs(name, seed):
    rule = tolerant(member("aggregator", name), 11)
    x = with_outliers(seed, 2)
    result = call(rule, x)
    if "hull" in rule.invariances:
        # w >= 0 with sum w = 1 and X^T w = result
        system = np.vstack([x.T, 100 * np.ones(11)])
        _, residual = nnls(system, np.append(result, 100.0))
        assert residual < 1e-8
    if "box" in rule.invariances:
        assert (result >= x.min(axis=0) - 1e-12).all()
        assert (result <= x.max(axis=0) + 1e-12).all()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_identical_byzantine_vectors_break_no_rule(name):
    """Many attacks send f copies, so ties are the common case."""
    rule = tolerant(member("aggregator", name), 11)
    x = gaussian(4)
    x[2] = x[7] = x[9] = x.mean(axis=0) + 0.3
    result = call(rule, x)
    assert np.isfinite(result).all()
    if "permutation" in rule.invariances and name not in FIRST_OF_EQUALS:
        _, again = permuted(rule, x, 1)
        np.testing.assert_allclose(again, result, rtol=1e-9, atol=1e-9)


def test_a_chain_keeps_only_what_all_its_parts_keep():
    for name in AGGREGATORS:
        chain = member("aggregator", name)
        if isinstance(chain, PreAggregated):
            pre, rule = chain.parts()
            for invariance in PROBES:
                kept = all(invariance in part.invariances for part in (*pre, rule))
                assert (invariance in chain.invariances) == kept
