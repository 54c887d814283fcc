import math

import numpy as np
import pytest

from fl.compression import OneByteSpsa, Shapes
from fl.compression.spsa import _encode, _magnitudes
from fl.errors import ConfigError

SHAPES = Shapes(((20, 10), (56,)))
D = SHAPES.size


def vector(seed=0):
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def test_only_a_seed_and_a_byte_a_direction_travel():
    for samples in (1, 7, 100):
        c = OneByteSpsa(samples=samples)
        for d in (10, 10_000):
            x = np.ones(d, dtype=np.float32)
            payload, _ = c.encode(x, Shapes.vector(d), {}, np.random.default_rng(0))
            assert len(payload) == 14 + samples


def test_a_receiver_makes_the_direction_from_the_seed_alone():
    c = OneByteSpsa()
    x = vector()
    payload, _ = c.encode(x, SHAPES, {}, np.random.default_rng(3))
    seed = int.from_bytes(payload[6:14], "little")
    z = c.direction(seed, 0, SHAPES)
    y = c.decode(payload, SHAPES)
    rho = float(np.dot(x.astype(np.float64), z))
    got = float(y[0] / z[0])
    assert np.allclose(y, np.float32(got) * z, rtol=1e-6)
    assert math.exp(-1 / 8) < got / rho < math.exp(1 / 8)
    assert np.array_equal(OneByteSpsa(samples=5).direction(seed, 0, SHAPES), z)


def test_each_sample_has_a_direction_and_a_byte_of_its_own():
    c = OneByteSpsa(samples=5, stochastic=False)
    x = vector()
    payload, _ = c.encode(x, SHAPES, {}, np.random.default_rng(3))
    seed = int.from_bytes(payload[6:14], "little")
    expected = np.zeros(D)
    for s, code in enumerate(payload[14:]):
        z = c.direction(seed, s, SHAPES).astype(np.float64)
        rho = np.exp(((code & 127) - 64) / 8) * (-1 if code & 128 else 1)
        assert rho == pytest.approx(np.dot(x, z), rel=0.065)
        expected += rho * z / 5
    assert np.allclose(c.decode(payload, SHAPES), expected, atol=1e-4)


def test_directions_are_standard_normal():
    from scipy.stats import kstest

    z = OneByteSpsa().direction(12, 0, Shapes.vector(200_000)).astype(np.float64)
    assert kstest(z, "norm").pvalue > 1e-3
    assert z.var() == pytest.approx(1, abs=0.02)
    assert np.mean(z**4) == pytest.approx(3, abs=0.1)
    other = OneByteSpsa().direction(12, 1, Shapes.vector(200_000)).astype(np.float64)
    assert abs(np.mean(z * other)) < 5 / math.sqrt(200_000)
    assert abs(np.mean(z[1:] * z[:-1])) < 5 / math.sqrt(200_000)


def test_long_directions_are_made_of_blocks_that_do_not_repeat():
    z = OneByteSpsa().direction(1, 0, Shapes.vector(100_000))
    assert not np.array_equal(z[: 1 << 15], z[1 << 15 : 2 << 15])
    assert np.array_equal(z[:50_000], OneByteSpsa().direction(1, 0, Shapes.vector(50_000)))


def test_every_byte_stands_for_its_number_and_none_is_wasted():
    grid = _magnitudes()
    assert grid[0] == 0
    assert np.allclose(np.log(grid[1:]) * 8, np.arange(1, 128) - 64)
    assert np.array_equal(_encode(grid, None), np.arange(128))
    assert np.array_equal(_encode(grid, np.full(128, 0.5)), np.arange(128))
    assert _encode(np.array([1e9, math.inf]), None).tolist() == [127, 127]


