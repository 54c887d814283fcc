"""Examples that settings are chosen by: of the training set, the same for all seeds, nobody's."""

import numpy as np
import pytest

import fl
from fl.data import Examples, Partitions, Source, load_quadratic_game
from fl.data.held_out import validated
from fl.errors import ConfigError


def source(n=40, natural=None):
    """Examples whose input and cluster is their number."""
    numbers = np.arange(n)
    train = Examples(np.float32(numbers)[:, None], numbers % 2)
    test = Examples(np.float32([[-1.0]]), np.array([0]))
    return Source("numbers", train, test, 2, (1,), natural=natural, clusters=numbers)


def test_it_is_a_share_of_the_training_examples_and_the_test_set_is_left_out():
    made = validated(source(), 0.25)
    train, test = made.train.x[:, 0], made.test.x[:, 0]
    assert len(test) == 10
    np.testing.assert_array_equal(np.sort([*train, *test]), np.arange(40))
    np.testing.assert_array_equal(made.train.y, train % 2)
    np.testing.assert_array_equal(made.clusters, train)
    np.testing.assert_array_equal(made.test_clusters, test)
    assert not np.array_equal(np.sort(test), np.arange(30, 40))  # drawn
    np.testing.assert_array_equal(validated(source(), 0.25).test.x[:, 0], test)


def test_every_natural_client_gives_its_share_and_keeps_the_rest():
    owners = Partitions.contiguous([4, 8, 3, 12])
    made = validated(source(27, owners), 0.25)
    np.testing.assert_array_equal(made.natural.sizes, [3, 6, 3, 9])
    np.testing.assert_array_equal(made.natural_test.sizes, [1, 2, 0, 3])
    for p, (begin, end) in enumerate([(0, 4), (4, 12), (12, 15), (15, 27)]):
        mine = [*made.train.x[made.natural[p], 0], *made.test.x[made.natural_test[p], 0]]
        np.testing.assert_array_equal(np.sort(mine), np.arange(begin, end))


@pytest.mark.parametrize("made", [lambda: source(3), load_quadratic_game])
def test_nothing_to_hold_out_is_refused(made):
    with pytest.raises(ConfigError, match=r"validation|game"):
        validated(made(), 0.1)


@pytest.mark.parametrize("value", [-0.1, 1.0, "half", True])
def test_a_share_out_of_range_is_refused(value):
    with pytest.raises(ConfigError, match="validation is"):
        fl.run(executor="serial", validation=value)


def test_a_run_is_evaluated_on_it_and_trains_on_the_rest():
    few = dict(executor="serial", num_clients=4, num_rounds=1, fleet="uniform", progress=False)
    whole, validating = (fl.run(validation=share, **few) for share in (0.0, 0.5))
    assert whole.summary["model_sha256"] != validating.summary["model_sha256"]
    accuracy = validating.frame()["accuracy"].iloc[-1]
    assert accuracy * 719 == pytest.approx(round(accuracy * 719))  # half of the 1438 for training
