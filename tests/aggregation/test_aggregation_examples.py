"""The worked examples of the method reference, section A, and consequences of the formulas."""

from types import SimpleNamespace

import numpy as np
import pytest
from aggregation_members import F5, MU, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from many_cases import for_each

from fl.aggregation import (
    ARC,
    CAF,
    FABA,
    MDA,
    NNM,
    SMEA,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clipping,
    Context,
    FlagAggregator,
    FLTrust,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MultiKrum,
    NearestNeighbourAveraging,
    NormClipping,
    NormElimination,
    PreAggregated,
    Resampling,
    Rows,
    SignMajority,
    TrimmedMean,
)
from fl.aggregation.flag import flag_median
from fl.aggregation.smea import _centred_subsets, _leading_eigenvalues
from fl.errors import ConfigError

NO_CONTEXT = Context(None, None)
BYZFL_KRUM = {"neighbours": "n-f-1", "bound": "2f+1"}


def close(result, expected, digits=6):
    np.testing.assert_allclose(result, expected, atol=0.6 * 10**-digits, rtol=0)


def column(*numbers):
    return np.array(numbers, dtype=float)[:, None]


def rows_of(rows):
    """The vectors a pre-aggregation makes."""
    return np.array([rows.combine(unit) for unit in np.eye(len(rows))])


# ---- A1 to A4: coordinate by coordinate ----------------------------------------------------------


def test_mean():
    close(Mean()(F5), (3.7, 0.5))
    close(Mean()(F5, weights=[1, 1, 1, 1, 0]), MU)
    close(Mean(weighted=False)(F5, weights=[1, 1, 1, 1, 0]), (3.7, 0.5))


def test_moving_an_input_moves_the_mean_by_an_nth():
    moved = F5.copy()
    moved[4] += 35.0
    close(Mean()(moved) - Mean()(F5), (7.0, 7.0))


def test_median():
    close(Median()(F5), (2.5, 2.0))
    close(Median()(F5[:4]), (2.25, 2.75))
    close(Median(even="lower")(F5[:4]), (2.0, 2.0))
    close(Median()(F5[:1]), F5[0])
    close(Median()(F5[:2]), (1.5, 1.5))


@given(seed=st.integers(0, 1000), n=st.integers(1, 12))
@settings(max_examples=30)
def test_the_median_rises_with_every_input(seed, n):
    x = gaussian(seed, n, 5)
    raised = x.copy()
    raised[seed % n] += 1.0
    assert (Median()(raised) >= Median()(x)).all()


def test_trimmed_mean():
    close(TrimmedMean(1)(F5), (2.5, 2.166667))
    close(TrimmedMean(2)(F5), Median()(F5))


def test_outliers_of_1e20_leave_the_trimmed_mean_exact():
    """It is a sum of what stays, not the total less what goes."""
    close(TrimmedMean(1)(column(1e20, 1.0, -1e20)), [1.0])
    close(MeaMed(2)(column(1e20, 1.0, 2.0, 4.0, -1e20)), [7 / 3])


def test_meamed():
    close(MeaMed(1)(F5), (2.125, 2.625))


def test_meamed_counts_copies_on_one_side_as_often_as_they_are_there():
    # The median is 0; 0, 0.5 and 0.9 are nearer to it than -1, which is there three times.
    x = column(-1, -1, -1, 0, 0.5, 0.9, 7)
    close(MeaMed(3)(x), [(0 + 0.5 + 0.9 - 1) / 4])


def test_meamed_with_the_lower_median_differs_for_an_even_number():
    x = column(0.0, 1.0, 2.0, 2.5)
    close(MeaMed(1, median="median")(x), [(1 + 2 + 2.5) / 3])  # nearest to 1.5
    close(MeaMed(1, median="lower-median")(x), [(0 + 1 + 2) / 3])  # nearest to 1


# ---- A5: geometric median ------------------------------------------------------------------------

FROM_ZERO = [(2.357069, 1.658433), (2.215238, 1.828836), (2.193806, 1.921738)]
FROM_MEAN = [(2.565529, 1.694430), (2.279954, 1.906944), (2.225480, 1.986000), (2.219389, 2.029404)]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_geometric_median_from_zero(steps):
    rule = GeometricMedian(start="zero", nu=0.1, iterations=steps, tolerance=0, weighted=False)
    close(rule(F5), FROM_ZERO[steps - 1])


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_geometric_median_from_the_mean(steps):
    rule = GeometricMedian(iterations=steps, tolerance=0, start="mean")
    close(rule(F5), FROM_MEAN[steps - 1])


