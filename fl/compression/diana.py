"""DIANA: compress the difference to a slowly learnt shift, without bias.

Mishchenko, Gorbunov, Takac, Richtarik, Distributed Learning with Compressed Gradient Differences,
2019, arXiv:1901.09269.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.compressor import Compressor, Shapes, State, Vector, checked
from fl.compression.tracking import Tracked, require_unbiased
from fl.errors import ConfigError


@dataclass(frozen=True)
class Diana(Tracked):
    """Sends D = Q(g - h); the receiver takes h + D for g; both ends h <- h + alpha D.

    The estimate is unbiased. As h approaches the client's gradient at the optimum, the variance of
    D vanishes, which plain quantisation of heterogeneous gradients does not achieve. alpha = 0 is
    plain quantisation.

    States and wire: see `tracking`; format 24.

    Attributes:
        compressor: Q, unbiased.
        alpha: in [0, 1]; None is 1 / (1 + omega), the largest the theory allows.
        first: h_0 = 0 ("compressed", as in the paper) or g_0 ("dense").

    Raises:
        ConfigError: a parameter is out of range; `init`: Q is biased, or alpha exceeds its bound.
    """

    FORMAT: ClassVar[int] = 24

    compressor: Compressor
    alpha: float | None = None
    first: str = "compressed"

    def __post_init__(self) -> None:
        self._check_first()
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha is {self.alpha}; it must be in [0, 1], or null")

    def init(self, shapes: Shapes) -> State:
        """Returns h = 0, sequence 0 and the state of Q."""
        bound = 1 / (1 + require_unbiased(self.compressor, shapes, "DIANA"))
        if self.alpha is not None and self.alpha > bound:
            raise ConfigError(
                f"alpha is {self.alpha}; for this compressor it must be at most 1 / (1 + omega) = "
                f"{bound:.4g}, or null"
            )
        return super().init(shapes)

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        checked(x, shapes)
        if self._starts_dense(state):
            return self._send_whole(x, shapes, state)
        payload, _, state = self._send_change(self._difference(x, state), shapes, state, rng)
        return payload, state

    def _advanced(self, h: Vector, change: Vector, shapes: Shapes) -> tuple[Vector, Vector]:
        alpha = self.alpha
        if alpha is None:
            alpha = 1 / (1 + require_unbiased(self.compressor, shapes, "DIANA"))
        return h + change, h + np.float32(alpha) * change
