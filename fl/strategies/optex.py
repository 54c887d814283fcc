"""OptEx: several server steps a round, all but the first from predicted directions.

Shu, Fang, He, Yu, "OptEx: Expediting First-Order Optimization with Approximately Parallelized
Iterations", arXiv:2402.11427 (NeurIPS 2024), Algorithm 1, by the authors' code (youyve/OptEx, the
file for JAX). The federated form is ours: a gradient is the mean change of a cohort of clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, not_negative, positive
from fl.errors import NoStep
from fl.strategies.fedavg import FedAvg
from fl.strategies.round_rule import RoundRule, Updates
from fl.strategies.server_optimizer import check_optimizer, stepped
from fl.vectors.rows import Row, is_finite

Squares = NDArray[np.float64]


class KnownChanges(NamedTuple):
    """The model, the optimizer's state, and the last T pairs of a point and the change there.

    Attributes:
        points: X, shape (T, d).
        changes: G, shape (T, d).
        squares: |x_s - x_t|^2, shape (T, T), float64.
    """

    w: Row
    optimizer: Any
    points: Row
    changes: Row
    squares: Squares


@dataclass(frozen=True)
class OptEx(RoundRule):
    """N models a round, each evaluated by a cohort of the clients.

        z_0 <- w;    z_j <- the server optimizer's step from z_(j-1) along mu(z_(j-1)),    j < N
        Delta_j <- the mean change of z_j by the clients of cohort j
        w <- the server optimizer's step from z_(N-1) along Delta_(N-1)
        X, G <- the last T_0 pairs of z_j and Delta_j

        mu(z) = k(z, X) (K + sigma^2 I)^-1 G,    K = k(X, X)
        k(x, y) = (1 + r + r^2 / 3) exp(-r),     r = sqrt(5) |x - y| / (c length)

    with c the mean of sqrt(|x|) over X: a Gaussian process with Matern's kernel, nu = 5/2. mu is 0
    while X has fewer than two points. The optimizer's state, as a momentum, goes with z_j. With
    N = 1, or if mu is right, N such rounds are as N^2 rounds of the optimizer; far from X mu is 0,
    and nothing is gained. Every round costs as much as one of its clients, who are dealt to the
    cohorts anew each time. A cohort of which nobody answers is left out: the last one that has
    answered counts as the last.

    The server keeps 2 T_0 vectors of shape (d,).

    Attributes:
        num_models: N.
        history: T_0.
        noise: sigma^2, at least 0.
        length: of the kernel, above 0.
        server_optimizer: what makes a step of a direction: FedAvg, FedAvgM, FedAdam, ...

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    folds: ClassVar[bool] = False

    num_models: int = 4
    history: int = 50
    noise: float = 1e-3
    length: float = 0.1
    server_optimizer: RoundRule = field(default_factory=FedAvg)

    def __post_init__(self) -> None:
        at_least("num_models", self.num_models, 1)
        at_least("history", self.history, 2)
        not_negative("noise", self.noise)
        positive("length", self.length)
        check_optimizer(self.server_optimizer)

    def init(self, w: Row, p: int) -> KnownChanges:
        """Returns the model, and no history."""
        none = np.empty((0, len(w)), np.float32)
        return KnownChanges(w, self.server_optimizer.init(w, p), none, none, np.empty((0, 0)))

    def models(self, state: KnownChanges) -> Sequence[Row]:
        """Returns z_0, z_1, ...: fewer than N, if further ones would not be finite."""
        return [optimizer.w for optimizer in self.ahead(state)]

    def ahead(self, state: KnownChanges) -> list[Any]:
        """Returns the optimizer's states at z_0, z_1, ..."""
        mu = self.prediction(state)
        found = [state.optimizer._replace(w=state.w)]
        while len(found) < self.num_models:
            try:
                following = stepped(self.server_optimizer, found[-1], mu(found[-1].w))
            except NoStep:
                break
            if not is_finite(following.w):
                break
            found.append(following)
        return found

    def prediction(self, state: KnownChanges) -> Callable[[Row], Row]:
        """Returns mu, from shape (d,) to shape (d,)."""
        if len(state.points) < 2:
            return np.zeros_like
        norms = [_square(x) ** 0.5 for x in state.points]
        scale = self.length * (float(np.mean(np.sqrt(norms))) or 1.0)
        covariance = matern(state.squares, scale) + self.noise * np.eye(len(norms))

        def mu(z: Row) -> Row:
            squares = np.array([_square(z - x) for x in state.points])
            # Two points may be one, and then the matrix has no inverse if there is no noise.
            a = np.linalg.lstsq(covariance, matern(squares, scale), rcond=None)[0]
            row = np.einsum("t,td->d", a, state.changes, dtype=np.float64)
            return np.asarray(row, dtype=np.float32)

        return mu

    def step(self, state: KnownChanges, updates: Updates) -> KnownChanges:
        """Returns the state after a round.

        Raises:
            NoStep: no cohort has examples.
        """
        points, changes = [], []
        for j, optimizer in enumerate(self.ahead(state)):
            cohort = updates.of_model(j)
            if cohort.weights.any():
                points.append(_trained(optimizer.w, updates))
                changes.append(_trained(cohort.mean(), updates))
                last, delta = optimizer, cohort.mean()
        if not points:
            raise NoStep("no client has examples to learn from")
        new = np.array([[_square(x - y) for y in (*state.points, *points)] for x in points])
        t = len(state.points)
        squares = np.block([[state.squares, new[:, :t].T], [new]])
        optimizer = stepped(self.server_optimizer, last, delta)
        return KnownChanges(
            optimizer.w,
            optimizer,
            np.stack([*state.points, *points])[-self.history :],
            np.stack([*state.changes, *changes])[-self.history :],
            squares[-self.history :, -self.history :],
        )


def matern(squares: Squares, length: float) -> Squares:
    """Returns Matern's kernel, nu = 5/2, of squared distances: 1 at 0."""
    r = math.sqrt(5) * np.sqrt(squares) / length
    value: Squares = (1 + r + r**2 / 3) * np.exp(-r)
    return value


def _square(x: Row) -> float:
    return float(np.einsum("d,d->", x, x, dtype=np.float64))


def _trained(vector: Row, updates: Updates) -> Row:
    """Returns a vector of shape (d,) that is 0 where clients do not train."""
    vector = vector.copy()
    for place in updates.buffers:
        vector[place] = 0
    return vector
