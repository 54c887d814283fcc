"""Sign flipping, in the forms that go by this name.

Allen-Zhu, Ebrahimian, Li, Alistarh: Byzantine-Resilient Non-Convex Stochastic Gradient Descent,
ICLR 2021, arXiv:2012.14368. The form is a choice that changes results a lot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.aggregation.gram import Array
from fl.attacks.attack import Attack, Forged, Knowledge, SameVector, Scene, require


@dataclass(frozen=True)
class SignFlip(SameVector):
    """Sends minus the mean of the honest vectors.

    Attributes:
        scaled: send -(h / f) mean instead, so that the plain mean of all h + f vectors is zero.
    """

    knowledge: ClassVar[Knowledge] = "honest-vectors"

    scaled: bool = False

    def vector(self, honest: Array, scene: Scene) -> Array:
        """Returns the flipped mean, shape (d,)."""
        factor = len(honest) / scene.f if self.scaled else 1.0
        return np.asarray(-honest.mean(axis=0) * honest.dtype.type(factor))


@dataclass(frozen=True)
class OwnSignFlip(Attack):
    """Each client sends minus its own vector, as a node whose bits are flipped would.

    Attributes:
        factor: of the own vector, positive; 10 is the "reverse" attack of the Flag Aggregator's
            authors.

    Raises:
        ConfigError: the factor is not positive.
    """

    knowledge: ClassVar[Knowledge] = "own"

    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.factor > 0, f"OwnSignFlip: factor={self.factor}: must be positive")

    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns the flipped vectors, shape (f, d)."""
        return Forged(np.asarray(own * own.dtype.type(-self.factor)), {})
