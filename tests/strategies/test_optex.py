"""OptEx: cohorts that evaluate predicted models (arXiv:2402.11427)."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_rounds import run
from sklearn.gaussian_process.kernels import Matern

from fl.aggregation import Median
from fl.errors import ConfigError, NoStep
from fl.strategies import SCAFFOLD, FedAdam, FedAvg, FedAvgM, OptEx, Rounds
from fl.strategies.optex import matern
from fl.strategies.round_rule import Updates
from fl.strategies.server_optimizer import stepped

D = 2
W0 = np.array([3.0, -2.0], np.float32)
A, C = np.array([1.0, 0.3]), np.array([0.5, 1.0])


def change(z):
    """A step of gradient descent of rate 0.1 on a quadratic."""
    return np.asarray(0.1 * A * (C - z), np.float32)


def brought(rule, state, at=change, of_cohort=2):
    """What cohorts of two bring, who change what they are sent by `at`, and one a little more."""
    sent = rule.models(state)
    deltas = [at(z) + e for z in sent for e in (np.float32(0.01), np.float32(-0.01))]
    models = [j for j in range(len(sent)) for _ in range(of_cohort)]
    return Updates(np.stack(deltas), np.ones(len(deltas)), models=models)


def played(rule, rounds, at=change):
    state = rule.init(W0, D)
    models = [W0]
    for _ in range(rounds):
        state = rule.step(state, brought(rule, state, at))
        models.append(state.w)
    return np.array(models), state


def plain(optimizer, steps, at=change):
    state = optimizer.init(W0, D)
    models = [W0]
    for _ in range(steps):
        state = stepped(optimizer, state, at(state.w))
        models.append(state.w)
    return np.array(models)


@pytest.mark.parametrize("optimizer", [FedAvg(0.7), FedAvgM(0.5, 0.8), FedAdam(0.1)], ids=repr)
def test_with_one_model_it_is_the_optimizer(optimizer):
    found, _ = played(OptEx(1, server_optimizer=optimizer), 12)
    np.testing.assert_allclose(found, plain(optimizer, 12), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [0.1, 1.0, 7.0])
def test_the_kernel_is_scikit_learns(length):
    x = np.random.default_rng(0).normal(size=(6, 3))
    squares = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    expected = Matern(length_scale=length, nu=2.5)(x)
    np.testing.assert_allclose(matern(squares, length), expected, atol=1e-12)


def test_predictions_are_those_of_a_gaussian_process_on_the_history():
    rule = OptEx(3, history=5, noise=0.01, length=0.5)
    _, state = played(rule, 4)
    assert state.points.shape == state.changes.shape == (5, D)
    np.testing.assert_allclose(
        state.squares,
        ((state.points[:, None] - state.points[None]) ** 2).sum(axis=2),
        rtol=1e-5,
    )
    x, z = state.points.astype(float), np.array([1.0, 0.5])
    scale = np.sqrt(np.linalg.norm(x, axis=1)).mean()
    kernel = Matern(length_scale=0.5, nu=2.5)
    k = kernel(z[None] / scale, x / scale)
    expected = k @ np.linalg.solve(kernel(x / scale) + 0.01 * np.eye(5), state.changes)
    np.testing.assert_allclose(rule.prediction(state)(np.float32(z)), expected[0], rtol=1e-3)


def test_on_a_quadratic_it_is_algorithm_1_for_50_rounds():
    n, kept, eta, rho, noise = 3, 12, 0.5, 0.6, 0.01
    rule = OptEx(n, history=kept, noise=noise, length=1.0, server_optimizer=FedAvgM(eta, rho))
    found, _ = played(rule, 50)

    def step(w, v, delta):
        v = rho * v + delta
        return w + eta * v, v

    def mu(z, x, g):
        if len(x) < 2:
            return np.zeros(D)
        scale, kernel = np.sqrt(np.linalg.norm(x, axis=1)).mean(), Matern(nu=2.5)
        covariance = kernel(x / scale) + noise * np.eye(len(x))
        return (kernel(z[None] / scale, x / scale) @ np.linalg.solve(covariance, g))[0]

    w, v, x, g, expected = W0.astype(float), np.zeros(D), np.empty((0, D)), np.empty((0, D)), [W0]
    for _ in range(50):
        ahead = [(w, v)]
        for _ in range(n - 1):
            ahead.append(step(*ahead[-1], mu(ahead[-1][0], x, g)))
        changes = [0.1 * A * (C - z) for z, _ in ahead]
        w, v = step(*ahead[-1], changes[-1])
        x = np.concatenate([x, [z for z, _ in ahead]])[-kept:]
        g = np.concatenate([g, changes])[-kept:]
        expected.append(w)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    assert np.abs(expected[2] - plain(FedAvgM(eta, rho), 2)[-1]).max() > 0.1  # it is ahead


def test_without_noise_a_stored_point_has_its_stored_change():
    rule = OptEx(2, noise=0.0, length=0.3)
    _, state = played(rule, 3)
    mu = rule.prediction(state)
    for x, g in zip(state.points, state.changes, strict=True):
        np.testing.assert_allclose(mu(x), g, atol=2e-4)


def test_far_from_the_history_nothing_is_predicted_and_all_are_sent_the_same():
    rule = OptEx(3, length=1e-6)
    _, state = played(rule, 3)
    sent = rule.models(state._replace(w=state.w + np.float32(1)))
    for z in sent:
        np.testing.assert_array_equal(z, sent[0])


def test_a_right_prediction_makes_n_steps_of_the_optimizer_in_a_round():
    class Right(OptEx):
        def prediction(self, state):
            return change

    optimizer = FedAvgM(0.5, 0.8)
    found, _ = played(Right(4, server_optimizer=optimizer), 5)
    np.testing.assert_allclose(found, plain(optimizer, 20)[::4], rtol=1e-4, atol=1e-5)


def test_on_a_quadratic_five_models_need_about_a_fifth_of_the_rounds():
    def until(models):
        gaps = (A * (models - C) ** 2).sum(axis=1)
        return int(np.argmax(gaps < 1e-3))

    one = until(plain(FedAvg(), 400))
    five = until(played(OptEx(5, length=3.0, noise=1e-6), 400)[0])
    assert one > 60
    assert five <= 0.3 * one


def test_the_prediction_does_not_change_what_the_optimizer_has_kept():
    rule = OptEx(3, length=1.0, server_optimizer=FedAvgM())
    _, state = played(rule, 3)
    kept = state.optimizer.v.copy()
    rule.models(state)
    np.testing.assert_array_equal(state.optimizer.v, kept)


def test_cohorts_that_bring_nothing_are_left_out():
    rule = OptEx(3, length=1.0)
    _, state = played(rule, 3)
    updates, sent = brought(rule, state), rule.models(state)
    first = Updates(updates.deltas, np.array([1, 1, 0, 0, 0, 0.0]), models=updates.models)
    after = rule.step(state, first)
    np.testing.assert_allclose(after.w, sent[0] + change(sent[0]), rtol=1e-4)
    assert len(after.points) == len(state.points) + 1
    with pytest.raises(NoStep):
        rule.step(state, Updates(updates.deltas, np.zeros(6), models=updates.models))


def test_statistics_of_layers_are_neither_predicted_nor_measured():
    rule = OptEx(2, length=1.0)
    state = rule.init(W0, D)
    for _ in range(3):
        updates = brought(rule, state)
        given = Updates(
            updates.deltas, updates.weights, models=updates.models, buffers=[slice(1, 2)]
        )
        state = rule.step(state, given)
        assert not state.points[:, 1].any()
    assert all(z[1] == state.w[1] for z in rule.models(state))


# ---- on a grid -----------------------------------------------------------------------------------


class Fixed(OptEx):
    """Sends w, w + 10, w + 20."""

    def ahead(self, state):
        first = state.optimizer._replace(w=state.w)
        return [first._replace(w=state.w + np.float32(10 * j)) for j in range(self.num_models)]


def cohort_sums(strategy, seconds=9, **more):
    ran = run(strategy, seconds if isinstance(seconds, list) else [1.0] * seconds, **more)
    return ran, strategy.state


def test_every_cohort_is_sent_its_own_model_and_its_changes_are_measured_from_it():
    strategy = Rounds(Fixed(3), fraction_train=1.0, min_train_nodes=9, seed=4)
    (_, _, _, models), state = cohort_sums(strategy)
    np.testing.assert_allclose(state.points[:, 0], [0, 10, 20])
    # Clients add their index: any mean of three of 0..8 is between 1 and 7, wherever they began.
    assert ((state.changes >= 1) & (state.changes <= 7)).all()
    np.testing.assert_allclose(models[1], state.points[2] + state.changes[2])


def test_clients_are_dealt_to_cohorts_of_equal_size_anew_in_every_round():
    strategy = Rounds(Fixed(3), fraction_train=1.0, min_train_nodes=9)
    dealt = []
    train = strategy._train

    def noting(server, nodes, *more):
        tasks = train(server, nodes, *more)
        dealt.append({task.node: task.memo.model for task in tasks})
        return tasks

    strategy._train = noting
    run(strategy, [1.0] * 9, rounds=6)
    assert all(sorted(one.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2] for one in dealt)
    assert len({tuple(sorted(one.items())) for one in dealt}) > 3


def test_an_aggregator_takes_the_place_of_every_cohorts_mean():
    strategy = Rounds(Fixed(3), fraction_train=1.0, min_train_nodes=9, aggregator=Median())
    run(strategy, [1.0] * 9)
    assert set(strategy.state.changes.flat) <= set(map(float, range(1, 8)))  # of one client


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: OptEx(0), "num_models is 0"),
        (lambda: OptEx(history=1), "history is 1"),
        (lambda: OptEx(noise=-1.0), r"noise is -1\.0"),
        (lambda: OptEx(length=0.0), r"length is 0\.0"),
        (lambda: OptEx(server_optimizer=SCAFFOLD(3)), "server_optimizer is SCAFFOLD"),
        (lambda: OptEx(server_optimizer=OptEx()), "server_optimizer is OptEx"),
        (lambda: Rounds(OptEx(4), clients=3).check_clients(10), "rule.num_models is 4"),
    ],
)
def test_what_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
