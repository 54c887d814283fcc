import math

import numpy as np
import pytest

from fl.compression import Identity, OneBitAdam, PayloadError, Shapes, Sign
from fl.errors import ConfigError

SHAPES = Shapes(((5, 8), (13,)))
D = SHAPES.size
N = 3


def gradient(x, t, i):
    """Of a noisy quadratic with its optimum at 1."""
    noise = np.random.default_rng([t, i]).standard_normal(D)
    return (np.linspace(0.5, 3, D) * (x - 1) + 0.1 * noise).astype(np.float32)


def train(rule, steps, workers=N):
    """One run; returns the models, and the states and messages of every round."""
    xs = [np.zeros(D, dtype=np.float32) for _ in range(workers)]
    states = [rule.init_worker(SHAPES) for _ in range(workers)]
    server = rule.init_server(SHAPES)
    rounds = []
    for t in range(steps):
        r = np.random.default_rng(t)
        up = []
        before = [dict(s) for s in states], dict(server)
        gradients = [gradient(x, t, i) for i, x in enumerate(xs)]
        for i in range(workers):
            payload, states[i] = rule.send(gradients[i], SHAPES, states[i], r)
            up.append(payload)
        down, server = rule.combine(up, SHAPES, server, r)
        applied = [rule.apply(xs[i], down, SHAPES, states[i]) for i in range(workers)]
        xs, states = [a[0] for a in applied], [a[1] for a in applied]
        rounds.append((xs, list(states), server, up, down, gradients, before))
    return rounds


def adam(steps, frozen_after=None, workers=N, lr=0.05, wd=0.0):
    """Adam without bias correction on the mean gradient, in float64."""
    x, m, v = np.zeros(D), np.zeros(D), np.zeros(D)
    models = []
    for t in range(steps):
        x32 = x.astype(np.float32)
        g = np.mean([gradient(x32, t, i) for i in range(workers)], axis=0, dtype=np.float64)
        m = 0.9 * m + 0.1 * g
        if frozen_after is None or t < frozen_after:
            v = 0.99 * v + 0.01 * g**2
        x = x - lr * (m / (np.sqrt(v) + 1e-8) + wd * x)
        models.append(x)
    return models


def test_before_the_warmup_ends_it_is_adam():
    rule = OneBitAdam(workers=N, warmup=100, lr=0.05, beta_2=0.99)
    for (xs, *_), expected in zip(train(rule, 40), adam(40), strict=True):
        assert np.allclose(xs[0], expected, atol=1e-4)


def test_weight_decay_is_decoupled():
    rule = OneBitAdam(workers=N, warmup=100, lr=0.05, beta_2=0.99, weight_decay=0.1)
    assert np.allclose(train(rule, 20)[-1][0][0], adam(20, wd=0.1)[-1], atol=1e-4)


@pytest.mark.parametrize("workers", [1, 3])
def test_with_an_identity_it_is_adam_with_its_variance_frozen(workers):
    rule = OneBitAdam(workers=workers, warmup=10, lr=0.05, beta_2=0.99, compressor=Identity())
    rounds = train(rule, 40, workers)
    for (xs, *_), expected in zip(rounds, adam(40, 10, workers), strict=True):
        assert np.allclose(xs[0], expected, atol=1e-3)


def test_replicas_stay_equal():
    for xs, states, *_ in train(OneBitAdam(workers=N, warmup=3, lr=0.05), 10):
        assert len({x.tobytes() for x in xs}) == 1
        assert len({state["m"].tobytes() for state in states}) == 1
        assert len({state["v"].tobytes() for state in states}) == 1


def test_the_applied_momentum_telescopes_with_the_errors():
    """m = mean m_i + mean (e_old - e_new) + (E_old - E_new)."""
    rule = OneBitAdam(workers=N, warmup=4, lr=0.02)
    for _, states, server, _, _, gradients, (old, old_server) in train(rule, 12)[4:]:
        m_i = [
            0.9 * o["m"].astype(np.float64) + 0.1 * g for o, g in zip(old, gradients, strict=True)
        ]
        e = [o["e"].astype(np.float64) - s["e"] for o, s in zip(old, states, strict=True)]
        big = old_server["error"].astype(np.float64) - server["error"]
        expected = np.mean(m_i, axis=0) + np.mean(e, axis=0) + big
        assert np.allclose(states[0]["m"], expected, atol=1e-5)


