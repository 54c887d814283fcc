"""Handwritten digits that come with scikit-learn: the default data, nothing to download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, test part).
"""

from __future__ import annotations

import numpy as np

from fl.data.federated import Examples, Source, per_channel
from fl.errors import ConfigError
from fl.randomness import generator

# The held-out examples must be the same for every run: their draw has a seed of its own.
HELD_OUT_SEED = 0

# Of all 1,797 images, divided by 16.
MEAN, STD = 0.3053, 0.3760


def load_digits(test_fraction: float = 0.2) -> Source:
    """Loads 1,797 images of 8x8 pixels with values 0 to 16, in ten classes.

    Args:
        test_fraction: share of the images held out, strictly between 0 and 1; 0.2 holds out 359.

    Raises:
        ConfigError: a share that leaves nothing to train on or nothing to test with.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    n = len(digits.target)
    num_test = int(test_fraction * n)
    if not 1 <= num_test < n:
        raise ConfigError(
            f"test_fraction={test_fraction} holds out {num_test} of {n} images: "
            f"must leave 1 to {n - 1}, as 0.2 does"
        )
    order = generator(HELD_OUT_SEED, "digits", "held-out").permutation(n)
    examples = Examples(
        digits.images[order].astype(np.uint8).reshape(n, 1, 8, 8),
        digits.target[order].astype(np.int64),
    )
    return Source(
        name="digits",
        train=examples.take(slice(num_test, None)),
        test=examples.take(slice(num_test)),
        num_classes=10,
        input_shape=(1, 8, 8),
        scaling=per_channel(16.0, [MEAN], [STD]),
    )
