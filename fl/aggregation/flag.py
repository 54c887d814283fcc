"""The Flag Aggregator: gradients are averaged after a projection onto a robustly fitted subspace.

Almasi, Mishra, Vamanan, Ravi: Flag Aggregator: Scalable Distributed Training under Failures and
Augmented Losses using Convex Optimization, ICLR 2024, arXiv:2302.05865.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances
from fl.aggregation.gram import Array, Float64
from fl.aggregation.rows import Rows
from fl.errors import ConfigError


@dataclass(frozen=True)
class FlagMedian:
    """A subspace fitted to unit vectors, in coordinates of their own span.

    Attributes:
        points: the unit vectors, shape (p, r), r their rank.
        Y: orthonormal columns, shape (r, m).
        explained: v_i = |Y^T g_i|^2 of each unit vector, shape (p,).
        objective: sum_i sqrt(1 - v_i) + lambda R(Y).
    """

    points: Float64
    Y: Float64
    explained: Float64
    objective: float


def flag_median(
    products: Float64, m: int, lam: float, eps: float, iterations: int, tolerance: float
) -> FlagMedian:
    """Fits an m-dimensional subspace by iteratively reweighted least squares.

    Minimises sum_i sqrt(1 - v_i) + lam R(Y), with R the mean over i != j of sqrt(1 - v_ij), where
    v_ij is |Y^T (g_i - g_j)|^2 / |g_i - g_j|^2. A step takes the m leading eigenvectors of

        sum_i u_i g_i g_i^T + lam / (p (p - 1)) sum_{i != j} u_ij (g_i - g_j)(g_i - g_j)^T / |..|^2

    with u = (1 - v + eps)^(-1/2); all u are 1 in the first step. Everything happens in the span of
    the g_i, so the matrices have at most p rows, also with all pairs.

    Args:
        products: inner products of the unit vectors g_i, shape (p, p).
        m: dimension.
        lam: weight of the pairs.
        eps: keeps the weights finite.
        iterations: steps.
        tolerance: stop when the objective falls by less than this share of itself.
    """
    values, vectors = np.linalg.eigh(products)
    kept = values > 1e-12 * values[-1]
    Z = vectors[:, kept] * np.sqrt(values[kept])  # (p, r), Z Z^T = products
    p, m = len(Z), min(m, Z.shape[1])
    i, j = np.triu_indices(p, 1) if lam > 0 else (np.zeros(0, np.intp), np.zeros(0, np.intp))
    pairs = Z[i] - Z[j]
    lengths = np.linalg.norm(pairs, axis=1)
    pairs = pairs[lengths > 1e-8] / lengths[lengths > 1e-8, None]
    pair_weight = 2.0 * lam / (p * (p - 1)) if p > 1 else 0.0  # each pair counts both ways
    u, u_pairs = np.ones(p), np.ones(len(pairs))
    fit = FlagMedian(Z, np.zeros((Z.shape[1], m)), np.zeros(p), np.inf)
    for _ in range(iterations):
        scatter = (Z.T * u) @ Z + pair_weight * (pairs.T * u_pairs) @ pairs
        Y = np.linalg.eigh(scatter)[1][:, -m:]
        v = np.square(Z @ Y).sum(axis=1)
        unexplained = np.maximum(1.0 - v, 0.0)
        unexplained_pairs = np.maximum(1.0 - np.square(pairs @ Y).sum(axis=1), 0.0)
        objective = np.sqrt(unexplained).sum() + pair_weight * np.sqrt(unexplained_pairs).sum()
        before, fit = fit.objective, FlagMedian(Z, Y, v, float(objective))
        if before - objective < tolerance * objective:
            break
        u, u_pairs = (unexplained + eps) ** -0.5, (unexplained_pairs + eps) ** -0.5
    return fit


@dataclass(frozen=True)
class FlagAggregator(Aggregator):
    """Projects onto the flag median Y of the directions g_i / |g_i|, and averages.

        form="paper":  (1/p) Y Y^T sum_i g_i
        form="repo":   (1/m) Y Y^T sum_i g_i / |g_i|

    Y does not see signs, so a reversed vector -c g is averaged in, not left out; and with a large m
    an outlier can have a dimension of its own, and pass as it is. So the result of the first form
    is not bounded: it is a method for noise and failures more than for attackers.

    Departures: none from the paper. The authors' code is form="repo" with iterations=1, up to its
    random start, which in high dimension makes all first weights nearly equal, as they are here;
    its weight of pairs differs (there lambda enters squared, and differences are not normalised).

    Attributes:
        components: m; None is ceil((p + 1) / 2) for p vectors.
        lam: weight of the pairs in the objective, at least 0.
        iterations: steps of the fit, at least 1.
        tolerance: stop when the objective falls by less than this share of itself; 0 goes on for
            as long as it falls at all.
        eps: keeps the weights of explained vectors finite, positive.
        form: what is averaged, see above. A zero vector has no direction: it counts in p alone.

    Raises:
        ConfigError: a parameter is out of range.
    """

    components: int | None = None
    lam: float = 0.0
    iterations: int = 100
    tolerance: float = 1e-6
    eps: float = 1e-7
    form: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components is not None and self.components < 1:
            raise ConfigError(f"FlagAggregator: components={self.components}: at least 1, or null")
        if not self.lam >= 0 or not self.tolerance >= 0 or not self.eps > 0 or self.iterations < 1:
            raise ConfigError(
                f"FlagAggregator: lam={self.lam}, tolerance={self.tolerance}, eps={self.eps}, "
                f"iterations={self.iterations}: need lam >= 0, tolerance >= 0, eps > 0 and "
                "iterations >= 1"
            )
        if self.form not in ("paper", "repo"):
            raise ConfigError(f"FlagAggregator: form={self.form!r}: must be 'paper' or 'repo'")

    @property
    def invariances(self) -> Invariances:
        """The paper's form scales with the vectors; the other form has a length of its own."""
        kept: Invariances = frozenset({"permutation", "rotation"})
        return kept | ({"scaling"} if self.form == "paper" else {"resilient"})

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the projected average, shape (d,)."""
        p, norms = len(rows), np.sqrt(np.diagonal(rows.gram))
        some = np.flatnonzero(norms > 0)
        if not len(some):
            return rows.combine(np.zeros(p))
        m = self.components if self.components is not None else (p + 2) // 2
        lengths = norms[some]
        products = rows.gram[np.ix_(some, some)] / (lengths[:, None] * lengths)
        fit = flag_median(products, m, self.lam, self.eps, self.iterations, self.tolerance)
        Z, Y = fit.points, fit.Y
        summed = (lengths if self.form == "paper" else np.ones(len(some))) @ Z
        # Y Y^T sum is some Z^T b: b = Z (Z^T Z)^-1 Y Y^T sum.
        b = Z @ np.linalg.solve(Z.T @ Z, Y @ (Y.T @ summed))
        a = np.zeros(p)
        a[some] = b / lengths / (p if self.form == "paper" else m)
        return rows.combine(a)
