"""Overlap-Local-SGD: against the algorithm of the paper with a momentum for every worker."""

from __future__ import annotations

import numpy as np
import pytest
from islands import ADAMW, DATA, SGD, driven, references, run

from fl.clients import Sgd, StepDecay
from fl.errors import ConfigError
from fl.strategies import OuterGradients, OverlapLocalSGD

H, ALPHA, BETA = 3, 0.6, 0.7


def written_out(rounds, workers, rule, rates):
    """Returns the anchors; every worker has its own momentum, as in the paper."""
    trained = references(workers, rule)
    z = trained[0].w
    anchors, v = [z], [0.0] * workers
    for phase in range(rounds):
        for m, worker in enumerate(trained):
            for group in worker.optimizer.param_groups:
                group["lr"] = rates[phase]
            worker.train(H)
            worker.w = (1 - ALPHA) * worker.w + ALPHA * z
            v[m] = BETA * v[m] + (z - worker.w) / rates[phase]
        z = np.mean([z - rates[phase] * of_m for of_m in v], axis=0)
        anchors.append(z)
    return np.array(anchors)


def test_it_is_the_papers_algorithm_whose_workers_each_have_a_momentum():
    got = run(OverlapLocalSGD(inner_steps=H, alpha=ALPHA, beta=BETA), 5, workers=3, rule=ADAMW)
    expected = written_out(5, 3, ADAMW, [ADAMW.lr] * 5)
    np.testing.assert_allclose(got.rows, expected, atol=3e-5)
    assert np.abs(expected[-1] - expected[0]).max() > 0.05


def test_and_so_it_is_where_the_rate_decays():
    schedule = StepDecay(2 * H, 0.2)
    rule = OverlapLocalSGD(inner_steps=H, alpha=ALPHA, beta=BETA, step_schedule=schedule)
    got = run(rule, 4, rule=Sgd(lr=0.2, step_schedule=schedule))
    expected = written_out(4, 2, SGD, [0.2, 0.2, 0.04, 0.04])
    np.testing.assert_allclose(got.rows, expected, atol=5e-6)
    constant = run(
        OverlapLocalSGD(inner_steps=H, alpha=ALPHA, beta=BETA),
        4,
        rule=Sgd(lr=0.2, step_schedule=schedule),
    )
    assert np.abs(got.rows[-1] - constant.rows[-1]).max() > 1e-4


def test_pulled_all_the_way_without_momentum_it_never_moves():
    got = run(OverlapLocalSGD(inner_steps=H, alpha=1.0, beta=0.0), 3)
    np.testing.assert_array_equal(got.rows, got.rows[:1].repeat(4, axis=0))


def test_without_momentum_the_anchor_is_the_mean_of_the_pulled_workers():
    rule = OverlapLocalSGD(alpha=0.25, beta=0.0)
    s, x = rule.init(np.array([8.0], np.float32)), {0: 4.0, 1: 0.0}
    held = 8.0
    for expected in (3.5, 2.375):  # (3/4 x + 1/4 z), meaned
        z = float(s.theta[0])
        s = rule.reduced(s, OuterGradients({m: np.array([held - at]) for m, at in x.items()}))
        assert float(s.theta[0]) == pytest.approx(expected)
        held = z


def test_of_identical_workers_it_does_not_matter_how_many_there_are():
    rule = OverlapLocalSGD(inner_steps=H)
    one = run(rule, 3, workers=1, data=DATA[1], batching="off")
    two = run(rule, 3, workers=2, data=DATA[1], batching="off")
    np.testing.assert_allclose(one.rows, two.rows, atol=1e-6)


def test_what_makes_no_sense_is_refused():
    for alpha in (0.0, 1.1):
        with pytest.raises(ConfigError, match=f"alpha is {alpha}"):
            OverlapLocalSGD(alpha=alpha)
    with pytest.raises(ConfigError, match=r"drop is 0.5.*leave it out"):
        driven(OverlapLocalSGD(), drop=0.5)
