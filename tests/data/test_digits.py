import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from fl.data import load_digits
from fl.data.digits import MEAN, STD
from fl.errors import ConfigError


def test_every_image_is_either_trained_on_or_held_out():
    source = load_digits()
    assert (len(source.train), len(source.test)) == (1438, 359)
    pixels = np.concatenate([source.train.x, source.test.x]).reshape(-1, 64)
    labels = np.concatenate([source.train.y, source.test.y])
    rows = sorted(map(tuple, np.column_stack([pixels, labels]).tolist()))
    theirs = sklearn_digits()
    expected = np.column_stack([theirs.data, theirs.target]).astype(int).tolist()
    assert rows == sorted(map(tuple, expected))


def test_every_class_is_held_out():
    counts = np.bincount(load_digits().test.y, minlength=10)
    assert counts.min() >= 20


def test_held_out_images_are_always_the_same():
    first, again = load_digits(), load_digits()
    np.testing.assert_array_equal(first.test.x, again.test.x)


def test_pixels_are_centred_with_unit_deviation():
    source = load_digits()
    assert source.scaling is not None
    x = source.scaling(np.concatenate([source.train.x, source.test.x]))
    assert abs(x.mean()) < 1e-3
    assert abs(x.std() - 1) < 1e-3
    assert (pytest.approx(MEAN, abs=1e-4), pytest.approx(STD, abs=1e-4)) == (
        (sklearn_digits().data / 16).mean(),
        (sklearn_digits().data / 16).std(),
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(ConfigError, match=rf"test_fraction={fraction} .* 1797"):
        load_digits(fraction)
