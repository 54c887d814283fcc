"""Server optimizers under buffered asynchrony, FedAMSGrad, and FADAS."""

from __future__ import annotations

import numpy as np
import pytest
from quadratics import LR, run
from stand_ins import driven
from test_event_rules import W0, Came, D, drawn, played

from fl.errors import ConfigError, NotFinite
from fl.strategies import (
    FADAS,
    FedAdagrad,
    FedAdam,
    FedAMSGrad,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    FedYogi,
    Rounds,
)
from fl.strategies.event_rule import Arrivals
from fl.strategies.round_rule import Updates
from fl.strategies.staleness import ConstantWeight

CENTRES = (1.0, -2.0, 4.0, 0.5)
OPTIMIZERS = [
    FedAvg(0.4),
    FedAvgM(0.3, 0.8),
    FedAdagrad(0.2, tau=0.1),
    FedAdam(0.2, tau=0.05),
    FedYogi(0.2, tau=0.05),
    FedAMSGrad(0.1, tau=0.01),
    FedAMSGrad(0.1, bias_correction=True),
]
each = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def constant(rule, steps, delta):
    """The models of a round rule whose clients all bring `delta`, shape (T + 1, d)."""
    state = rule.init(W0, D)
    models = [state.w]
    for _ in range(steps):
        state = rule.step(state, Updates(np.stack([delta] * 3), np.ones(3)))
        models.append(state.w)
    return np.array(models, float)


@each
def test_a_full_buffer_at_equal_speeds_steps_as_rounds_of_the_optimizer(optimizer):
    # Clients are quadratics: x_i - w = LR (c_i - w); the mean is taken here in float64.
    state = optimizer.init(np.zeros(1, np.float32), 1)
    expected = [0.0]
    for _ in range(12):
        delta = np.float32(LR * (np.mean(CENTRES) - float(state.w[0])))
        state = optimizer.step(state, Updates(np.full((1, 1), delta), np.ones(1)))
        expected.append(float(state.w[0]))
    for kind in (FedBuff, FADAS):
        strategy = driven(kind, buffer_size=4, concurrency=4, server_optimizer=optimizer)
        ran = run(strategy, CENTRES, [2.0] * 4, num_rounds=12)
        np.testing.assert_allclose(np.array(ran.models)[:, 0], expected, rtol=1e-4, atol=1e-5)


@each
def test_what_the_buffer_holds_is_the_optimizers_direction(optimizer):
    k, arrivals = 3, drawn(18)
    state, expected = optimizer.init(W0, D), []
    for i in range(0, len(arrivals), k):
        mean = np.mean([update.delta for update, _ in arrivals[i : i + k]], axis=0)
        state = optimizer.step(state, Updates(mean[None], np.ones(1)))
        expected.append(state.w)
    found = played(FedBuff(k, optimizer, ConstantWeight()), arrivals)[k - 1 :: k]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_layers_do_not_follow_the_optimizer():
    place = slice(3, 5)
    rule = FedBuff(2, FedAdam(eta=10.0), ConstantWeight())
    came = [Came(i, np.full(D, i + 1.0, np.float32), W0) for i in range(2)]
    state = rule.step(rule.init(W0, D), Arrivals(came, [1.0] * 2, statistics=[place]))
    np.testing.assert_allclose(state.w[place], W0[place] + 1.5, rtol=1e-5)
    assert (state.w[:3] > W0[:3] + 5).all()


def test_moments_that_would_not_be_finite_are_no_step():
    rule = FedBuff(1, FedAdam())
    huge = Came(0, np.full(D, 1e30, np.float32), W0)
    with pytest.raises(NotFinite), np.errstate(over="ignore"):
        rule.step(rule.init(W0, D), Arrivals([huge], [1.0]))


# ---- AMSGrad -------------------------------------------------------------------------------------


