"""The induced compressor: a contractive one made unbiased by sending its error as well.

Horvath and Richtarik, A Better Alternative to Error Feedback for Communication-Efficient
Distributed Learning, ICLR 2021, arXiv:2006.11077.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.compressor import (
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    check_decodes,
    extent,
    finite,
    prefixed,
    unprefixed,
)
from fl.compression.wire import HEADER, joined, u32
from fl.errors import ConfigError


@dataclass(frozen=True)
class Induced(Compressor):
    """Sends C(x) and Q(x - C(x)); decoded as their sum: unbiased, omega = omega_Q (1 - delta_C).

    Wire: header, u32 length of the first payload, this, the second payload. Length:
    `10 + that of C + that of Q`.

    Attributes:
        contractive: C.
        unbiased: Q.
    """

    FORMAT: ClassVar[int] = 20

    contractive: Compressor
    unbiased: Compressor

    def init(self, shapes: Shapes) -> State:
        """Returns the states of both.

        Raises:
            ConfigError: Q has no omega.
        """
        if self.unbiased.variance(shapes) is None:
            raise ConfigError(
                f"{type(self.unbiased).__name__} as configured is biased; the second compressor "
                "must be unbiased"
            )
        first, second = self.contractive.init(shapes), self.unbiased.init(shapes)
        return {**prefixed("contractive", first), **prefixed("unbiased", second)}

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        first, c = self.contractive.encode(x, shapes, unprefixed("contractive", state), rng)
        with np.errstate(over="ignore"):  # then the second refuses it
            error = x - self.contractive.decode(first, shapes)
        second, q = self.unbiased.encode(error, shapes, unprefixed("unbiased", state), rng)
        after = {**prefixed("contractive", c), **prefixed("unbiased", q)}
        payload = joined(self._header(shapes), u32(len(first)), first, second)
        check_decodes(self, payload, shapes, extent(x))
        return payload, after

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        first = self.contractive.decode(bytes(reader.take(reader.u32())), shapes)
        second = self.unbiased.decode(bytes(reader.rest()), shapes)
        with np.errstate(over="ignore"):  # the result is checked
            return finite(first + second, reader)

    def length(self, shapes: Shapes) -> Length:
        """Returns 10 + both, least and most."""
        first, second = self.contractive.length(shapes), self.unbiased.length(shapes)
        fixed = HEADER.size + 4
        return Length(fixed + first.least + second.least, fixed + first.most + second.most)

    def variance(self, shapes: Shapes) -> float | None:
        """Returns omega_Q (1 - delta_C)."""
        omega = self.unbiased.variance(shapes)
        delta = self.contractive.contraction(shapes)
        return None if omega is None else omega * (1 - (delta or 0.0))
