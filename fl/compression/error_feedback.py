"""Error feedback: what was not sent is added to the next message.

Seide, Fu, Droppo, Li, Yu, 1-Bit Stochastic Gradient Descent, Interspeech 2014 (EF14); Stich,
Cordonnier, Jaggi, 2018, arXiv:1809.07599; Karimireddy, Rebjock, Stich, Jaggi, 2019,
arXiv:1901.09847. The decayed form is DeMo's momentum, arXiv:2411.19870.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import fraction
from fl.compression.compressor import (
    Channel,
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
    prefixed,
    unprefixed,
)
from fl.errors import ConfigError


@dataclass(frozen=True)
class ErrorFeedback(Channel):
    """Sends C(p) with p = decay e + x, and keeps e = p - C(p).

    With x = gamma g (the step size inside), the virtual iterate x_t - mean e_t moves by exactly
    -gamma mean g. Feeding g and applying gamma at the server is the same while gamma is constant.

    The receiver keeps nothing. A message that is lost takes its content with it, and a client that
    is rarely asked adds an old error: `decay` below 1 lets it fade by messages. With heterogeneous
    clients e does not vanish at the optimum: see `EControl`, `EF21`.

    State: `e`, float32, shape (d,); that of C, prefixed by `inner.`.

    Wire: that of C.

    Attributes:
        compressor: C, contractive; if unbiased, omega must be below 1.
        decay: factor on e, in (0, 1]; 1 is error feedback, DeMo's beta with `Demo`.

    Raises:
        ConfigError: decay is out of range; `init`: the memory would grow without bound.
    """

    compressor: Compressor
    decay: float = 1.0

    def __post_init__(self) -> None:
        fraction("decay", self.decay)

    @property
    def adds(self) -> bool:
        """As C's."""
        return self.compressor.adds

    def init(self, shapes: Shapes) -> State:
        """Returns e = 0 and the state of C."""
        omega = self.compressor.variance(shapes)
        if omega is not None and omega >= 1:
            raise ConfigError(
                f"{type(self.compressor).__name__} is unbiased with omega={omega:.3g} here, and "
                "from 1 on the memory of error feedback grows without bound: wrap it in Shrunk, or "
                "use its unscaled form"
            )
        inner = self.compressor.init(shapes)
        return {"e": np.zeros(shapes.size, dtype=np.float32), **prefixed("inner", inner)}

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        checked(x, shapes)
        e = state["e"] if self.decay == 1 else np.float32(self.decay) * state["e"]
        with np.errstate(over="ignore"):  # what is not finite is refused: p now, e with the next
            p = e + x
            payload, inner = self.compressor.encode(p, shapes, unprefixed("inner", state), rng)
            p -= self.compressor.decode(payload, shapes)
        return payload, {"e": p, **prefixed("inner", inner)}

    def receive(self, payload: bytes, shapes: Shapes, state: State) -> tuple[Vector, State]:
        """Decodes a payload; see `Channel.receive`."""
        return self.compressor.decode(payload, shapes), state

    def length(self, shapes: Shapes) -> Length:
        """Returns that of C."""
        return self.compressor.length(shapes)
