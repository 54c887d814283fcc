import numpy as np
import pytest
from members import relative_error, vectors
from scipy.fft import dctn, idctn

from fl.compression import Cast, Chain, Demo, ErrorFeedback, Shapes
from fl.compression.demo import dct_matrix
from fl.errors import ConfigError

SHAPES = Shapes(((12, 16), (10,), (6, 2, 5)))


def vector(seed=0):
    return np.random.default_rng(seed).standard_normal(SHAPES.size).astype(np.float32)


def carried(c, x, shapes=SHAPES):
    payload, _ = c.encode(x, shapes, c.init(shapes), np.random.default_rng(0))
    return c.decode(payload, shapes)


def by_scipy(matrix, a, b, k):
    """Cut into a x b chunks, keep k coefficients of each by sorting, go back."""
    out = np.zeros_like(matrix, dtype=np.float64)
    for i in range(0, matrix.shape[0], a):
        for j in range(0, matrix.shape[1], b):
            y = dctn(matrix[i : i + a, j : j + b].astype(np.float64), norm="ortho")
            keep = np.argsort(-np.abs(y.reshape(-1)), kind="stable")[:k]
            kept = np.zeros(y.size)
            kept[keep] = y.reshape(-1)[keep]
            out[i : i + a, j : j + b] = idctn(kept.reshape(a, b), norm="ortho")
    return out


@pytest.mark.parametrize("size", [1, 2, 5, 29, 64])
def test_the_transform_is_the_orthonormal_dct(size):
    d = dct_matrix(size).astype(np.float64)
    x = np.random.default_rng(size).standard_normal(size)
    assert np.allclose(d @ x, dctn(x, norm="ortho"), atol=1e-6)
    assert np.allclose(d.T @ d, np.eye(size), atol=1e-6)


def test_messages_are_those_of_a_straightforward_implementation():
    x = vector()
    y = carried(Demo(k=3, chunk=4), x)
    assert np.allclose(
        y[:192].reshape(12, 16), by_scipy(x[:192].reshape(12, 16), 4, 4, 3), atol=1e-5
    )
    assert np.array_equal(y[192:202], x[192:202])
    # 6 x 10: the largest divisors that are at most 4 are 3 and 2.
    assert np.allclose(y[202:].reshape(6, 10), by_scipy(x[202:].reshape(6, 10), 3, 2, 3), atol=1e-5)


def test_all_coefficients_are_the_identity():
    x = vector()
    assert relative_error(carried(Demo(k=64, chunk=8, vectors=True), x), x) < 1e-11


def test_what_is_sent_leaves_orthogonally():
    """|delta_before|^2 = |delta_after|^2 + |q|^2."""
    x = vector().astype(np.float64)
    q = carried(Demo(k=5, chunk=8), x.astype(np.float32)).astype(np.float64)
    assert np.sum(x**2) == pytest.approx(np.sum((x - q) ** 2) + np.sum(q**2), rel=1e-5)


def test_contraction_is_the_least_share_of_a_chunk():
    assert Demo(k=32, chunk=64).contraction(Shapes(((64, 128), (9,)))) == 32 / 4096
    assert Demo(k=32, chunk=64, vectors=True).contraction(Shapes(((64, 64), (64,)))) == 32 / 4096
    assert Demo(k=32, chunk=64, vectors=True).contraction(Shapes(((128,),))) == 0.5
    assert Demo(k=32).contraction(Shapes(((7,),))) == 1


def test_a_smooth_matrix_needs_few_coefficients():
    i, j = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    x = np.exp(-((i - 20) ** 2 + (j - 40) ** 2) / 400).astype(np.float32).reshape(-1)
    assert relative_error(carried(Demo(k=32), x, Shapes(((64, 64),))), x) < 0.01


def test_bytes_are_28_bits_a_coefficient_as_bfloat16():
    shapes = Shapes(((256, 128),))
    x = vectors(shapes.size)["gaussian"]
    c = Chain([Demo(), Cast("bf16")])
    payload, _ = c.encode(x, shapes, c.init(shapes), np.random.default_rng(0))
    assert len(payload) == 6 + 4 + 6 + 8 * 32 * 28 // 8
    plain, _ = Demo().encode(x, shapes, {}, np.random.default_rng(0))
    assert len(plain) == 6 + 8 * 32 * (32 + 12) // 8
    # The document's 146 times, against dense float32.
    assert 4 * shapes.size / (8 * 32 * 28 / 8) == pytest.approx(146.3, abs=0.1)


def test_error_feedback_with_decay_is_the_decoupled_momentum():
    """delta <- beta delta + lr g; q = C(delta); delta <- delta - q, by hand over several steps."""
    beta, lr, c = 0.9, 0.1, Demo(k=2, chunk=4)
    channel = ErrorFeedback(c, decay=beta)
    state, delta = channel.init(SHAPES), np.zeros(SHAPES.size, dtype=np.float32)
    for t in range(6):
        g = np.float32(lr) * vector(t)
        payload, state = channel.encode(g, SHAPES, state, np.random.default_rng(t))
        delta = np.float32(beta) * delta + g
        q = carried(c, delta)
        delta = delta - q
        assert np.array_equal(channel.receive(payload, SHAPES, {})[0], q)
        assert np.array_equal(state["e"], delta)


def test_all_coefficients_are_sign_sgd_on_the_mean_gradient():
    c = Demo(k=64, chunk=8, vectors=True)
    channel = ErrorFeedback(c, decay=0.9)
    gradients = [vector(seed) for seed in range(3)]
    payloads = []
    for g in gradients:
        payload, state = channel.encode(g, SHAPES, channel.init(SHAPES), np.random.default_rng(0))
        assert np.abs(state["e"]).max() < 1e-5
        payloads.append(payload)
    assert np.array_equal(
        c.mean_over_senders(payloads, SHAPES), np.sign(np.mean(gradients, axis=0))
    )


def test_a_coefficient_is_the_mean_over_those_who_sent_it():
    shapes = Shapes(((4, 4),))
    c = Demo(k=1, chunk=4)
    d = dct_matrix(4)

    def basis(i, j, size):
        return (size * np.outer(d[i], d[j])).reshape(-1).astype(np.float32)

    vectors_ = [basis(0, 1, 6.0), basis(0, 1, 2.0), basis(2, 3, 10.0)]
    payloads = [c.encode(x, shapes, {}, np.random.default_rng(0))[0] for x in vectors_]
    u = c.mean_over_senders(payloads, shapes, sign=False)
    # (6 + 2) / 2, and 10 as loud as if all had sent it; others are zero.
    assert np.allclose(u, basis(0, 1, 4.0) + basis(2, 3, 10.0), atol=1e-5)
    assert np.array_equal(c.mean_over_senders(payloads, shapes), np.sign(u))


def test_replicas_that_get_the_same_bytes_take_the_same_step():
    c = Demo(k=3, chunk=8)
    payloads = [c.encode(vector(s), SHAPES, {}, np.random.default_rng(0))[0] for s in range(4)]
    steps = {c.mean_over_senders(payloads, SHAPES, sign=False).tobytes() for _ in range(3)}
    assert len(steps) == 1


def test_nothing_to_combine_is_refused():
    with pytest.raises(ConfigError, match="no payloads"):
        Demo().mean_over_senders([], SHAPES)
    for wrong in ({"k": 0}, {"chunk": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            Demo(**wrong)
