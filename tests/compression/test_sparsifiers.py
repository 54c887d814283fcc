import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from many_cases import for_each
from members import relative_error, vectors

from fl.compression import (
    BlockTopK,
    Chain,
    Identity,
    Induced,
    Natural,
    PayloadError,
    Qsgd,
    RandK,
    Shapes,
    Shrunk,
    Threshold,
    TopK,
    UniformQuantizer,
)
from fl.errors import ConfigError

SHAPES = Shapes(((40, 10), (100,), (1,)))
D = SHAPES.size
X = vectors(D)["gaussian"]


def rng(seed=0):
    return np.random.default_rng(seed)


def carried(compressor, x, shapes=SHAPES, seed=0):
    payload, _ = compressor.encode(x, shapes, compressor.init(shapes), rng(seed))
    return compressor.decode(payload, shapes)


# ---- top-k -----------------------------------------------------------------------------------


def test_topk_keeps_the_largest_and_drops_the_rest_exactly():
    y = carried(TopK(k=30), X)
    kept = np.sort(np.argsort(-np.abs(X), kind="stable")[:30])
    expected = np.zeros_like(X)
    expected[kept] = X[kept]
    assert np.array_equal(y, expected)
    # The residual is what was dropped: disjoint supports, so the dot product is exactly zero.
    assert np.dot(y, X - y) == 0


def test_topk_is_worst_on_constant_vectors_where_its_constant_is_reached():
    x = np.full(D, 0.3, dtype=np.float32)
    c = TopK(density=0.1)
    assert relative_error(carried(c, x), x) == pytest.approx(1 - c.contraction(SHAPES), rel=1e-6)


def test_topk_by_tensor_keeps_a_share_of_each_tensor():
    c = TopK(density=0.1, scope="tensor")
    y = carried(c, np.concatenate([X[:400] * 1000, X[400:]]))
    assert [np.count_nonzero(y[part]) for part in SHAPES.slices] == [40, 10, 1]
    assert c.contraction(SHAPES) == pytest.approx(0.1)


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_topk_of_everything_is_the_identity(scope):
    assert np.array_equal(carried(TopK(density=1.0, scope=scope), X), X)


def test_block_topk_keeps_its_share_of_every_block():
    x = X.copy()
    x[:100] *= 1000
    y = carried(BlockTopK(k=3, block=100), x)
    assert [np.count_nonzero(y[at : at + 100]) for at in range(0, D, 100)] == [3] * 5 + [1]
    assert np.dot(y, x - y) == 0


@pytest.mark.parametrize("block", [1, 3, 64, 10_000])
def test_block_topk_of_one_block_is_topk(block):
    if block == 10_000:
        assert np.array_equal(carried(BlockTopK(k=9, block=block), X), carried(TopK(k=9), X))
    else:
        assert np.array_equal(carried(BlockTopK(density=1.0, block=block), X), X)


# ---- threshold -------------------------------------------------------------------------------


def test_threshold_sends_what_reaches_the_bound():
    y = carried(Threshold(1.5, cap=1.0), X)
    assert np.array_equal(y, np.where(np.abs(X) >= 1.5, X, 0))


def test_threshold_sends_at_least_one_entry_and_at_most_the_cap():
    assert np.count_nonzero(carried(Threshold(1e6), X)) == 1
    assert np.argmax(np.abs(carried(Threshold(1e6), X))) == np.argmax(np.abs(X))
    assert np.array_equal(carried(Threshold(1e-6, cap=0.1), X), carried(TopK(density=0.1), X))


def test_threshold_finds_the_density_it_is_to_keep():
    shapes = Shapes.vector(20_000)
    c = Threshold(1e-3, density=0.02, cap=0.5)
    state = c.init(shapes)
    for t in range(40):
        x = rng(t).standard_normal(20_000).astype(np.float32)
        payload, state = c.encode(x, shapes, state, rng())
        sent = np.count_nonzero(c.decode(payload, shapes))
    assert sent == pytest.approx(400, rel=0.2)
    # 2% of a normal distribution lie beyond 2.326 standard deviations.
    assert state["lambda"][0] == pytest.approx(2.326, rel=0.05)


