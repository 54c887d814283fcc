"""EF21: compress the difference to a running estimate.

Richtarik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and Practically Faster
Error Feedback, NeurIPS 2021, arXiv:2106.05203.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.compressor import Compressor, Shapes, State, Vector, checked
from fl.compression.tracking import Tracked


@dataclass(frozen=True)
class EF21(Tracked):
    """Sends c = C(g - h); both ends h <- h + c; the receiver takes h for g.

    With g fixed, |h - g|^2 shrinks by 1 - delta per message. With stochastic gradients it stalls at
    a noise floor that more workers do not lower: see `EF21Sgdm`.

    States and wire: see `tracking`; format 21.

    Attributes:
        compressor: C, contractive.
        first: h_0 = g_0 ("dense") or C(g_0) ("compressed").

    Raises:
        ConfigError: `first` is something else.
    """

    FORMAT: ClassVar[int] = 21

    compressor: Compressor
    first: str = "dense"

    def __post_init__(self) -> None:
        self._check_first()

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        if self._starts_dense(state):
            return self._send_whole(x, shapes, state)
        difference = self._difference(checked(x, shapes), state)
        payload, _, state = self._send_change(difference, shapes, state, rng)
        return payload, state
