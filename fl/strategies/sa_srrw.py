"""SA-SRRW: a token that walks by a self-repellent random walk, and learns on its way.

Hu, Doshi, Eun, "Accelerating Distributed Stochastic Optimization via Self-Repellent Random Walks",
arXiv:2401.09665, equations 3 and 4; the walk by Doshi, Hu, Eun, "Self-Repellent Random Walks on
General Graphs", arXiv:2305.05097. No code of the authors was found: the kernel is from a public
note, and the predicted variances were derived again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fl.checks import not_negative, positive, within_unit
from fl.strategies.gossip_rule import LocalTraining
from fl.strategies.walk_rule import Chances, WalkRule
from fl.vectors.rows import Row


class Walking(NamedTuple):
    """Model theta, shape (d,), share of visits to each node x_n, shape (n,), and steps n."""

    x: Row
    visits: Chances
    steps: int


@dataclass(frozen=True)
class SASRRW(WalkRule):
    """Goes rather where it has been less, and steps along the gradient there.

        X_{n+1} ~ K[x_n](X_n, .),    K[x]_ij = P_ij (x_j / mu_j)^-alpha / sum of that over all j
        x_{n+1} = x_n + gamma_{n+1} (e_{X_{n+1}} - x_n)
        theta_{n+1} = theta_n + beta_{n+1} (-lr g_{X_{n+1}}(theta_n))

    with gamma_n = (n + 1)^-a and beta_n = (n + 1)^-b. P is the topology's matrix, which has to be
    symmetric, so that mu = 1/N: every node counts the same. alpha = 0 is the ordinary walk on P.
    With a < b the error of theta falls as 1/alpha^2, with a = b as 1/alpha, with a > b not at all.
    The authors' theory has a and b in (1/2, 1]; b = 0 leaves the client's rate as it is. With more
    than one local step -lr g is what all of them have changed.

    A token carries its model and x_n, N numbers. Who was sent the token counts as visited, also
    where it was lost or the node failed: or the walk would try nobody else.

    Attributes:
        alpha: strength of the repulsion, at least 0.
        a: of gamma_n, in (0, 1].
        b: of beta_n, in [0, 1].

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    alpha: float = 5.0
    a: float = 0.6
    b: float = 0.0

    def __post_init__(self) -> None:
        not_negative("alpha", self.alpha)
        positive("a", self.a)
        within_unit("a", self.a)
        within_unit("b", self.b)

    def message_floats(self, n: int) -> int:
        """Returns N."""
        return n

    def init(self, w: Row, n: int) -> Walking:
        """Returns the initial model, and as many visits to all."""
        return Walking(w, np.full(n, 1 / n), 0)

    def leaves(self, state: Walking, P: Chances) -> Chances:
        """Returns row K[x]_i, shape (n,)."""
        n = len(P)
        repelled = -self.alpha * np.log(n * state.visits)  # (x_j / mu_j)^-alpha could overflow
        repelled -= repelled[P > 0].max()
        K = np.where(P > 0, P * np.exp(np.minimum(repelled, 0)), 0)
        return np.asarray(K / K.sum())

    def goes(self, state: Walking, j: int) -> Walking:
        """Returns the state with a visit to node j."""
        n = state.steps + 1
        gamma = (n + 1) ** -self.a
        visits = (1 - gamma) * state.visits
        visits[j] += gamma
        return state._replace(visits=visits, steps=n)

    def learns(self, state: Walking, progress: LocalTraining) -> Walking:
        """Returns theta after the step."""
        beta = np.float32((state.steps + 1) ** -self.b)
        return state._replace(x=state.x + beta * progress.delta)
