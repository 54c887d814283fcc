"""Chains: a sparsifier or another transform, and a compressor of the floats it keeps.

Top-k, then its values as int8; a count sketch whose cells are fp16; DeMo with bfloat16
coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.compression.compressor import (
    Channel,
    Compressor,
    Length,
    Shapes,
    State,
    Transform,
    Vector,
    check_decodes,
    extent,
    finite,
    prefixed,
    unprefixed,
)
from fl.compression.wire import HEADER, u32
from fl.errors import ConfigError


@dataclass(frozen=True)
class Chain(Compressor):
    """Applies transforms one after another, and the last compressor to the floats that remain.

    Constants, for transforms T (constants of each stage with its own index):

    - T isometric with delta_1, then delta_2: delta = delta_1 delta_2. The dropped part and the
      error of the floats are orthogonal: |x|^2 - |v|^2 + (1 - delta_2) |v|^2, and |v|^2 >= delta_1
      |x|^2.
    - both unbiased: omega = (1 + omega_1) (1 + omega_2) - 1.

    The last stage must not depend on tensors: it sees one vector of k floats, and k may change from
    message to message for some transforms; then it must not keep a state.

    State: that of stage i, its names prefixed by `i.`.

    Wire: header; for every transform u32 length of its side information, and this; the payload of
    the last stage, with its own header. Length: `6 + sum (4 + side) + length of the last payload`.

    Attributes:
        stages: one transform or more, then any compressor.

    Raises:
        ConfigError: fewer than two stages, or one before the last is not a transform.
    """

    FORMAT: ClassVar[int] = 18

    stages: Sequence[Compressor]

    def __post_init__(self) -> None:
        if len(self.stages) < 2:
            raise ConfigError(f"a chain of {len(self.stages)} stages; it needs at least 2")
        for stage in self.stages[:-1]:
            if not isinstance(stage, Transform):
                raise ConfigError(
                    f"stages has {type(stage).__name__} before its last: it is not a transform, so "
                    "nothing can follow it; make it the last stage"
                )

    @property
    def transforms(self) -> list[Transform]:
        """The stages but the last."""
        return [stage for stage in self.stages[:-1] if isinstance(stage, Transform)]

    @property
    def last(self) -> Compressor:
        """The last stage."""
        return self.stages[-1]

    def init(self, shapes: Shapes) -> State:
        """Returns the states of all stages."""
        state: State = {}
        for i, (stage, (least, most)) in enumerate(
            zip(self.stages, self._sizes(shapes), strict=True)
        ):
            inner = stage.init(shapes if i == 0 else Shapes.vector(most))
            if inner and least != most:
                raise ConfigError(
                    f"{type(stage).__name__} keeps a state, but what it is given has {least} to "
                    f"{most} entries: put a transform with a fixed k before it"
                )
            state.update(prefixed(str(i), inner))
        return state

    def encode(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Encodes a vector; see `Channel.encode`."""
        parts, outer = [self._header(shapes)], shapes
        after: State = {}
        for i, stage in enumerate(self.transforms):
            side, x, inner = stage.forward(x, shapes, unprefixed(str(i), state), rng)
            parts += [u32(len(side)), side]
            after.update(prefixed(str(i), inner))
            shapes = Shapes.vector(x.size)
        i = len(self.stages) - 1
        payload, inner = self.last.encode(x, shapes, unprefixed(str(i), state), rng)
        after.update(prefixed(str(i), inner))
        whole = b"".join([*parts, payload])
        check_decodes(self, whole, outer, extent(x))
        return whole, after

    def decode(self, payload: bytes, shapes: Shapes) -> Vector:
        """Decodes a payload; see `Channel.receive`."""
        reader = self._open(payload, shapes)
        stages = []
        for stage in self.transforms:
            inner = reader.inner(f"{reader.what}: {type(stage).__name__}", reader.u32())
            side, count = stage.read_side(inner, shapes)
            inner.end()
            stages.append((stage, side, shapes, inner))
            shapes = Shapes.vector(count)
        values = self.last.decode(bytes(reader.rest()), shapes)
        for stage, side, outer, inner in reversed(stages):
            values = finite(stage.backward(side, values, outer), inner)
        return values

    def length(self, shapes: Shapes) -> Length:
        """Returns 6 + sum (4 + side) + the last payload, least and most."""
        least = most = HEADER.size
        sizes = self._sizes(shapes)
        for stage, (low, high) in zip(self.transforms, sizes, strict=False):
            side = stage.side_length(shapes if stage is self.stages[0] else Shapes.vector(high))
            if low != high:
                side = Length(0, side.most)
            least, most = least + 4 + side.least, most + 4 + side.most
        low, high = sizes[-1]
        least += self.last.length(Shapes.vector(low)).least
        return Length(least, most + self.last.length(Shapes.vector(high)).most)

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns the product of the stages' deltas, if the transforms are isometric."""
        deltas = [
            stage.contraction(at) for stage, at in zip(self.stages, self._at(shapes), strict=True)
        ]
        if all(stage.isometric for stage in self.transforms) and None not in deltas:
            return float(np.prod([delta for delta in deltas if delta is not None]))
        return super().contraction(shapes)

    def variance(self, shapes: Shapes) -> float | None:
        """Returns prod (1 + omega_i) - 1, if all stages are unbiased."""
        omegas = [
            stage.variance(at) for stage, at in zip(self.stages, self._at(shapes), strict=True)
        ]
        if None in omegas:
            return None
        return float(np.prod([1 + omega for omega in omegas if omega is not None])) - 1

    def _at(self, shapes: Shapes) -> list[Shapes]:
        """Returns the shapes each stage is given, with the greatest k."""
        return [shapes, *(Shapes.vector(most) for _, most in self._sizes(shapes)[1:])]

    def _sizes(self, shapes: Shapes) -> list[tuple[int, int]]:
        """Returns the least and the greatest number of entries each stage is given."""
        sizes = [(shapes.size, shapes.size)]
        for i, stage in enumerate(self.transforms):
            least, most = sizes[-1]
            if i == 0:
                sizes.append(stage.kept(shapes))
            else:
                low, high = stage.kept(Shapes.vector(least)), stage.kept(Shapes.vector(most))
                sizes.append((low[0], high[1]))
        return sizes


def chained(
    compressor: Channel | None,
    then: Compressor | None = None,
    feedback: Callable[[Compressor], Channel] | None = None,
) -> Channel | None:
    """Returns a compressor, with another one for the floats that it keeps, under error feedback.

    Args:
        compressor: a transform, if something follows it; None if nothing is compressed.
        then: for the floats; None sends them as they are.
        feedback: what keeps the error of both; None forgets it.

    Raises:
        ConfigError: there is no compressor, or it has a memory of its own; or as `Chain`.
    """
    added = "feedback" if then is None else "then"
    if then is None and feedback is None:
        return compressor
    if compressor is None:
        raise ConfigError(
            f"{added} is set, but compressor is null, so nothing is compressed: choose one, for "
            f"example compressor=topk, or leave {added} out"
        )
    if not isinstance(compressor, Compressor):
        raise ConfigError(
            f"{added} is set, but compressor is {type(compressor).__name__}, which has a memory "
            f"of its own: choose one without, for example compressor=topk, or leave {added} out"
        )
    if then is not None and not isinstance(compressor, Transform):
        raise ConfigError(
            f"then is set, but compressor is {type(compressor).__name__}, which leaves no floats "
            "to compress further: choose one that does, for example compressor=topk, or leave "
            "then out"
        )
    both = compressor if then is None else Chain([compressor, then])
    return both if feedback is None else feedback(both)
