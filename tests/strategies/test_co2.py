"""CO2: which phase's average is in which model, the penalty of staleness, and clipping."""

from __future__ import annotations

import numpy as np
import pytest
from islands import ADAMW, driven, references, run

from fl.errors import ConfigError
from fl.strategies import CO2, DelayedUpdates, OuterGradients, OuterSgd, OuterSteps


def stepped(rule, deltas):
    """Returns the states before and after phases, whose workers' mean moved by given vectors."""
    states = [rule.init(np.zeros(len(deltas[0]), np.float32))]
    for delta in deltas:
        states.append(rule.reduced(states[-1], OuterGradients({0: np.asarray(delta)})))
    return states


def test_phase_t_begins_with_the_averages_of_all_phases_but_the_last_one():
    # Phase t moves the first worker by 10^t and the second not at all: digits say what is in.
    begun = []

    class Tagged(OuterSteps):
        def _sent(self, run, worker, p, weight, content):
            sent = super()._sent(run, worker, p, weight, content)
            phase, first = worker.step // self.rule.inner_steps, worker.node == run.present[0]
            if first:
                begun.append(worker.held[0][0])
            return sent._replace(delta=np.full_like(sent.delta, 10.0**phase if first else 0.0))

    got = run(driven(CO2(inner_steps=2, beta=0.0, gap=1.0), strategy=Tagged), 4)
    # x_0 = x_1, x_2 has phase 0 in it, x_3 phases 0 and 1.
    np.testing.assert_allclose(begun - got.rows[0, 0], [0.0, 0.0, -0.5, -5.5], atol=1e-5)
    # The model that is evaluated has the all-reduce of its own round in it.
    np.testing.assert_allclose(
        got.rows[:, 0] - got.rows[0, 0], [0.0, -0.5, -5.5, -55.5, -555.5], rtol=1e-6
    )


def test_a_run_is_the_rule_written_out_with_torch():
    alpha, beta, phi = 0.8, 0.6, 0.02
    rule = CO2(inner_steps=3, alpha=alpha, beta=beta, clip=phi)
    got = run(rule, 4, workers=3, rule=ADAMW)
    trained = references(3, ADAMW)
    x = [trained[0].w, trained[0].w]
    m, models, clipped = 0.0, [x[0]], False
    for t in range(4):
        if t > 1:
            x.append(models[t - 1])
        for worker in trained:
            worker.w = x[t]
            worker.train(3)
        delta = x[t] - np.mean([worker.w for worker in trained], axis=0)
        ahead = models[t]  # x_(t+1,0)
        gap = max(1.0, np.linalg.norm(ahead - x[t]) / np.linalg.norm(delta))
        m = beta * m + delta / gap
        clipped |= np.abs(m).max() > phi
        m = np.clip(m, -phi, phi)
        models.append(ahead - alpha * m)
    np.testing.assert_allclose(got.rows, models, atol=3e-5)
    assert clipped


def test_without_penalty_and_clipping_it_is_delayed_updates_by_a_heavy_ball():
    ball = OuterSgd(0.7, 0.5, nesterov=False)
    a = run(DelayedUpdates(inner_steps=3, optimizer=ball), 4, rule=ADAMW)
    b = run(CO2(inner_steps=3, alpha=0.7, beta=0.5, gap=1.0), 4, rule=ADAMW)
    np.testing.assert_allclose(a.rows, b.rows, atol=1e-7)
    assert a.times == b.times


def test_the_gap_is_the_distance_moved_in_lengths_of_what_was_measured():
    # Phase 1 begins where phase 0 did: no gap. Then the model has moved by 1 since.
    states = stepped(CO2(beta=0.0), [[1.0, 0.0], [0.0, 0.25], [0.0, 4.0]])
    moves = -np.diff([s.theta for s in states], axis=0)
    np.testing.assert_allclose(moves[0], [1.0, 0.0])
    np.testing.assert_allclose(moves[1], [0.0, 0.25 / 4])  # 1 / 0.25 lengths
    np.testing.assert_allclose(moves[2], [0.0, 4.0])  # 1/16 of a length: not below 1
    constant = stepped(CO2(beta=0.0, gap=2.0), [[1.0, 0.0], [0.0, 0.25]])
    np.testing.assert_allclose(-constant[-1].theta, [0.5, 0.125])
    still = stepped(CO2(beta=0.0), [[1.0, 0.0], [0.0, 0.0]])  # of no length
    np.testing.assert_allclose(-still[-1].theta, [1.0, 0.0])


def test_clipping_bounds_every_entry_of_momentum_and_leaves_smaller_ones():
    clipped = stepped(CO2(beta=0.5, gap=1.0, clip=1.0), [[3.0, 0.5], [0.0, 0.5]])
    np.testing.assert_allclose([s.m for s in clipped[1:]], [[1.0, 0.5], [0.5, 0.75]])
    wide = stepped(CO2(beta=0.5, gap=1.0, clip=3.0), [[3.0, 0.5], [0.0, 0.5]])
    never = stepped(CO2(beta=0.5, gap=1.0), [[3.0, 0.5], [0.0, 0.5]])
    np.testing.assert_array_equal(wide[-1].theta, never[-1].theta)


@pytest.mark.parametrize(
    ("key", "value"), [("beta", 1.0), ("alpha", 0.0), ("gap", 0.5), ("clip", 0.0)]
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"{key} is {value}"):
        CO2(**{key: value})
