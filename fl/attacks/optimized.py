"""Attacks along a line whose factor is chosen against the rule of the server.

The two line searches are those of the robust-collaborative-learning code of MoNNA's authors
("both-ways") and of ByzFL ("upward"). Shejwalkar and Houmansadr (NDSS 2021) call attacks of this
kind aggregation-tailored.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.aggregation.gram import Array
from fl.attacks.attack import Knowledge, LineAttack, SameVector, Scene, point, require
from fl.checks import read_if

Contraction = Literal["both-ways", "upward"]


def line_maximize(
    scape: Callable[[float], float],
    evaluations: int = 16,
    start: float = 0.0,
    delta: float = 1.0,
    ratio: float = 0.8,
    contraction: Contraction = "both-ways",
) -> float:
    """Returns the x >= 0 with the largest scape(x) seen in a fixed number of evaluations.

    First the step, delta, doubles for as long as the best x plus delta is better. Then it shrinks
    by `ratio` each time: "both-ways" moves on from the last x towards the best one, and past it;
    "upward" tries best + delta only. A flat scape returns the start.
    """
    best, highest = start, scape(start)
    x, expanding = start, True
    for _ in range(evaluations - 1):
        if expanding or contraction == "upward" or x < best:
            x = (best if expanding or contraction == "upward" else x) + delta
        else:
            last, x = x, x - delta
            while x < 0:
                x = (x + last) / 2
        height = scape(x)
        if height > highest:
            best, highest = x, height
        elif expanding:
            expanding = False
        delta *= 2.0 if expanding else ratio
    return best


@read_if(
    lambda a: False,
    "attack.z",
    "attack.epsilon",
    "attack.bound",
    only="the factor is searched for",
)
@dataclass(frozen=True)
class Optimized(SameVector):
    """Sends the point of another attack's line that moves the server's aggregate farthest.

    Maximises |rule(honest and f copies of the point) - mean(honest)|^2 over the factor, so it knows
    the rule, with the random draws and the reference it will be given. Evaluations cost as much as
    the rule does. Weights are not used.

    Where updates are only added up, or applied one by one, the rule is the mean (`Scene`). It moves
    the farther the larger the factor, so that the largest tried is sent: 2^(evaluations - 1) - 1
    times `delta` above `start`.

    Attributes:
        attack: `IPM`, `ALIE`, `MinMax` or any other attack along a line; its own factor is not
            used.
        evaluations: of the rule, at least 1.
        start: first factor, at least 0.
        delta: first step, positive; 1 with "both-ways", 10 with "upward" in the original codes.
        ratio: by which steps shrink, between 0.5 and 1.
        contraction: see `line_maximize`.

    Raises:
        ConfigError: a parameter is out of range.
    """

    knowledge: ClassVar[Knowledge] = "aggregation"

    attack: LineAttack
    evaluations: int = 16
    start: float = 0.0
    delta: float = 1.0
    ratio: float = 0.8
    contraction: Contraction = "both-ways"

    def __post_init__(self) -> None:
        require(
            self.evaluations >= 1 and self.start >= 0 and self.delta > 0 and 0.5 < self.ratio < 1,
            f"Optimized: evaluations={self.evaluations}, start={self.start}, delta={self.delta}, "
            f"ratio={self.ratio}: need evaluations >= 1, start >= 0, delta > 0, 0.5 < ratio < 1",
        )
        require(
            self.contraction in ("both-ways", "upward"),
            f"Optimized: contraction={self.contraction!r}: must be 'both-ways' or 'upward'",
        )

    def vector(self, honest: Array, scene: Scene) -> Array:
        """Returns the best point found, shape (d,)."""
        origin, direction = self.attack.line(honest)
        damage = Damage(honest, scene)
        factor = line_maximize(
            lambda x: damage(point(origin, direction, x)),
            self.evaluations,
            self.start,
            self.delta,
            self.ratio,
            self.contraction,
        )
        return point(origin, direction, factor)


class Damage:
    """How far f copies of a vector move the server's aggregate from the honest mean.

    Args:
        honest: the honest vectors, shape (h, d).
        scene: with f, the aggregator, and what it will be given.
    """

    def __init__(self, honest: Array, scene: Scene) -> None:
        self._rule = scene.aggregator
        self._scene = scene
        self._mean = honest.mean(axis=0)
        self._x = np.concatenate([honest, np.empty_like(honest, shape=(scene.f, honest.shape[1]))])
        self._h = len(honest)

    def __call__(self, vector: Array) -> float:
        """Returns |rule(honest and f copies) - mean(honest)|^2."""
        scene = self._scene
        self._x[self._h :] = vector
        rng = deepcopy(scene.aggregator_rng)
        result = self._rule(self._x, rng=rng, reference=scene.reference)
        moved = (result - self._mean).astype(np.float64)
        return float(moved @ moved)
