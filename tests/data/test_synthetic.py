import numpy as np
import pytest

from fl.data import load_synthetic, load_synthetic_iid
from fl.data.synthetic import heterogeneous_devices, iid_devices
from fl.errors import ConfigError
from fl.randomness import generator


def test_the_order_of_draws_is_that_of_the_authors_script():
    # Their script in scalar form: sizes, u, B, then all v, then W, b, x of each device in turn.
    alpha, beta, K = 0.5, 0.7, 4
    rng = generator(11, "order")
    sizes = rng.lognormal(4, 2, K).astype(int) + 50
    u = rng.normal(0, alpha, K)
    B = rng.normal(0, beta, K)
    v = np.array([[rng.normal(B[k], 1) for _ in range(60)] for k in range(K)])
    devices = heterogeneous_devices(alpha, beta, K, generator(11, "order"))
    for k, device in enumerate(devices):
        W = np.array([[rng.normal(u[k], 1) for _ in range(10)] for _ in range(60)])
        b = np.array([rng.normal(u[k], 1) for _ in range(10)])
        np.testing.assert_array_equal(device.W, W)
        np.testing.assert_array_equal(device.b, b)
        for i in range(sizes[k]):
            x = [rng.normal(v[k, j], ((j + 1) ** -1.2) ** 0.5) for j in range(60)]
            np.testing.assert_allclose(device.x[i], x, rtol=0, atol=1e-12)
        assert len(device.y) == sizes[k]


def test_the_iid_form_draws_sizes_then_one_model_then_inputs():
    rng = generator(11, "order")
    sizes = rng.lognormal(4, 2, 3).astype(int) + 50
    W, b = rng.normal(0, 1, (60, 10)), rng.normal(0, 1, 10)
    for device, n in zip(iid_devices(3, generator(11, "order")), sizes, strict=True):
        np.testing.assert_array_equal(device.W, W)
        np.testing.assert_array_equal(device.b, b)
        np.testing.assert_allclose(device.x, rng.normal(size=(n, 60)) * np.arange(1, 61) ** -0.6)


@pytest.mark.parametrize("iid", [False, True], ids=["synthetic(1,1)", "iid"])
def test_labels_are_the_largest_logit_of_the_devices_model(iid):
    rng = generator(0, "labels")
    for device in iid_devices(5, rng) if iid else heterogeneous_devices(1.0, 1.0, 5, rng):
        for x, y in zip(device.x[:50], device.y[:50], strict=True):
            logits = [sum(device.W[:, c] * x) + device.b[c] for c in range(10)]
            assert y == max(range(10), key=logits.__getitem__)


@pytest.fixture(scope="module")
def half():
    """200 devices of Synthetic(0.5, 0.5)."""
    return heterogeneous_devices(0.5, 0.5, 200, generator(1, "statistics"))


def test_inputs_have_the_covariance_of_the_power_law(half):
    # Within devices, so that the device's own mean drops out; a variance with N - K degrees of
    # freedom has a relative deviation of sqrt(2 / (N - K)).
    centred = np.concatenate([d.x - d.x.mean(axis=0) for d in half])
    freedom = len(centred) - len(half)
    variance = (centred**2).sum(axis=0) / freedom
    expected = np.arange(1, 61) ** -1.2
    assert np.abs(variance / expected - 1).max() < 5 * np.sqrt(2 / freedom)
    correlation = (centred / np.sqrt(expected)).T @ (centred / np.sqrt(expected)) / freedom
    off_diagonal = correlation[~np.eye(60, dtype=bool)]
    assert np.abs(off_diagonal).max() < 6 / np.sqrt(freedom)


def test_sizes_are_at_least_50_and_log_normal_beyond(half):
    sizes = np.array([len(d.y) for d in half])
    assert sizes.min() >= 50
    # Quartiles of LogNormal(4, 2): exp(4 -+ 0.6745 x 2). A sample's quartile of n normal draws
    # deviates by sqrt(p (1 - p) / n) / density, here 2 x 0.0306 / 0.318 = 0.19 in the logarithm.
    quartiles = np.log(np.quantile(sizes - 50, [0.25, 0.5, 0.75]))
    assert np.abs(quartiles - [4 - 1.349, 4, 4 + 1.349]).max() < 4 * 0.19


