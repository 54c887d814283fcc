"""Models of clusters: what a server has in the place of one model, and who uses which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fl.vectors.rows import Row, weighted_sum

Mixture = NDArray[np.float64]
"""Shares of k clusters, at least 0, with sum 1, shape (k,)."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """The models of k clusters, and what the server knows of its clients.

    Attributes:
        models: shape (k, d), float32.
        mixtures: of the clients that have been heard of, by node: what the server last knew.
        named: whether cluster k is the k-th of the data, not only some group of clients.
        mixes: whether a client uses a mixture of the models, not one of them.
        latest: of a server that clients contact one by one, who has been the last, and the model
            that it came with, shape (d,).
    """

    models: Row
    mixtures: Mapping[int, Mixture] = field(default_factory=dict)
    named: bool = False
    mixes: bool = False
    latest: tuple[int, Row] | None = None

    def of(self, mixture: Mixture) -> Row:
        """Returns sum_k u_k w_k, shape (d,): what a client of this mixture uses."""
        return weighted_sum(mixture, self.models)


def one_of(k: int, j: int) -> Mixture:
    """Returns the mixture that is all of cluster j of k."""
    mixture = np.zeros(k)
    mixture[j] = 1.0
    return mixture
