"""Federated Dropout: each client trains units of every layer that are drawn for it in each round.

Caldas, Konecny, McMahan, Talwalkar, "Expanding the Reach of Federated Learning by Reducing Client
Resource Requirements", arXiv:1812.07210, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.submodels.extraction import Extraction, Indices, share_of


@dataclass(frozen=True)
class FederatedDropout(Extraction):
    """The first ceil(r K) of a permutation of the K units, anew for each client and round."""

    by_client: ClassVar[bool] = True

    def index_set(
        self,
        width: int,
        level: float,
        server_round: int,
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Indices:
        """Returns the units that were drawn, ascending."""
        return np.sort(rng.permutation(width)[: share_of(width, level)])
