"""MinMax and MinSum: as far from the mean as honest vectors are from each other.

Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses
for Federated Learning, NDSS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.aggregation import Rows
from fl.aggregation.gram import Array, Float64
from fl.attacks.attack import Knowledge, LineAttack, Scene, require

Perturbation = Literal["unit", "sign", "std"]


def perturbation(honest: Array, kind: Perturbation) -> Array:
    """Returns the direction p, shape (d,): mean/|mean|, sign(mean), or the deviation (ddof 1)."""
    if kind == "std":
        require(len(honest) > 1, "a deviation needs at least two honest vectors")
        return np.asarray(honest.std(axis=0, ddof=1))
    mean = honest.mean(axis=0)
    if kind == "sign":
        return np.asarray(np.sign(mean))
    length = np.linalg.norm(mean.astype(np.float64))
    return np.asarray(mean / mean.dtype.type(length if length > 0 else 1.0))


@dataclass(frozen=True)
class _Agnostic(LineAttack):
    """mean - gamma p with the largest gamma that a constraint on distances allows.

    The distance to x_i is a parabola in gamma, |mean - gamma p - x_i|^2 = a_i - 2 gamma b_i +
    gamma^2 |p|^2 with a_i = |mean - x_i|^2 and b_i = <p, mean - x_i>, and gamma = 0 is allowed. So
    gamma is the smallest of the larger roots.

    Departure: exact. The authors bisect, from 10 with steps that sum to 10, and so never find a
    gamma above 20, which matters for vectors of large norm.
    """

    knowledge: ClassVar[Knowledge] = "honest-vectors"

    perturbation: Perturbation = "unit"

    def __post_init__(self) -> None:
        require(
            self.perturbation in ("unit", "sign", "std"),
            f"{type(self).__name__}: perturbation={self.perturbation!r}: must be 'unit', 'sign' or "
            "'std'",
        )

    def line(self, honest: Array) -> tuple[Array, Array]:
        """Returns the mean and -p."""
        return honest.mean(axis=0), -perturbation(honest, self.perturbation)

    def _parabolas(self, honest: Array) -> tuple[Float64, Float64, float]:
        mean, minus_p = self.line(honest)
        rows = Rows(honest)
        p = -minus_p.astype(np.float64)
        return rows.distances_to(mean) ** 2, mean @ p - rows.inner(p), float(p @ p)


@dataclass(frozen=True)
class MinMax(_Agnostic):
    """Largest gamma with max_i |m - x_i|^2 <= max_{i, j} |x_i - x_j|^2, m = mean - gamma p.

    Attributes:
        perturbation: p: "unit" mean/|mean|, "sign" sign(mean), or "std", the deviation.

    Raises:
        ConfigError: `perturbation` is none of these.
    """

    def own_factor(self, honest: Array, scene: Scene) -> float:
        """Returns gamma."""
        a, b, p2 = self._parabolas(honest)
        if p2 == 0.0:
            return 0.0
        room = np.maximum(Rows(honest).squared_distances.max() - a, 0.0)
        return float(((b + np.sqrt(b * b + p2 * room)) / p2).min())


@dataclass(frozen=True)
class MinSum(_Agnostic):
    """Largest gamma with sum_i |m - x_i|^2 <= S, m = mean - gamma p.

    Attributes:
        perturbation: p: "unit" mean/|mean|, "sign" sign(mean), or "std", the deviation.
        bound: S: the "min" over i of sum_j |x_i - x_j|^2, as in the authors' code, or the "max".

    Raises:
        ConfigError: a parameter is none of these.
    """

    bound: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bound in ("min", "max"), f"MinSum: bound={self.bound!r}: 'min' or 'max'")

    def own_factor(self, honest: Array, scene: Scene) -> float:
        """Returns gamma."""
        a, b, p2 = self._parabolas(honest)
        if p2 == 0.0:
            return 0.0
        sums = Rows(honest).squared_distances.sum(axis=1)
        limit = sums.min() if self.bound == "min" else sums.max()
        # sum_i b_i = 0 up to rounding: the parabola is symmetric about the mean
        room = max(float(limit - a.sum()), 0.0)
        B, P = float(b.sum()), len(honest) * p2
        return float((B + np.sqrt(B * B + P * room)) / P)
