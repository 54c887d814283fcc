"""Centered clipping, and its form for one node of a network.

Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021,
arXiv:2012.10333. He, Karimireddy, Jaggi: Byzantine-Robust Decentralized Learning via
ClippedGossip, arXiv:2202.01545, for the self-centered form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances, Reference
from fl.aggregation.gram import Array, Float64
from fl.aggregation.rows import Rows
from fl.errors import ConfigError


@dataclass(frozen=True)
class CenteredClipping(Aggregator):
    """Moves a centre v by differences of bounded length.

        v <- v + sum_i w_i (x_i - v) min(1, tau / |x_i - v|),    L times,    w_i = 1/n

    v starts as the last round's result, which the caller passes as `reference`; zeros without one.
    A step moves v by at most tau, whatever the vectors are; the guarantee is for clients that send
    momentum. Paper: tau = 100 and L = 1 for gradients.

    For the self-centered form, a node passes its own vector as `reference`, and as weights its row
    of the mixing matrix, with weighted=True and L = 1.

    Attributes:
        tau: longest difference, at least 0. With worker momentum beta, tau/(1 - beta) is usual.
        iterations: L, at least 1.
        weighted: w_i is the share of the weights given; otherwise 1/n.

    Raises:
        ConfigError: a parameter is out of range.
    """

    tau: float = 100.0
    iterations: int = 1
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau >= 0 or self.iterations < 1:
            raise ConfigError(
                f"CenteredClipping: tau={self.tau}, iterations={self.iterations}: need tau >= 0 "
                "and iterations >= 1"
            )

    @property
    def reference(self) -> Reference:
        """The last result."""
        return "last-result"

    @property
    def invariances(self) -> Invariances:
        """Translation if the centre is translated too; scaling only together with tau."""
        return frozenset({"permutation", "translation", "rotation", "resilient"})

    def tolerates(self, n: int) -> int:
        """Returns the largest minority."""
        return (n - 1) // 2

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the new centre, shape (d,)."""
        w = rows.shares if self.weighted else np.full(len(rows), 1.0 / len(rows))
        v = context.reference
        v = rows.combine(self._pulls(w, rows.norms)) if v is None else self._step(rows, w, v)
        for _ in range(self.iterations - 1):
            v = self._step(rows, w, v)
        return v

    def _step(self, rows: Rows, w: Float64, v: Array) -> Array:
        a = self._pulls(w, rows.distances_to(v))
        moved = rows.combine(a)
        moved += v.astype(moved.dtype) * moved.dtype.type(1.0 - a.sum())
        return moved

    def _pulls(self, w: Float64, r: Float64) -> Float64:
        """Returns w_i min(1, tau / |x_i - v|), shape (n,)."""
        return np.asarray(w * np.where(r > self.tau, self.tau / np.where(r > 0, r, 1.0), 1.0))