def test_the_variance_is_frozen_when_the_warmup_ends():
    rounds = train(OneBitAdam(workers=N, warmup=5, lr=0.05), 9)
    v = [r[1][0]["v"] for r in rounds]
    assert not np.array_equal(v[3], v[4])
    assert all(np.array_equal(v[4], later) for later in v[5:])


def test_momentum_after_the_warmup_is_one_sign_and_one_scale_per_chunk():
    rounds = train(OneBitAdam(workers=N, warmup=2, lr=0.05), 4)
    m = rounds[-1][1][0]["m"]
    chunks = OneBitAdam(workers=N, warmup=2, lr=0.05).chunks(SHAPES)
    assert chunks.sizes == (18, 18, 17)
    for part in chunks.slices:
        assert len(set(np.abs(m[part]))) == 1


def test_messages_have_the_documented_lengths():
    rounds = train(OneBitAdam(workers=N, warmup=2, lr=0.05), 4)
    assert len(rounds[0][3][0]) == len(rounds[0][4]) == 11 + 4 * D
    assert len(rounds[3][3][0]) == 17 + 4 * 2 + math.ceil(D / 8)
    assert len(rounds[3][4]) == 17 + 4 * N + math.ceil(D / 8)


def test_volume_against_half_precision_is_the_documented_factor():
    """1 / (w + (1 - w) / 16) = 4.9 at a warm-up of 15%, for a model of a million entries."""
    shapes = Shapes.vector(1_000_000)
    rule = OneBitAdam(workers=8, warmup=15, lr=0.1)
    compressed = 17 + Sign("l2").length(shapes).least - 6 - 6
    dense = 2 * shapes.size  # fp16
    assert rule.length(shapes).least == pytest.approx(compressed, abs=64)
    total = 0.15 * dense + 0.85 * rule.length(shapes).least
    assert dense / total == pytest.approx(1 / (0.15 + 0.85 / 16), rel=1e-3)
    assert dense / total == pytest.approx(4.9, abs=0.05)


def test_it_converges_like_adam_once_warm():
    """At Adam's convergence: the distance it ends at is Adam's, within the noise of signs."""
    warm = train(OneBitAdam(workers=N, warmup=30, lr=0.02, beta_2=0.99), 200)[-1][0][0]
    plain = adam(200, lr=0.02)[-1]
    assert np.linalg.norm(plain - 1) < 0.1 * math.sqrt(D)
    assert np.linalg.norm(warm - 1) < 0.15 * math.sqrt(D)


def test_a_missing_worker_is_refused():
    rule = OneBitAdam(workers=N, warmup=2, lr=0.05)
    payload, _ = rule.send(gradient(0, 0, 0), SHAPES, rule.init_worker(SHAPES), None)
    with pytest.raises(ConfigError, match="1 of 3 are missing"):
        rule.combine([payload] * 2, SHAPES, rule.init_server(SHAPES), None)


def test_a_message_of_another_step_is_refused():
    rule = OneBitAdam(workers=N, warmup=2, lr=0.05)
    rounds = train(rule, 3)
    server = rounds[1][2]
    with pytest.raises(PayloadError, match="step 0"):
        rule.combine(rounds[0][3], SHAPES, server, None)
    with pytest.raises(PayloadError, match="step 0"):
        rule.apply(rounds[1][0][0], rounds[0][4], SHAPES, rounds[1][1][0])


def test_options_that_do_not_exist_are_refused():
    for wrong in (
        {"workers": 0},
        {"warmup": -1},
        {"lr": 0.0},
        {"beta_1": 1.0},
        {"beta_2": -0.1},
        {"eps": 0.0},
        {"weight_decay": -1.0},
    ):
        with pytest.raises(ConfigError):
            OneBitAdam(**{"workers": 1, "warmup": 0, "lr": 0.1, **wrong})
