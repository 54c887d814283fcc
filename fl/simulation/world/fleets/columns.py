"""Columns of a fleet, drawn so that a client's entry does not depend on the number of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.randomness import normals, uniforms


def client_ids(num_clients: int) -> NDArray[np.int64]:
    """Returns 0 .. num_clients - 1.

    Raises:
        ConfigError: num_clients is not positive.
    """
    if num_clients < 1:
        raise ConfigError(f"num_clients is {num_clients}; a fleet needs at least 1 client.")
    return np.arange(num_clients)


def constant(num_clients: int, value: float) -> NDArray[np.float64]:
    """Returns a read-only column of one value, shape (num_clients,), that takes no memory."""
    return np.broadcast_to(np.float64(value), (num_clients,))


def choices(
    seed: int, purpose: str, clients: NDArray[np.int64], shares: Mapping[str, float]
) -> NDArray[np.int16]:
    """Returns for each client the index of one of the names in `shares`.

    Args:
        seed: root seed of the run.
        purpose: name of the random stream.
        clients: client indices, shape (n,).
        shares: relative frequency of each name, at least 0, not all 0.

    Raises:
        ConfigError: a share is negative or not finite, or all are 0.
    """
    weights = np.array(list(shares.values()), dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ConfigError(
            f"the shares of {purpose} are {dict(shares)}; they must be finite, at least 0 and not "
            "all 0."
        )
    sums = np.cumsum(weights)
    bounds = sums / sums[-1]  # not weights.sum(): the last bound must be exactly 1
    drawn = np.searchsorted(bounds, uniforms(seed, purpose, clients), side="right")
    return drawn.astype(np.int16)


def log_normals(
    seed: int, purpose: str, clients: NDArray[np.int64], sigma: float
) -> NDArray[np.float64]:
    """Returns exp(sigma z), of median 1, one per client; see `fl.randomness.normals`.

    Raises:
        ConfigError: sigma is negative or not finite.
    """
    if not (0 <= sigma < np.inf):
        raise ConfigError(
            f"the spread of {purpose} is {sigma}; the sigma of a log-normal factor must be finite "
            "and at least 0."
        )
    if sigma == 0:
        return constant(len(clients), 1.0)
    return np.asarray(np.exp(sigma * normals(seed, purpose, clients)), dtype=np.float64)


def look_up(kind: NDArray[np.integer], values: Sequence[float]) -> NDArray[np.float64]:
    """Returns values[kind] as a column."""
    return np.take(np.asarray(values, dtype=np.float64), kind)
