"""Whether a collective, which may be anybody's, brings what every rank has to all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fl.collectives.collective import Closed, Collective, Network, Transfers, whole
from fl.errors import ConfigError


def check_order(by: Collective, order: Sequence[int], m: int) -> None:
    """Raises a ConfigError unless every one of M ranks has one place."""
    if sorted(order) != list(range(m)):
        raise _wrong(by, f"arranges {m} ranks as {list(order)!r:.80}; each must have one place")


def check_closed(by: Collective, closed: Closed, m: int) -> None:
    """Raises a ConfigError unless M ranks can pay what a formula says."""
    seconds, sent = closed
    if not 0 <= seconds < np.inf:
        raise _wrong(by, f"takes {seconds} s by its formula; they must be finite and at least 0")
    if np.shape(sent) != (m,) or not (np.isfinite(sent) & (np.asarray(sent) >= 0)).all():
        raise _wrong(by, f"sends {sent!r:.80} bytes by its formula; they must be {m} sizes")


def check_steps(by: Collective, network: Network, sizes: Sequence[int]) -> None:
    """Raises a ConfigError unless the steps bring something of each rank's payload to all others.

    What a rank sends may hold all that it was sent in earlier steps.

    Args:
        by: whose steps they are.
        network: of the ranks in their order.
        sizes: bytes of each one's payload.
    """
    m, steps = len(network), by.steps(network, sizes)
    if not isinstance(steps, Iterable):
        raise _wrong(
            by, f"has the steps {steps!r:.80}; it must yield them, see fl.collectives.step"
        )
    known = np.packbits(np.eye(m, dtype=bool), axis=1)  # row j: whose payloads rank j has
    for k, one in enumerate(steps):
        if not isinstance(one, Transfers):
            raise _wrong(by, f"has {one!r:.80} as step {k}; use what fl.collectives.step returns")
        i, j, size = map(np.asarray, one)
        if not (i.ndim == 1 and i.shape == j.shape == size.shape):
            raise _wrong(
                by, f"has {i.size} sources, {j.size} targets and {size.size} sizes in step {k}"
            )
        for ranks in (i, j):
            if ranks.dtype.kind not in "iu" or ((ranks < 0) | (ranks >= m)).any():
                raise _wrong(by, f"names the ranks {ranks} in step {k}; they are 0 to {m - 1}")
        if (i == j).any():
            raise _wrong(by, f"has rank {i[i == j][0]} send to itself in step {k}")
        if not (np.isfinite(size) & (size >= 0)).all():
            raise _wrong(by, f"sends {size} bytes in step {k}; they must be finite and at least 0")
        carries = size > 0
        got = known.copy()
        np.bitwise_or.at(got, whole(j[carries]), known[whole(i[carries])])
        known = got
    has = np.asarray(sizes) > 0  # helpers have nothing, and want nothing
    missing = (np.unpackbits(known, axis=1, count=m) == 0) & has & has[:, np.newaxis]
    lacks = np.argwhere(missing)
    if len(lacks):
        j, i = lacks[0]
        raise _wrong(by, f"brings nothing of rank {i}'s payload to rank {j}, of {m} ranks")


def _wrong(by: Collective, why: str) -> ConfigError:
    return ConfigError(f"allreduce is {type(by).__name__}, which {why}")
