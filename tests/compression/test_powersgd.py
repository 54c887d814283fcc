import numpy as np
import pytest
from members import relative_error

from fl.compression import ErrorFeedback, MeanLink, PowerSgd, Shapes

SHAPES = Shapes(((20, 12), (20,), (6, 3, 2, 4), ()))
MATRIX = Shapes(((30, 20),))


def vector(shapes, seed=0):
    return np.random.default_rng(seed).standard_normal(shapes.size).astype(np.float32)


def send(c, x, shapes, state):
    payload, state = c.encode(x, shapes, state, np.random.default_rng(0))
    return c.decode(payload, shapes), state, payload


def spectrum(values, seed=0):
    """A 30 x 20 matrix with given singular values."""
    r = np.random.default_rng(seed)
    u, v = (
        np.linalg.qr(r.standard_normal((30, 20)))[0],
        np.linalg.qr(r.standard_normal((20, 20)))[0],
    )
    return (u * values @ v.T).astype(np.float32).reshape(-1)


def test_full_rank_is_exact():
    c = PowerSgd(rank=100, min_compression=0)
    x = vector(SHAPES)
    assert relative_error(send(c, x, SHAPES, c.init(SHAPES))[0], x) < 1e-10


def test_a_matrix_of_rank_r_is_exact_at_rank_r():
    c = PowerSgd(rank=3, min_compression=0)
    x = spectrum(np.r_[5.0, 3.0, 1.0, np.zeros(17)])
    assert relative_error(send(c, x, MATRIX, c.init(MATRIX))[0], x) < 1e-9


def test_what_is_sent_is_a_projection():
    c = PowerSgd(rank=2, min_compression=0)
    x = vector(SHAPES)
    y = send(c, x, SHAPES, c.init(SHAPES))[0].astype(np.float64)
    energy, sent = np.sum(x.astype(np.float64) ** 2), np.sum(y**2)
    assert np.sum((x - y) ** 2) == pytest.approx(energy - sent, rel=1e-4)
    assert np.array_equal(y[240:260], x[240:260])  # vectors are sent as they are


def test_columns_of_p_are_orthonormal():
    c = PowerSgd(rank=4, min_compression=0)
    x = vector(MATRIX)
    p = c.orthonormalised(c.project(x, MATRIX, c.init(MATRIX)["q"]), MATRIX).reshape(30, 4)
    assert np.allclose(p.T @ p, np.eye(4), atol=1e-6)


def test_a_matrix_of_zeros_does_no_harm():
    c = PowerSgd(rank=2, min_compression=0)
    zeros = np.zeros(MATRIX.size, dtype=np.float32)
    y, state, _ = send(c, zeros, MATRIX, c.init(MATRIX))
    assert not y.any()
    # Q is zero now, and P is some orthonormal basis: the next message projects on that.
    x = vector(MATRIX)
    y, state, _ = send(c, x, MATRIX, state)
    assert 0 < relative_error(y, x) < 1


def test_warm_start_converges_to_the_best_approximation_and_a_cold_one_does_not():
    sigma = 0.8 ** np.arange(20)
    x = spectrum(sigma)
    best = np.sum(sigma[2:] ** 2) / np.sum(sigma**2)
    warm, cold = (PowerSgd(rank=2, warm_start=w, min_compression=0) for w in (True, False))
    errors = {}
    for name, c in (("warm", warm), ("cold", cold)):
        state = c.init(MATRIX)
        errors[name] = []
        for _ in range(40):
            y, state, _ = send(c, x, MATRIX, state)
            errors[name].append(relative_error(y, x))
    assert errors["warm"][-1] == pytest.approx(best, rel=1e-4)
    assert np.all(np.diff(errors["warm"]) < 1e-6)
    assert np.ptp(errors["cold"]) == 0
    assert errors["cold"][-1] > 1.02 * best


