"""MARINA: compressed differences of successive gradients, and now and then all of it.

Gorbunov, Burlachenko, Li, Richtarik, MARINA: Faster Non-Convex Distributed Learning with
Compression, ICML 2021, arXiv:2102.07845.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import fraction
from fl.compression.compressor import (
    HUGE,
    Compressor,
    Participation,
    Shapes,
    State,
    Vector,
    checked,
    extent,
)
from fl.compression.tracking import Tracked, require_unbiased
from fl.errors import ConfigError
from fl.randomness import uniform


@dataclass(frozen=True)
class Marina(Tracked):
    """With probability p sends g_t, else Q(g_t - g_{t-1}), which the receiver adds to its estimate.

    The coin is common to all workers: a function of the seed and the number of the message. So all
    have to take part in every round, and one that starts over makes the others' coins differ from
    its own. p = 1 is gradient descent. Expected floats per message: p d + (1 - p) k.

    The gradients must be full, or both of one mini-batch: give the difference its meaning by
    feeding gradients whose g_{t-1} was taken on the same examples. `encode` takes g_t and keeps it.

    States and wire: see `tracking`; format 25; the sender's `h` is its last gradient, not the
    receiver's estimate.

    Attributes:
        compressor: Q, unbiased.
        p: in (0, 1]; None is 1 / (1 + omega), which is k / d for rand-k.
        seed: of the coin; the same for all workers.

    Raises:
        ConfigError: p is out of range; `init`: Q is biased.
    """

    FORMAT: ClassVar[int] = 25
    participation: ClassVar[Participation] = Participation.FULL
    first: ClassVar[str] = "dense"  # type: ignore[misc]  # MARINA has no other beginning

    compressor: Compressor
    p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.p is not None:
            fraction("p", self.p)

    def init(self, shapes: Shapes) -> State:
        """Returns h = 0, sequence 0 and the state of Q."""
        require_unbiased(self.compressor, shapes, "MARINA")
        return super().init(shapes)

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        largest = extent(checked(x, shapes))
        if largest > HUGE:
            raise ConfigError(
                f"an entry of magnitude {largest:.3g}; MARINA takes at most {HUGE:.3g}, since the "
                "sender does not know the receiver's estimate, which might overflow: clip the "
                "update"
            )
        if self._starts_dense(state) or self.sends_whole(self.next_message(state), shapes):
            return self._send_whole(x, shapes, state)
        payload, _, state = self._send_change(self._difference(x, state), shapes, state, rng)
        return payload, {**state, "h": x.copy()}

    def catch_up(self, state: State, shapes: Shapes) -> bytes:
        """Refuses: the sender does not keep the receivers' estimate.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a receiver of MARINA that missed a message cannot be helped: use EF21")

    def sends_whole(self, number: int, shapes: Shapes) -> bool:
        """Returns the coin of a message."""
        p = self.p
        if p is None:
            p = 1 / (1 + require_unbiased(self.compressor, shapes, "MARINA"))
        return uniform(self.seed, "marina", 0, number) < p
