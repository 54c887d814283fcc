"""Eager and delayed updates: the formulas of the paper, and what they are equal to."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from islands import (
    ADAMW,
    AVERAGE,
    CUT,
    DATA,
    PLAIN,
    SGD,
    Nesterov,
    crashing,
    driven,
    references,
    run,
)

from fl.compression import Cast
from fl.errors import ConfigError
from fl.strategies import (
    DelayedUpdates,
    DiLoCo,
    EagerUpdates,
    OuterSgd,
    OuterSteps,
    StreamingDiLoCo,
)
from fl.strategies.drivers.outer import step as outer_step

NESTEROV = OuterSgd(0.4, 0.9)


def phases(outer, rounds, *, workers, rule, steps, update, last=None):
    """Runs phases of workers with outer parameters of their own, by a formula for their updates.

    Args:
        update: from the Deltas of this phase, those of the one before (None in the first), and the
            worker's number, to what it steps by.
        last: the same for the last phase; None is as for the others.

    Returns:
        Outer parameters, shape (rounds + 1, M, d), and Deltas, shape (rounds, M, d).
    """
    trained = references(workers, rule)
    servers = [Nesterov(trained[0].w, outer) for _ in trained]
    path, deltas = [[server.theta for server in servers]], []
    for r in range(1, rounds + 1):
        formula = last if last and r == rounds else update
        now = []
        for worker, server in zip(trained, servers, strict=True):
            worker.w = server.theta
            worker.train(steps)
            now.append(server.theta - worker.w)
        before = deltas[-1] if deltas else None
        for m, server in enumerate(servers):
            server.step(formula(now, before, m))
        deltas.append(now)
        path.append([server.theta for server in servers])
    return np.array(path), np.array(deltas)


def eager(now, before, m):
    others = sum(before[k] for k in range(len(now)) if k != m) if before is not None else 0.0
    return (now[m] + others) / len(now)


def outstanding(now, before, m):
    others = sum(before[k] for k in range(len(now)) if k != m) if before is not None else 0.0
    return np.mean(now, axis=0) + others / len(now)


def delayed(now, before, m):
    return np.zeros_like(now[0]) if before is None else np.mean(before, axis=0)


def test_eager_updates_are_the_papers_formula():
    got = run(EagerUpdates(inner_steps=3, optimizer=NESTEROV), 4, workers=3, rule=ADAMW)
    path, _ = phases(NESTEROV, 4, workers=3, rule=ADAMW, steps=3, update=eager, last=outstanding)
    np.testing.assert_allclose(got.rows, path.mean(axis=1), atol=3e-5)
    assert np.abs(got.rows[-1] - got.rows[0]).max() > 0.05


def test_delayed_updates_are_the_papers_formula():
    got = run(DelayedUpdates(inner_steps=3, optimizer=NESTEROV), 4, workers=3, rule=ADAMW)
    path, deltas = phases(NESTEROV, 4, workers=3, rule=ADAMW, steps=3, update=delayed)
    # The model that is evaluated has the all-reduce of its round in it, a phase before workers do.
    server = Nesterov(path[0, 0], NESTEROV)
    for version, delta in enumerate(deltas, start=1):
        server.step(delta.mean(axis=0))
        np.testing.assert_allclose(got.rows[version], server.theta, atol=3e-5)
        if version < 4:
            np.testing.assert_allclose(path[version + 1, 0], server.theta, atol=1e-6)


def test_two_forms_of_the_formula_are_one():
    rng = np.random.default_rng(0)
    now, before = rng.normal(size=(2, 4, 7))
    tilde = np.array([eager(now, before, m) for m in range(4)])
    other = [before.mean(axis=0) + (now[m] - before[m]) / 4 for m in range(4)]
    np.testing.assert_allclose(tilde, other, atol=1e-12)
    expected = now.mean(axis=0) / 4 + (1 - 1 / 4) * before.mean(axis=0)
    np.testing.assert_allclose(tilde.mean(axis=0), expected, atol=1e-12)


@contextmanager
def noted():
    """Notes the outer parameters of those who are there, and the Deltas, of every round."""
    copies, deltas, model = [], [], outer_step.model

    def noting(run):
        own = run.states[0].own
        copies.append([own[node].theta for node in run.present])
        if reduction := run.reductions.get((0, run.version * run.rule.inner_steps, None)):
            deltas.append([sent.delta for sent in reduction.sent.values()])
        return model(run)

    with patch.object(outer_step, "model", noting):
        yield copies, deltas


def watched(optimizer, rounds, *, workers=3, compressor=None, **more):
    rule = EagerUpdates(inner_steps=2, optimizer=optimizer)
    with noted() as (copies, deltas):
        got = run(
            driven(rule, workers=workers, compressor=compressor), rounds, workers=workers, **more
        )
    return got.rows[0], np.array(copies[1:]), np.array(deltas)


@pytest.mark.parametrize("quantiser", [None, Cast("e3m0")], ids=["fp32", "e3m0"])
def test_with_outer_sgd_workers_differ_by_their_last_delta_alone_and_in_the_end_not(quantiser):
    first, copies, deltas = watched(PLAIN, 5, compressor=quantiser, batch_size=16)
    means = deltas.mean(axis=1)
    for r in range(4):
        shared = first - 0.5 * means[:r].sum(axis=0)
        np.testing.assert_allclose(copies[r], shared - 0.5 / 3 * deltas[r], atol=5e-6)
    assert np.abs(copies[3] - copies[3].mean(axis=0)).max() > 1e-4
    # Every Delta is in the final model of every worker, once.
    np.testing.assert_allclose(copies[4], [first - 0.5 * means.sum(axis=0)] * 3, atol=5e-6)


def test_the_last_delta_of_every_fragment_is_in_the_final_model():
    total, final = [0.0, 0.0, 0.0], []
    model, reduced = outer_step.model, outer_step.reduced

    def noting(run, reduction):
        total[reduction.fragment] += run.all_reduce.gradients(reduction).mean()
        return reduced(run, reduction)

    def keeping(run):
        final[:] = run.states
        return model(run)

    rule = EagerUpdates(inner_steps=6, optimizer=PLAIN, fragments=3)
    with patch.multiple(outer_step, model=keeping, reduced=noting):
        got = run(driven(rule, workers=3), 3, workers=3, batch_size=16)
    for p, state in enumerate(final):
        expected = CUT.take(got.rows[0], p) - 0.5 * total[p]
        assert len(state.own) == 3
        for outer in state.own.values():
            np.testing.assert_allclose(outer.theta, expected, atol=5e-6)


def test_in_one_round_there_is_nothing_to_be_eager_about_and_it_is_diloco():
    a, b = (run(k(inner_steps=3, optimizer=NESTEROV), 1, workers=3) for k in (EagerUpdates, DiLoCo))
    np.testing.assert_allclose(a.rows, b.rows, atol=1e-6)
    assert a.times == b.times


def test_the_mean_of_the_workers_steps_has_a_share_of_1_m_of_the_newest():
    _, copies, deltas = watched(AVERAGE, 4, batch_size=16)
    means = deltas.mean(axis=1)
    for r in range(1, 3):
        moved = (copies[r - 1] - copies[r]).mean(axis=0)
        np.testing.assert_allclose(moved, means[r] / 3 + (1 - 1 / 3) * means[r - 1], atol=1e-6)


def test_of_one_worker_eager_updates_are_diloco():
    a, b = (
        run(kind(inner_steps=3, optimizer=NESTEROV), 4, workers=1, rule=ADAMW)
        for kind in (EagerUpdates, DiLoCo)
    )
    assert [row.tobytes() for row in a.rows] == [row.tobytes() for row in b.rows]


def test_of_identical_workers_eager_updates_lag_by_the_share_of_the_others():
    # Delta~ = Delta^r / M + (1 - 1/M) Delta^(r-1) for all, so the workers stay identical.
    _, copies, deltas = watched(AVERAGE, 4, workers=2, data=DATA[1], batching="off")
    np.testing.assert_array_equal(copies[:, 0], copies[:, 1])
    moved = copies[1, 0] - copies[2, 0]
    np.testing.assert_allclose(moved, (deltas[2, 0] + deltas[1, 0]) / 2, atol=1e-6)


def test_a_worker_that_crashes_enters_with_the_mean_of_the_others():
    strategy = driven(EagerUpdates(inner_steps=2, optimizer=PLAIN), workers=3)
    with noted() as (copies, _):
        run(strategy, 4, workers=3, rule=SGD, fleet=crashing((0, 1), workers=3))
    # In round 2 worker 0 was away; at its end it came back with the mean of the other two.
    a, b, c = copies[2]
    np.testing.assert_allclose(a, (b + c) / 2, atol=1e-7)
    assert [len(of_round) for of_round in copies] == [0, 3, 3, 3, 3]


def test_streaming_with_an_overlap_of_a_phase_is_refused_and_this_is_what_it_means():
    with pytest.raises(ConfigError, match="strategy=eager_updates"):
        StreamingDiLoCo(inner_steps=4, overlap=4)
    with pytest.raises(ConfigError, match=r"drop is 0.5.*leave it out"):
        OuterSteps(EagerUpdates(inner_steps=4), drop=0.5)
