"""How long a collective's steps take, and what each rank sends in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fl.collectives.collective import Network, Reals, Transfers


class Times(NamedTuple):
    """What steps cost, by rank, shape (M,) each.

    Attributes:
        finished: when a rank has all that is sent to it, s.
        sent: bytes that it sends.
        busy: seconds in which it sends or receives, latencies among them.
    """

    finished: Reals
    sent: Reals
    busy: Reals


def times(
    steps: Iterable[Transfers], network: Network, arrivals: Reals, until: float = math.inf
) -> Times:
    """Returns what steps cost on the links of a network.

        end = max(got_i, free_i, got_j) + latency_ij + 8 size / min(up_i / m, down_j / n, path_ij)

    for a transfer from i to j, with got when a rank has what earlier steps send to it, free when
    what it sends in them has arrived, and m and n the transfers of the step that share its ends.

    Args:
        steps: of a collective.
        network: the links.
        arrivals: when each rank begins, s, shape (M,).
        until: what begins at this time or later does not.
    """
    got, free = arrivals.astype(np.float64), arrivals.astype(np.float64)
    sent, busy = np.zeros(len(network)), np.zeros(len(network))
    for i, j, sizes in steps:
        begin = np.maximum(np.maximum(got[i], free[i]), got[j])
        if math.isfinite(until):
            begun = begin < until
            i, j, sizes, begin = i[begun], j[begun], sizes[begun], begin[begun]
        fanout, fanin = np.bincount(i)[i], np.bincount(j)[j]
        end = begin + network.delays(i, j) + 8.0 * sizes / network.rates(i, j, fanout, fanin)
        first, last = np.full(len(network), math.inf), np.full(len(network), -math.inf)
        for ranks in (i, j):
            np.minimum.at(first, ranks, begin)
            np.maximum.at(last, ranks, end)
        busy += np.where(last > first, last - first, 0.0)
        np.add.at(sent, i, sizes)
        np.maximum.at(got, j, end)
        np.maximum.at(free, i, end)
    return Times(got, sent, busy)
