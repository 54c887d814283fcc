"""Rules of nodes as pure functions: recursions on matrices, without a grid."""

from __future__ import annotations

import numpy as np
import pytest
from networks import A3, B3, BEST3, LR, W3

from fl.strategies import (
    ADPSGD,
    BEER,
    D2,
    DPSGD,
    EXTRA,
    SGP,
    DFedAvg,
    GradientTracking,
    LocalTraining,
    MoNNA,
)

A, B, W = np.array(A3)[:, None], np.array(B3)[:, None], np.array(W3)
X0 = np.array([[2.0, -1.0], [0.0, 3.0], [5.0, 1.0]])
P = np.array([[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])  # columns sum to 1


def gradient(x):
    """Returns a_i (x_i - b_i) of all nodes, (3, d)."""
    return A * (x - B)


def begun(rule):
    """Returns states of nodes that begin at different models."""
    return [rule.init(x.astype(np.float32)) for x in X0]


def progress(rule, states):
    models = np.stack([rule.model(state) for state in states])
    g = gradient(models).astype(np.float32)
    return [
        LocalTraining(x, (x - np.float32(LR) * gi).astype(np.float32), {"gradient": gi})
        for x, gi in zip(models, g, strict=True)
    ]


def round_of(rule, states, matrix):
    """Returns the states after a round of synchronous gossip, as a driver runs it."""
    sent = [rule.message(state) for state in states]
    states = [rule.adapt(*pair) for pair in zip(states, progress(rule, states), strict=True)]
    for _ in range(rule.gossip_steps):
        if not rule.sends_first:
            sent = [rule.message(state) for state in states]
        rows = (matrix @ np.stack(sent)).astype(np.float32)
        states = [rule.combine(*pair) for pair in zip(states, rows, strict=True)]
    return states


def models(rule, states):
    return np.stack([rule.model(state) for state in states])


def test_dpsgd_combines_and_then_adapts():
    rule, x = DPSGD(), X0
    states = begun(rule)
    for _ in range(20):
        states, x = round_of(rule, states, W), W @ x - LR * gradient(x)
    np.testing.assert_allclose(models(rule, states), x, rtol=1e-5)


@pytest.mark.parametrize("Q", [1, 3])
def test_dfedavg_adapts_and_then_combines_q_times(Q):
    rule, x = DFedAvg(gossip_steps=Q), X0
    states = begun(rule)
    for _ in range(20):
        states = round_of(rule, states, W)
        x = np.linalg.matrix_power(W, Q) @ (x - LR * gradient(x))
    np.testing.assert_allclose(models(rule, states), x, rtol=1e-5)


def test_sgp_is_push_sum_with_gradients_at_the_ratios():
    rule, x, w = SGP(), X0, np.ones((3, 1))
    states = begun(rule)
    for _ in range(20):
        states = round_of(rule, states, P)
        x, w = P @ (x - LR * gradient(x / w)), P @ w
    np.testing.assert_allclose(models(rule, states), x / w, rtol=1e-5)
    np.testing.assert_allclose([state.w for state in states], w[:, 0], rtol=1e-6)


def test_gradient_tracking_is_its_recursion_and_finds_the_best_of_all():
    rule, x = GradientTracking(eta=0.05), X0
    states, y, g = begun(rule), np.zeros_like(X0), np.zeros_like(X0)
    for t in range(600):
        states = round_of(rule, states, W)
        y, g = y + gradient(x) - g, gradient(x)
        x, y = W @ (x - 0.05 * y), W @ y
        if t == 30:
            np.testing.assert_allclose(models(rule, states), x, rtol=1e-4)
    np.testing.assert_allclose(models(rule, states), BEST3, rtol=1e-5)


def test_d2_is_its_recursion_and_finds_the_best_of_all():
    rule, x, before, g = D2(eta=0.05), X0, X0, np.zeros_like(X0)
    states = begun(rule)
    for t in range(600):
        states = round_of(rule, states, W)
        x, before, g = W @ (2 * x - before - 0.05 * (gradient(x) - g)), x, gradient(x)
        if t == 30:
            np.testing.assert_allclose(models(rule, states), x, rtol=1e-4)
    np.testing.assert_allclose(models(rule, states), BEST3, rtol=1e-5)


def test_extra_is_its_recursion_and_finds_the_best_of_all():
    rule, x, before, one = EXTRA(eta=0.05), X0, None, np.eye(3)
    states = begun(rule)
    for t in range(600):
        states = round_of(rule, states, W)
        if before is None:
            after = W @ x - 0.05 * gradient(x)
        else:
            step = 0.05 * (gradient(x) - gradient(before))
            after = (one + W) @ x - 0.5 * (one + W) @ before - step
        x, before = after, x
        if t == 30:
            np.testing.assert_allclose(models(rule, states), x, rtol=1e-4)
    np.testing.assert_allclose(models(rule, states), BEST3, rtol=1e-5)


def test_beer_without_compression_at_gamma_1_is_diging():
    rule, x = BEER(eta=0.05), X0
    states, v, g = begun(rule), np.zeros_like(X0), np.zeros_like(X0)
    for t in range(600):
        states = round_of(rule, states, W)
        v, g = (v if t < 2 else W @ v) + gradient(x) - g, gradient(x)
        x = (x if t == 0 else W @ x) - 0.05 * v
        if t == 30:
            np.testing.assert_allclose(models(rule, states), x, rtol=1e-4)
    np.testing.assert_allclose(models(rule, states), BEST3, rtol=1e-5)


def test_monna_aggregates_the_nearest_of_the_first():
    rule = MoNNA(f=1)
    assert rule.waits_for(6) == 5
    own, near, far = np.float32([[0.0]]), np.float32([[1.0]]), np.float32([[50.0]])
    assert rule.aggregator(np.concatenate([own, near, far]), reference=own[0]) == [0.5]


def test_adpsgd_steps_from_the_model_there_is_and_not_from_the_snapshot():
    rule = ADPSGD()
    state = rule.init(np.float32([4.0]))
    asked = LocalTraining(state.x, np.float32([3.0]))  # -lr g = -1
    state = rule.combine(state, np.float32([10.0]))  # averaged meanwhile
    assert rule.model(rule.adapt(state, asked)).tolist() == [9.0]


@pytest.mark.parametrize(
    "rule",
    [DPSGD(), DFedAvg(), SGP(), GradientTracking(), D2(), EXTRA(), BEER(), MoNNA(), ADPSGD()],
    ids=repr,
)
def test_a_rule_changes_no_state_and_an_attack_reads_the_model_it_writes(rule):
    w = np.float32([1.0, 2.0])
    w.flags.writeable = False
    state = rule.init(w)
    before = [np.array(value) for value in state]
    x = np.float32([3.0, 5.0])
    x.flags.writeable = False
    learnt = LocalTraining(w, x, {"gradient": x})
    after = rule.adapt(state, learnt)
    after = rule.combine(after, np.float32(0.5) * rule.message(after))  # a weight other than 1
    message = rule.message(after)
    message.flags.writeable = False
    rule.combine(after, message)
    forged = rule.with_model(message, np.float32([-7.0, 8.0]))
    np.testing.assert_allclose(rule.model_in(forged), [-7.0, 8.0])
    assert forged.shape == message.shape
    assert len(message) >= rule.vectors * 2
    rest = forged[2:]
    np.testing.assert_array_equal(rest, message[2:])  # all but the model stays true
    for value, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(value, old)
