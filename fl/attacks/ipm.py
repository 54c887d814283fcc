"""Inner-product manipulation (IPM), also called Fall of Empires (FOE).

Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation,
UAI 2019, arXiv:1903.03936.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.aggregation.gram import Array
from fl.attacks.attack import Knowledge, LineAttack, Scene, require


@dataclass(frozen=True)
class IPM(LineAttack):
    """Sends -epsilon times the mean of the honest vectors.

    A small epsilon stays near the honest vectors and fools rules that select; with epsilon > h / f
    the plain mean turns around. Some code has mean + c (-mean) instead, where c = 1 + epsilon.

    Attributes:
        epsilon: at least 0.

    Raises:
        ConfigError: epsilon is negative.
    """

    knowledge: ClassVar[Knowledge] = "honest-vectors"

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        require(self.epsilon >= 0, f"IPM: epsilon={self.epsilon}: must be at least 0")

    def line(self, honest: Array) -> tuple[Array, Array]:
        """Returns zero and minus the mean."""
        mean = honest.mean(axis=0)
        return np.zeros_like(mean), -mean

    def own_factor(self, honest: Array, scene: Scene) -> float:
        """Returns epsilon."""
        return self.epsilon