def test_threshold_survives_a_vector_of_zeros():
    c = Threshold(1.0, density=0.01)
    state = c.init(SHAPES)
    for _ in range(200):
        _, state = c.encode(np.zeros(D, dtype=np.float32), SHAPES, state, rng())
    assert state["lambda"][0] > 0


# ---- rand-k ----------------------------------------------------------------------------------


@pytest.mark.parametrize("contiguous", [False, True])
@for_each("k", [1, 5, 20, 39, 40])
def test_every_entry_is_kept_equally_often(contiguous, k):
    c = RandK(k=k, contiguous=contiguous)
    counts = np.zeros(40)
    draws = 1000
    for seed in range(draws):
        subset = c.subset(seed * 7919, 40)
        assert subset.size == k
        assert np.all(np.diff(subset) > 0)
        counts[subset] += 1
    p = k / 40
    assert np.all(np.abs(counts - draws * p) <= 5 * math.sqrt(draws * p * (1 - p)) + 1e-9)


def test_subsets_of_a_seed_are_pinned():
    """They are part of the wire: the draws are AES words modulo d, first k distinct ones."""
    key = algorithms.AES((99).to_bytes(16, "little"))
    stream = Cipher(key, modes.CTR(bytes(16))).encryptor().update(bytes(240))
    words = np.frombuffer(stream, dtype="<u8")
    drawn = []
    for word in words:
        if int(word) % 1000 not in drawn:
            drawn.append(int(word) % 1000)
    assert RandK(k=8).subset(99, 1000).tolist() == sorted(drawn[:8])


def test_unscaled_randk_loses_the_share_it_does_not_keep_in_expectation_exactly():
    c = RandK(density=0.2)
    errors = [relative_error(carried(c, X, seed=s), X) for s in range(800)]
    error = np.std(errors, ddof=1) / math.sqrt(len(errors))
    assert abs(np.mean(errors) - (1 - c.contraction(SHAPES))) <= 4 * error


def test_scaled_randk_has_exactly_its_variance():
    c = RandK(density=0.2, scaled=True)
    errors = [relative_error(carried(c, X, seed=s), X) for s in range(3000)]
    error = np.std(errors, ddof=1) / math.sqrt(len(errors))
    assert abs(np.mean(errors) - c.variance(SHAPES)) <= 4 * error


@pytest.mark.parametrize("scaled", [False, True])
def test_randk_of_everything_is_the_identity(scaled):
    assert np.array_equal(carried(RandK(density=1.0, scaled=scaled), X), X)


def test_randk_is_linear_when_the_generators_are_equal():
    """encode(mean x_i) = mean encode(x_i): what a ring or secure aggregation needs."""
    c = RandK(k=50)
    xs = [vectors(D, seed)["laplace"] for seed in range(3)]
    payloads = [c.encode(x, SHAPES, {}, rng(4))[0] for x in xs]
    values = [np.frombuffer(p[14:], dtype=np.float32).astype(np.float64) for p in payloads]
    mean = np.mean(xs, axis=0, dtype=np.float64).astype(np.float32)
    together, _ = c.encode(mean, SHAPES, {}, rng(4))
    assert len({p[:14] for p in [*payloads, together]}) == 1
    got = np.frombuffer(together[14:], dtype=np.float32)
    assert np.allclose(np.mean(values, axis=0), got, rtol=1e-6, atol=1e-7)


def test_a_budget_is_a_density_or_a_number():
    for wrong in ({}, {"density": 0.1, "k": 3}, {"density": 0.0}, {"density": 1.5}, {"k": 0}):
        with pytest.raises(ConfigError, match=r"density|k is"):
            TopK(**wrong)
    assert TopK(density=1e-9).count(100) == 1
    assert TopK(k=10**9).count(100) == 100


# ---- chains and other combinations -------------------------------------------------------------


def test_a_chain_of_topk_and_identity_is_topk():
    assert np.array_equal(carried(Chain([TopK(k=30), Identity()]), X), carried(TopK(k=30), X))


def test_a_chain_costs_its_parts_and_four_bytes_a_transform():
    one, _ = TopK(k=30).encode(X, SHAPES, {}, rng())
    chain, _ = Chain([TopK(k=30), UniformQuantizer()]).encode(X, SHAPES, {}, rng())
    side = len(one) - 6 - 4 * 30
    assert len(chain) == 6 + 4 + side + (6 + 4 + 30)