@pytest.mark.parametrize("start", ["mean", "half", "zero"])
def test_the_geometric_median_converges_from_every_start(start):
    rule = GeometricMedian(nu=1e-9, iterations=5000, tolerance=0, start=start)
    close(rule(F5), (2.254109, 2.126647))


def test_geometric_median_of_one_input_is_the_input():
    close(GeometricMedian()(F5[:1]), F5[0])


def test_geometric_median_of_collinear_points_is_the_middle_one():
    line = np.outer([0.0, 1.0, 2.5, 7.0, 40.0], [1.0, -2.0])
    rule = GeometricMedian(nu=1e-6, iterations=20_000, tolerance=0)
    close(rule(line), line[2], digits=3)


def test_a_huge_nu_makes_the_geometric_median_the_weighted_mean():
    weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    rule = GeometricMedian(nu=1e9, iterations=1, start="zero", weighted=True)
    close(rule(F5, weights=weights), weights @ F5 / 15)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_weiszfeld_lowers_the_smoothed_objective(seed):
    x, nu = gaussian(seed), 1.0  # wide enough that both branches of the objective are met
    a = np.random.default_rng(seed).uniform(0.1, 1.0, 11)
    a /= a.sum()

    def objective(z):
        r = np.linalg.norm(x - z, axis=1)
        return a @ np.where(r >= nu, r, r * r / (2 * nu) + nu / 2)

    values = [
        objective(GeometricMedian(nu=nu, iterations=t, tolerance=0, weighted=True)(x, weights=a))
        for t in range(1, 8)
    ]
    assert (np.diff(values) <= 1e-12).all()


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_weiszfeld_ends_where_the_pulls_balance(seed):
    x, nu = gaussian(seed), 0.5
    z = GeometricMedian(nu=nu, iterations=3000, tolerance=0)(x)
    r = np.linalg.norm(x - z, axis=1)
    np.testing.assert_allclose(((z - x) / np.maximum(nu, r)[:, None]).sum(axis=0), 0, atol=1e-6)


def test_the_geometric_median_stops_when_the_objective_does():
    early = GeometricMedian(iterations=1000, tolerance=1e-3)(F5)
    late = GeometricMedian(iterations=1000, tolerance=0)(F5)
    assert np.linalg.norm(early - late) > 1e-3


# ---- A6 to A8: Krum and Bulyan -------------------------------------------------------------------


def test_krum_scores():
    close(
        Krum(1, **BYZFL_KRUM).scores(Rows(F5)) / 3,
        (4.833333, 6.166667, 4.666667, 5.333333, 169.083333),
    )
    np.testing.assert_array_equal(Krum(1).scores(Rows(F5)), (8.25, 9.25, 6.75, 6.75, 326))


def test_krum_takes_the_first_of_equals():
    np.testing.assert_array_equal(Krum(1)(F5), F5[2])
    np.testing.assert_array_equal(Krum(1)(F5[[3, 2, 1, 0, 4]]), F5[3])


def test_krum_definitions_choose_differently():
    """Four of the definitions in circulation, on numbers where each has its own winner."""
    rng = np.random.default_rng(0)
    definitions = [
        {"neighbours": neighbours, "power": power}
        for neighbours in ("n-f-2", "n-f-1", "n-f")
        for power in (1, 2)
    ]
    pairs = {(i, j) for i in range(6) for j in range(i)}
    for _ in range(400):
        x = rng.standard_normal((9, 3))
        chosen = [Krum(2, **definition)(x) for definition in definitions]
        pairs -= {(i, j) for i, j in pairs if not np.array_equal(chosen[i], chosen[j])}
    assert not pairs


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_krum_returns_one_of_its_inputs_unchanged(seed):
    for dtype in (np.float32, np.float64):
        x = gaussian(seed).astype(dtype)
        assert (Krum(2)(x) == x).all(axis=1).any()


def test_krum_with_one_neighbour_returns_one_of_the_nearest_pair():
    x = column(0.0, 5.0, 5.1, 9.0)
    assert Krum(1, bound="2f+1")(x)[0] == 5.0  # k = 4 - 1 - 2


def test_multi_krum():
    close(MultiKrum(1)(F5), (2.75, 3.75))  # n - f - 2 = 2
    for m, expected in [(2, (2.75, 3.75)), (3, (2.166667, 3.166667)), (4, (2.125, 2.625))]:
        close(MultiKrum(1, m=m)(F5), expected)
    close(MultiKrum(1, m="n-f", **BYZFL_KRUM)(F5), (2.125, 2.625))


