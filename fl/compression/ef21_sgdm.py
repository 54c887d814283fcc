"""EF21 with momentum at the sender.

Fatkhullin, Tyurin, Richtarik, Momentum Provably Improves Error Feedback!, NeurIPS 2023,
arXiv:2305.15155.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import fraction
from fl.compression.compressor import Compressor, Shapes, State, Vector, checked
from fl.compression.tracking import Tracked


@dataclass(frozen=True)
class EF21Sgdm(Tracked):
    """EF21 on v <- (1 - a) v + a g, with v_0 = g_0; a = 1 is EF21.

    The receiver takes h, which follows v, for g.

    States and wire: see `tracking`; format 22. The sender also keeps `v`, float32, shape (d,).

    Attributes:
        compressor: C, contractive.
        a: weight of the new gradient, in (0, 1]; 1 minus the momentum.
        first: h_0 = g_0 ("dense") or C(g_0) ("compressed").

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 22

    compressor: Compressor
    a: float = 0.1
    first: str = "dense"

    def __post_init__(self) -> None:
        self._check_first()
        fraction("a", self.a)

    def init(self, shapes: Shapes) -> State:
        """Returns h = v = 0, sequence 0 and the state of C."""
        return {**super().init(shapes), "v": np.zeros(shapes.size, dtype=np.float32)}

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        checked(x, shapes)
        if self.next_message(state) == 0 or self.a == 1:
            v = x.copy()
        else:
            v = np.float32(1 - self.a) * state["v"] + np.float32(self.a) * x
        if self._starts_dense(state):
            payload, state = self._send_whole(v, shapes, state)
        else:
            payload, _, state = self._send_change(self._difference(v, state), shapes, state, rng)
        return payload, {**state, "v": v}
