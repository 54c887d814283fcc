"""No edges: what nodes learn by themselves, to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, eye_array

from fl.topologies.topology import Topology
from fl.topologies.weights import Stochasticity


@dataclass(frozen=True)
class Isolated(Topology):
    """Nobody hears anybody: W = I. Nodes never meet, and nothing is sent.

    Attributes:
        num_nodes: n, at least 2.
    """

    @property
    def stochasticity(self) -> Stochasticity:
        """I is symmetric."""
        return "symmetric"

    def mixing(self, t: int) -> csr_array:
        """Returns I."""
        return csr_array(eye_array(self.num_nodes, dtype=np.float64, format="csr"))
