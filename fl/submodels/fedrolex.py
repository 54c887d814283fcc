"""FedRolex: each client trains a window of every layer's units, which moves on by one each round.

Alam, Liu, Yan, Zhang, "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model
Extraction", arXiv:2212.01548 (NeurIPS 2022), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.submodels.extraction import Extraction, Indices, share_of


@dataclass(frozen=True)
class FedRolex(Extraction):
    """Units (t + j) mod K, j = 0, ..., ceil(r K) - 1: in K rounds each of them that often."""

    def index_set(
        self,
        width: int,
        level: float,
        server_round: int,
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Indices:
        """Returns the window of round t, ascending."""
        return np.sort((server_round + np.arange(share_of(width, level))) % width)
