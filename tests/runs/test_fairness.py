"""Numbers about the accuracies of all clients."""

import math

import numpy as np
import pytest

from fl.runs.fairness import fairness

NAMES = ("accuracy", "std", "jain", "entropy", "accuracy_worst_decile", "accuracy_best_decile")


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ((1, 1, 1, 0), (0.75, math.sqrt(0.1875), 0.75, math.log(3) / math.log(4), 0, 1)),
        ((0.3,) * 5, (0.3, 0, 1, 1, 0.3, 0.3)),
        ((0, 0), (0, 0, 1, 1, 0, 0)),
        ((0.4,), (0.4, 0, 1, 1, 0.4, 0.4)),
        ((0, 0, 0, 0.5), (0.125, math.sqrt(3) / 8, 0.25, 0, 0, 0.5)),
    ],
)
def test_worked_examples(q, expected):
    found = fairness(q, [1] * len(q))
    assert [found[name] for name in NAMES] == pytest.approx(list(expected), abs=1e-12)


def test_a_decile_is_of_a_tenth_of_the_clients_rounded_up():
    q = np.random.default_rng(0).permutation(21) / 20
    found = fairness(q, [1] * 21)
    assert found["accuracy_worst_decile"] == pytest.approx(np.mean([0, 1, 2]) / 20)
    assert found["accuracy_best_decile"] == pytest.approx(np.mean([18, 19, 20]) / 20)


def test_equality_does_not_depend_on_the_scale_nor_on_the_order():
    rng = np.random.default_rng(1)
    q = rng.random(30)
    once, half = fairness(q, [1] * 30), fairness(rng.permutation(q) / 2, [1] * 30)
    for name in ("jain", "entropy"):
        assert half[name] == pytest.approx(once[name])
    assert half["std"] == pytest.approx(once["std"] / 2)
    cv = once["std"] / once["accuracy"]
    assert once["jain"] == pytest.approx(1 / (1 + cv**2))


def test_examples_weigh_in_the_weighted_mean_alone():
    found = fairness((1.0, 0.0), (3, 1))
    assert (found["accuracy"], found["accuracy_weighted"]) == (0.5, 0.75)
