"""PowerSGD: one warm-started step of subspace iteration per message, rank r.

Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization, NeurIPS 2019, arXiv:1905.13727; github.com/epfml/powersgd.

There are two ways to use it:

- As a compressor of one worker's vector: `encode` sends both factors of that worker's matrices. The
  mean of n workers then has rank n r.
- As the paper does, where workers meet in a ring: `compress_mean`. P = mean_i M_i Q is all-reduced
  and orthonormalised, then Q = mean_i M_i^T P is. The result is the compression of the mean, of
  rank r, and all workers get the same Q; one that enters has to be given it. `alternating` is the
  authors' newer package: one factor a step, P and Q in turn, so that one all-reduce is enough.

Error feedback is the wrapper `ErrorFeedback` in the first form. In the second it is e_i <- M_i -
P Q^T (the paper's code, `MeanLink`); the newer package subtracts the worker's own projection,
M_i - P P^T M_i. Both memories have the same mean, and the models are the same, because P and Q
depend on the mean only. Momentum and weight decay come after compression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import at_least
from fl.compression.compressed_mean import CompressedMean, CompressesMean
from fl.compression.compressor import (
    Length,
    Shapes,
    State,
    Transform,
    Vector,
    checked,
    extent,
)
from fl.compression.wire import Reader, u8
from fl.errors import ConfigError
from fl.randomness import generator
from fl.vectors.rows import Row, mean

_MOST = 1e30


@dataclass(frozen=True)
class PowerSgd(Transform, CompressesMean):
    """Sends P = orth(M Q) and Q = M^T P for each matrix M (n x m), decoded P Q^T; rank r.

    A tensor is a matrix shape[0] x rest. Vectors and scalars are sent as they are, and so are
    matrices with n m <= min_compression r (n + m) / 2. That is the package's rule, which sends one
    factor a step, P and Q in turn: r (n + m) / 2 numbers on average. Here a message has both, and
    is smaller by half of `min_compression` at least; the package counts the shape of a convolution
    before it is made a matrix, here the matrix counts. The rank is at most min(n, m).

    C is a projection of each matrix: |C(x) - x|^2 = |x|^2 - |C(x)|^2, so delta is the share of
    energy in the subspace, without a lower bound.

    State: `q`, float32, the Q of all compressed matrices (m x r, C order) one after another, kept
    for the next message; `step`, int64, shape (1,); and if alternating, `p`, the P likewise.

    Wire, with float32 values:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 1 | 1 if compressed, 0 during the first `dense_steps` |
    | 4 k | per tensor in order: P (n x r) and Q (m x r), or the tensor as it is |

    Length: `7 + 4 sum_compressed r (n + m) + 4 sum_others size`; `7 + 4 d` in dense steps.

    Departures: orthonormalisation is Householder's QR (as in the newer package) where the paper has
    Gram-Schmidt with 1e-8 added to the norm: it cannot divide by zero.

    Attributes:
        rank: r, at least 1.
        warm_start: begin from the last Q; otherwise from the first, random one.
        min_compression: factor by which one of the factors must be smaller on average, at least 0;
            2, as in the package, compresses whatever both factors make smaller.
        dense_steps: messages sent uncompressed first, at least 0 (package: 100).
        seed: of the first Q, which all workers must share.
        alternating: a mean's factors are made in turn, one a step; read by `compress_mean` alone.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 14

    rank: int = 2
    warm_start: bool = True
    min_compression: float = 2.0
    dense_steps: int = 0
    seed: int = 0
    alternating: bool = False

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        if self.min_compression < 0:
            raise ConfigError(f"min_compression is {self.min_compression}; it must be at least 0")
        at_least("dense_steps", self.dense_steps, 0)

    # ---- as a compressor -------------------------------------------------------------------------

    def init(self, shapes: Shapes) -> State:
        """Returns a standard normal Q per matrix, the same for all workers, and step 0."""
        state: State = {"q": self._first_q(shapes), "step": np.zeros(1, dtype=np.int64)}
        return {**state, "p": self._first_p(shapes)} if self.alternating else state

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns the flag, the factors or the vector itself, and the next Q and step."""
        _check_extent(x, shapes)
        step = {"step": state["step"] + 1}
        if int(state["step"][0]) < self.dense_steps:
            return u8(0), x, {**state, **step}
        p = self.orthonormalised(self.project(x, shapes, self._last_q(state, shapes)), shapes)
        q = self.backproject(x, shapes, p)
        parts = []
        at_p = at_q = 0
        for (n, m, r), part in zip(self._ranks(shapes), shapes.slices, strict=True):
            if not r:
                parts.append(x[part])
                continue
            parts += [p[at_p : at_p + n * r], q[at_q : at_q + m * r]]
            at_p, at_q = at_p + n * r, at_q + m * r
        return u8(1), np.concatenate(parts), {**state, "q": q, **step}

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads the flag."""
        flag = reader.u8()
        if flag > 1:
            raise reader.fail(f"flag {flag}, expected 0 or 1")
        return flag, self._floats(shapes) if flag else shapes.size

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns P Q^T for each compressed matrix, the other tensors as they came."""
        if not side:
            return values.astype(np.float32)
        x = np.empty(shapes.size, dtype=np.float32)
        at = 0
        for (n, m, r), part in zip(self._ranks(shapes), shapes.slices, strict=True):
            if not r:
                size = part.stop - part.start
                x[part] = values[at : at + size]
                at += size
                continue
            p, q = values[at : at + n * r], values[at + n * r : at + (n + m) * r]
            with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
                np.matmul(p.reshape(n, r), q.reshape(m, r).T, out=x[part].reshape(n, m))
            at += (n + m) * r
        return x

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the byte of the flag."""
        return Length(1, 1)

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns the number of floats when compressed, and the greatest number sent."""
        floats = self._floats(shapes)
        # A low rebate may make the factors larger than the matrices: min_compression below 2.
        return (
            (min(floats, shapes.size), max(floats, shapes.size))
            if self.dense_steps
            else (
                floats,
                floats,
            )
        )

    # ---- of a mean, over two all-reduces ---------------------------------------------------------

    def compress_mean(
        self, x: Row, shapes: Shapes, state: State, rngs: Sequence[np.random.Generator]
    ) -> CompressedMean:
        """Returns P Q^T of the mean of vectors; see `CompressesMean.compress_mean`.

        The first all-reduce is of P and of the tensors that are not compressed, the second of Q;
        during the first `dense_steps` there is one, of the vectors themselves.

        Alternating, Q = mean_i M_i^T orth(P) and P = mean_i M_i orth(Q) take turns, beginning with
        Q of a random P, and there is one all-reduce, of that factor and the other tensors.
        """
        for x_i in x:
            _check_extent(x_i, shapes)
        step = {"step": state["step"] + 1}
        if int(state["step"][0]) < self.dense_steps:
            return CompressedMean(mean(x), (4 * shapes.size,), {**state, **step})
        if self.alternating:
            return self._half_step(x, shapes, {**state, **step})
        q = self._last_q(state, shapes)
        p = mean(np.stack([self.project(x_i, shapes, q) for x_i in x]))
        rest = mean(np.stack([self.uncompressed(x_i, shapes) for x_i in x]))
        p = self.orthonormalised(p, shapes)
        q = mean(np.stack([self.backproject(x_i, shapes, p) for x_i in x]))
        sizes = tuple(4 * size for size in (p.size + rest.size, q.size) if size)
        return CompressedMean(self.rebuild(p, q, rest, shapes), sizes, {"q": q, **step})

    def _half_step(self, x: Row, shapes: Shapes, state: State) -> CompressedMean:
        """Makes one factor of a mean anew, by the other; `state` counts this step already."""
        p, q = state["p"], state["q"]
        if not self.warm_start:
            p, q = self._first_p(shapes), self._first_q(shapes)
        if (int(state["step"][0]) - self.dense_steps) % 2:
            p = self.orthonormalised(p, shapes)
            q = made = mean(np.stack([self.backproject(x_i, shapes, p) for x_i in x]))
        else:
            q = self.orthonormalised(q, shapes, of_p=False)
            p = made = mean(np.stack([self.project(x_i, shapes, q) for x_i in x]))
        rest = mean(np.stack([self.uncompressed(x_i, shapes) for x_i in x]))
        size = 4 * (made.size + rest.size)
        return CompressedMean(self.rebuild(p, q, rest, shapes), (size,), {**state, "p": p, "q": q})

    def project(self, x: Vector, shapes: Shapes, q: Vector) -> Vector:
        """Returns M Q of each compressed matrix, flat: the worker's first message, linear in x."""
        parts = [
            (x[part].reshape(n, m) @ q_l.reshape(m, r)).reshape(-1)
            for part, q_l, n, m, r in self._pairs(shapes, q, of_p=False)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def orthonormalised(self, p: Vector, shapes: Shapes, *, of_p: bool = True) -> Vector:
        """Returns P, or Q, with orthonormal columns, for each matrix."""
        parts = [
            np.linalg.qr(p_l.reshape(-1, r))[0].reshape(-1)
            for _, p_l, _, _, r in self._pairs(shapes, p, of_p=of_p)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def backproject(self, x: Vector, shapes: Shapes, p: Vector) -> Vector:
        """Returns M^T P of each compressed matrix, flat: the second message, linear in x."""
        parts = [
            (x[part].reshape(n, m).T @ p_l.reshape(n, r)).reshape(-1)
            for part, p_l, n, m, r in self._pairs(shapes, p, of_p=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def rebuild(self, p: Vector, q: Vector, uncompressed: Vector, shapes: Shapes) -> Vector:
        """Returns P Q^T of each compressed matrix, and the mean of the other tensors.

        Args:
            p: orthonormal, as all workers have it; or the mean of their `project`.
            q: mean of the workers' `backproject`; or orthonormal.
            uncompressed: mean of the workers' vectors on the tensors that are not compressed,
                flat; see `uncompressed`.
            shapes: of the tensors.
        """
        x = np.empty(shapes.size, dtype=np.float32)
        at = at_p = at_q = 0
        for (n, m, r), part in zip(self._ranks(shapes), shapes.slices, strict=True):
            size = part.stop - part.start
            if not r:
                x[part] = uncompressed[at : at + size]
                at += size
                continue
            p_l, q_l = p[at_p : at_p + n * r], q[at_q : at_q + m * r]
            np.matmul(p_l.reshape(n, r), q_l.reshape(m, r).T, out=x[part].reshape(n, m))
            at_p, at_q = at_p + n * r, at_q + m * r
        return x

    def uncompressed(self, x: Vector, shapes: Shapes) -> Vector:
        """Returns the entries of the tensors that are sent as they are, flat."""
        parts = [
            x[part]
            for (_, _, r), part in zip(self._ranks(shapes), shapes.slices, strict=True)
            if not r
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    # ---- matrices --------------------------------------------------------------------------------

    def _ranks(self, shapes: Shapes) -> list[tuple[int, int, int]]:
        """Returns (n, m, rank) of each tensor, rank 0 for those that are not compressed."""
        ranks = []
        for (n, m), shape in zip(shapes.matrices, shapes.shapes, strict=True):
            r = min(self.rank, n, m)
            one = r * (n + m) / 2  # numbers in a factor, on average
            compressed = len(shape) > 1 and n * m > self.min_compression * one
            ranks.append((n, m, r if compressed else 0))
        return ranks

    def _pairs(
        self, shapes: Shapes, flat: Vector, *, of_p: bool
    ) -> list[tuple[slice, Vector, int, int, int]]:
        pairs = []
        at = 0
        for (n, m, r), part in zip(self._ranks(shapes), shapes.slices, strict=True):
            if r:
                size = (n if of_p else m) * r
                pairs.append((part, flat[at : at + size], n, m, r))
                at += size
        return pairs

    def _unit(self, q: Vector, shapes: Shapes) -> Vector:
        """Returns each Q divided by a power of two, so that its largest entry is near 1.

        That changes no digit of P, and keeps M Q from overflowing where M and the last Q, which has
        the magnitude of the last M, are both large, or from vanishing where both are small.
        """
        unit = q.copy()
        for _, q_l, *_ in self._pairs(shapes, unit, of_p=False):
            _, exponent = np.frexp(np.abs(q_l).max(initial=0.0))
            np.ldexp(q_l, -exponent, out=q_l)
        return unit

    def _last_q(self, state: State, shapes: Shapes) -> Vector:
        """Returns the Q to begin with, of entries near 1."""
        return self._unit(state["q"] if self.warm_start else self._first_q(shapes), shapes)

    def _floats(self, shapes: Shapes) -> int:
        return sum((n + m) * r if r else n * m for n, m, r in self._ranks(shapes))

    def _first_q(self, shapes: Shapes) -> Vector:
        size = sum(m * r for _, m, r in self._ranks(shapes))
        return generator(self.seed, "powersgd").standard_normal(size, dtype=np.float32)

    def _first_p(self, shapes: Shapes) -> Vector:
        size = sum(n * r for n, _, r in self._ranks(shapes))
        return generator(self.seed, "powersgd", "P").standard_normal(size, dtype=np.float32)


def _check_extent(x: Vector, shapes: Shapes) -> None:
    """Raises ConfigError unless sums of float32 products stay finite for any usual matrix."""
    largest = extent(checked(x, shapes))
    if largest > _MOST:
        raise ConfigError(f"an entry of magnitude {largest:.3g}; at most {_MOST:.0e}: clip")
