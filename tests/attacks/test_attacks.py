"""The worked examples of the method reference, section B, and consequences of the formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_cases import for_each

from fl.aggregation import (
    Bucketing,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    PreAggregated,
    TrimmedMean,
)
from fl.attacks import (
    ALIE,
    IPM,
    ConstantUpdate,
    Gauss,
    Mimic,
    MinMax,
    MinSum,
    ModelReplacement,
    Optimized,
    OwnSignFlip,
    Scene,
    SignFlip,
    UniformNoise,
    line_maximize,
)
from fl.attacks.alie import largest_hidden_z
from fl.attacks.optimized import Damage
from fl.errors import ConfigError

MU = np.array([2.125, 2.625])
OWN = np.array([[7.0, -1.0]])
ONE = Scene(1)


def close(result, expected, digits=6):
    np.testing.assert_allclose(result, expected, atol=0.6 * 10**-digits, rtol=0)


def some(seed, h=8, d=6):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((h, d)) + rng.standard_normal(d)


def sent(attack, honest, f=1, **scene):
    own = np.zeros((f, honest.shape[1]), dtype=honest.dtype)
    return attack(honest, own, Scene(f, **scene)).rows


# ---- B1 to B3 ------------------------------------------------------------------------------------


def test_sign_flip(honest):
    close(sent(SignFlip(), honest), [-MU])
    close(SignFlip()(honest, OWN, ONE).rows, [-MU])


def test_own_sign_flip(honest):
    close(OwnSignFlip()(honest, OWN, ONE).rows, -OWN)
    close(OwnSignFlip(10.0)(honest, OWN, ONE).rows, -10 * OWN)


@pytest.mark.parametrize("f", [1, 2, 3])
def test_the_scaled_sign_flip_makes_the_mean_of_all_zero(f):
    honest = some(0)
    rows = sent(SignFlip(scaled=True), honest, f)
    close(np.concatenate([honest, rows]).mean(axis=0), np.zeros(6), digits=12)


def test_ipm(honest):
    close(sent(IPM(epsilon=1.0), honest), sent(SignFlip(), honest))
    close(sent(IPM(epsilon=0.1), honest), [-0.1 * MU])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 8 / 3, 5.0])
def test_ipm_scales_the_plain_mean_by_h_less_f_epsilon_over_n(epsilon):
    honest, f = some(1), 3
    everyone = np.concatenate([honest, sent(IPM(epsilon), honest, f)])
    close(everyone.mean(axis=0), (8 - f * epsilon) / 11 * honest.mean(axis=0), digits=12)


def test_alie(honest):
    close(sent(ALIE(z=1.5, ddof=1, sign=1), honest), [(3.405869, 4.690339)])
    close(sent(ALIE(z=1.5), honest), [(1.015735, 0.836364)])


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [
        (10, 2, 0.0), (15, 3, 0.210428), (16, 3, 0.096559), (20, 4, 0.157311), (20, 8, 0.674490),
        (25, 5, 0.253347), (25, 11, 1.067571), (26, 5, 0.180012), (50, 10, 0.253347),
        (50, 12, 0.336038), (51, 24, 1.446104), (5, 1, 0.0),
    ],
)  # fmt: skip
def test_alie_z(n, f, z):
    close(largest_hidden_z(n, f), z)
    honest = some(2, h=n - f)
    expected = honest.mean(axis=0) - largest_hidden_z(n, f) * honest.std(axis=0)
    close(sent(ALIE(), honest, f)[0], expected, digits=12)


def test_alie_needs_somebody_to_hide_among(honest):
    with pytest.raises(ConfigError, match="n=9 clients, f=5 Byzantine"):
        sent(ALIE(), honest, f=5)
    with pytest.raises(ConfigError, match="n >= 3"):
        sent(ALIE(), honest[:1])
    with pytest.raises(ConfigError, match="ddof=1 needs more"):
        sent(ALIE(z=1.0, ddof=1), honest[:1])
    assert np.isfinite(sent(ALIE(z=1.0), honest[:1])).all()


# ---- B5: line search -----------------------------------------------------------------------------


@pytest.mark.parametrize(("peak", "both", "upward"), [(3, 3.0, 5.12), (12, 11.905267, 13.355443)])
def test_line_search(peak, both, upward):
    def scape(x):
        return -((x - peak) ** 2)

    close(line_maximize(scape), both)
    close(line_maximize(scape, 20, 0.0, 10.0, 0.8, "upward"), upward)


@pytest.mark.parametrize("contraction", ["both-ways", "upward"])
@given(evaluations=st.integers(1, 30), peak=st.floats(0, 50), start=st.floats(0, 20))
@settings(max_examples=40)
def test_a_line_search_returns_the_best_it_saw_in_so_many_evaluations(
    contraction, evaluations, peak, start
):
    seen = []

    def scape(x):
        assert x >= 0
        seen.append(x)
        return -abs(x - peak)

    best = line_maximize(scape, evaluations, start, contraction=contraction)
    assert len(seen) == evaluations
    assert best == min(seen, key=lambda x: abs(x - peak))


@pytest.mark.parametrize("contraction", ["both-ways", "upward"])
def test_a_flat_scape_returns_the_start(contraction):
    assert line_maximize(lambda x: 1.0, start=2.0, contraction=contraction) == 2.0


def test_against_the_trimmed_mean_of_the_fixture_every_epsilon_does_the_same(honest):
    scene = Scene(1, aggregator=TrimmedMean(1))
    damage = Damage(honest, scene)
    for epsilon in (0, 0.1, 0.5, 1, 2, 10):
        close(np.sqrt(damage(-epsilon * MU)), 0.543267)
    close(sent(Optimized(IPM()), honest, aggregator=TrimmedMean(1)), [(0, 0)])


def test_optimized_alie_against_krum_reaches_what_byzfl_reaches(honest):
    rule = Krum(1, neighbours="n-f-1", bound="2f+1")
    attack = Optimized(ALIE(ddof=1, sign=1), 20, 0.0, 10.0, 0.8, "upward")
    damage = Damage(honest, Scene(1, aggregator=rule))
    close(np.sqrt(damage(sent(attack, honest, aggregator=rule)[0])), 1.237437)


@pytest.mark.parametrize("rule", [Mean(), Median(), GeometricMedian(), TrimmedMean(2)])
@for_each("attack", [IPM(0.1), ALIE(z=0.3), MinMax("std")])
def test_an_optimized_factor_does_at_least_as_much_harm_as_the_start(rule, attack):
    honest = some(3)
    damage = Damage(honest, Scene(2, aggregator=rule))
    optimized = sent(Optimized(attack), honest, 2, aggregator=rule)[0]
    origin, direction = attack.line(honest)
    assert damage(optimized) >= damage(origin)
    # it lies on the line
    factor = (optimized - origin) @ direction / (direction @ direction)
    close(optimized, origin + factor * direction, digits=9)
    assert factor >= 0


def test_an_optimized_attack_foresees_the_draws_of_the_rule():
    honest = some(4)
    rule = PreAggregated([Bucketing(2)], Median())
    drawn = np.random.default_rng(11)
    state = drawn.bit_generator.state
    scene = Scene(2, aggregator=rule, aggregator_rng=drawn)
    damage = Damage(honest, scene)
    vector = -3 * honest.mean(axis=0)
    everyone = np.concatenate([honest, [vector, vector]])
    result = rule(everyone, rng=np.random.default_rng(11))
    expected = np.sum((result - honest.mean(axis=0)) ** 2)
    assert damage(vector) == damage(vector) == pytest.approx(expected)
    assert drawn.bit_generator.state == state


def test_where_updates_are_added_up_an_optimized_attack_sends_the_largest_factor_it_tries(honest):
    """|mean(x_1, ..., x_h, f copies of -z mu) - mu| = f (1 + z) |mu| / (h + f) grows with z."""
    for f, evaluations in ((1, 4), (3, 16)):
        attack = Optimized(IPM(), evaluations)
        close(sent(attack, honest, f), [-(2.0 ** (evaluations - 1) - 1) * MU] * f)


# ---- B6: mimic -----------------------------------------------------------------------------------


def learn(attack, honest, rounds, seed=0):
    memory = {}
    for t in range(rounds):
        scene = Scene(2, rng=np.random.default_rng([seed, t]), memory=memory)
        rows, memory = attack(honest, np.zeros((2, honest.shape[1])), scene)
    return rows, memory


def test_mimic_learns_the_direction_of_largest_variance(honest):
    _, memory = learn(Mimic(warmup=3000), honest, 3000)
    z = memory["z"] * np.sign(memory["z"][0])
    covariance = np.cov(honest.T, bias=True)
    top = np.linalg.eigh(covariance)[1][:, -1]
    close(np.abs(top), (0.433189, 0.901303))
    close(z, (0.433189, 0.901303), digits=2)
    close(honest @ np.array([0.433189, 0.901303]), (2.235795, 1.767681, 4.454128, 4.688185), 5)


def test_mimic_follows_its_recursion_when_the_vectors_move():
    memory, attack = {}, Mimic(warmup=6)
    z = np.random.default_rng([0, 0]).standard_normal(5)
    mu = np.zeros(5)
    for t in range(6):
        honest = some(t, h=7, d=5)
        mu = t / (1 + t) * mu + honest.mean(axis=0) / (1 + t)
        u = sum((x - mu) @ z * (x - mu) for x in honest)
        z = u if t == 0 else t / (1 + t) * z + u / np.linalg.norm(u) / (1 + t)
        z = z / np.linalg.norm(z)
        scene = Scene(2, rng=np.random.default_rng([0, t]), memory=memory)
        rows, memory = attack(honest, np.zeros((2, 5)), scene)
        close(memory["z"], z, digits=9)
        close(memory["mu"], mu, digits=9)
        np.testing.assert_array_equal(rows[0], honest[np.argmax(honest @ z)])


@pytest.mark.parametrize(("extreme", "along", "against"), [("max", 3, 1), ("min", 1, 3)])
def test_mimic_resends_the_vector_farthest_along(honest, extreme, along, against):
    for seed in range(10):
        rows, memory = learn(Mimic(warmup=200, extreme=extreme), honest, 200, seed)
        target = along if memory["z"][0] > 0 else against  # the sign of z is that of its start
        np.testing.assert_array_equal(rows, honest[[target, target]])


def test_after_the_warm_up_the_target_stays_the_same(honest):
    attack = Mimic(warmup=2)
    _, memory = learn(attack, honest, 2)
    target = int(memory["target"])
    later = np.random.default_rng(5).standard_normal((4, 2)) * 100
    forged = attack(later, np.zeros((2, 2)), Scene(2, memory=memory))
    np.testing.assert_array_equal(forged.rows, later[[target, target]])
    assert forged.memory is memory


def test_mimic_without_warm_up_resends_the_target(honest):
    np.testing.assert_array_equal(sent(Mimic(warmup=0, target=2), honest, 3), honest[[2, 2, 2]])
    with pytest.raises(ConfigError, match="target 4 of 4"):
        sent(Mimic(warmup=0, target=4), honest)


def test_mimic_of_equal_vectors_is_that_vector():
    honest = np.ones((4, 3))
    rows = sent(Mimic(), honest, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(rows, np.ones((1, 3)))


# ---- B8 to B10 -----------------------------------------------------------------------------------


def test_gauss_has_the_moments_asked_for():
    honest = np.tile([3.0, -2.0], (4, 50_000))
    rows = sent(Gauss(sigma=2.0), honest, 2, rng=np.random.default_rng(0))
    assert abs(rows.mean()) < 0.02
    assert abs(rows.std() - 2.0) < 0.02
    assert abs(np.corrcoef(rows)[0, 1]) < 0.01
    around = sent(Gauss(sigma=2.0, centre="mean"), honest, 2, rng=np.random.default_rng(0))
    close(around - rows, np.tile([3.0, -2.0], (2, 50_000)), digits=9)


def test_gauss_can_send_one_draw_from_all(honest):
    rows = sent(Gauss(same=True), honest, 3, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(rows[0], rows[1])


def test_uniform_stays_in_its_range():
    rows = sent(UniformNoise(), np.zeros((1, 10_000)), 2, rng=np.random.default_rng(0))
    assert rows.min() >= 0
    assert rows.max() < 1
    assert abs(rows.mean() - 0.5) < 0.01


@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf, np.nan, 3e38])
def test_constant(honest, value):
    expected = np.full((2, 2), value)
    np.testing.assert_array_equal(sent(ConstantUpdate(value), honest, 2), expected)


@pytest.mark.parametrize(
    ("perturbation", "max_gamma", "max_m", "sum_gamma", "sum_m"),
    [
        ("unit", 1.682110, (1.066619, 1.317589), 1.237431, (1.346411, 1.663213)),
        ("sign", 1.216640, (0.908360, 1.408360), 0.874996, (1.250004, 1.750004)),
        ("std", 1.017151, (1.256442, 1.224492), 0.763760, (1.472816, 1.573385)),
    ],
)
def test_min_max_and_min_sum(honest, perturbation, max_gamma, max_m, sum_gamma, sum_m):
    # The reference's figures are those of a bisection that ends up to 2e-5 below.
    min_max, min_sum = MinMax(perturbation), MinSum(perturbation)
    for attack, gamma, m in ((min_max, max_gamma, max_m), (min_sum, sum_gamma, sum_m)):
        result = attack.own_factor(honest, ONE)
        assert gamma <= result < gamma + 2e-5
        np.testing.assert_allclose(sent(attack, honest), [m], atol=2e-5)


@pytest.mark.parametrize("perturbation", ["unit", "sign", "std"])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_min_max_and_min_sum_exhaust_their_constraint(perturbation, scale, seed):
    """Also for vectors whose gamma is far beyond 20, where a bisection from 10 ends."""
    honest = scale * some(seed)
    D = ((honest[:, None] - honest[None]) ** 2).sum(axis=2)
    mean = honest.mean(axis=0)

    def to_honest(vector):
        return ((honest - vector) ** 2).sum(axis=1)

    for attack, limit, of in (
        (MinMax(perturbation), D.max(), np.max),
        (MinSum(perturbation), D.sum(axis=1).min(), np.sum),
        (MinSum(perturbation, bound="max"), D.sum(axis=1).max(), np.sum),
    ):
        m = sent(attack, honest)[0]
        assert of(to_honest(m)) == pytest.approx(limit, rel=1e-9)
        beyond = m + 1e-3 * (m - mean)
        assert of(to_honest(beyond)) > limit


def test_equal_honest_vectors_leave_no_room(honest):
    equal = np.ones((4, 3))
    for attack in (MinMax(), MinSum(), MinMax("std"), MinSum("sign")):
        close(sent(attack, equal), np.ones((1, 3)), digits=6)
    np.testing.assert_array_equal(sent(MinMax(), np.zeros((4, 3))), np.zeros((1, 3)))


# ---- B11: model replacement ----------------------------------------------------------------------


@pytest.mark.parametrize("f", [1, 3])
@for_each("server_lr", [1.0, 0.5])
def test_boosted_changes_replace_the_model_under_plain_averaging(f, server_lr):
    """If the honest clients have nothing to say, the average is the attacker's own change."""
    change = np.arange(6.0)
    own = np.tile(change, (f, 1))
    rows = ModelReplacement(server_lr)(np.zeros((8, 6)), own, Scene(f)).rows
    average = server_lr * np.concatenate([np.zeros((8, 6)), rows]).mean(axis=0)
    close(average, change, digits=12)


