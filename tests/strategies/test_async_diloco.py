"""Asynchronous DiLoCo: displacements of delayed Nesterov, who does how many steps, its limit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from islands import ADAMW, driven, run

from fl.clients import AdamW, StepDecay
from fl.clients.local_optimizer import FIRST_STEP_KEY
from fl.errors import ConfigError
from fl.strategies import AsyncDiLoCo, DiLoCo, Events, OuterSgd
from fl.strategies.event_rule import Arrivals


@dataclass
class Came:
    """A worker's answer."""

    delta: np.ndarray
    node: int = 0
    received_s: float = 1.0
    sent_s: float = 0.0
    config: dict = field(default_factory=lambda: {"local-steps": 1})
    metrics: dict = field(default_factory=dict)


def moved(rule, outer_gradients):
    """Returns how far the model has moved after each of them."""
    state, path = rule.init(np.zeros(1, np.float32), 1), []
    for g in outer_gradients:
        state = rule.step(state, Arrivals([Came(np.array([-g], np.float32))]))
        path.append(-float(state.w[0]))
    return path


@pytest.mark.parametrize(("c", "first"), [(0.0, 1.9), (0.1, 1.63), (0.25, 1.225)])
def test_the_first_buffer_moves_so_far_and_in_the_end_each_moves_1_over_1_minus_beta(c, first):
    rule = AsyncDiLoCo(lr=1.0, beta=0.9, buffer_size=4, activation=c)
    path = moved(rule, [1.0] * 400)
    assert path[3] == pytest.approx(first)
    assert path[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert path[-1] - path[-5] == pytest.approx(10.0, abs=1e-3)


def test_with_a_buffer_of_1_it_is_nesterov_and_without_momentum_the_mean_of_the_buffer():
    gs = np.random.default_rng(0).normal(size=20)
    b, w, expected = 0.0, 0.0, []
    for g in gs:
        b = 0.9 * b + g
        w += 0.7 * (g + 0.9 * b)
        expected.append(w)
    assert moved(AsyncDiLoCo(buffer_size=1), gs) == pytest.approx(expected, rel=1e-5)
    plain = moved(AsyncDiLoCo(lr=0.7, beta=0.0, buffer_size=5), gs)
    assert plain[4::5] == pytest.approx(0.7 * gs.reshape(4, 5).mean(axis=1).cumsum(), rel=1e-4)


def test_slow_workers_do_fewer_steps_so_that_all_answer_equally_often():
    rule = AsyncDiLoCo(inner_steps=32)
    state = rule.init(np.zeros(1, np.float32), 1)
    for node, seconds in enumerate((1.0, 4 / 3, 2.0, 4.0)):
        state, told = rule.assign(state, node, 0.0)
        assert told["local-steps"] == 32
        came = Came(np.zeros(1), node, 32 * seconds, 0.0, told)
        state = rule.receive(state, came, 0).state
    assert [rule.steps_of(state, node) for node in range(4)] == [32, 24, 16, 8]
    assert rule.assign(state, 3, 0.0)[1] == {"local-steps": 8, FIRST_STEP_KEY: 32}
    slow = rule.receive(state, Came(np.zeros(1), 3, 1e6, 0.0, {"local-steps": 8}), 0).state
    assert rule.steps_of(slow, 3) == 1
    assert AsyncDiLoCo(inner_steps=32, dynamic=False).steps_of(slow, 3) == 32


@pytest.mark.parametrize("schedule", [None, StepDecay(5, 0.3)])
def test_of_one_worker_with_a_buffer_of_1_it_is_synchronous_diloco(schedule):
    inner = AdamW(lr=0.01, clip_norm=1.0, step_schedule=schedule)
    rule = AsyncDiLoCo(inner_steps=3, buffer_size=1)
    got = run(driven(rule, workers=1, strategy=Events, concurrency=1), 4, workers=1, rule=inner)
    sync = run(DiLoCo(inner_steps=3, optimizer=OuterSgd(0.7, 0.9)), 4, workers=1, rule=inner)
    np.testing.assert_allclose(got.rows, sync.rows, atol=2e-6)
    if schedule is None:
        kept = run(DiLoCo(inner_steps=3, optimizer=OuterSgd(0.7, 0.9)), 4, workers=1, rule=ADAMW)
        np.testing.assert_array_equal(sync.rows, kept.rows)  # moments outlive tasks


@pytest.mark.parametrize(
    ("key", "value"), [("inner_steps", 0), ("beta", 1.0), ("buffer_size", 0), ("activation", 0.3)]
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value}"):
        AsyncDiLoCo(**{key: value})
