"""Rules of outer steps on plain arrays: the algorithm boxes, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fl.aggregation import Median
from fl.errors import NoStep, NotFinite
from fl.strategies import (
    DiLoCo,
    EagerUpdates,
    LocalSGD,
    OuterGradients,
    OuterSgd,
)
from fl.strategies.outer_rule import WorkerView

PLAIN = OuterSgd(0.5, 0.0, nesterov=False)
THETA = np.array([1.0, -2.0, 3.0, 0.0, 0.5], np.float32)


def drawn(phases, workers):
    deltas = np.random.default_rng(0).normal(size=(phases, workers, len(THETA)))
    return [dict(enumerate(of_phase)) for of_phase in deltas]


def test_local_sgd_moves_to_the_mean_of_the_workers_parameters():
    rule = LocalSGD(inner_steps=4)
    workers = np.array([[2.0, 0, 0, 0, 0], [0, 4.0, 0, 0, 0]])
    gradients = OuterGradients({m: THETA - w for m, w in enumerate(workers)})
    after = rule.reduced(rule.init(THETA), gradients)
    np.testing.assert_array_equal(after.theta, [1.0, 2.0, 0, 0, 0])
    assert after.t == 1


def test_diloco_is_nesterov_on_the_weighted_mean_and_leaves_its_state_alone():
    rule = DiLoCo(inner_steps=4, optimizer=OuterSgd(0.7, 0.9))
    first = state = rule.init(THETA)
    theta, b = THETA.astype(np.float64), 0.0
    for deltas in drawn(3, 2):
        mean = (3 * deltas[0] + deltas[1]) / 4
        b = 0.9 * b + mean
        theta = theta - 0.7 * (mean + 0.9 * b)
        state = rule.reduced(state, OuterGradients(deltas, {0: 3.0, 1: 1.0}))
    np.testing.assert_allclose(state.theta, theta, atol=1e-6)
    np.testing.assert_array_equal(first.theta, THETA)
    np.testing.assert_array_equal(first.optimizer["b"], 0.0)


@pytest.mark.parametrize("f", [None, Median()], ids=["mean", "median"])
def test_eager_workers_step_by_f_of_the_others_last_deltas_and_their_own_newest(f):
    rule, more = EagerUpdates(inner_steps=4, optimizer=PLAIN), {} if f is None else {"combine": f}
    combined = f or (lambda x, weights=None: x.mean(axis=0))
    state = rule.init(THETA)
    for m in range(3):
        state = rule.entered(state, m, range(m))
    expected, before = [THETA.astype(np.float64)] * 3, [np.zeros(5)] * 3
    for r, deltas in enumerate(drawn(4, 3)):
        known = OuterGradients(dict(enumerate(before)), **more) if r else None
        for m in range(3):
            arrival = WorkerView(m, range(3), (deltas[m], 1.0), known, is_last=r == 3, **more)
            state = rule.resumed(state, arrival)
            rows = np.array([*before[:m], deltas[m], *before[m + 1 :]])
            last, expected[m] = expected[m], expected[m] - 0.5 * combined(rows)
            np.testing.assert_allclose(rule.theta(state, m), expected[m], atol=1e-6)
            if r == 3:  # and then all that is outstanding
                rows = np.array([*before[:m], np.zeros(5), *before[m + 1 :]])
                whole = combined(rows) + combined(np.array(list(deltas.values())))
                done = rule.concluded(state, m, OuterGradients(deltas, **more))
                np.testing.assert_allclose(done.own[m].theta, last - 0.5 * whole, atol=1e-6)
        before = list(deltas.values())
    np.testing.assert_allclose(
        rule.model(state, [0, 2]), (expected[0] + expected[2]) / 2, atol=1e-6
    )


def test_an_eager_worker_enters_with_the_mean_of_the_others_and_of_their_optimizers():
    rule = EagerUpdates(inner_steps=4)
    (deltas,) = drawn(1, 2)
    state = rule.init(THETA)
    for m in range(2):
        state = rule.entered(state, m, range(m))
    for m in range(2):
        state = rule.resumed(state, WorkerView(m, range(2), (deltas[m], 1.0)))
    entered = rule.entered(state, 7, [0, 1]).own[7]
    np.testing.assert_allclose(
        entered.theta, (state.own[0].theta + state.own[1].theta) / 2, atol=1e-6
    )
    b = [state.own[m].optimizer["b"] for m in range(2)]
    np.testing.assert_allclose(entered.optimizer["b"], (b[0] + b[1]) / 2)
    assert entered.t == 1
    # Of nobody there is left, who came furthest counts; of nobody at all, the initial model.
    assert rule.model(state, []).tolist() == entered.theta.tolist()
    assert rule.model(rule.init(THETA), []).tolist() == THETA.tolist()


def test_a_step_that_would_not_be_finite_or_that_nobody_weighs_in_is_none():
    rule = DiLoCo(inner_steps=4)
    state = rule.init(THETA)
    with pytest.raises(NotFinite):
        rule.reduced(state, OuterGradients({0: np.full(5, 1e300)}))
    with pytest.raises(NoStep):
        rule.reduced(state, OuterGradients({0: np.ones(5)}, {0: 0.0}))
