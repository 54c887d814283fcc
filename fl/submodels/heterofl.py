"""HeteroFL: each client trains the first units of every layer.

Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for
Heterogeneous Clients", arXiv:2010.01264 (ICLR 2021), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.submodels.extraction import Extraction, Indices, share_of


@dataclass(frozen=True)
class HeteroFL(Extraction):
    """Units 0, ..., ceil(r K) - 1: the smaller part is always inside the larger."""

    stays: ClassVar[bool] = True

    def index_set(
        self,
        width: int,
        level: float,
        server_round: int,
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Indices:
        """Returns the first ceil(r K) units."""
        return np.arange(share_of(width, level))