def test_the_error_ratio_of_power_iteration_is_the_squared_ratio_of_singular_values():
    """Per step the subspace error shrinks by (sigma_{r+1} / sigma_r)^2."""
    sigma = np.r_[1.0, 0.7, np.full(18, 1e-4)]
    x = spectrum(sigma)
    c = PowerSgd(rank=1, min_compression=0)
    state = c.init(MATRIX)
    best = np.sum(sigma[1:] ** 2) / np.sum(sigma**2)
    excess = []
    for _ in range(8):
        y, state, _ = send(c, x, MATRIX, state)
        excess.append(relative_error(y, x) - best)
    # The excess is the squared sine of the angle: its ratio is (0.7 / 1)^4.
    ratios = np.array(excess[2:6]) / np.array(excess[1:5])
    assert np.allclose(ratios, 0.7**4, rtol=0.1)


def test_two_reductions_of_workers_are_the_compression_of_the_mean():
    c = PowerSgd(rank=2, min_compression=0)
    workers = [vector(SHAPES, seed) for seed in range(5)]
    q = c.init(SHAPES)["q"]
    p = c.orthonormalised(np.mean([c.project(x, SHAPES, q) for x in workers], axis=0), SHAPES)
    q_next = np.mean([c.backproject(x, SHAPES, p) for x in workers], axis=0)
    rest = np.mean([c.uncompressed(x, SHAPES) for x in workers], axis=0)
    together = c.rebuild(p, q_next, rest, SHAPES)
    mean = np.mean(workers, axis=0)
    alone, state, _ = send(c, mean, SHAPES, c.init(SHAPES))
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(state["q"], q_next, atol=1e-4)


def train(memory, steps=15, workers=3):
    """Error feedback over two reductions, with either memory; returns models and memories."""
    c = PowerSgd(rank=1, min_compression=0)
    targets = [vector(MATRIX, seed).astype(np.float64) for seed in range(workers)]
    x, e = np.zeros(MATRIX.size), [np.zeros(MATRIX.size) for _ in range(workers)]
    q = c.init(MATRIX)["q"]
    models = []
    for _ in range(steps):
        m = [(x - b + e_i).astype(np.float32) for b, e_i in zip(targets, e, strict=True)]
        p = c.orthonormalised(np.mean([c.project(m_i, MATRIX, q) for m_i in m], axis=0), MATRIX)
        own = [c.backproject(m_i, MATRIX, p) for m_i in m]
        q = np.mean(own, axis=0)
        none = np.zeros(0, dtype=np.float32)
        g = c.rebuild(p, q, none, MATRIX)
        local = [c.rebuild(p, q_i, none, MATRIX) for q_i in own]
        e = [m_i - (g if memory == "mean" else l_i) for m_i, l_i in zip(m, local, strict=True)]
        x = x - 0.1 * g
        models.append(x)
    return models, e


def test_both_memories_have_one_mean_and_give_one_model():
    """M_i - G of the paper's code and M_i - P P^T M_i of the package."""
    paper, e_paper = train("mean")
    package, e_package = train("local")
    # Entries are of the order of 10, in 32 bits, and 15 steps add up what BLAS rounds.
    assert np.allclose(paper, package, atol=1e-3)
    assert np.allclose(np.mean(e_paper, axis=0), np.mean(e_package, axis=0), atol=1e-3)
    assert np.abs(e_paper[0] - e_package[0]).max() > 1


def test_error_feedback_recovers_what_a_low_rank_loses():
    c = ErrorFeedback(PowerSgd(rank=1, min_compression=0))
    x = vector(MATRIX)
    state = c.init(MATRIX)
    total = np.zeros(MATRIX.size)
    for t in range(1, 101):
        payload, state = c.encode(x, MATRIX, state, np.random.default_rng(t))
        total += c.receive(payload, MATRIX, {})[0]
    assert relative_error((total / 100).astype(np.float32), x) < 0.05


