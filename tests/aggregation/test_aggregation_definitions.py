"""Every rule against its formula written out on the data, with the definitions of other libraries.

The rules work on inner products and on blocks of coordinates; the derivations here form every
difference, covariance matrix and subset.
"""

from itertools import combinations

import numpy as np
import pytest
from aggregation_members import gaussian, with_outliers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from many_cases import for_each

from fl.aggregation import (
    ARC,
    CAF,
    FABA,
    MDA,
    NNM,
    SMEA,
    Bulyan,
    CenteredClipping,
    FlagAggregator,
    GeometricMedian,
    Krum,
    MeaMed,
    Median,
    MultiKrum,
    NearestNeighbourAveraging,
    PreAggregated,
    Rows,
    TrimmedMean,
)
from fl.aggregation.mda import minimum_diameter_subset
from fl.aggregation.smea import smallest_eigenvalue_subset


def some_vectors(seed):
    """n, f, and n vectors, of which f may be outliers."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 26))
    f = int(rng.integers(0, (n - 1) // 2 + 1))
    d = int(rng.choice([1, 3, 50]))
    x = with_outliers(seed, f, n, d) if rng.random() < 0.5 else gaussian(seed, n, d)
    return n, f, x


def distances(x):
    return np.linalg.norm(x[:, None] - x[None], axis=2)


def agree(result, expected):
    np.testing.assert_allclose(result, expected, rtol=1e-8, atol=1e-8)


SEEDS = st.integers(0, 100_000)
SOME = settings(max_examples=60)


# ---- coordinate by coordinate --------------------------------------------------------------------


@given(seed=SEEDS)
@SOME
def test_median_and_trimmed_mean(seed):
    n, f, x = some_vectors(seed)
    agree(Median()(x), np.median(x, axis=0))
    agree(Median(even="lower")(x), np.sort(x, axis=0)[(n - 1) // 2])
    agree(TrimmedMean(f)(x), np.sort(x, axis=0)[f : n - f].mean(axis=0))


@given(seed=SEEDS)
@SOME
def test_meamed(seed):
    n, f, x = some_vectors(seed)
    for name, median in [
        ("median", np.median(x, axis=0)),
        ("lower-median", np.sort(x, axis=0)[(n - 1) // 2]),
    ]:
        away = np.abs(x - median)
        order = np.argsort(away, axis=0)
        ranked = np.take_along_axis(away, order, axis=0)
        # a tie between the last kept and the first left out is decided by convention
        if f and (ranked[n - f] - ranked[n - f - 1] < 1e-9).any():
            continue
        kept = np.take_along_axis(x, order[: n - f], axis=0)
        agree(MeaMed(f, median=name)(x), kept.mean(axis=0))


# ---- distances -----------------------------------------------------------------------------------


def krum_scores(D, k):
    """Sum of the k smallest entries of each row, the own left out."""
    return np.array([np.sort(np.delete(row, i))[:k].sum() for i, row in enumerate(D)])


@given(seed=SEEDS)
@SOME
def test_krum_and_multi_krum_in_all_definitions(seed):
    n, f, x = some_vectors(seed)
    D = distances(x)
    for neighbours, k in (("n-f-2", n - f - 2), ("n-f-1", n - f - 1), ("n-f", n - f)):
        for power in (1, 2):
            scores = krum_scores(D**power, min(max(1, k), n - 1))
            order = np.argsort(scores, kind="stable")
            gaps = np.diff(scores[order])
            options = {"neighbours": neighbours, "power": power, "bound": "2f+1"}
            np.testing.assert_allclose(Krum(f, **options).scores(Rows(x)), scores, rtol=1e-8)
            if gaps[0] > 1e-9 * scores.max():
                agree(Krum(f, **options)(x), x[order[0]])
            m = n - f
            if m == n or gaps[m - 1] > 1e-9 * scores.max():
                agree(MultiKrum(f, m="n-f", **options)(x), x[order[:m]].mean(axis=0))


@given(seed=SEEDS)
@SOME
def test_bulyan_by_repeated_krum(seed):
    n, _, x = some_vectors(seed)
    f = (n - 3) // 4
    left, chosen = list(range(n)), []
    while len(chosen) < n - 2 * f:
        D = distances(x[left]) ** 2
        scores = krum_scores(D, max(1, len(left) - f - 2)) if len(left) > 1 else np.zeros(1)
        best = int(np.argmin(scores))
        # with one neighbour the nearest two have equal scores: the first, up to rounding
        equal = [i for i in range(len(left)) if scores[i] <= scores[best] * (1 + 1e-9)]
        chosen.append(left.pop(equal[0]))
    assert Bulyan(f).select(Rows(x)).tolist() == chosen
    S = x[chosen]
    away = np.abs(S - np.median(S, axis=0))
    kept = np.take_along_axis(S, np.argsort(away, axis=0)[: n - 4 * f], axis=0)
    agree(Bulyan(f)(x), kept.mean(axis=0))


@given(seed=SEEDS)
@SOME
def test_geometric_median_as_byzfl_and_as_its_authors_compute_it(seed):
    _, _, x = some_vectors(seed)
    for start, nu, steps in (("zero", 0.1, 3), ("mean", 1e-5, 4), ("mean", 0.1, 8)):
        z = np.zeros(x.shape[1]) if start == "zero" else x.mean(axis=0)
        for _ in range(steps):
            beta = 1 / np.maximum(nu, np.linalg.norm(x - z, axis=1))
            z = beta @ x / beta.sum()
        rule = GeometricMedian(nu=nu, iterations=steps, tolerance=0, start=start)
        agree(rule(x), z)


@given(seed=SEEDS)
@SOME
def test_centered_clipping(seed):
    _, _, x = some_vectors(seed)
    v = np.random.default_rng(seed).standard_normal(x.shape[1])
    expected = v
    for _ in range(3):
        away = x - expected
        lengths = np.linalg.norm(away, axis=1, keepdims=True)
        expected = expected + (away * np.minimum(1, 2.0 / lengths)).mean(axis=0)
    agree(CenteredClipping(2.0, 3)(x, reference=v), expected)


@given(seed=SEEDS)
@SOME
def test_monna_and_faba(seed):
    n, f, x = some_vectors(seed)
    nearest = np.argsort(np.linalg.norm(x - x[1], axis=1))[: n - f]
    agree(NearestNeighbourAveraging(f, pivot=1)(x), x[nearest].mean(axis=0))
    left = list(range(n))
    for _ in range(f):
        away = np.linalg.norm(x[left] - x[left].mean(axis=0), axis=1)
        assume(len(left) < 2 or np.diff(np.sort(away))[-1] > 1e-9)
        left.pop(int(np.argmax(away)))
    agree(FABA(f)(x), x[left].mean(axis=0))


# ---- exact eigenvectors and all subsets ----------------------------------------------------------


@given(seed=SEEDS, maximum=st.sampled_from(["active", "all"]))
@SOME
def test_caf_from_the_covariance_matrix(seed, maximum):
    n, f, x = some_vectors(seed)
    assume(f > 0)
    c, smallest, best = np.ones(n), np.inf, None
    for _ in range(10 * n):
        if c.sum() <= n - 2 * f:
            break
        mu = c @ x / c.sum()
        covariance = (c[:, None] * (x - mu)).T @ (x - mu) / c.sum()
        values, vectors = np.linalg.eigh(covariance)
        # Nearly equal leading eigenvalues leave the direction open, and the filter makes them so:
        # a difference in rounding then decides between two directions.
        assume(len(values) < 2 or values[-1] - values[-2] > 1e-3 * values[-1])
        if values[-1] < smallest:
            smallest, best = values[-1], mu
        tau = ((x - mu) @ vectors[:, -1]) ** 2
        c = np.maximum(c * (1 - tau / (tau[c > 0] if maximum == "active" else tau).max()), 0)
    np.testing.assert_allclose(CAF(f, maximum=maximum)(x), best, rtol=1e-6, atol=1e-6)


@for_each("seed", range(20))
def test_caf_takes_all_weight_from_a_vector_in_each_pass(seed):
    """So at most 2 f + 1 passes see the loop's condition hold; the eigenvalues count them."""
    x = with_outliers(seed, 3)
    calls = []
    exact = np.linalg.eigh

    def counted(matrix):
        calls.append(matrix)
        return exact(matrix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.linalg, "eigh", counted)
        CAF(3)(x)
    assert 1 <= len(calls) <= 2 * 3 + 1


