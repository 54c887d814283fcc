"""CAF, the covariance bound-agnostic filter.

Allouah, Guerraoui, Stephan: Towards Trustworthy Federated Learning with Untrusted Participants,
ICML 2025, arXiv:2505.01874, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.aggregation.aggregator import OF_DISTANCES, Aggregator, Context, Invariances
from fl.aggregation.gram import Array, centred
from fl.aggregation.rows import Rows
from fl.aggregation.tolerance import check_bound
from fl.errors import ConfigError


@dataclass(frozen=True)
class CAF(Aggregator):
    """Lowers the weights of vectors that stand out along the direction of largest variance.

    With weights c_i = 1 at first, while sum_i c_i > n - 2 f:

        mu = sum_i c_i x_i / sum_i c_i
        (lambda, v) = leading eigenpair of sum_i c_i (x_i - mu)(x_i - mu)^T / sum_i c_i
        tau_i = <v, x_i - mu>^2,    c_i <- c_i (1 - tau_i / max_j tau_j)

    The result is the mu with the smallest lambda. Needs 2 f < n; with f = 0 it is the mean. The
    eigenpair is exact, from the n x n matrix of inner products; ByzFL takes one step of the power
    method from a random vector instead.

    Attributes:
        f: Byzantine vectors.
        maximum: of tau_j over the vectors that have weight left ("active"), which takes all weight
            from one vector in each pass; or over all of them ("all", as in ByzFL), where a vector
            that has lost its weight, and is far enough away, stops the filter: then passes end
            after 10 n of them.

    Raises:
        ConfigError: f is negative, 2 f >= n, or `maximum` is neither.
    """

    f: int = 0
    maximum: Literal["active", "all"] = "active"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maximum not in ("active", "all"):
            raise ConfigError(f"CAF: maximum={self.maximum!r}: must be 'active' or 'all'")

    @property
    def invariances(self) -> Invariances:
        """Those of a rule of inner products of differences."""
        return OF_DISTANCES

    def check(self, n: int) -> None:
        """Raises ConfigError unless n >= 2 f + 1."""
        check_bound(self.name, n, self.f, 2, 1)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the mean with the smallest variance, shape (d,)."""
        G, n = rows.gram, len(rows)
        c = np.ones(n)
        smallest, best = np.inf, c / n
        for _ in range(10 * n):
            if self.f == 0 or c.sum() <= n - 2 * self.f:
                break
            p = c / c.sum()
            differences = centred(G, p)
            root = np.sqrt(p)
            # K = A A^T for the rows A_i = sqrt(p_i) (x_i - mu) has the eigenvalues of A^T A, the
            # covariance; an eigenvector u of K gives its v = A^T u / sqrt(lambda).
            values, vectors = np.linalg.eigh(root[:, None] * differences * root)
            if values[-1] < smallest:
                smallest, best = values[-1], p
            tau = (differences @ (root * vectors[:, -1])) ** 2  # times lambda
            largest = tau[c > 0].max() if self.maximum == "active" else tau.max()
            if largest == 0.0:  # all vectors are equal
                break
            c = np.maximum(c * (1.0 - tau / largest), 0.0)
        return rows.combine(best)