def test_only_matrices_that_gain_enough_are_compressed():
    """r (n + m) floats instead of n m: 64 of 240 and 60 of 144 at rank 2; the rest is dense.

    The package sends one factor at a time and counts the mean of both: 240 / 32 = 7.5 times fewer
    and 144 / 30 = 4.8.
    """
    for bound, floats in (
        (0, 64 + 20 + 60 + 1),
        (4.7, 64 + 20 + 60 + 1),
        (4.9, 64 + 20 + 144 + 1),
        (7.4, 64 + 20 + 144 + 1),
        (7.6, 240 + 20 + 144 + 1),
    ):
        c = PowerSgd(rank=2, min_compression=bound)
        _, _, payload = send(c, vector(SHAPES), SHAPES, c.init(SHAPES))
        assert len(payload) == 7 + 4 * floats


def test_dense_steps_come_first_and_are_exact():
    c = PowerSgd(rank=1, min_compression=0, dense_steps=2)
    state = c.init(SHAPES)
    x = vector(SHAPES)
    for step in range(4):
        y, state, payload = send(c, x, SHAPES, state)
        assert np.array_equal(y, x) == (step < 2)
        assert payload[6] == (step >= 2)


def test_all_workers_begin_with_one_q():
    assert np.array_equal(PowerSgd(seed=3).init(MATRIX)["q"], PowerSgd(seed=3).init(MATRIX)["q"])
    assert not np.array_equal(
        PowerSgd(seed=3).init(MATRIX)["q"], PowerSgd(seed=4).init(MATRIX)["q"]
    )


def package(gradients, p, q, steps, rank):
    """BasicPowerSGD of github.com/epfml/powersgd on one matrix, with its own memories."""
    shape, errors, out = (30, 20), [np.zeros((30, 20)) for _ in gradients[0]], []
    p, q = p.astype(float).reshape(30, rank), q.astype(float).reshape(20, rank)
    for step in range(steps):
        buffers = [g.reshape(shape) + e for g, e in zip(gradients[step], errors, strict=True)]
        if step % 2 == 0:
            p = np.linalg.qr(p)[0]
            q = np.mean([m.T @ p for m in buffers], axis=0)
        else:
            q = np.linalg.qr(q)[0]
            p = np.mean([m @ q for m in buffers], axis=0)
        errors = [m - p @ q.T for m in buffers]
        out.append((p @ q.T).reshape(-1))
    return out


def test_factors_made_in_turn_are_the_packages():
    c = PowerSgd(rank=2, min_compression=0, alternating=True)
    link, first = MeanLink(ErrorFeedback(c), MATRIX), c.init(MATRIX)
    workers, steps = 3, 7
    gradients = [
        np.stack([vector(MATRIX, 10 * step + i) for i in range(workers)]) for step in range(steps)
    ]
    expected = package(gradients, first["p"], first["q"], steps, 2)
    for step, g in enumerate(gradients):
        got, sizes = link.mean(g, range(workers), [None] * workers)
        np.testing.assert_allclose(got, expected[step], atol=2e-4)
        assert sizes == (4 * 2 * (30 if step % 2 else 20),)
    classic = PowerSgd(rank=2, min_compression=0)
    both = classic.compress_mean(gradients[0], MATRIX, classic.init(MATRIX), [])
    assert sum(both.sizes) == 4 * 2 * (30 + 20)


def test_two_half_steps_on_a_mean_that_stays_are_one_step_of_the_paper():
    x = np.stack([vector(MATRIX, i) for i in range(3)])
    turns = PowerSgd(rank=2, min_compression=0, alternating=True)
    _, _, state = turns.compress_mean(x, MATRIX, turns.init(MATRIX), [])
    classic = PowerSgd(rank=2, min_compression=0)
    step = classic.compress_mean(x, MATRIX, {**classic.init(MATRIX), "q": state["q"]}, [])
    for _ in range(2):  # P of that Q, then Q of that P
        half, _, state = turns.compress_mean(x, MATRIX, state, [])
    np.testing.assert_allclose(half, step.mean, atol=1e-5)
