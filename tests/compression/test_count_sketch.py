import math

import numpy as np
import pytest

from fl.compression import CountSketch, FetchSgd, Shapes, TopK
from fl.errors import ConfigError


def gaussian(d, seed=0):
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def test_the_sketch_is_the_sum_of_its_definition():
    c = CountSketch(k=5, rows=3, columns=17, seed=2)
    x = gaussian(100)
    columns, signs = c.hashes(np.arange(100))
    expected = np.zeros((3, 17))
    for row in range(3):
        for i in range(100):
            expected[row, columns[row, i]] += signs[row, i] * x[i]
    assert np.allclose(c.table(x), expected, atol=1e-5)


def test_sketching_is_linear():
    c = CountSketch(k=5, columns=50)
    xs = [gaussian(1000, s) for s in range(3)]
    together = c.table(np.sum(xs, axis=0))
    assert np.allclose(np.sum([c.table(x) for x in xs], axis=0), together, atol=1e-4)


def test_hashes_spread_evenly_and_signs_balance():
    columns, signs = CountSketch(k=1, rows=5, columns=64, seed=1).hashes(np.arange(64_000))
    for row in range(5):
        counts = np.bincount(columns[row], minlength=64)
        # 1000 a column: chi-squared with 63 degrees of freedom.
        assert np.sum((counts - 1000.0) ** 2 / 1000) < 63 + 5 * math.sqrt(126)
        assert abs(signs[row].mean()) < 5 / math.sqrt(64_000)
        assert abs(np.mean(signs[row][:-1] * signs[row][1:])) < 5 / math.sqrt(64_000)


def test_hashes_are_cubic_polynomials_over_the_mersenne_field():
    """By Python's own integers; entries up to the largest a payload may have."""
    p = 2**31 - 1
    c = CountSketch(k=1, rows=3, columns=101, seed=7)
    entries = np.array([0, 1, 2, 12345, 2**31 - 3, 2**31 - 2])
    columns, signs = c.hashes(entries)
    from fl.randomness import generator

    raw = generator(7, "count-sketch").bit_generator.random_raw(12)
    a = [[int(raw[4 * r + t]) % p for t in range(4)] for r in range(3)]
    for r in range(3):
        for at, i in enumerate(entries.tolist()):
            value = (((a[r][0] * i + a[r][1]) * i + a[r][2]) * i + a[r][3]) % p
            assert columns[r, at] == (value >> 1) * 101 >> 30
            assert signs[r, at] == (1 if value & 1 else -1)


def test_point_queries_are_unbiased():
    x = gaussian(200)
    estimates = np.array(
        [
            CountSketch(k=1, rows=1, columns=50, seed=seed).estimates(
                CountSketch(k=1, rows=1, columns=50, seed=seed).table(x), 200
            )
            for seed in range(1500)
        ],
        dtype=np.float64,
    )
    error = estimates.std(axis=0, ddof=1) / math.sqrt(1500)
    assert np.all(np.abs(estimates.mean(axis=0) - x) <= 5 * error)
    # Variance of a query: the energy of the others, spread over the columns.
    energy = np.sum(x.astype(np.float64) ** 2) - x.astype(np.float64) ** 2
    assert np.mean(estimates.var(axis=0) / (energy / 50)) == pytest.approx(1, abs=0.1)


def test_heavy_entries_are_recovered():
    d, k = 20_000, 20
    x = 0.01 * gaussian(d)
    heavy = np.random.default_rng(1).choice(d, k, replace=False)
    x[heavy] = 5 * np.sign(gaussian(k, 2))
    c = CountSketch(k=k, rows=5, columns=1000)
    payload, _ = c.encode(x, Shapes.vector(d), {}, np.random.default_rng(0))
    y = c.decode(payload, Shapes.vector(d))
    assert set(np.flatnonzero(y)) == set(heavy)
    assert np.abs(y[heavy] - x[heavy]).max() < 0.5


def test_the_median_is_that_of_the_rows():
    c = CountSketch(k=4, rows=5, columns=13, seed=3)
    table = gaussian(65).reshape(5, 13)
    columns, signs = c.hashes(np.arange(40))
    votes = np.array([table[r, columns[r]] * signs[r] for r in range(5)])
    assert np.array_equal(c.estimates(table, 40), np.median(votes, axis=0).astype(np.float32))


def injective(d, columns=5000):
    """A sketch of one row in which no two entries share a column."""
    for seed in range(100):
        c = CountSketch(k=3, rows=1, columns=columns, seed=seed)
        if len(set(c.hashes(np.arange(d))[0][0])) == d:
            return c
    raise AssertionError("no injective hash found")


@pytest.mark.parametrize("removal", ["subtract", "zero"])
def test_without_collisions_fetchsgd_is_topk_with_error_feedback_at_the_server(removal):
    d, lr = 40, 0.3
    rule = FetchSgd(injective(d), lr=lr, momentum=0.0, removal=removal)
    state = rule.init()
    e = np.zeros(d, dtype=np.float32)
    for t in range(8):
        gradients = [gaussian(d, 10 * t + i) for i in range(3)]
        delta, state = rule.step([rule.sketch.table(g) for g in gradients], d, state)
        p = e + np.float32(lr) * np.mean(gradients, axis=0, dtype=np.float64).astype(np.float32)
        payload, _ = TopK(k=3).encode(p, Shapes.vector(d), {}, np.random.default_rng(0))
        expected = TopK(k=3).decode(payload, Shapes.vector(d))
        assert np.allclose(delta, expected, atol=1e-6)
        e = p - expected


def test_momentum_lives_in_the_sketch():
    """Without collisions: S_m is rho S_m + S(g), and zeroing forgets the momentum that was sent."""
    d = 40
    g = gaussian(d)
    sketch = injective(d)
    subtract, zero = (FetchSgd(sketch, 1.0, 0.5, removal) for removal in ("subtract", "zero"))
    for rule in (subtract, zero):
        delta, state = rule.step([sketch.table(g)], d, rule.init())
        momentum = sketch.estimates(state["momentum"], d)
        expected = np.where(delta != 0, 0, g) if rule is zero else g
        assert np.allclose(momentum, expected, atol=1e-6)
        error = sketch.estimates(state["error"], d)
        assert np.allclose(error, np.where(delta != 0, 0, g), atol=1e-6)


def test_fetchsgd_converges_on_a_quadratic_where_sketches_collide():
    d = 300
    target = np.zeros(d, dtype=np.float32)
    target[:10] = 3 * gaussian(10)
    rule = FetchSgd(CountSketch(k=10, rows=5, columns=150), lr=0.1, momentum=0.5)
    x, state = np.zeros(d, dtype=np.float32), rule.init()
    for _ in range(200):
        delta, state = rule.step([rule.sketch.table(x - target)], d, state)
        x = x - delta
    assert np.linalg.norm(x - target) < 0.02 * np.linalg.norm(target)


def test_options_that_do_not_exist_are_refused():
    sketch = CountSketch(k=1)
    for make in (
        lambda: CountSketch(k=1, rows=4),
        lambda: CountSketch(k=1, columns=0),
        lambda: CountSketch(),
        lambda: FetchSgd(sketch, lr=0),
        lambda: FetchSgd(sketch, lr=1, momentum=1.0),
        lambda: FetchSgd(sketch, lr=1, removal="forget"),
        lambda: FetchSgd(sketch, lr=1).step([], 10, FetchSgd(sketch, lr=1).init()),
    ):
        with pytest.raises(ConfigError):
            make()