def test_amsgrad_is_its_recursion_and_its_largest_moment_never_falls():
    beta_1, beta_2, eta, tau = 0.8, 0.6, 0.3, 0.01
    rng = np.random.default_rng(2)
    for corrected in (False, True):
        rule = FedAMSGrad(eta, beta_1, tau, beta_2, corrected)
        state = rule.init(W0, D)
        w, m, v, top = W0.astype(float), np.zeros(D), np.zeros(D), np.zeros(D)
        for t in range(1, 51):
            deltas = rng.normal(size=(3, D)).astype(np.float32) / t  # so that v falls
            delta = deltas.astype(float).mean(axis=0)
            m, v = beta_1 * m + (1 - beta_1) * delta, beta_2 * v + (1 - beta_2) * delta**2
            top = np.maximum(top, v)
            a, b = (1 - beta_1**t, 1 - beta_2**t) if corrected else (1, 1)
            w = w + eta * m / a / (np.sqrt(top / b) + tau)
            before, state = state, rule.step(state, Updates(deltas, np.ones(3)))
            np.testing.assert_allclose(state.w, w, rtol=1e-4, atol=1e-5)
            assert (state.v_max >= before.v_max).all()
        assert (state.v < state.v_max).any()


def test_of_a_constant_change_the_first_step_is_its_sign_and_the_second_is_longer_or_not():
    # (1 - 0.9^2) / sqrt(1 - 0.99^2) = 0.19 / sqrt(0.0199) = 1.3469
    delta = np.array([1.0, -2.0, 0.5, -0.1, 3.0], np.float32)
    for corrected, second in ((False, 0.19 / 0.0199**0.5), (True, 1.0)):
        rule = FedAMSGrad(eta=0.1, bias_correction=corrected)
        steps = np.diff(constant(rule, 2, delta), axis=0)
        np.testing.assert_allclose(steps[0], 0.1 * np.sign(delta), rtol=1e-4)
        np.testing.assert_allclose(steps[1], 0.1 * second * np.sign(delta), rtol=1e-4)


def test_while_changes_grow_amsgrad_is_adam():
    # FedAdam begins with v = tau^2, which is nothing here.
    rng = np.random.default_rng(4)
    ams, adam = FedAMSGrad(0.1), FedAdam(0.1, tau=1e-8)
    a, b = ams.init(W0, D), adam.init(W0, D)
    for t in range(6):
        deltas = (3.0**t * rng.uniform(1, 2, (1, D))).astype(np.float32)
        a, b = (rule.step(s, Updates(deltas, np.ones(1))) for rule, s in ((ams, a), (adam, b)))
        np.testing.assert_allclose(a.w, b.w, rtol=1e-5)


# ---- 50 versions of clients on quadratics --------------------------------------------------------

SECOND_MOMENTS = {  # after a change, of the one before
    FedAdagrad: lambda v, square: v + square,
    FedYogi: lambda v, square: v - 0.01 * square * np.sign(v - square),
    FedAdam: lambda v, square: 0.99 * v + 0.01 * square,
    FedAMSGrad: lambda v, square: 0.99 * v + 0.01 * square,
}


class Adaptive:
    """Steps of the adaptive optimizers in float64, of changes of one number."""

    def __init__(self, kind, tau_c=None):
        self.kind, self.tau_c = kind, tau_c
        self.m, self.top = 0.0, 0.0
        self.v = 0.0 if kind is FedAMSGrad else TAU**2
        self.beta_1 = 0.0 if kind is FedAdagrad else 0.9

    def __call__(self, changes, _, delays):
        delta = changes.mean()
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * delta
        self.v = SECOND_MOMENTS[self.kind](self.v, delta**2)
        self.top = max(self.top, self.v) if self.kind is FedAMSGrad else self.v
        late = self.tau_c is not None and max(delays) > self.tau_c
        return ETA / (max(delays) if late else 1) * self.m / (self.top**0.5 + TAU)


ETA, TAU, K = 0.1, 0.01, 3