def test_a_boost_can_be_chosen():
    rows = ModelReplacement(boost=2.0)(np.zeros((8, 2)), np.ones((1, 2)), ONE).rows
    np.testing.assert_array_equal(rows, [[2.0, 2.0]])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OwnSignFlip(0.0), "factor=0.0"),
        (lambda: IPM(-1.0), "epsilon=-1.0"),
        (lambda: ALIE(ddof=2), "ddof=2"),
        (lambda: ALIE(sign=0), "sign=0"),
        (lambda: Optimized(IPM(), evaluations=0), "evaluations=0"),
        (lambda: Optimized(IPM(), ratio=0.4), "ratio=0.4"),
        (lambda: Optimized(IPM(), contraction="down"), "contraction"),
        (lambda: Mimic(warmup=-1), "warmup=-1"),
        (lambda: Mimic(extreme="mean"), "extreme"),
        (lambda: MinMax("none"), "perturbation"),
        (lambda: MinSum(bound="mean"), "bound"),
        (lambda: Gauss(sigma=-1.0), "sigma=-1.0"),
        (lambda: Gauss(centre="x"), "centre"),
        (lambda: UniformNoise(1.0, 1.0), "empty"),
        (lambda: ModelReplacement(0.0), "server_lr=0.0"),
        (lambda: ModelReplacement(boost=-1.0), "boost=-1.0"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_its_value(make, match):
    with pytest.raises(ConfigError, match=match):
        make()