def test_multi_krum_of_one_is_krum_and_of_all_the_mean():
    x = gaussian(0)
    np.testing.assert_array_equal(MultiKrum(2, m=1)(x), Krum(2)(x))
    close(MultiKrum(2, m=11)(x), x.mean(axis=0), digits=12)
    close(MultiKrum(0, m="n-f")(x), x.mean(axis=0), digits=12)


def test_multi_krum_weighs_the_chosen_by_their_examples_if_told_to():
    weights = np.array([10, 10, 10, 30, 1000])
    close(MultiKrum(1, m=2, weighted=True)(F5, weights=weights), (F5[2] + 3 * F5[3]) / 4)
    close(MultiKrum(1, m=2)(F5, weights=weights), (F5[2] + F5[3]) / 2)
    with pytest.raises(ConfigError, match="weighted: false"):
        MultiKrum(1, m=2, weighted=True)(F5, weights=[1, 1, 0, 0, 1])


def test_multi_krum_refuses_an_m_that_is_no_number_of_vectors():
    with pytest.raises(ConfigError, match="from 1 to n"):
        MultiKrum(1, m=6)(F5)
    with pytest.raises(ConfigError, match="from 1 to n"):
        MultiKrum(1, bound="2f+1")(F5[:3])  # n - f - 2 = 0
    with pytest.raises(ConfigError, match="at least 1"):
        MultiKrum(1, m=0)


Z7 = column(0, 1, 2.2, 3.5, 5, 7, 100)


def test_bulyan():
    assert Bulyan(1).select(Rows(Z7)).tolist() == [2, 3, 1, 4, 0]
    close(Bulyan(1)(Z7), [2.233333])
    close(Krum(1).scores(Rows(Z7)), (43.09, 24.69, 15.81, 22.44, 30.09, 75.29, 36551.09))
    close(Bulyan(1, selection="one-shot")(Z7), [2.233333])


def test_bulyan_in_one_shot_selects_another_set_from_two_clusters():
    """With the larger cluster used up, scores of the rest change, which one shot does not see."""
    rng = np.random.default_rng(3)
    differ = 0
    for _ in range(50):
        x = np.concatenate([rng.normal(0, 1, (7, 2)), rng.normal(3, 0.3, (4, 2))])
        once = set(Bulyan(2, selection="one-shot").select(Rows(x)))
        differ += once != set(Bulyan(2).select(Rows(x)))
    assert differ > 10


# ---- A9: centered clipping -----------------------------------------------------------------------


def test_centered_clipping():
    close(CenteredClipping(2.0, 1)(F5), (1.32132, 0.92968), digits=5)
    close(CenteredClipping(2.0, 3)(F5), (2.331401, 1.990130))


def test_centered_clipping_goes_on_from_its_last_result():
    first = CenteredClipping(2.0, 1)(F5)
    close(CenteredClipping(2.0, 1)(F5, reference=first), (2.033657, 1.579293))
    third = CenteredClipping(2.0, 2)(F5, reference=first)
    close(third, CenteredClipping(2.0, 3)(F5), digits=12)


def test_centered_clipping_that_clips_nothing_is_the_mean_from_anywhere():
    for v in (None, np.array([5.0, -3.0])):
        close(CenteredClipping(1000.0, 1)(F5, reference=v), F5.mean(axis=0), digits=12)


def test_centered_clipping_with_tau_zero_stays():
    v = np.array([5.0, -3.0])
    close(CenteredClipping(0.0, 3)(F5, reference=v), v, digits=12)
    close(CenteredClipping(0.0, 1)(np.tile(v, (3, 1)), reference=v), v, digits=12)


@given(seed=st.integers(0, 1000), tau=st.floats(0.01, 10))
@settings(max_examples=20)
def test_a_step_of_centered_clipping_is_no_longer_than_tau(seed, tau):
    v = np.random.default_rng(seed).standard_normal(7)
    moved = CenteredClipping(tau, 1)(100 * gaussian(seed), reference=v) - v
    assert np.linalg.norm(moved) <= tau * (1 + 1e-12)


def test_self_centered_clipping_follows_the_mixing_weights():
    x, W = gaussian(1, n=4, d=3), np.array([0.4, 0.3, 0.2, 0.1])
    away = x - x[0]
    lengths = np.linalg.norm(away, axis=1)
    expected = x[0] + sum(
        w * a * min(1.0, 1.5 / r) for w, a, r in zip(W[1:], away[1:], lengths[1:], strict=True)
    )
    result = CenteredClipping(1.5, 1, weighted=True)(x, weights=W, reference=x[0])
    close(result, expected, digits=12)


