"""DeMo as an optimiser: momenta of their own, of which the workers exchange the strongest part.

Peng, Quesnelle, Kingma, DeMo: Decoupled Momentum Optimization, 2024, arXiv:2411.19870;
github.com/bloc97/DeMo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from fl.checks import fraction
from fl.compression.compressor import Channel, Shapes, State, Vector
from fl.compression.demo import Demo
from fl.compression.error_feedback import ErrorFeedback
from fl.compression.replicated import Gathered
from fl.errors import ConfigError


@dataclass(frozen=True)
class DecoupledMomentum(Gathered):
    """Signed steps along the strongest DCT coefficients of all the workers' momenta.

        worker i:  delta_i <- beta delta_i + lr g_i;  sends q_i = C(delta_i);  delta_i -= q_i
        everyone:  u = mean over senders of the coefficients (`Demo.mean_over_senders`)
                   x <- x - lr weight_decay x - lr sign(u), or - u without `sign`

    States and wire: see `Gathered`; format 27.

    Departures: values travel as float32 where bfloat16 would do; every message passes the server,
    which sends all n back, where an all-gather brings each worker the n - 1 of the others.

    Attributes:
        workers: n, at least 1.
        lr: above 0.
        beta: decay of the momentum, in (0, 1].
        weight_decay: decoupled, at least 0.
        sign: step by the sign of u; otherwise by u, which has lr in it.
        compressor: C.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 27

    workers: int
    lr: float
    beta: float = 0.999
    weight_decay: float = 0.0
    sign: bool = True
    compressor: Demo = field(default_factory=Demo)

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.lr > 0 or not self.weight_decay >= 0:
            raise ConfigError(
                f"workers is {self.workers}, lr is {self.lr}, weight_decay is {self.weight_decay}; "
                "they must be at least 1, above 0 and at least 0"
            )
        fraction("beta", self.beta)

    @property
    def channel(self) -> Channel:
        """Error feedback with decay around C."""
        return ErrorFeedback(self.compressor, decay=self.beta)

    def message_of(self, g: Vector, state: State) -> Vector:
        """Returns lr g."""
        return np.float32(self.lr) * g

    def stepped(self, x: Vector, payloads: Sequence[bytes], shapes: Shapes) -> Vector:
        """Returns x after the step."""
        u = _mean(self.compressor, tuple(payloads), shapes, self.sign)
        factor = np.float32(self.lr if self.sign else 1.0)
        return np.float32(1 - self.lr * self.weight_decay) * x - factor * u


@lru_cache(maxsize=1)  # replicas in one process all need the same
def _mean(compressor: Demo, payloads: tuple[bytes, ...], shapes: Shapes, sign: bool) -> Vector:
    u = compressor.mean_over_senders(payloads, shapes, sign=sign)
    u.flags.writeable = False
    return u
