"""Synthetic(alpha, beta) and its IID form (Li et al., FedProx, arXiv:1812.06127).

Two numbers say how devices differ: alpha how much their true models do, beta how much their inputs
do. The generator follows the authors' code in what it draws, in which order, with which standard
deviations.

Departures from the authors' code:
    1. The random stream is this project's. The authors' released files were drawn without a seed.
    2. Inputs are stored as float32; labels are those of the float64 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl.checks import not_negative
from fl.data.federated import Examples, Partitions, Source
from fl.errors import ConfigError
from fl.randomness import generator

DIMENSION = 60
NUM_CLASSES = 10

# Sigma_jj = j^-1.2, j = 1..60
COVARIANCE_DIAGONAL = np.arange(1, DIMENSION + 1) ** -1.2


@dataclass(frozen=True, eq=False)
class Device:
    """One device's true model and the examples drawn for it.

    Attributes:
        W: weights, float64, shape (60, 10).
        b: biases, float64, shape (10,).
        x: inputs, float64, shape (n, 60).
        y: argmax of x W + b, int64, shape (n,).
    """

    W: NDArray[np.float64]
    b: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.int64]


def heterogeneous_devices(
    alpha: float, beta: float, num_devices: int, rng: np.random.Generator
) -> list[Device]:
    """Draws devices that differ in model and in inputs.

    With N(m, s) of mean m and STANDARD DEVIATION s, as in the authors' code (the paper's N(0,
    alpha) reads as a variance; the two differ for 0.5 and agree for 0 and 1):

        n_k = floor(LogNormal(4, 2)) + 50
        u_k ~ N(0, alpha),  B_k ~ N(0, beta),  v_k ~ N(B_k, 1)^60
        W_k ~ N(u_k, 1)^(60 x 10),  b_k ~ N(u_k, 1)^10
        x ~ N(v_k, Sigma) in variance,  Sigma_jj = j^-1.2,  y = argmax(W_k^T x + b_k)
    """
    sizes = _sizes(num_devices, rng)
    u = rng.normal(0.0, alpha, num_devices)
    B = rng.normal(0.0, beta, num_devices)
    v = rng.normal(B[:, None], 1.0, (num_devices, DIMENSION))
    devices = []
    for k, n in enumerate(sizes):
        W = rng.normal(u[k], 1.0, (DIMENSION, NUM_CLASSES))
        b = rng.normal(u[k], 1.0, NUM_CLASSES)
        devices.append(_device(W, b, v[k], n, rng))
    return devices


def iid_devices(num_devices: int, rng: np.random.Generator) -> list[Device]:
    """Draws devices that share one model and one distribution of inputs.

    As `heterogeneous_devices`, with one W ~ N(0, 1), one b ~ N(0, 1), and v_k = 0.
    """
    sizes = _sizes(num_devices, rng)
    W = rng.normal(0.0, 1.0, (DIMENSION, NUM_CLASSES))
    b = rng.normal(0.0, 1.0, NUM_CLASSES)
    return [_device(W, b, np.zeros(DIMENSION), n, rng) for n in sizes]


def _sizes(num_devices: int, rng: np.random.Generator) -> list[int]:
    return [int(n) + 50 for n in rng.lognormal(4.0, 2.0, num_devices)]


def _device(
    W: NDArray[np.float64],
    b: NDArray[np.float64],
    v: NDArray[np.float64],
    n: int,
    rng: np.random.Generator,
) -> Device:
    x = rng.normal(v, np.sqrt(COVARIANCE_DIAGONAL), (n, DIMENSION))
    return Device(W, b, x, np.argmax(x @ W + b, axis=1))


def load_synthetic(
    num_devices: int = 30, alpha: float = 0.0, beta: float = 0.0, seed: int = 0
) -> Source:
    """Draws Synthetic(alpha, beta), naturally partitioned by device.

    Each device's examples are shuffled; the first floor(0.9 n_k) are for training.

    Args:
        num_devices: devices, each a natural client; the paper has 30.
        alpha: standard deviation between devices of the mean of their true models, >= 0.
        beta: standard deviation between devices of the mean of their inputs, >= 0.
        seed: of the data. Not the run's: runs with different seeds see the same devices.

    Raises:
        ConfigError: a negative deviation, or no device.
    """
    _check(num_devices)
    if alpha < 0 or beta < 0:
        raise ConfigError(f"alpha={alpha}, beta={beta}: standard deviations must be 0 or more")
    devices = heterogeneous_devices(alpha, beta, num_devices, generator(seed, "synthetic"))
    return _source(f"synthetic({alpha:g},{beta:g})", devices, seed)


def load_synthetic_iid(num_devices: int = 30, decades: float = 0.0, seed: int = 0) -> Source:
    """Draws Synthetic-IID, naturally partitioned by device; other arguments as `load_synthetic`.

    Args:
        num_devices: devices, each a natural client; the paper has 30.
        decades: input j of all examples is multiplied by 10^e_j, e_j uniform in [-decades / 2,
            decades / 2], after the labels have been made; 0 leaves inputs as they are.
        seed: of the data. Not the run's: runs with different seeds see the same devices.

    Raises:
        ConfigError: no device, or a negative number of decades.
    """
    _check(num_devices)
    not_negative("decades", decades)
    devices = iid_devices(num_devices, generator(seed, "synthetic-iid"))
    if decades:
        exponents = generator(seed, "synthetic-iid", "units").uniform(-0.5, 0.5, DIMENSION)
        units = 10 ** (decades * exponents)
        devices = [replace(device, x=device.x * units) for device in devices]
    return _source("synthetic-iid", devices, seed)


def _check(num_devices: int) -> None:
    if num_devices < 1:
        raise ConfigError(f"num_devices={num_devices}: must be at least 1; the paper has 30")


def _source(name: str, devices: list[Device], seed: int) -> Source:
    rng = generator(seed, name, "held-out")
    train, test = [], []
    for device in devices:
        n = len(device.y)
        order = rng.permutation(n)
        examples = Examples(device.x.astype(np.float32), device.y)
        train.append(examples.take(order[: int(0.9 * n)]))
        test.append(examples.take(order[int(0.9 * n) :]))
    return Source(
        name=name,
        train=_concatenate(train),
        test=_concatenate(test),
        num_classes=NUM_CLASSES,
        input_shape=(DIMENSION,),
        natural=Partitions.contiguous(map(len, train)),
        natural_test=Partitions.contiguous(map(len, test)),
    )


def _concatenate(pieces: list[Examples]) -> Examples:
    return Examples(np.concatenate([p.x for p in pieces]), np.concatenate([p.y for p in pieces]))
