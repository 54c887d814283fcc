"""MDA, minimum-diameter averaging.

El Mhamdi, Farhadkhani, Guerraoui, Guirguis, Hoang, Rouault: Collaborative Learning in the Jungle,
NeurIPS 2021, arXiv:2008.00742. Rousseeuw: Multivariate estimation with high breakdown point, 1985.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import OF_DISTANCES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array, Float64, Index
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound


def minimum_diameter_subset(squared_distances: Float64, size: int) -> Index:
    """Returns the subset of `size` vectors whose largest pairwise distance is smallest.

    Of several, the first in lexicographic order, as a search through all subsets would find. The
    search here is another: pairs farther apart than r are in conflict, and a subset of diameter r
    exists if the conflicts can be resolved by leaving out n - size vectors (a vertex cover). That
    takes 1.47^(n - size) steps at worst, whatever n, where the subsets are too many to list.

    Args:
        squared_distances: D, shape (n, n).
        size: from 1 to n.

    Returns:
        Ascending indices, shape (size,).
    """
    D = squared_distances
    n, spare = len(D), len(D) - size
    radii = np.unique(D)  # ascending; contains the diameter of every subset
    low, high = 0, len(radii) - 1
    while low < high:
        middle = (low + high) // 2
        if _can_resolve(_conflicts(D, radii[middle]), (1 << n) - 1, spare):
            high = middle
        else:
            low = middle + 1
    conflicts = _conflicts(D, radii[low])
    left = (1 << n) - 1
    subset: list[int] = []
    for i in range(n):
        if len(subset) == size:
            break
        if not left >> i & 1:
            continue
        # Keeping i means leaving out what conflicts with it; otherwise i itself is left out.
        out = conflicts[i] & left
        if out.bit_count() <= spare and _can_resolve(
            conflicts, left & ~out, spare - out.bit_count()
        ):
            subset.append(i)
            left &= ~out
            spare -= out.bit_count()
        else:
            left &= ~(1 << i)
            spare -= 1
    return np.array(subset)


def _conflicts(D: Float64, radius: float) -> list[int]:
    """Returns for each vector the set, as bits, of those farther from it than the radius."""
    return [sum(1 << int(j) for j in np.flatnonzero(row > radius)) for row in D]


def _can_resolve(conflicts: list[int], left: int, spare: int) -> bool:
    """Returns whether leaving out `spare` of the vectors `left` leaves none in conflict."""
    worst, most = -1, 0
    edges = 0
    rest = left
    while rest:
        i = (rest & -rest).bit_length() - 1
        rest &= rest - 1
        degree = (conflicts[i] & left).bit_count()
        edges += degree
        if degree > most:
            worst, most = i, degree
    if most == 0:
        return True
    if edges // 2 > spare * most:  # each vector left out resolves at most this many
        return False
    # Either the worst vector goes, or all it conflicts with.
    neighbours = conflicts[worst] & left
    return _can_resolve(conflicts, left & ~(1 << worst), spare - 1) or (
        most <= spare and _can_resolve(conflicts, left & ~neighbours, spare - most)
    )


@dataclass(frozen=True)
class MDA(Aggregator):
    """The mean of the n - f vectors with the smallest diameter; needs 2 f < n.

        S = argmin over |S| = n - f of max_{i, j in S} |x_i - x_j|

    Attributes:
        f: Byzantine vectors.

    Raises:
        ConfigError: f is negative, or 2 f >= n.
    """

    f: int = 0

    @property
    def invariances(self) -> Invariances:
        """Those of a rule of distances; several subsets of one diameter are no rare case."""
        return OF_DISTANCES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean of S, shape (d,)."""
        size = len(rows) - self.f
        a = np.zeros(len(rows))
        a[minimum_diameter_subset(rows.squared_distances, size)] = 1.0 / size
        return rows.combine(a)
