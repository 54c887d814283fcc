import math

import numpy as np
import pytest
from many_cases import for_each
from members import relative_error, vectors

from fl.compression import (
    Cast,
    Codebook,
    Natural,
    PayloadError,
    Qsgd,
    Shapes,
    Sign,
    TernGrad,
    UniformQuantizer,
    majority,
)
from fl.errors import ConfigError


def rng(seed=0):
    return np.random.default_rng(seed)


def carried(compressor, x, shapes=None, seed=0, state=None):
    shapes = shapes or Shapes.vector(x.size)
    state = compressor.init(shapes) if state is None else state
    payload, _ = compressor.encode(x, shapes, state, rng(seed))
    return compressor.decode(payload, shapes)


def gaussian(d, seed=0):
    return rng(seed).standard_normal(d).astype(np.float32)


# ---- QSGD ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 7, 127, 300])
@for_each("bucket", [None, 64, 100])
def test_qsgd_decodes_to_neighbouring_levels_of_the_bucket_norm(levels, bucket):
    x = gaussian(1000)
    y = carried(Qsgd(levels, bucket), x)
    for start in range(0, 1000, bucket or 1000):
        part = slice(start, start + (bucket or 1000))
        norm = np.linalg.norm(x[part].astype(np.float64))
        level, exact = y[part] * levels / norm, x[part].astype(np.float64) * levels / norm
        assert np.allclose(level, np.rint(level), atol=1e-3)
        assert np.abs(level).max() <= levels + 1e-3
        assert np.abs(level - exact).max() < 1 + 1e-3


@pytest.mark.parametrize("levels", [1, 4])
def test_qsgd_sends_no_more_nonzero_levels_than_the_paper_says(levels):
    bucket = 400
    x = gaussian(bucket)
    counts = [np.count_nonzero(carried(Qsgd(levels, None), x, seed=s)) for s in range(300)]
    assert np.mean(counts) <= levels * (levels + math.sqrt(bucket))


def test_qsgd_takes_the_shorter_coding():
    d = 10_000
    x = gaussian(d)
    sparse, _ = Qsgd(1, None).encode(x, Shapes.vector(d), {}, rng())
    dense, _ = Qsgd(7, 512, sparse=False).encode(x, Shapes.vector(d), {}, rng())
    assert (sparse[6], dense[6]) == (1, 0)
    assert len(dense) == 7 + 4 * 20 + d // 2
    # About sqrt(2 d / pi) = 80 of 10,000 levels, at 8 bits of gap and a sign each; dense: 2500.
    assert len(sparse) < 160


def test_qsgd_with_many_levels_is_nearly_the_identity():
    x = gaussian(1000)
    assert relative_error(carried(Qsgd(32767, None), x), x) < 1e-6


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25, 1e36])
def test_norms_whose_squares_leave_float32_are_still_right(scale):
    x = gaussian(600) * np.float32(scale)
    y = carried(Qsgd(127, 512), x)
    assert relative_error(y / np.float64(scale), x / np.float64(scale)) < 512 / 127**2
    assert relative_error(
        carried(Sign("l2"), x) / np.float64(scale), x / np.float64(scale)
    ) == pytest.approx(relative_error(carried(Sign("l2"), gaussian(600)), gaussian(600)), rel=1e-4)


def test_a_norm_beyond_float32_is_refused():
    with pytest.raises(ConfigError, match="exceeds float32"):
        carried(Qsgd(7, None), np.full(100, 3e38, dtype=np.float32))


# ---- uniform ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
@for_each("stochastic", [False, True])
def test_uniform_is_within_a_step_and_exact_at_the_maximum(bits, stochastic):
    x = gaussian(5000)
    y = carried(UniformQuantizer(bits, stochastic), x)
    largest = np.abs(x).max()
    step = largest / (2 ** (bits - 1) - 1)
    assert np.abs(y - x).max() <= step * (1 if stochastic else 0.5) * (1 + 1e-4) + 1e-6
    at = np.argmax(np.abs(x))
    assert y[at] == pytest.approx(x[at], rel=1e-6)


def test_nearest_rounding_has_a_twelfth_of_a_squared_step_of_error():
    x = rng().uniform(-1, 1, 200_000).astype(np.float32)
    y = carried(UniformQuantizer(8, stochastic=False), x)
    assert np.mean((y - x) ** 2) == pytest.approx((1 / 127) ** 2 / 12, rel=0.02)