def test_alpha_and_beta_are_standard_deviations(half):
    # Mean of 610 entries N(u, 1), u ~ N(0, 0.5 in deviation): variance 0.25 + 1/610. With 0.5 as a
    # variance the deviation would be 0.71. Deviation of the estimate: s / sqrt(2 x 200).
    u = [np.append(d.W.ravel(), d.b).mean() for d in half]
    assert np.std(u) == pytest.approx(np.sqrt(0.25 + 1 / 610), abs=4 * 0.5 / 20)
    # Mean over 60 features of v ~ N(B, 1): variance 0.25 + 1/60.
    B = [d.x.mean() for d in half]
    assert np.std(B) == pytest.approx(np.sqrt(0.25 + 1 / 60), abs=4 * 0.52 / 20)


def test_alpha_and_beta_zero_still_differ_between_devices_and_iid_does_not():
    zero = heterogeneous_devices(0.0, 0.0, 20, generator(2, "zero"))
    same = iid_devices(20, generator(2, "zero"))
    # v_k ~ N(0, 1)^60 against v_k = 0: the variance over devices of a feature's mean.
    spread = [
        np.var([d.x.mean(axis=0) for d in devices], axis=0).mean() for devices in (zero, same)
    ]
    assert spread[0] == pytest.approx(1.0, rel=0.15)
    assert spread[1] < 0.01
    assert not np.array_equal(zero[0].W, zero[1].W)
    assert all(np.array_equal(same[0].W, d.W) for d in same)


@pytest.mark.parametrize("load", [load_synthetic, load_synthetic_iid])
def test_devices_are_natural_clients_with_a_tenth_held_out(load):
    source = load(num_devices=12, seed=3)
    name = "synthetic" if load is load_synthetic else "synthetic-iid"
    rng = generator(3, name)
    devices = (
        heterogeneous_devices(0.0, 0.0, 12, rng) if load is load_synthetic else iid_devices(12, rng)
    )
    assert len(source.natural) == len(source.natural_test) == 12
    for k, device in enumerate(devices):
        n = len(device.y)
        rows = [
            np.column_stack([part.x[own[k]], part.y[own[k]]])
            for part, own in ((source.train, source.natural), (source.test, source.natural_test))
        ]
        assert len(rows[0]) == n * 9 // 10
        expected = np.column_stack([device.x.astype(np.float32), device.y])
        assert sorted(np.concatenate(rows).tolist()) == sorted(expected.tolist())


def test_the_seed_of_the_data_decides_the_data():
    first, again, other = (load_synthetic(3, 1.0, 1.0, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.x, again.train.x)
    assert len(first.train) != len(other.train)
    assert first.name == "synthetic(1,1)"


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"alpha=-0.5, beta=0.0: .*0 or more"):
        load_synthetic(alpha=-0.5)
    for load in (load_synthetic, load_synthetic_iid):
        with pytest.raises(ConfigError, match=r"num_devices=0: .*at least 1"):
            load(num_devices=0)


def test_units_change_the_inputs_and_nothing_else():
    plain, scaled = load_synthetic_iid(3), load_synthetic_iid(3, decades=4.0)
    np.testing.assert_array_equal(plain.train.y, scaled.train.y)
    units = scaled.train.x / plain.train.x
    np.testing.assert_allclose(units, np.broadcast_to(units[0], units.shape), rtol=1e-5)
    exponents = np.log10(units[0])
    assert -2 <= exponents.min() < -1.5
    assert 1.5 < exponents.max() <= 2


def test_a_negative_spread_of_units_is_refused():
    with pytest.raises(ConfigError, match="decades is -1"):
        load_synthetic_iid(3, decades=-1.0)
