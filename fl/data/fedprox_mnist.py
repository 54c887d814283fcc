"""FedProx's MNIST: 1,000 devices with two digits each and sizes of a power law (arXiv:1812.06127).

The draw follows the authors' script. Published: 1,000 devices, 69,035 examples, mean 69 and
standard deviation 106 per device. In 400 draws of the script's law the number of examples was
69,012 to 69,110 and the standard deviation 118 to 249 (median 165), so the published deviation is
that of an unusually even draw, or was computed in another way.

Departure: the random stream is this project's, and so is the order of the images in a class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.data.federated import Examples, Partitions, Scaling, Source
from fl.data.images import MNIST, read_split
from fl.errors import ConfigError
from fl.randomness import generator

_FIRST = 5  # every device gets this many of each of its two digits before the power law


def power_law_counts(
    class_sizes: NDArray[np.int64], num_devices: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draws how many images each device gets of its two digits.

    Device u owns digits u mod 10 and (u + 1) mod 10. It gets 5 of each. Of what remains of digit l,
    R_l = size_l - num_devices, it gets floor(R_l p / sum of p), p ~ LogNormal(0, 2), the sum over
    all devices that own l. (The script gives none where fewer remain: rounding down prevents that.)

    Args:
        class_sizes: images of each digit, int64, shape (10,).
        num_devices: a multiple of ten, at most the smallest class.
        rng: random stream.

    Returns:
        int64, shape (num_devices, 2): images of digit (u + j) mod 10 for device u in column j.

    Raises:
        ConfigError: a number of devices that the digits cannot serve.
    """
    most = int(class_sizes.min()) // 10 * 10
    if num_devices % 10 or not 10 <= num_devices <= most:
        raise ConfigError(
            f"num_devices={num_devices}: must be a multiple of 10 from 10 to {most}; "
            "the paper has 1000"
        )
    share = rng.lognormal(0.0, 2.0, (10, num_devices // 10, 2))
    share *= (class_sizes - num_devices)[:, None, None] / share.sum(axis=(1, 2), keepdims=True)
    u, j = np.arange(num_devices)[:, None], np.arange(2)
    counts: NDArray[np.int64] = _FIRST + share[(u + j) % 10, u // 10, j].astype(np.int64)
    return counts


def load_fedprox_mnist(num_devices: int = 1000, seed: int = 0) -> Source:
    """Loads MNIST as FedProx does, naturally partitioned by device.

    All 70,000 images are pooled. Every pixel is standardised by its mean and its (standard
    deviation + 0.001) over all of them, in units of 0 to 255. A device's examples are shuffled; the
    first floor(0.9 n) are for training.

    Args:
        num_devices: devices, a multiple of ten; the paper has 1,000.
        seed: of the data. Not the run's: runs with different seeds see the same devices.

    Raises:
        ConfigError: MNIST cannot be read, or a number of devices that it cannot serve.
    """
    parts = [read_split(MNIST, "train"), read_split(MNIST, "test")]
    x = np.concatenate([part.x for part in parts])
    y = np.concatenate([part.y for part in parts])
    rng = generator(seed, "fedprox-mnist")
    rows = _device_rows(y, power_law_counts(np.bincount(y, minlength=10), num_devices, rng))
    rows = [rng.permutation(r) for r in rows]
    train = [r[: int(0.9 * len(r))] for r in rows]
    test = [r[int(0.9 * len(r)) :] for r in rows]
    everything = Examples(x, y)
    return Source(
        name="fedprox-mnist",
        train=everything.take(np.concatenate(train)),
        test=everything.take(np.concatenate(test)),
        num_classes=10,
        input_shape=(1, 28, 28),
        scaling=_per_pixel(x),
        natural=Partitions.contiguous(map(len, train)),
        natural_test=Partitions.contiguous(map(len, test)),
    )


def _device_rows(y: NDArray[np.int64], counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Deals rows of each digit to the devices, in order, as many as `counts` says."""
    left = {digit: np.flatnonzero(y == digit) for digit in range(10)}
    rows = []
    for u, pair in enumerate(counts):
        mine = []
        for j, count in enumerate(pair):
            digit = (u + j) % 10
            mine.append(left[digit][:count])
            left[digit] = left[digit][count:]
        rows.append(np.concatenate(mine))
    return rows


def _per_pixel(x: NDArray[np.uint8]) -> Scaling:
    # Sums of integers are exact, and need no float copy of all images.
    n = len(x)
    mean = x.sum(axis=0, dtype=np.uint64) / n
    square = np.square(x, dtype=np.uint16).sum(axis=0, dtype=np.uint64) / n
    std = np.sqrt(np.maximum(square - mean**2, 0.0)) + 0.001
    return Scaling(1.0, mean.astype(np.float32), std.astype(np.float32))