def test_uniform_worst_cases_stay_below_their_constants_and_come_close():
    """The vectors that the docstring's maximisation names: one large entry, the others equal."""
    d = 65
    nearest, drawn = UniformQuantizer(4, stochastic=False), UniformQuantizer(2)
    x = np.full(d, 0.4999 / 7, dtype=np.float32)
    x[0] = 1
    delta = nearest.contraction(Shapes.vector(d))
    assert relative_error(carried(nearest, x), x) == pytest.approx(1 - delta, rel=1e-2)
    # S = 1: n (x - x^2) / (1 + n x^2) is largest where x = 1 / (1 + sqrt(1 + n)).
    x[1:] = 1 / (1 + math.sqrt(d))
    errors = np.mean([relative_error(carried(drawn, x, seed=s), x) for s in range(2000)])
    omega = drawn.variance(Shapes.vector(d))
    assert omega == pytest.approx((math.sqrt(d) - 1) / 2)
    assert errors == pytest.approx(omega, rel=0.03)


def test_each_bucket_has_its_own_scale():
    x = np.concatenate([gaussian(100), 1000 * gaussian(100, 1), 1e-3 * gaussian(37, 2)])
    y = carried(UniformQuantizer(8, stochastic=False, bucket=100), x.astype(np.float32))
    for part in (slice(0, 100), slice(100, 200), slice(200, 237)):
        assert relative_error(y[part], x[part]) < 1e-4


def test_clipping_cuts_at_so_many_root_mean_squares():
    x = vectors(10_000)["heavy"]
    y = carried(UniformQuantizer(8, clip=3.0), x)
    bound = 3 * np.sqrt(np.mean(x.astype(np.float64) ** 2))
    assert np.abs(y).max() == pytest.approx(bound, rel=1e-6)
    assert UniformQuantizer(8, clip=3.0).variance(Shapes.vector(10)) is None


# ---- natural compression -----------------------------------------------------------------------


def test_natural_compression_gives_powers_of_two_next_to_the_entry():
    x = vectors(5000)["heavy"]
    y = carried(Natural(), x)
    mantissa, _ = np.frexp(y)
    assert np.all(np.abs(mantissa) == 0.5)
    assert np.all((np.abs(y) > np.abs(x) / 2) & (np.abs(y) < 2 * np.abs(x)))
    assert np.array_equal(np.sign(y), np.sign(x))


def test_natural_compression_reaches_an_eighth_at_four_thirds():
    for exponent in (-20, 0, 7):
        x = np.full(200_000, 4 / 3 * 2.0**exponent, dtype=np.float32)
        assert relative_error(carried(Natural(), x), x) == pytest.approx(1 / 8, abs=1e-3)


def test_powers_of_two_and_zero_stay_as_they_are():
    x = np.array([0.0, 1.0, -2.0, 0.125, 2.0**-126, -(2.0**126)], dtype=np.float32)
    assert np.array_equal(carried(Natural(), x), x)


def test_entries_without_an_upper_neighbour_are_refused():
    with pytest.raises(ConfigError, match=r"2\^127"):
        carried(Natural(), np.array([2.0**127], dtype=np.float32))


# ---- TernGrad --------------------------------------------------------------------------------

LAYERS = Shapes(((30, 20), (50,), (4,)))


def test_ternary_numbers_are_scaled_layer_by_layer():
    x = gaussian(LAYERS.size)
    y = carried(TernGrad(clip=None), x, LAYERS)
    for part in LAYERS.slices:
        s = np.abs(x[part]).max()
        assert set(np.unique(np.abs(y[part]))) <= {0, s}
        assert np.all(y[part] * x[part] >= 0)


def test_terngrad_has_exactly_the_variance_of_the_vector():
    """omega(g) = s |g|_1 / |g|^2 - 1."""
    x = gaussian(2000)
    s, l1, l2 = np.abs(x).max(), np.abs(x).sum(), np.sum(x.astype(np.float64) ** 2)
    errors = [relative_error(carried(TernGrad(clip=None), x, seed=i), x) for i in range(400)]
    assert np.mean(errors) == pytest.approx(s * l1 / l2 - 1, rel=0.02)


def test_clipping_lowers_the_variance_and_brings_little_bias():
    x = gaussian(2000)
    y = np.array([carried(TernGrad(clip=2.5), x, seed=i) for i in range(2000)], dtype=np.float64)
    mean = y.mean(axis=0)
    sigma = np.std(x, dtype=np.float64)
    clamped = np.clip(x, -2.5 * sigma, 2.5 * sigma)
    norm = np.sum(x.astype(np.float64) ** 2)
    assert np.mean(np.sum((y - mean) ** 2, axis=1)) / norm == pytest.approx(1.03, abs=0.06)
    # E (|z| - c)_+^2 = 2 ((1 + c^2) P(z > c) - c phi(c)) = 0.0024 for c = 2.5.
    assert np.sum((clamped - x) ** 2) / norm == pytest.approx(2.4e-3, abs=1.2e-3)
    error = y.std(axis=0, ddof=1) / math.sqrt(2000) + np.abs(y).max() / 2000
    assert np.all(np.abs(mean - clamped) <= 5 * error + 1e-4 * sigma)


