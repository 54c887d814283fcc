"""Handwritten digits: the default data, nothing to download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI machine learning
repository, CC BY 4.0; test part), the images that scikit-learn has. The file has a row of 64
pixels and a class for each. It is JSON since a Flower app bundle takes no compressed files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    pixels, target = _table()
    n = len(target)
    num_test = int(test_fraction * n)
    if not 1 <= num_test < n:
        raise ConfigError(
            f"test_fraction={test_fraction} holds out {num_test} of {n} images: "
            f"must leave 1 to {n - 1}, as 0.2 does"
        )
    order = generator(HELD_OUT_SEED, "digits", "held-out").permutation(n)
    examples = Examples(
        pixels[order].reshape(n, 1, 8, 8),
        target[order].astype(np.int64),
    )
    return Source(
        name="digits",
        train=examples.take(slice(num_test, None)),
        test=examples.take(slice(num_test)),
        num_classes=10,
        input_shape=(1, 8, 8),
        scaling=per_channel(16.0, [MEAN], [STD]),
    )


def _table() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the pixels, (1797, 64), and the classes, (1797,)."""
    rows = json.loads(Path(__file__).with_name("digits.json").read_text())
    table = np.array(rows, dtype=np.uint8)
    return table[:, :-1], table[:, -1]
