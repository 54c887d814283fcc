"""The bounds on n and f: kept where they are stated, and stated where they are broken."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
from aggregation_members import AGGREGATORS, PRE_AGGREGATIONS, call, gaussian, member
from scipy.stats import hypergeom

from fl.aggregation import (
    ARC,
    CAF,
    NNM,
    SMEA,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clipping,
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
    PreAggregated,
    Resampling,
    SignMajority,
    TrimmedMean,
)
from fl.aggregation.tolerance import chance_of_more
from fl.errors import ConfigError

# n >= factor f + constant
BOUNDS = {
    "trimmed_mean": (2, 1),
    "meamed": (2, 1),
    "caf": (2, 1),
    "mda": (2, 1),
    "smea": (2, 1),
    "monna": (2, 1),
    "faba": (2, 1),
    "norm_elimination": (2, 1),
    "krum": (2, 3),
    "multi_krum": (2, 3),
    "bulyan": (4, 3),
    "nnm_median": (2, 1),
    "nnm_geometric_median": (2, 1),
    "nnm_trimmed_mean": (2, 1),
    "nnm_krum": (2, 3),
    "nnm_krum_of_parts": (2, 3),
    "arc_nnm_trimmed_mean": (2, 1),
    "arc_nnm_geometric_median": (2, 1),
    "clipping_trimmed_mean": (2, 1),
    "resampling_trimmed_mean": (4, 1),  # s = 2: each Byzantine vector reaches two
}
# They take any n: what f can do to them is no condition on n, or they have no f.
UNBOUNDED = {
    "mean",
    "sender_mean",
    "median",
    "geometric_median",
    "centered_clipping",
    "norm_clipping",
    "fltrust",
    "sign_majority",
    "flag",
    "flag_repo",
    "bucketing_median",
    "bucketing_geometric_median",
    "bucketing_centered_clipping",
}


def test_every_rule_has_its_bound_on_record():
    assert set(AGGREGATORS) == set(BOUNDS) | UNBOUNDED | {"bucketing_krum"}


@pytest.mark.parametrize("f", [1, 2, 3])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_bound_is_kept_and_stated(name, f):
    factor, constant = BOUNDS[name]
    rule = member("aggregator", name).tolerating(f)
    least = factor * f + constant
    assert np.isfinite(call(rule, gaussian(0, n=least))).all()
    with pytest.raises(ConfigError, match=rf"n={least - 1} vectors.*needs n >= \d f \+ \d") as info:
        call(rule, gaussian(0, n=least - 1))
    assert f"at least {least} vectors" in str(info.value) or name.startswith("resampling")


@pytest.mark.parametrize("name", sorted(UNBOUNDED))
def test_rules_without_a_bound_take_a_single_vector(name):
    rule = member("aggregator", name).tolerating(0)
    assert np.isfinite(call(rule, gaussian(0, n=1))).all()


def test_the_error_names_the_largest_f_that_would_do():
    with pytest.raises(ConfigError, match="lower f to 2 or less"):
        TrimmedMean(3)(gaussian(0, n=6))
    with pytest.raises(ConfigError, match="no f is small enough"):
        Krum(0)(gaussian(0, n=2))
    with pytest.raises(ConfigError, match="lower f to 1 or less, or aggregate at least 11"):
        Bulyan(2)(gaussian(0, n=10))


def test_krum_can_be_told_to_accept_less_than_its_guarantee_asks():
    x = gaussian(0, n=5)
    with pytest.raises(ConfigError, match="or bound: 2f\\+1"):
        Krum(2)(x)
    assert np.isfinite(Krum(2, bound="2f+1")(x)).all()
    with pytest.raises(ConfigError, match=r"n >= 2 f \+ 1"):
        Krum(3, bound="2f+1")(x)


def test_buckets_count_as_vectors():
    """f < n / (2 s): a Byzantine vector spoils one bucket."""
    chain = PreAggregated([Bucketing(2)], TrimmedMean(), f=2)
    assert np.isfinite(call(chain, gaussian(0, n=9))).all()  # 5 buckets
    with pytest.raises(ConfigError, match=r"Bucketing > TrimmedMean with f=2: .* n=4 vectors"):
        call(chain, gaussian(0, n=8))
    krum = member("aggregator", "bucketing_krum").tolerating(1)
    assert np.isfinite(call(krum, gaussian(0, n=9))).all()
    with pytest.raises(ConfigError, match="n=4 vectors"):
        call(krum, gaussian(0, n=8))


def test_a_chain_gives_each_part_the_f_that_reaches_it():
    chain = PreAggregated([NNM(), Resampling(3), Bucketing(2), ARC()], TrimmedMean(17), f=2)
    pre, rule = chain.parts()
    assert pre[0].f == 2
    assert pre[3].f == 6
    assert rule.f == 6
    assert chain.tolerating(1).parts()[1].f == 3


def test_tolerating_leaves_rules_without_an_f_alone():
    for rule in (Median(), GeometricMedian(), SignMajority(), CenteredClipping(), FlagAggregator()):
        assert rule.tolerating(3) == rule
    assert Krum(1, power=1).tolerating(3) == Krum(3, power=1)


def test_a_rule_says_how_many_byzantine_vectors_it_tolerates():
    for rule in (Median(), GeometricMedian(), SignMajority(), CenteredClipping()):
        assert [rule.tolerates(n) for n in (1, 2, 10, 11)] == [0, 0, 4, 5]
    assert [Mean().tolerates(11), FlagAggregator().tolerates(11)] == [0, 0]
    assert [FLTrust().tolerates(11), NormClipping().tolerates(11)] == [10, 10]
    assert Krum(2).tolerates(11) == PreAggregated([NNM()], Median(), f=2).tolerates(11) == 2


def test_smea_refuses_more_subsets_than_it_can_look_at():
    with pytest.raises(ConfigError, match="30045015 subsets"):
        SMEA(10)(gaussian(0, n=30))
    with pytest.raises(ConfigError, match="max_subsets=3"):
        SMEA(1, max_subsets=3)(gaussian(0, n=4))


def test_the_own_vector_must_be_one_of_them():
    with pytest.raises(ConfigError, match="pivot=4 of 4 vectors"):
        NearestNeighbourAveraging(1, pivot=4)(gaussian(0, n=4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Krum(1, neighbours="n"), "neighbours"),
        (lambda: Krum(1, power=3), "power"),
        (lambda: Krum(1, bound="n"), "bound"),
        (lambda: MultiKrum(1, m="n"), "m='n'"),
        (lambda: Bulyan(1, selection="none"), "selection"),
        (lambda: Median(even="upper"), "even"),
        (lambda: MeaMed(1, median="mean"), "median"),
        (lambda: GeometricMedian(nu=0.0), "nu=0.0"),
        (lambda: GeometricMedian(iterations=0), "iterations=0"),
        (lambda: GeometricMedian(start="x"), "start"),
        (lambda: CenteredClipping(tau=-1.0), "tau=-1.0"),
        (lambda: CenteredClipping(tau=float("nan")), "tau=nan"),
        (lambda: CAF(1, maximum="none"), "maximum"),
        (lambda: NormClipping(0.0), "max_norm=0.0"),
        (lambda: Clipping(-1.0), "max_norm=-1.0"),
        (lambda: SignMajority(tie=2), "tie=2"),
        (lambda: FlagAggregator(components=0), "components=0"),
        (lambda: FlagAggregator(lam=-1.0), "lam=-1.0"),
        (lambda: FlagAggregator(form="x"), "form"),
        (lambda: Bucketing(0), "s=0"),
        (lambda: Resampling(0), "s=0"),
        (lambda: Resampling(2, draw="x"), "draw"),
        (lambda: NearestNeighbourAveraging(1, pivot=-1), "pivot=-1"),
        (lambda: PreAggregated([Median()], Median()), "no pre-aggregation"),
        (lambda: PreAggregated([NNM()], NNM()), "no aggregation rule"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_its_value(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_pre_aggregations_state_their_bound(pre_aggregation, pre_aggregation_name):
    if "f" not in vars(pre_aggregation):
        return
    assert pre_aggregation_name in ("nnm", "arc")
    pre_aggregation.tolerating(2).check(5)
    with pytest.raises(ConfigError, match=r"needs n >= 2 f \+ 1"):
        pre_aggregation.tolerating(2).check(4)


def test_every_pre_aggregation_says_how_far_a_byzantine_vector_reaches():
    reach = {name: member("preaggregation", name).reach(3) for name in PRE_AGGREGATIONS}
    assert reach == {"arc": 3, "bucketing": 3, "clipping": 3, "nnm": 3, "resampling": 6}


def test_a_rule_is_checked_without_vectors_as_with_them(aggregator):
    """`check(n)` raises for exactly those n that aggregating n vectors raises for."""
    rule = aggregator.tolerating(2)

    def refusal(attempt):
        try:
            attempt()
        except ConfigError as error:
            return str(error)
        return None

    for n in range(1, 16):
        x = gaussian(n, n=n)
        assert refusal(partial(rule.check, n)) == refusal(partial(call, rule, x)), n


@pytest.mark.parametrize(
    ("rule", "n", "f", "match"),
    [
        (Median(), 15, 4, "Median: n=8 vectors, of which f=4 may be Byzantine: it tolerates 3"),
        (GeometricMedian(), 15, 4, "GeometricMedian: n=8 vectors, of which f=4"),
        (Median(), 4, 1, "Median: n=2 vectors, of which f=1 may be Byzantine: it tolerates 0"),
    ],
)
def test_a_chain_is_refused_if_more_reaches_a_rule_than_it_tolerates(rule, n, f, match):
    with pytest.raises(ConfigError, match=match):
        PreAggregated([Bucketing(2)], rule, f).check(n)
    PreAggregated([Bucketing(2)], rule, f - 1).check(n)
    PreAggregated([Bucketing(2)], Mean(), f).check(n)  # promises nothing


def test_how_often_more_are_drawn_than_a_rule_bears_is_counted_over_all_draws():
    n, byzantine = 7, 3
    for m in range(1, n + 1):
        draws = list(combinations(range(n), m))
        for f in range(m + 1):
            more = sum(sum(i < byzantine for i in drawn) > f for drawn in draws)
            assert chance_of_more(f, m, byzantine, n) == pytest.approx(more / len(draws))
    assert chance_of_more(3, 10, 20, 100) == pytest.approx(hypergeom.sf(3, 100, 20, 10))