# ---- A10 to A14: filters, subsets, neighbours ----------------------------------------------------


def test_caf_with_the_maximum_over_all():
    close(CAF(1, maximum="all")(F5), (2.100309, 2.588815))


def test_a_far_vector_does_not_stop_caf():
    """Over all vectors, one without weight that is far away would hold the filter for ever."""
    x = F5.copy()
    x[4] = 1e12
    assert np.linalg.norm(CAF(1)(x) - MU) < 0.5
    assert np.linalg.norm(CAF(1, maximum="all")(x) - MU) < 0.5


def test_subset_rules_leave_the_outlier_out():
    for rule in (MDA(1), SMEA(1), FABA(1), NormElimination(1)):
        close(rule(F5), MU, digits=12)


def test_smea_eigenvalues():
    subsets = np.array([[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 3, 4], [0, 2, 3, 4], [1, 2, 3, 4]])
    values = _leading_eigenvalues(_centred_subsets(Rows(F5).gram, subsets)) / 4
    exact = [np.linalg.eigvalsh(np.cov(F5[subset].T, bias=True))[-1] for subset in subsets]
    close(values, exact, digits=12)
    # The reference's figures are good to five digits.
    close(values, (1.684715, 31.697579, 33.080083, 34.977315, 33.186532), digits=5)


def test_monna_averages_around_the_own_vector():
    for own in range(4):
        close(NearestNeighbourAveraging(1, pivot=own)(F5), MU, digits=12)
        close(NearestNeighbourAveraging(1)(F5, reference=F5[own]), MU, digits=12)
    close(NearestNeighbourAveraging(1, pivot=4)(F5), F5[[4, 0, 1, 2]].mean(axis=0), digits=12)


def test_monna_stays_near_the_honest_mean():
    x = gaussian(5, n=10)
    x[:3] = 20.0
    honest = x[3:]
    diameter = max(np.linalg.norm(a - b) for a in honest for b in honest)
    result = NearestNeighbourAveraging(3, pivot=5)(x)
    assert np.linalg.norm(result - honest.mean(axis=0)) <= 2 * 3 / 7 * diameter


def test_faba_removes_one_after_another():
    close(FABA(2)(column(0, 0.1, 0.2, 5, 6)), [0.1])
    close(FABA(2)(column(0, 0, 10, 10, 10)), [10.0])


def test_faba_computes_the_mean_anew_after_each_removal():
    # The mean of all is 5: -8 and 20 are farthest from it. Without 20 the mean is 1.25, and 8 and
    # -8 are 6.75 and 9.25 from it; the farthest two at once would be 20 and -8 as well. Move one:
    x = column(20.0, 8.0, 3.0, 2.0, -6.0)  # mean 5.4; distances 14.6, 2.6, 2.4, 3.4, 11.4
    close(FABA(2)(x), [np.mean([8.0, 3.0, 2.0])])
    x = column(100.0, 10.0, 0.0, 0.5, 1.0)  # mean 22.3: 0 is second farthest; then 10 is
    close(FABA(2)(x), [0.5])


# ---- A15 to A17 ----------------------------------------------------------------------------------


def test_norm_clipping():
    clipped = rows_of(Clipping(3.0).transform(Rows(F5), NO_CONTEXT))
    close(
        clipped,
        [(1, 2), (2, 1), (1.952374, 2.277770), (1.589997, 2.543995), (2.342606, -1.874085)],
    )
    close(np.linalg.norm(clipped, axis=1), (2.236068, 2.236068, 3, 3, 3))
    close(NormClipping(3.0)(F5), (1.776995, 1.189536))


def test_clipping_to_infinity_changes_nothing_and_zero_stays_zero():
    close(rows_of(Clipping(np.inf).transform(Rows(F5), NO_CONTEXT)), F5, digits=12)
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    close(rows_of(Clipping(1.0).transform(Rows(x), NO_CONTEXT)), [(0, 0), (0.6, 0.8)], digits=12)


def test_norm_clipping_can_weigh_by_examples():
    result = NormClipping(3.0, weighted=True)(F5, weights=[1, 0, 0, 0, 0])
    close(result, F5[0], digits=12)


