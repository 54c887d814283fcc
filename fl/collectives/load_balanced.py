"""All-to-all with a part of the vector for each rank, as large as its link is fast: DeDLOC.

Diskin, Bukhtiyarov, Ryabinin et al., "Distributed Deep Learning in Open Collaborations", NeurIPS
2021, arXiv:2106.10207; learning-at-home/hivemind, averaging/load_balancing.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl.checks import at_least
from fl.collectives.collective import Closed, Collective, Network, Reals, Transfers, step
from fl.errors import ConfigError

_KINDS = ("balanced", "equal", "one")
_TIE = 1e-9  # quotients nearer than this are the same


def balanced_shares(bandwidths: ArrayLike, sends: ArrayLike | None = None) -> Reals:
    """Returns the share f_i of the vector that each rank adds up, shape (M,), of sum 1.

    Of V bits, S senders among the ranks, a sender moves V (1 - f_i) of its own and V (S - 1) f_i of
    the others each way, and a rank without a payload V S f_i. So

        minimise xi    subject to    (1 + (S - 2) f_i) / b_i <= xi    for senders,
                                     S f_i / b_i <= xi                for the others,
                                     sum_i f_i = 1,  f_i >= 0,  f_i = 0 where b_i = 0.

    At the least xi, f_i is what a rank has room for, max(0, (xi b_i - 1) / (S - 2)) or xi b_i / S,
    and the room adds up to 1: a sum of straight lines, solved exactly. A sender that needs longer
    than xi for its own payload alone has no share; the others' are then still the least possible.
    With two senders each moves V whatever the shares, which are as the bandwidths; a lone one has
    all.

    hivemind counts ranks without a payload as senders.

    Args:
        bandwidths: b_i, shape (M,), at least 0, in any unit; 0 cannot be reached, and infinity has
            no limit.
        sends: whether a rank has a payload, shape (M,), bool; None is all.

    Raises:
        ConfigError: all bandwidths are 0, or one is none.
    """
    b = np.asarray(bandwidths, np.float64)
    has = np.ones(b.shape, bool) if sends is None else np.asarray(sends, bool)
    if not (b >= 0).all():
        raise ConfigError(f"bandwidths are {b.tolist()!r:.80}; they must be at least 0")
    if not (b > 0).any():
        raise ConfigError("all bandwidths are 0: somebody must be reachable to add up the vectors")
    if np.isinf(b).any():
        return np.asarray(np.isinf(b) / np.isinf(b).sum(), np.float64)
    S = int(has.sum())
    if S == 1:  # its own vector is the mean
        return has.astype(np.float64)
    if S <= 2:
        own = np.where(has, b, 0.0)
        room = own if own.any() else b
        return np.asarray(room / room.sum(), np.float64)
    slope = np.where(has, b / (S - 2), b / S)
    start = np.zeros_like(b)  # xi from which a rank has room
    np.divide(1.0, b, out=start, where=has & (b > 0))
    lines = np.flatnonzero(b > 0)
    order = lines[np.argsort(start[lines], kind="stable")]
    slopes, offsets = np.cumsum(slope[order]), np.cumsum(slope[order] * start[order])
    reached = (1.0 + offsets) / slopes  # xi if the first k of them have all of it
    beyond = np.append(start[order][1:], np.inf)
    xi = reached[int(np.argmax(reached <= beyond))]
    f = np.where(b > 0, slope * np.maximum(xi - start, 0.0), 0.0)
    return np.asarray(f / f.sum(), np.float64)


def apportioned(size: int, shares: ArrayLike, min_size: int = 0) -> NDArray[np.int64]:
    """Returns whole parts of a size, shape (M,), by the largest quotients (Hagenbach-Bischoff).

    Whoever would have less than `min_size` has nothing, if anybody has more; the rest is dealt in
    the proportion of the other shares: what is missing after rounding down goes one by one to the
    largest share over (part + 1), of equals to the smaller part.

    Args:
        size: to be dealt, at least 0.
        shares: shape (M,), at least 0, not all 0.
        min_size: as above.
    """
    f = np.array(shares, np.float64)
    if size and f.max() / f.sum() >= min_size / size:
        f[f / f.sum() < min_size / size] = 0.0
    f /= f.sum()
    parts = np.floor(size * f).astype(np.int64)
    for _ in range(size - int(parts.sum())):
        quotients = f / (parts + 1)
        best = quotients >= quotients.max() * (1 - _TIE)
        parts[min(np.flatnonzero(best), key=lambda i: (parts[i], i))] += 1
    return parts


@dataclass(frozen=True)
class LoadBalancedAllReduce(Collective):
    """Every rank adds up one part of the vector for all: large parts where links are fast.

        seconds = 2 latency + 8 size max over links of (its load / its bandwidth)

    Loads, in vectors: 1 + (S - 2) f_i on both directions of the access link of sender i, S f_i of a
    rank without a payload, f_i + f_j on the way from sender i to sender j. Parts are cut into
    small pieces, so that the mean of some comes back while others are still sent, and uplink and
    downlink are both busy: with equal shares it takes as long as a ring. hivemind calls it
    butterfly all-reduce. What cannot be reached adds nothing up; two of these, and everything if
    nobody can be reached, meet at a relay, which is charged as if they met directly.

    Where a network's links are shared with others, all is sent before anything comes back.

    Attributes:
        shares: "balanced" is the linear program of DeDLOC, see `balanced_shares`; "equal" has the
            same part for every rank that can be reached; "one" has all at the one with the fastest
            link, a parameter server.
        min_size: bytes below which a rank gets no part.

    Raises:
        ConfigError: other shares, or min_size below 0.
    """

    helpers: ClassVar[bool] = True

    shares: str = "balanced"
    min_size: int = 0

    def __post_init__(self) -> None:
        if self.shares not in _KINDS:
            raise ConfigError(f"shares is {self.shares!r}; it must be {', '.join(_KINDS)}")
        at_least("min_size", self.min_size, 0)

    def parts(self, network: Network, sizes: Sequence[int]) -> NDArray[np.int64]:
        """Returns the bytes that each rank adds up, shape (M,)."""
        up, down = network.access
        b = np.minimum(up, down)
        if network.reachable.any():
            b = np.where(network.reachable, b, 0.0)
        if self.shares == "balanced":
            f = balanced_shares(b, np.asarray(sizes) > 0)
        elif self.shares == "equal":
            f = (b > 0) / (b > 0).sum()
        else:
            f = np.arange(len(b)) == b.argmax()
        return apportioned(max(sizes), f, self.min_size)

    def steps(self, network: Network, sizes: Sequence[int]) -> Iterator[Transfers]:
        """Yields M - 1 steps by which all send to all others, and as many back."""
        m, parts, has = len(network), self.parts(network, sizes), np.asarray(sizes) > 0
        ranks = np.arange(m)
        for back in (False, True):
            for k in range(1, m):
                i, j = ranks, (ranks + k) % m
                size = np.where(has[j], parts[i], 0) if back else np.where(has[i], parts[j], 0)
                there = size > 0
                if there.any():
                    yield step(i[there], j[there], size[there])

    def closed(self, network: Network, sizes: Sequence[int]) -> Closed:
        """Returns the formula above."""
        m, parts, has = len(network), self.parts(network, sizes), np.asarray(sizes) > 0
        i, j = (ends.ravel() for ends in np.indices((m, m)))
        load = np.where(has[i], parts[j], 0) + np.where(has[j], parts[i], 0)
        load[i == j] = 0
        sent = load.reshape(m, m).sum(axis=1).astype(np.float64)
        used = np.flatnonzero(load)
        i, j, load = i[used], j[used], load[used]
        if not len(used):
            return Closed(0.0, sent)
        up, down = network.access
        slowest = max((sent / up).max(), (sent / down).max(), (load / network.rates(i, j)).max())
        return Closed(2 * float(network.delays(i, j).max()) + 8 * float(slowest), sent)
