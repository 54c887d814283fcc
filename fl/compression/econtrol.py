"""EControl: error feedback of controlled strength on top of EF21's estimate.

Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and Error Control,
ICLR 2024, arXiv:2311.05645.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import within_unit
from fl.compression.compressor import Compressor, Shapes, State, Vector, checked
from fl.compression.tracking import Tracked


@dataclass(frozen=True)
class EControl(Tracked):
    """Sends D = C(eta e + g - h); e <- e + g - h - D; both ends h <- h + D.

    The receiver takes the new h for g. e is the sum over time of what should have been applied
    minus what was: e_{t+1} = e_t + g_t - h_{t+1}. eta = 0 is EF21. With an identity C, e stays 0
    and the receiver gets g. eta too large brings back the instability of error feedback with
    heterogeneous clients, too small the noise floor of EF21; the eta of the theory, delta / 400, is
    far too cautious in practice.

    States and wire: see `tracking`; format 23. The sender also keeps `e`, float32, shape (d,). 2 d
    at the sender and d per client at the server: for cross-silo fleets.

    Attributes:
        compressor: C, contractive.
        eta: strength of the feedback, in [0, 1].
        first: h_0 = g_0 ("dense") or C(g_0) ("compressed"), with e = 0.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 23

    compressor: Compressor
    eta: float = 0.05
    first: str = "dense"

    def __post_init__(self) -> None:
        self._check_first()
        within_unit("eta", self.eta)

    def init(self, shapes: Shapes) -> State:
        """Returns h = e = 0, sequence 0 and the state of C."""
        return {**super().init(shapes), "e": np.zeros(shapes.size, dtype=np.float32)}

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        checked(x, shapes)
        if self._starts_dense(state):
            return self._send_whole(x, shapes, state)
        if self.next_message(state) == 0:
            payload, _, state = self._send_change(x, shapes, state, rng)
            return payload, state
        e, difference = state["e"], self._difference(x, state)
        with np.errstate(over="ignore", invalid="ignore"):  # refused with this message or the next
            wanted = np.float32(self.eta) * e + difference if self.eta else difference
            payload, d, state = self._send_change(wanted, shapes, state, rng)
            return payload, {**state, "e": e + difference - d}