def test_errors_of_a_chain_on_an_isometry_add_up_as_squares():
    c = Chain([TopK(k=60), UniformQuantizer(bits=3, stochastic=False)])
    y = carried(c, X)
    kept = carried(TopK(k=60), X)
    dropped, rounded = relative_error(kept, X), float(np.sum((y - kept) ** 2) / np.sum(X**2))
    assert relative_error(y, X) == pytest.approx(dropped + rounded, rel=1e-5)
    assert relative_error(y, X) <= 1 - c.contraction(SHAPES)


def test_unbiased_stages_multiply_their_variances():
    c = Chain([RandK(density=0.25, scaled=True), Natural()])
    d_over_k = 501 / 125
    assert c.variance(SHAPES) == pytest.approx(d_over_k * 1.125 - 1)
    y = np.array([carried(c, X, seed=s) for s in range(1000)], dtype=np.float64)
    total = y.sum(axis=1)
    assert abs(total.mean() - X.sum(dtype=np.float64)) <= 4 * total.std() / math.sqrt(1000)


def test_a_biased_transform_makes_a_biased_chain():
    assert Chain([TopK(k=5), Qsgd()]).variance(SHAPES) is None
    assert (
        Chain([RandK(k=5, scaled=True), UniformQuantizer(stochastic=False)]).variance(SHAPES)
        is None
    )


def test_three_stages_keep_their_states_apart():
    c = Chain([TopK(k=100), Threshold(0.5, density=0.1, cap=0.5), UniformQuantizer()])
    state = c.init(SHAPES)
    assert list(state) == ["1.lambda"]
    payload, after = c.encode(X, SHAPES, state, rng())
    assert after["1.lambda"] != state["1.lambda"]
    y = c.decode(payload, SHAPES)
    assert 1 <= np.count_nonzero(y) <= 50
    assert state["1.lambda"] == 0.5


def test_chains_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        Chain([TopK(k=3)])
    with pytest.raises(ConfigError, match="not a transform"):
        Chain([Natural(), TopK(k=3)])
    varying = Chain([Threshold(1.0), Threshold(1.0, density=0.1), Natural()])
    with pytest.raises(ConfigError, match="keeps a state"):
        varying.init(SHAPES)


def test_a_chain_passes_on_what_its_last_stage_refuses():
    c = Chain([TopK(k=30), UniformQuantizer()])
    payload, _ = c.encode(X, SHAPES, {}, rng())
    with pytest.raises(PayloadError, match="UniformQuantizer"):
        c.decode(payload[:-1], SHAPES)


def test_shrinking_an_unbiased_compressor_makes_it_contractive():
    c = Shrunk(RandK(density=0.1, scaled=True))
    assert c.contraction(SHAPES) == pytest.approx(50 / 501)
    # Scaling by d/k and by 1 / (1 + omega) = k/d cancel: it is the unscaled form.
    assert np.allclose(carried(c, X), carried(RandK(density=0.1), X), rtol=1e-6)
    with pytest.raises(ConfigError, match="biased"):
        Shrunk(TopK(k=3)).init(SHAPES)


def test_inducing_removes_the_bias_of_topk():
    c = Induced(TopK(density=0.3), RandK(density=0.5, scaled=True))
    y = np.array([carried(c, X, seed=s) for s in range(800)], dtype=np.float64)
    kept = carried(TopK(density=0.3), X)
    error = y.std(axis=0, ddof=1) / math.sqrt(800)
    assert np.all(np.abs(y.mean(axis=0) - X) <= 5 * error + 1e-6)
    ratio = np.mean(np.sum((y - X) ** 2, axis=1)) / np.sum(X.astype(np.float64) ** 2)
    assert ratio <= c.variance(SHAPES)
    # Exactly omega_Q times the energy that top-k dropped.
    omega = RandK(density=0.5, scaled=True).variance(SHAPES)
    assert ratio == pytest.approx(omega * relative_error(kept, X), rel=0.1)
    with pytest.raises(ConfigError, match="unbiased"):
        Induced(TopK(k=3), TopK(k=3)).init(SHAPES)