def test_entries_far_beyond_the_clip_keep_their_sign():
    x = gaussian(100_000) * np.float32(1e-6)
    x[7], x[8] = 1e4, -1e4
    y = carried(TernGrad(clip=2.5), x)
    assert y[7] > 0 > y[8]
    assert y[7] == -y[8]


def test_one_hot_gradients_arrive_exactly():
    x = np.zeros(LAYERS.size, dtype=np.float32)
    x[17] = -2.5
    assert np.array_equal(carried(TernGrad(clip=None), x, LAYERS), x)


def test_a_scaler_shared_by_maximum_keeps_every_worker_unbiased():
    c = TernGrad(clip=None)
    workers = [gaussian(LAYERS.size, seed) for seed in range(3)]
    shared = np.max([c.scalers(x, LAYERS) for x in workers], axis=0)
    x = workers[0]
    state = {"shared": shared}
    y = np.array([carried(c, x, LAYERS, i, state) for i in range(3000)], dtype=np.float64)
    # The second term is Bernstein's, for entries that are rarely sent.
    error = y.std(axis=0, ddof=1) / math.sqrt(3000) + np.abs(y).max() / 3000
    assert np.all(np.abs(y.mean(axis=0) - x) <= 5 * error)
    # Half of the scaler holds the entries above it at it: biased, as the probability ends at 1.
    halved = {"shared": (c.scalers(x, LAYERS) / 2).astype(np.float32)}
    y = np.mean([carried(c, x, LAYERS, i, halved) for i in range(300)], axis=0)
    at = np.argmax(np.abs(x))
    assert abs(y[at]) == pytest.approx(abs(x[at]) / 2, rel=1e-5)


def test_sums_of_ternary_numbers_are_the_mean_of_the_workers():
    c = TernGrad(clip=None, last_float=True)
    workers = [gaussian(LAYERS.size, seed) for seed in range(5)]
    state = {"shared": np.max([c.scalers(x, LAYERS) for x in workers], axis=0)}
    payloads = [c.encode(x, LAYERS, state, rng(i))[0] for i, x in enumerate(workers)]
    down = c.encode_sums(payloads, LAYERS)
    expected = np.mean([c.decode(p, LAYERS) for p in payloads], axis=0, dtype=np.float64)
    assert np.allclose(c.decode_sums(down, LAYERS, 5), expected, rtol=1e-6, atol=1e-6)
    # 2 * 5 + 1 values are 4 bits each.
    assert len(down) == 6 + 4 + 4 * 2 + math.ceil(650 * 4 / 8) + 4 * 4


def test_sums_of_different_scalers_are_refused():
    c = TernGrad(clip=None)
    payloads = [
        c.encode(gaussian(LAYERS.size, s), LAYERS, c.init(LAYERS), rng())[0] for s in (0, 1)
    ]
    with pytest.raises(ConfigError, match="share them"):
        c.encode_sums(payloads, LAYERS)
    with pytest.raises(ConfigError, match="0 payloads"):
        c.encode_sums([], LAYERS)


def test_small_layers_and_the_last_are_sent_as_they_are():
    x = gaussian(LAYERS.size)
    y = carried(TernGrad(min_size=51), x, LAYERS)
    assert np.array_equal(y[600:], x[600:])
    y = carried(TernGrad(last_float=True), x, LAYERS)
    assert np.array_equal(y[650:], x[650:])
    assert not np.array_equal(y[600:650], x[600:650])


# ---- signs -----------------------------------------------------------------------------------


def test_sign_of_zero_is_plus_one():
    x = np.array([0.0, -0.0, 2.0, -3.0], dtype=np.float32)
    assert carried(Sign("none"), x).tolist() == [1, 1, 1, -1]