@pytest.mark.parametrize("kind", SECOND_MOMENTS)
@pytest.mark.parametrize("tau_c", [None, 1, 2])
def test_of_clients_on_quadratics_buffers_are_the_recursion_for_50_versions(kind, tau_c):
    optimizer = kind(eta=ETA, tau=TAU)
    if tau_c is None:
        rule = driven(FedBuff, K, optimizer, ConstantWeight(), concurrency=4)
    else:
        rule = driven(FADAS, K, optimizer, tau_c, concurrency=4)
    ran = run(rule, CENTRES, [1.0, 1.7, 3.1, 9.0], num_rounds=50)
    assert max(tau for _, _, tau in ran.applied()) > 5
    np.testing.assert_allclose(
        np.array(ran.models)[:, 0],
        ran.buffered(CENTRES, K, Adaptive(kind, tau_c)),
        rtol=1e-4,
        atol=2e-5,
    )


# ---- FADAS ---------------------------------------------------------------------------------------


def test_the_longest_delay_of_a_buffer_shortens_its_step():
    k, tau_c = 3, 2
    arrivals = drawn(24)
    state, w, expected = FedAMSGrad(0.1).init(W0, D), W0.astype(float), []
    longest = []
    for i in range(0, len(arrivals), k):
        mean = np.mean([update.delta for update, _ in arrivals[i : i + k]], axis=0)
        before = state.w
        state = FedAMSGrad(0.1).step(state, Updates(mean[None], np.ones(1)))
        tau = max(tau for _, tau in arrivals[i : i + k])
        longest.append(tau)
        w = w + (state.w - before) / (tau if tau > tau_c else 1)
        expected.append(w)
    assert min(longest) <= tau_c < max(longest)
    rule = FADAS(k, FedAMSGrad(0.1), tau_c)
    np.testing.assert_allclose(played(rule, arrivals)[k - 1 :: k], expected, rtol=1e-4, atol=1e-5)


def test_delays_up_to_tau_c_change_nothing():
    arrivals = drawn(20)
    most = max(tau for _, tau in arrivals)
    found = [played(FADAS(2, FedAMSGrad(0.1), tau_c), arrivals) for tau_c in (most, None)]
    np.testing.assert_array_equal(*found)


def test_without_delays_it_is_rounds_of_fedamsgrad():
    def ran(strategy):
        return run(strategy, CENTRES, [2.0] * 4, num_rounds=10)

    optimizer = FedAMSGrad(0.3)
    a = ran(driven(FADAS, buffer_size=4, concurrency=4, server_optimizer=optimizer))
    b = ran(Rounds(optimizer, fraction_train=1.0, min_train_nodes=4, min_available_nodes=4))
    np.testing.assert_allclose(a.models, b.models, rtol=1e-5)


def test_what_a_client_changed_is_measured_from_the_model_it_was_sent():
    # With c_i = 0 and w_0 = 1 the changes are -LR times a model of some version. Measured from the
    # model of today they would have the server's own steps in them, with the sign turned.
    strategy = driven(FADAS, buffer_size=1, concurrency=2, server_optimizer=FedAvg(0.1), tau_c=None)
    ran = run(strategy, [0.0, 0.0], [1.0, 3.5], num_rounds=12, w0=1.0)
    models = [float(model[0]) for model in ran.models]
    applied = ran.applied()
    assert any(tau > 0 for _, _, tau in applied)
    for t, (_, _, tau) in enumerate(applied):
        assert models[t + 1] == pytest.approx(models[t] - 0.1 * LR * models[t - tau], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: FADAS(tau_c=-1), "tau_c is -1"),
        (lambda: FADAS(0), "buffer_size is 0"),
        (lambda: FedAMSGrad(tau=0.0), r"tau is 0\.0"),
        (lambda: FedAMSGrad(eta=-1.0), r"eta is -1\.0"),
        (lambda: FedBuff(server_optimizer=FedProx()), "server_optimizer is FedProx"),
        (lambda: FedBuff(server_optimizer=ConstantWeight()), "server_optimizer is ConstantWeight"),
    ],
)
def test_what_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
