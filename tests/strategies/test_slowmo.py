"""SlowMo: its displacements, and what the inner learning rate does to its momentum."""

from __future__ import annotations

import numpy as np
import pytest
from islands import ADAMW, run

from fl.clients import AdamW, StepDecay
from fl.errors import ConfigError
from fl.strategies import DiLoCo, LocalSGD, OuterGradients, OuterSgd, SlowMo


def positions(rule, deltas):
    """Returns where x is after phases whose workers all moved by the same."""
    state, path = rule.init(np.zeros(1, np.float32)), []
    for k, delta in enumerate(deltas, start=1):
        gradients = OuterGradients({0: np.array([delta])}, step=k * rule.inner_steps)
        state = rule.reduced(state, gradients)
        path.append(float(state.theta[0]))
    return path


def test_a_constant_displacement_of_minus_1_leads_to_minus_1_2_5_4_25_and_in_the_end_to_2_a_phase():
    path = positions(SlowMo(beta=0.5), [1.0] * 40)
    assert path[:3] == [-1.0, -2.5, -4.25]
    assert path[-1] - path[-2] == pytest.approx(-2.0)


@pytest.mark.parametrize("halved", ["step_schedule", "round_schedule"])
def test_the_rate_that_was_used_divides_so_old_momentum_shrinks_with_the_rate(halved):
    # A tenth of the rate from phase 1 on: u = 1 / 1, then 0.5 u + 0.1 / 0.1, times 0.1.
    every = {"step_schedule": 4, "round_schedule": 1}[halved]
    rule = SlowMo(inner_steps=4, beta=0.5, **{halved: StepDecay(every, 0.1)})
    path = positions(rule, [1.0, 0.1])
    assert -np.diff([0.0, *path]) == pytest.approx([1.0, 0.1 * (0.5 * 1.0 + 1.0)])
    # Not by the rate of the phase to come, which would leave 0.5 * 1.0 of the old momentum.
    assert -np.diff(path)[0] != pytest.approx(0.5 * 1.0 + 0.1)


def test_a_rate_that_changes_within_a_phase_counts_by_its_mean_and_one_of_0_keeps_momentum():
    rates = [*[1.0] * 4, 1.0, 1.0, 0.0, 0.0, *[0.0] * 4, *[1.0] * 4]
    rule = SlowMo(inner_steps=4, beta=0.5, step_schedule=rates.__getitem__)
    # u = 1, then 0.5 + 0.5 / 0.5 = 1.5, then 0.75, then 0.375; times the mean rate.
    path = positions(rule, [1.0, 0.5, 0.0, 0.0])
    assert -np.diff([0.0, *path]) == pytest.approx([1.0, 0.5 * 1.5, 0.0, 0.375])


def test_without_momentum_it_is_local_sgd_bit_for_bit():
    plain = run(LocalSGD(inner_steps=3), 3, rule=ADAMW)
    schedule = StepDecay(3, 0.3)
    for slow, inner in (
        (SlowMo(inner_steps=3, beta=0.0), ADAMW),
        (SlowMo(inner_steps=3, beta=0.0, step_schedule=schedule), ADAMW),
    ):
        got = run(slow, 3, rule=inner)
        assert [row.tobytes() for row in got.rows] == [row.tobytes() for row in plain.rows]
        assert got.times == plain.times


def test_at_a_constant_rate_it_is_a_heavy_ball_and_at_a_decaying_one_it_is_not():
    ball = DiLoCo(inner_steps=3, optimizer=OuterSgd(0.8, 0.6, nesterov=False))
    a = run(ball, 4, rule=ADAMW)
    b = run(SlowMo(inner_steps=3, beta=0.6, alpha=0.8), 4, rule=ADAMW)
    np.testing.assert_allclose(a.rows, b.rows, atol=1e-6)
    schedule = StepDecay(3, 0.3)
    decaying = AdamW(lr=0.01, keep_moments=True, clip_norm=1.0, step_schedule=schedule)
    a = run(ball, 3, rule=decaying)
    b = run(SlowMo(inner_steps=3, beta=0.6, alpha=0.8, step_schedule=schedule), 3, rule=decaying)
    np.testing.assert_allclose(a.rows[:2], b.rows[:2], atol=1e-6)
    assert np.abs(a.rows[2] - b.rows[2]).max() > 1e-3


@pytest.mark.parametrize(("key", "value"), [("beta", 1.0), ("beta", -0.1), ("alpha", 0.0)])
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"{key} is {value}"):
        SlowMo(**{key: value})