def test_rounding_to_the_nearest_errs_by_6_and_a_half_percent_at_most():
    grid = _magnitudes()
    rho = np.geomspace(grid[1], grid[-1], 100_000)
    worst = np.abs(grid[_encode(rho, None)] / rho - 1).max()
    # Half-way between neighbours of ratio r = e^(1/8): (r - 1) / (r + 1).
    r = math.exp(1 / 8)
    assert worst == pytest.approx((r - 1) / (r + 1), rel=1e-3)
    assert worst < 0.065


def test_random_rounding_is_unbiased_with_the_documented_variance():
    grid = _magnitudes()
    r = np.random.default_rng(0)
    ratio = math.exp(1 / 8)
    nu = (ratio - 1) ** 2 / (4 * ratio)
    assert nu == pytest.approx(0.0039, abs=1e-4)
    for rho in (0.01, 0.5, 1.07, 300.0, 1e-4):
        got = grid[_encode(np.full(100_000, rho), r.random(100_000))]
        assert abs(got.mean() - rho) <= 4 * got.std() / math.sqrt(100_000)
        if rho > grid[1]:
            assert got.var() / rho**2 <= nu * 1.01


def test_the_central_difference_is_the_gradient_in_expectation():
    """A quadratic: exact at any step, so E rho z = grad, with E |rho z|^2 = (d + 2) |grad|^2."""
    d = 12
    shapes = Shapes.vector(d)
    r = np.random.default_rng(1)
    a = r.standard_normal((d, d))
    a = a @ a.T / d
    x = r.standard_normal(d)
    gradient, eps = a @ x, 0.1
    c = OneByteSpsa()
    estimates = []
    for t in range(8_000):
        z = c.direction(t, 0, shapes).astype(np.float64)
        up, down = x + eps * z, x - eps * z
        rho = (up @ a @ up - down @ a @ down) / 2 / (2 * eps)
        payload = c.encode_projections([rho], t, shapes, r)
        estimates.append(c.decode(payload, shapes))
    estimates = np.array(estimates, dtype=np.float64)
    error = estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates))
    assert np.all(np.abs(estimates.mean(axis=0) - gradient) <= 4.5 * error)
    energy = np.sum(estimates**2, axis=1) / np.sum(gradient**2)
    assert energy.mean() == pytest.approx(d + 2, rel=0.05)


def test_more_samples_divide_the_variance():
    x = vector()
    errors = {}
    for samples in (1, 16):
        c = OneByteSpsa(samples=samples)
        draws = [
            c.decode(c.encode(x, SHAPES, {}, np.random.default_rng(s))[0], SHAPES)
            for s in range(1600 // samples)
        ]
        errors[samples] = np.mean([np.sum((y - x) ** 2) for y in draws]) / np.sum(x**2)
        assert errors[samples] == pytest.approx(c.variance(SHAPES), rel=0.15)
    assert errors[1] / errors[16] == pytest.approx(16, rel=0.2)


def test_replicas_that_replay_the_bytes_stay_equal():
    """Two machines apply each other's payloads in one order; nothing else is exchanged."""
    c = OneByteSpsa()
    models = [np.zeros(D, dtype=np.float32) for _ in range(2)]
    target = vector(5)
    for t in range(20):
        payloads = [
            c.encode(models[m] - target, SHAPES, {}, np.random.default_rng([t, m]))[0]
            for m in range(2)
        ]
        models = [
            model - np.float32(0.002) * sum(c.decode(p, SHAPES) for p in payloads)
            for model in models
        ]
        assert models[0].tobytes() == models[1].tobytes()
    assert np.linalg.norm(models[0] - target) < np.linalg.norm(target)


def test_projections_that_are_not_numbers_are_refused():
    r = np.random.default_rng(0)
    for rho in ([np.nan], [np.inf], [1.0, 2.0]):
        with pytest.raises(ConfigError, match="finite"):
            OneByteSpsa().encode_projections(rho, 0, SHAPES, r)
    for wrong in ({"samples": 0}, {"scale": 0.0}, {"scale": math.inf}):
        with pytest.raises(ConfigError):
            OneByteSpsa(**wrong)
