"""Attacks on a client's own data: flipped labels and backdoors."""

import numpy as np
import pytest
from many_cases import for_each

from fl.attacks import Backdoor, LabelFlip
from fl.data import load_arrays
from fl.errors import ConfigError

Y = np.array([0, 1, 2, 9, 4, 5])


def test_labels_are_reversed():
    np.testing.assert_array_equal(LabelFlip(10)(Y), (9, 8, 7, 0, 5, 4))


@pytest.mark.parametrize("num_classes", [2, 9, 10])
def test_flipping_twice_changes_nothing(num_classes):
    flip, y = LabelFlip(num_classes), np.arange(num_classes)
    np.testing.assert_array_equal(flip(flip(y)), y)
    assert (flip(y) == y).sum() == num_classes % 2  # the middle class of an odd number stays


def test_a_table_flips_as_it_says():
    swap = LabelFlip(3, table=[0, 2, 2])
    y = np.array([[0, 1], [2, 1]])
    np.testing.assert_array_equal(swap(y), [[0, 2], [2, 2]])
    assert swap(y).dtype == y.dtype


def test_labels_are_not_written_to():
    y = Y.copy()
    y.flags.writeable = False
    LabelFlip(10)(y)
    LabelFlip(10, table=list(range(10)))(y)


def test_there_are_no_labels_to_flip_in_regression(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.normal(size=(40, 3)), y=rng.normal(size=40))
    source = load_arrays(str(tmp_path / "a.npz"), task="regression")
    with pytest.raises(ConfigError, match="is of task regression"):
        LabelFlip(10).check(source)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LabelFlip(1), "num_classes=1"),
        (lambda: LabelFlip(3, table=[0, 1]), "must have 3 labels"),
        (lambda: LabelFlip(3, table=[0, 1, 3]), "from 0 to 2"),
        (lambda: LabelFlip(9)(Y), "from 0 to 8"),
        (lambda: LabelFlip(9)(Y - 1), "from -1"),
        (lambda: Backdoor(target=-1), "target=-1"),
        (lambda: Backdoor(share=1.5), "share=1.5"),
        (lambda: Backdoor(size=0), "size=0"),
        (lambda: Backdoor(size=5).trigger(np.zeros((1, 8, 8))), "fits into"),
        (lambda: Backdoor().trigger(np.zeros((5, 4))), "need images"),
    ],
)
def test_what_makes_no_sense_is_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_no_labels_are_no_fault():
    assert LabelFlip(3)(np.zeros(0, dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 6, 9), (5, 8, 8)])
@for_each("dtype", [np.uint8, np.float32])
def test_the_trigger_is_where_it_is_said_to_be(shape, dtype):
    x = np.full(shape, 7, dtype=dtype)
    x.flags.writeable = False
    corners = Backdoor(size=2).trigger(x)
    H, W = shape[-2:]
    edge_rows = np.isin(np.arange(H), (0, 1, H - 2, H - 1))
    edge_columns = np.isin(np.arange(W), (0, 1, W - 2, W - 1))
    marked = edge_rows[:, None] & edge_columns
    np.testing.assert_array_equal(corners, np.broadcast_to(np.where(marked, 255, 7), shape))
    assert corners.dtype == dtype
    lower_right = Backdoor(size=2, corners=False).trigger(x)
    assert (lower_right[..., -2:, -2:] == 255).all()
    assert (lower_right == 255).sum() == (corners == 255).sum() / 4


def test_the_trigger_of_a_trigger_is_the_same():
    x = np.random.default_rng(0).random((3, 1, 8, 8))
    once = Backdoor().trigger(x)
    np.testing.assert_array_equal(Backdoor().trigger(once), once)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_asked_for_is_poisoned_and_the_rest_left_alone(share):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (40, 1, 8, 8)).astype(np.uint8)
    y = rng.integers(1, 10, 40)
    x.flags.writeable = y.flags.writeable = False
    attack = Backdoor(target=0, share=share)
    poisoned_x, poisoned_y = attack.poison(x, y, rng)
    changed = poisoned_y == 0
    assert changed.sum() == round(40 * share)
    np.testing.assert_array_equal(poisoned_x[changed], attack.trigger(x[changed]))
    np.testing.assert_array_equal(poisoned_x[~changed], x[~changed])
    np.testing.assert_array_equal(poisoned_y[~changed], y[~changed])


def test_which_examples_are_poisoned_follows_the_generator():
    x, y = np.zeros((40, 1, 8, 8)), np.ones(40, dtype=np.int64)
    labels = [Backdoor().poison(x, y, np.random.default_rng(seed))[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (labels[0] != labels[2]).any()


def test_success_is_measured_on_triggered_examples_of_other_classes():
    x = np.arange(4 * 64, dtype=np.float64).reshape(4, 1, 8, 8)
    y = np.array([0, 3, 0, 5])
    triggered, labels = Backdoor(target=0).test_set(x, y)
    np.testing.assert_array_equal(triggered, Backdoor().trigger(x[[1, 3]]))
    np.testing.assert_array_equal(labels, (0, 0))