def test_scales_are_the_mean_magnitude_or_the_root_mean_square_of_a_tensor():
    x = gaussian(LAYERS.size)
    for scale, order in (("l1", 1), ("l2", 2)):
        y = carried(Sign(scale), x, LAYERS)
        for part in LAYERS.slices:
            s = np.mean(np.abs(x[part].astype(np.float64)) ** order) ** (1 / order)
            assert np.allclose(np.abs(y[part]), s, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "scale", "expected", "tolerance"),
    [
        ("one-hot", "l2", 1.96, 0.005),  # more than 1: not a contraction
        ("gaussian", "l2", 0.40, 0.02),
        ("laplace", "l2", 0.59, 0.03),
        ("gaussian", "l1", 0.36, 0.02),
        ("laplace", "l1", 0.50, 0.03),
    ],
)
def test_residuals_of_scaled_signs_are_those_of_the_document(kind, scale, expected, tolerance):
    x = vectors(2000)[kind]
    assert relative_error(carried(Sign(scale), x), x) == pytest.approx(expected, abs=tolerance)


def test_l1_scale_has_exactly_its_contraction():
    x = vectors(500)["heavy"].astype(np.float64)
    delta = np.abs(x).sum() ** 2 / (500 * np.sum(x**2))
    assert relative_error(carried(Sign("l1"), x.astype(np.float32)), x) == pytest.approx(1 - delta)


def test_the_majority_decides_and_a_tie_is_plus_one():
    votes = [np.array(v, dtype=np.float32) for v in ([1, -1, 1, -1], [1, -1, -1, -1])]
    assert majority(votes).tolist() == [1, -1, 1, -1]


# ---- codebooks -------------------------------------------------------------------------------


@pytest.mark.parametrize("codebook", [Codebook(), Codebook(center=True), Codebook("quantile")])
@for_each("kind", vectors(4))
def test_sums_survive_a_codebook_of_bin_means(codebook, kind):
    x = vectors(30_000)[kind]
    y = carried(codebook, x)
    total = x.sum(dtype=np.float64)
    assert y.sum(dtype=np.float64) == pytest.approx(total, abs=1e-6 * float(np.abs(x).sum()))
    # Means of bins are a projection: the residual is orthogonal to what is sent.
    energy = np.sum(x.astype(np.float64) ** 2)
    rest = energy - np.sum(y.astype(np.float64) ** 2)
    assert np.sum((x - y.astype(np.float64)) ** 2) == pytest.approx(rest, abs=1e-6 * energy)


@pytest.mark.parametrize(
    ("codebook", "expected"), [(Codebook(), 2.6e-4), (Codebook("quantile"), 7.4e-4)]
)
def test_errors_of_codebooks_on_gaussians_are_those_of_the_document(codebook, expected):
    x = gaussian(1_000_000)
    assert relative_error(carried(codebook, x), x) == pytest.approx(expected, rel=0.1)


def test_bins_cover_three_standard_deviations_to_either_side():
    """The 6 of "6 sigma" is the full width: bin 0 begins at -3 sigma, 0.28% lie beyond."""
    d = 200_000
    x = gaussian(d)
    payload, _ = Codebook().encode(x, Shapes.vector(d), {}, rng())
    bins = np.frombuffer(payload[6 + 1024 :], dtype=np.uint8)
    assert np.array_equal(bins, np.clip(np.rint(x / (6 * x.std(ddof=1) / 256)) + 128, 0, 255))
    assert np.mean(np.abs(x) > 3 * x.std()) == pytest.approx(0.0027, rel=0.1)
    assert len(payload) * 8 / 32 == pytest.approx(d / 3.93, rel=0.02)


def test_the_centred_code_subtracts_the_mean():
    x = gaussian(50_000) + np.float32(100)
    assert relative_error(carried(Codebook(center=True), x) - 100, x - 100) < 5e-4
    # Without it everything lies far outside of the bins about zero.
    assert relative_error(carried(Codebook(), x) - 100, x - 100) > 0.9


# ---- floats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("bf16", 2.0**-8), ("fp16", 2.0**-11), ("fp8_e4m3", 2.0**-4), ("fp8_e5m2", 2.0**-3)],
)
def test_relative_errors_are_those_of_the_formats(dtype, error):
    x = np.geomspace(1e-2, 1, 20_000).astype(np.float32)
    worst = np.abs(carried(Cast(dtype), x) / x.astype(np.float64) - 1).max()
    # Half a unit in the last place of 1 is worst just above the middle, at 1 + error.
    assert worst == pytest.approx(error / (1 + error), rel=0.01)


def test_half_precision_is_that_of_numpy():
    x = vectors(10_000)["heavy"]
    assert np.array_equal(carried(Cast("fp16"), x), x.astype(np.float16).astype(np.float32))