@for_each("seed", range(60))
def test_mda_finds_the_first_subset_of_least_diameter(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    f = int(rng.integers(0, (n - 1) // 2 + 1))
    # whole numbers in a small range: many subsets have equal diameters
    x = rng.integers(0, 5, (n, 2)).astype(float) if seed % 2 else gaussian(seed, n, 3)
    D = Rows(x).squared_distances
    subsets = [np.array(subset) for subset in combinations(range(n), n - f)]
    diameters = [D[np.ix_(subset, subset)].max() for subset in subsets]
    first = subsets[int(np.argmin(diameters))]
    assert minimum_diameter_subset(D, n - f).tolist() == first.tolist()
    agree(MDA(f)(x), x[first].mean(axis=0))


def test_mda_finds_a_subset_among_more_than_can_be_listed():
    n, f = 100, 10  # 17,310,309,456,440 subsets
    x = gaussian(0, n, 20)
    x[:f] += 100.0
    agree(MDA(f)(x), x[f:].mean(axis=0))


@for_each("seed", range(40))
def test_smea_finds_the_subset_of_smallest_leading_eigenvalue(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 10))
    f = int(rng.integers(0, (n - 1) // 2 + 1))
    d = int(rng.choice([1, 2, 30]))
    x = with_outliers(seed, f, n, d) if seed % 2 else gaussian(seed, n, d)
    subsets = [np.array(subset) for subset in combinations(range(n), n - f)]
    leading = [
        np.linalg.eigvalsh(np.atleast_2d(np.cov(x[subset].T, bias=True)))[-1] for subset in subsets
    ]
    best = subsets[int(np.argmin(leading))]
    assert smallest_eigenvalue_subset(Rows(x).gram, n - f).tolist() == best.tolist()
    agree(SMEA(f)(x), x[best].mean(axis=0))


def test_smea_of_one_dimension_takes_the_subset_of_least_variance():
    x = gaussian(1, n=9, d=1)
    subsets = [np.array(subset) for subset in combinations(range(9), 6)]
    best = min(subsets, key=lambda subset: x[subset].var())
    agree(SMEA(3)(x), x[best].mean(axis=0))


def test_smea_passes_over_most_subsets_without_their_eigenvalues(monkeypatch):
    x = with_outliers(0, 3, n=15, d=40)
    computed = []
    exact = np.linalg.eigvalsh

    def counted(matrices):
        computed.append(len(matrices))
        return exact(matrices)

    monkeypatch.setattr(np.linalg, "eigvalsh", counted)
    SMEA(3)(x)
    assert sum(computed) < 0.2 * 455


@for_each("lam", [0.0, 4.0])
@for_each("seed", range(10))
def test_flag_from_the_data_itself(seed, lam):
    """Iterations with singular vectors of the weighted d x (p + p (p - 1)) matrix."""
    x = gaussian(seed, n=8, d=12)
    p, m, eps, steps = 8, 3, 1e-7, 4
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = np.array([a - b for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j])
    pairs /= np.linalg.norm(pairs, axis=1, keepdims=True)
    u, u_pairs = np.ones(p), np.ones(len(pairs))
    for _ in range(steps):
        # each column is scaled by the fourth root of 1 / (1 - v)
        columns = [np.sqrt(u)[:, None] * unit]
        if lam:
            columns.append(np.sqrt(lam / (p * (p - 1)) * u_pairs)[:, None] * pairs)
        Y = np.linalg.svd(np.concatenate(columns).T, full_matrices=False)[0][:, :m]
        u = (1 - np.square(unit @ Y).sum(axis=1) + eps) ** -0.5
        u_pairs = (1 - np.square(pairs @ Y).sum(axis=1) + eps) ** -0.5
    rule = FlagAggregator(components=m, lam=lam, iterations=steps, tolerance=0, eps=eps)
    agree(rule(x), Y @ (Y.T @ x.mean(axis=0)))
    repo = FlagAggregator(m, lam=lam, iterations=steps, tolerance=0, eps=eps, form="repo")
    agree(repo(x), Y @ (Y.T @ unit.sum(axis=0)) / m)


def test_flag_default_dimension():
    x = gaussian(0, n=15, d=40)
    assert np.allclose(FlagAggregator()(x), FlagAggregator(components=8)(x))
    assert np.allclose(FlagAggregator()(x[:7]), FlagAggregator(components=4)(x[:7]))


# ---- chains --------------------------------------------------------------------------------------


def nnm(x, f):
    order = np.argsort(distances(x), axis=1)[:, : len(x) - f]
    return np.array([x[nearest].mean(axis=0) for nearest in order])


def arc(x, f):
    n, norms = len(x), np.linalg.norm(x, axis=1)
    most = np.sort(norms)[::-1][(2 * f * (n - f)) // n]
    return x * np.minimum(1, most / norms)[:, None]


RULES = [
    Median(),
    TrimmedMean(2),
    Krum(2),
    MultiKrum(2),
    GeometricMedian(),
    CAF(2),
    SMEA(2),
    CenteredClipping(1.0, 3),
    FlagAggregator(),
    NearestNeighbourAveraging(2, pivot=3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@for_each("order", ["nnm", "arc", "arc nnm", "nnm arc", "nnm nnm"])
@for_each("seed", range(3))
def test_a_chain_is_its_parts_one_after_another_on_the_data(rule, order, seed):
    """The chain transforms inner products and never forms the mixed vectors."""
    x = with_outliers(seed, 2)
    mixed = x
    for name in order.split():
        mixed = {"nnm": nnm, "arc": arc}[name](mixed, 2)
    pre = [{"nnm": NNM, "arc": ARC}[name]() for name in order.split()]
    result = PreAggregated(pre, rule, f=2)(x)
    np.testing.assert_allclose(result, rule(mixed), rtol=1e-6, atol=1e-6)


def test_a_chain_multiplies_the_data_once(monkeypatch):
    from fl.aggregation import rows

    calls = []
    exact = rows.gram
    monkeypatch.setattr(rows, "gram", lambda x: calls.append(x.shape) or exact(x))
    PreAggregated([NNM(), ARC(), NNM()], Krum(), f=2)(gaussian(0))
    assert calls == [(11, 7)]
