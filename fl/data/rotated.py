"""Images in several orientations: clusters of clients that see the same digits turned.

Ghosh, Chung, Yin, Ramchandran, arXiv:2006.04088, section 6.2: MNIST turned by 0, 90, 180 and 270
degrees, every image in each orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fl.data.digits import load_digits
from fl.data.federated import Examples, Source
from fl.data.images import load_mnist
from fl.errors import ConfigError

_RIGHT = (0, 90, 180, 270)


def load_rotated_digits(
    test_fraction: float = 0.2, angles: Sequence[int] = (0, 90, 180, 270)
) -> Source:
    """Loads the digits of `load_digits` in several orientations, each a cluster.

    Args:
        test_fraction: share of the images held out, strictly between 0 and 1.
        angles: of the clusters, degrees, of 0, 90, 180 and 270, no two equal.

    Raises:
        ConfigError: an argument is out of its range.
    """
    return rotated(load_digits(test_fraction), angles)


def load_rotated_mnist(
    num_train: int | None = None,
    num_test: int | None = None,
    angles: Sequence[int] = (0, 90, 180, 270),
) -> Source:
    """Loads MNIST in several orientations, each a cluster.

    Args:
        num_train: turn only the first that many training images; None: all.
        num_test: turn only the first that many test images; None: all.
        angles: of the clusters, degrees, of 0, 90, 180 and 270, no two equal.

    Raises:
        ConfigError: an argument is out of its range, or MNIST cannot be found.
    """
    return rotated(load_mnist(num_train, num_test), angles)


def rotated(source: Source, angles: Sequence[int]) -> Source:
    """Returns a source with every image in each orientation.

    Image b of B, turned by the c-th angle against the clock, is row c B + b, of cluster c.

    Args:
        source: of images, shape (n, C, H, H).
        angles: degrees, of 0, 90, 180 and 270, no two equal.

    Raises:
        ConfigError: other angles, or images that are not square.
    """
    turns = list(angles) if isinstance(angles, Sequence) else angles
    if not isinstance(turns, list):
        raise ConfigError(f"angles is {turns}; it must be a list of 0, 90, 180 and 270")
    if not turns or any(a not in _RIGHT for a in turns) or len(set(turns)) < len(turns):
        raise ConfigError(
            f"angles is {turns}; it must be a list of 0, 90, 180 and 270, each at most once"
        )
    if len(source.input_shape) != 3 or source.input_shape[1] != source.input_shape[2]:
        raise ConfigError(f"inputs of shape {source.input_shape} are no square images to turn")

    def turned(examples: Examples) -> Examples:
        x = [np.rot90(examples.x, angle // 90, axes=(2, 3)) for angle in turns]
        return Examples(np.concatenate(x), np.tile(examples.y, len(turns)))

    k = np.arange(len(turns))
    return replace(
        source,
        name=f"rotated_{source.name}",
        train=turned(source.train),
        test=turned(source.test),
        clusters=np.repeat(k, len(source.train)),
        test_clusters=np.repeat(k, len(source.test)),
    )