def test_fltrust():
    g0 = np.array([2.0, 3.0])
    cosines = F5 @ g0 / np.linalg.norm(F5, axis=1) / np.sqrt(13)
    close(cosines, (0.992278, 0.868243, 0.992734, 0.999568, -0.086630))
    close(FLTrust()(F5, reference=g0), (2.242388, 2.692527))


def test_fltrust_returns_the_trusted_update_if_all_point_there():
    g0 = np.array([2.0, 3.0])
    close(FLTrust()(np.outer([0.1, 5.0, 1e6], g0), reference=g0), g0, digits=12)


def test_fltrust_gives_nothing_to_what_points_away_or_nowhere():
    g0 = np.array([2.0, 3.0])
    x = np.array([[-2.0, -3.0], [-1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(FLTrust()(x, reference=g0), 0)
    close(FLTrust()(np.vstack([x, g0]), reference=g0), g0, digits=12)


def test_fltrust_needs_a_trusted_update():
    with pytest.raises(ConfigError, match="no trusted update"):
        FLTrust()(F5)
    with pytest.raises(ConfigError, match="not finite"):
        FLTrust()(F5, reference=np.array([np.nan, 1.0]))


def test_sign_majority():
    close(SignMajority()(F5), (1, 1))
    tie = np.array([[1.0, -2.0, 0.0], [-1.0, -3.0, 0.0]])
    for value in (-1, 0, 1):
        np.testing.assert_array_equal(SignMajority(tie=value)(tie), (value, -1, value))


def test_the_vote_of_more_than_127_clients_does_not_overflow():
    np.testing.assert_array_equal(SignMajority()(np.ones((200, 2))), 1)


# ---- A18 to A21: pre-aggregations ----------------------------------------------------------------


def test_nnm():
    mixed = rows_of(NNM(1).transform(Rows(F5), NO_CONTEXT))
    close(mixed[:4], np.tile(MU, (4, 1)), digits=12)
    close(mixed[4], (4, -0.375), digits=12)
    for rule in (Median(), TrimmedMean(), Krum()):
        close(PreAggregated([NNM()], rule, f=1)(F5), MU, digits=12)


def test_bucketing():
    identity = SimpleNamespace(permutation=np.arange)  # the groups of the example
    buckets = Bucketing(2).transform(Rows(F5), Context(identity, None))
    close(rows_of(buckets), [(1.5, 1.5), (2.75, 3.75), (10, -8)])
    close(Median().aggregate(buckets, NO_CONTEXT), (2.75, 1.5))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 9])
def test_buckets_contain_each_input_once(s, rng):
    weights = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    buckets = Bucketing(s).transform(Rows(F5, weights), Context(rng, None))
    assert len(buckets) == -(-5 // s)
    sizes = [min(s, 5 - s * i) for i in range(len(buckets))]
    close(np.array(sizes) @ rows_of(buckets), F5.sum(axis=0), digits=12)
    np.testing.assert_allclose(buckets.weights.sum() * 5.0, weights.sum())
    if s == 1:
        close(np.sort(rows_of(buckets), axis=0), np.sort(F5, axis=0), digits=12)
    if s >= 5:
        close(rows_of(buckets)[0], F5.mean(axis=0), digits=12)


@pytest.mark.parametrize("pre", [Bucketing(2), Resampling(2)])
def test_the_examples_of_a_group_are_those_of_its_members(pre, rng):
    weights = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    # vectors that are their own weights: a group's mean tells whose it is
    groups = pre.transform(Rows(weights[:, None], weights), Context(rng, None))
    sizes = [2, 2, 1] if isinstance(pre, Bucketing) else 1
    expected = rows_of(groups)[:, 0] * sizes
    np.testing.assert_allclose(groups.weights * 5.0, expected)


@pytest.mark.parametrize("draw", ["shuffle", "permutations"])
@for_each("s", [1, 2, 5])
def test_resampling_uses_each_input_s_times(draw, s, rng):
    x = gaussian(0)
    new = Resampling(s, draw=draw).transform(Rows(x), Context(rng, None))
    assert len(new) == 11
    close(rows_of(new).mean(axis=0), x.mean(axis=0), digits=12)
    # how often each input is used, read off inputs that are unit vectors
    used = rows_of(Resampling(s, draw=draw).transform(Rows(np.eye(11)), Context(rng, None)))
    close(used.sum(axis=0) * s, np.full(11, s), digits=12)
    close(used.sum(axis=1), np.ones(11), digits=12)


def test_pre_aggregations_that_draw_need_a_generator():
    for pre in (Bucketing(), Resampling()):
        with pytest.raises(ConfigError, match="draws at random"):
            PreAggregated([pre], Median())(F5)


def test_groups_change_with_the_generator_alone():
    chain = PreAggregated([Bucketing()], Median())
    results = {tuple(chain(F5, rng=np.random.default_rng(seed))) for seed in range(20)}
    assert len(results) > 1


def test_arc():
    clipped = rows_of(ARC(1).transform(Rows(F5), NO_CONTEXT))
    close(clipped[:4], F5[:4], digits=12)
    close(clipped[4], (3.683351, -2.946681))
    close(rows_of(ARC(0).transform(Rows(F5), NO_CONTEXT)), F5, digits=12)


@pytest.mark.parametrize(("n", "f"), [(242, 33), (49, 4), (11, 5), (10, 3), (5, 2)])
def test_arc_clips_exactly_k_of_different_lengths(n, f):
    """k = floor(2 f (n - f) / n) in integers; for (242, 33) floats lose one."""
    x = np.arange(1.0, n + 1)[:, None]
    clipped = rows_of(ARC(f).transform(Rows(x), NO_CONTEXT))
    k = (2 * f * (n - f)) // n
    assert (clipped != x).sum() == k
    assert clipped.max() == pytest.approx(n - k)


# ---- A22: Flag Aggregator ------------------------------------------------------------------------


def unit_products(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize(
    ("steps", "y", "objective"),
    [
        (1, (0.653308, 0.757092), 1.786123),
        (2, (0.648436, 0.761269), 1.779464),
        (5, (0.648339, 0.761352), None),
        (50, (0.646322, 0.763065), 1.779433),
        (500, (0.530286, 0.847819), 1.759078),
    ],
)
def test_flag_of_one_dimension(steps, y, objective):
    rule = FlagAggregator(components=1, iterations=steps, tolerance=0)
    y = np.array(y)
    np.testing.assert_allclose(rule(F5), y * (y @ F5.mean(axis=0)), atol=2e-5)
    if objective is not None:
        fit = flag_median(unit_products(F5), 1, 0.0, 1e-7, steps, 0.0)
        close(fit.objective, objective)


def test_flag_first_step_result():
    close(FlagAggregator(components=1, iterations=1)(F5), (1.826508, 2.116668))


F5_3 = np.column_stack([F5, [0.0, 0.5, 0.0, 0.5, 3.0]])


def test_flag_of_two_dimensions():
    fit = flag_median(unit_products(F5_3), 2, 0.0, 1e-7, 3000, 0.0)
    close(fit.objective, 0.212996, digits=5)
    close(fit.explained, (1, 0.994366, 0.996724, 0.993626, 1), digits=5)
    rule = FlagAggregator(components=2, iterations=3000, tolerance=0)
    close(rule(F5_3), (3.711822, 0.494132, 0.744992), digits=5)
    repo = FlagAggregator(components=2, iterations=3000, tolerance=0, form="repo")
    close(repo(F5_3), (1.639219, 1.157562, 0.228794), digits=5)


def test_flag_with_all_dimensions_is_the_mean():
    x = gaussian(0)
    close(FlagAggregator(components=7)(x), x.mean(axis=0), digits=9)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    close(FlagAggregator(components=7, form="repo")(x), unit.sum(axis=0) / 7, digits=9)


def test_flag_finds_the_direction_of_collinear_vectors():
    x = np.outer([1.0, 2.0, -3.0], [3.0, 4.0])
    close(FlagAggregator(components=1)(x), x.mean(axis=0), digits=9)


def test_flag_does_not_see_a_reversed_vector():
    """Its blind spot: the subspace has no sign, so -c g is as well explained as g."""
    rng = np.random.default_rng(0)
    x = np.outer(np.ones(5), [1.0, 2.0, 3.0, 4.0]) + 0.01 * rng.standard_normal((5, 4))
    x[4] = -x[4]
    fit = flag_median(unit_products(x), 1, 0.0, 1e-7, 100, 1e-9)
    assert (fit.explained > 0.999).all()
    close(FlagAggregator(components=1)(x), x.mean(axis=0), digits=2)


def test_flag_ignores_zero_vectors_but_counts_them():
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    close(FlagAggregator()(x), x[0] / 2, digits=9)
    np.testing.assert_array_equal(FlagAggregator()(np.zeros((3, 2))), 0)


def test_pairs_change_the_subspace():
    x = gaussian(2)
    without, with_pairs = (FlagAggregator(components=3, lam=lam)(x) for lam in (0.0, 16.0))
    assert np.linalg.norm(without - with_pairs) > 1e-3
