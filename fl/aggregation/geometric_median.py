"""The geometric median by the smoothed Weiszfeld algorithm (RFA).

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, arXiv:1912.13445,
Algorithm 2. Weiszfeld, Tohoku Mathematical Journal 1937.
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
class GeometricMedian(Aggregator):
    """Minimises sum_i a_i |z - x_i| over z, in a few steps. Tolerates less than half of the weight.

        beta_i = a_i / max(nu, |z - x_i|),    z <- sum_i beta_i x_i / sum_i beta_i

    Each step lowers the smoothed objective sum_i a_i h(|z - x_i|), h(r) = r for r >= nu, else
    r^2 / (2 nu) + nu / 2. As z stays a combination of the vectors, the steps work on inner
    products; their number does not matter for the cost.

    From the mean, a few steps do not get away from vectors that are far out: a step leaves about
    f / (n - f) of their influence on it. The exact median is bounded however far they are, and so
    are steps from zero or from the central half, where they begin by default. A start at zero is
    only sensible for updates: it draws full models to zero. Weights are what clients say of
    themselves, and a weight above one half makes the median; by default all count the same.

    The authors' code has start="mean", weighted=True; ByzFL start="zero", nu=0.1, iterations=3,
    tolerance=0, weighted=False.

    Attributes:
        nu: smallest distance divided by, positive.
        iterations: steps, at least 1.
        tolerance: stop when a step changes the smoothed objective by less than this share; 0 never
            stops early.
        start: the mean of the "half" of the vectors that is nearest to the vector with the least
            sum of distances; the (weighted) "mean" of all; or "zero".
        weighted: a_i is the client's share of the examples, as it reports them; otherwise 1/n.

    Raises:
        ConfigError: a parameter is out of range.
    """

    nu: float = 1e-5
    iterations: int = 4
    tolerance: float = 1e-6
    start: Literal["half", "mean", "zero"] = "half"
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nu > 0 or self.iterations < 1 or self.tolerance < 0:
            raise ConfigError(
                f"GeometricMedian: nu={self.nu}, iterations={self.iterations}, "
                f"tolerance={self.tolerance}: need nu > 0, iterations >= 1, tolerance >= 0"
            )
        if self.start not in ("mean", "half", "zero"):
            raise ConfigError(f"GeometricMedian: start={self.start!r}: 'mean', 'half' or 'zero'")

    @property
    def invariances(self) -> Invariances:
        """Scaling only up to nu, which has the vectors' unit; the rest depends on the start."""
        kept: Invariances = frozenset({"permutation", "rotation", "hull"})
        if self.start != "zero":
            kept |= {"translation"}
        return kept if self.start == "mean" else kept | {"resilient"}

    def tolerates(self, n: int) -> int:
        """Returns the largest minority."""
        return (n - 1) // 2

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the last iterate z, shape (d,)."""
        G = rows.gram
        a = rows.shares if self.weighted else np.full(len(rows), 1.0 / len(rows))
        if self.start == "half":
            z = _central_half(rows.squared_distances)  # coefficients of the rows
        else:
            z = a if self.start == "mean" else np.zeros(len(rows))
        r = distances(G, z)
        objective = a @ _smoothed(r, self.nu)
        for _ in range(self.iterations):
            beta = a / np.maximum(self.nu, r)
            z = beta / beta.sum()
            r = distances(G, z)
            before, objective = objective, a @ _smoothed(r, self.nu)
            if abs(before - objective) < self.tolerance * objective:
                break
        return rows.combine(z)


def _central_half(D: Float64) -> Float64:
    n = len(D)
    medoid = np.argmin(np.sqrt(D).sum(axis=1))
    size = n // 2 + 1  # no more than are honest, if most of all are
    z = np.zeros(n)
    z[np.argsort(D[medoid], kind="stable")[:size]] = 1.0 / size
    return z


def distances(G: Float64, z: Float64) -> Float64:
    """Returns |sum_j z_j x_j - x_i| for all i, shape (n,), from the inner products G."""
    to_rows = G @ z
    return np.sqrt(np.maximum(z @ to_rows - 2.0 * to_rows + np.diagonal(G), 0.0))


def _smoothed(r: Float64, nu: float) -> Float64:
    return np.where(r >= nu, r, r * r / (2.0 * nu) + nu / 2.0)