def test_bfloat16_rounds_to_the_nearest_even():
    """Half-way between neighbours: to the even mantissa, by the definition on bits."""
    bits = (np.arange(0x3F80, 0x3F90, dtype=np.uint32) << 16) | 0x8000
    got = carried(Cast("bf16"), bits.view(np.float32)).view(np.uint32) >> 16
    assert np.array_equal(got, (np.arange(0x3F80, 0x3F90) + 1) // 2 * 2)


def test_e3m0_is_the_nearest_of_fifteen_numbers():
    grid = np.concatenate([[0.0], 2.0 ** np.arange(-6, 1)])
    grid = np.concatenate([-grid[:0:-1], grid])
    x = np.concatenate([rng().uniform(-1, 1, 5000), 10.0 ** rng(1).uniform(-4, 0, 5000), [1.0]])
    x = x.astype(np.float32)
    nearest = grid[np.argmin(np.abs(x[:, None].astype(np.float64) - grid), axis=1)]
    for scale in (1.0, 37.0, 1e-30):
        got = carried(Cast("e3m0"), x * np.float32(scale)) / np.float64(np.float32(scale))
        assert np.allclose(got, nearest, rtol=1e-6, atol=1e-7)


def test_e3m0_errs_by_a_third_at_worst_within_its_range():
    x = np.geomspace(2.0**-6, 1, 50_000).astype(np.float32)
    worst = np.abs(carried(Cast("e3m0"), x) / x - 1).max()
    assert worst == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "e3m0"])
def test_the_scale_of_a_tensor_maps_its_maximum_to_the_largest_number(dtype):
    shapes = Shapes(((100,), (100,), (3,)))
    x = np.concatenate([1e-20 * gaussian(100), 1e20 * gaussian(100, 1), np.zeros(3)])
    x = x.astype(np.float32)
    y = carried(Cast(dtype), x, shapes)
    for part in shapes.slices:
        at = np.argmax(np.abs(x[part]))
        assert y[part][at] == pytest.approx(x[part][at], rel=1e-6)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "e3m0"])
def test_every_code_decodes_to_its_number_or_is_refused(dtype):
    c = Cast(dtype)
    shapes = Shapes.vector(2)
    good = bad = 0
    for code in range(256):
        body = bytes([code]) if dtype == "e3m0" else bytes([code, 0])
        payload = b"\x0d\x01\x02\0\0\0" + np.float32(1).tobytes() + body
        try:
            y = c.decode(payload, shapes)
        except PayloadError:
            bad += 1
            continue
        good += 1
        assert np.abs(y).max() <= 1
    # E4M3 has two NaN, E5M2 two infinities and six NaN, E3M0 a minus zero in either half.
    assert bad == {"fp8_e4m3": 2, "fp8_e5m2": 8, "e3m0": 31}[dtype]
    assert good + bad == 256


@pytest.mark.parametrize(("dtype", "value"), [("fp16", 65_505.0), ("bf16", 3.4e38)])
def test_entries_beyond_the_range_are_refused(dtype, value):
    with pytest.raises(ConfigError, match="exceeds"):
        carried(Cast(dtype), np.array([1.0, value], dtype=np.float32))
    assert np.isfinite(carried(Cast(dtype), np.array([0.99 * value], dtype=np.float32))).all()


def test_options_that_do_not_exist_are_refused():
    for make in (
        lambda: Cast("fp4"),
        lambda: Cast("fp16", stochastic=True),
        lambda: Sign("l3"),
        lambda: Codebook("uniformly"),
        lambda: Codebook("quantile", center=True),
        lambda: Qsgd(0),
        lambda: Qsgd(3, 0),
        lambda: UniformQuantizer(1),
        lambda: UniformQuantizer(8, clip=0.0),
        lambda: TernGrad(clip=-1.0),
        lambda: TernGrad(min_size=-1),
    ):
        with pytest.raises(ConfigError):
            make()


def test_rows_side_by_side_are_decoded_as_each_of_them_alone_to_the_bit():
    draws = np.random.default_rng(1)
    codebook = Codebook(center=False)
    for d in (1, 2, 7, 513, 4096):
        x = draws.normal(size=(130, d)) * 10.0 ** draws.integers(-36, 34, size=(130, 1))
        x = x.astype(np.float32)
        x[3], x[4], x[5], x[6, 1:] = 0.0, 1.5, 1e-20, 0.0
        rows = codebook.decoded_rows(x)
        for row, of in zip(rows, x, strict=True):
            shapes = Shapes.vector(d)
            payload, _ = codebook.encode(of.copy(), shapes, {}, draws)
            np.testing.assert_array_equal(codebook.decode(payload, shapes), row)
