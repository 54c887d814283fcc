"""Weighted means that are added up along a tree, as aggregators between clients and server do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl.errors import NoStep
from fl.vectors.rows import Row

SumTree = str | tuple["SumTree", ...]
"""The name of a vector, or what one aggregator adds, in that order."""


def leaves_of(trees: Sequence[SumTree]) -> list[str]:
    """Returns the names of the vectors in trees, from left to right."""
    names: list[str] = []
    for tree in trees:
        names += [tree] if isinstance(tree, str) else leaves_of(tree)
    return names


def sum_of_tree(
    tree: SumTree, x: Row, weights: NDArray[np.float64], places: Mapping[str, int]
) -> tuple[Row, float]:
    """Returns sum_i n_i x_i, shape (d,), float32, and sum_i n_i, as the tree's root has them.

    An aggregator begins with 0 and adds, one after the other and in float32, n_i x_i of the vectors
    and the sums that it is handed. Means of means would need the weights as well; sums do not.

    Args:
        tree: which sums are made of which.
        x: vectors, shape (n, d), float32.
        weights: n_i, shape (n,), at least 0.
        places: row of each name; names without one are left out.
    """
    total, weight = np.zeros(x.shape[1], np.float32), 0.0
    for one in (tree,) if isinstance(tree, str) else tree:
        if isinstance(one, str):
            if one in places:
                n = float(weights[places[one]])
                total += np.float32(n) * x[places[one]]
                weight += n
        else:
            part, n = sum_of_tree(one, x, weights, places)
            total += part
            weight += n
    return total, weight


def mean_of_tree(
    tree: SumTree, x: Row, weights: NDArray[np.float64], places: Mapping[str, int]
) -> Row:
    """Returns sum_i n_i x_i / sum_i n_i, shape (d,), float32, see `sum_of_tree`.

    Raises:
        NoStep: no weight is positive.
    """
    total, weight = sum_of_tree(tree, x, weights, places)
    if not weight > 0:
        raise NoStep("no weight is positive: there is nothing to average")
    return np.asarray(total / np.float32(weight), np.float32)
