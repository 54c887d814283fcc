"""What an attack is: what f Byzantine clients send, as a function of what they know.

An attack is a frozen dataclass of hyperparameters and a pure function: it gets the honest vectors
of the round and returns f others, beside what it wants to remember. What it may read is its
`knowledge`. Only a simulator can show a client the vectors of others, so on a deployment nothing
beyond "own" can run.

The vectors are whatever clients send: gradients, momenta, model changes, or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from fl.aggregation import Aggregator, Mean
from fl.aggregation.gram import Array
from fl.errors import ConfigError

# "own": the client's own honest vector. "honest-vectors": all honest vectors of the round.
# "aggregation": besides, the rule with its parameters, f, and its random draws.
Knowledge = Literal["own", "honest-vectors", "aggregation"]


@dataclass(frozen=True)
class Scene:
    """What the round is like, apart from the vectors.

    Attributes:
        f: how many Byzantine clients there are.
        rng: for attacks that draw.
        aggregator: the rule of the server, for attacks that know it; the mean where updates are
            only added up, or applied one by one.
        aggregator_rng: a generator in the state the rule will be given, if it draws. It is copied,
            never advanced.
        reference: the vector the rule will be given as `reference`.
        memory: what the attack returned as memory in the round before; empty at first.
    """

    f: int
    rng: np.random.Generator | None = None
    aggregator: Aggregator = field(default_factory=Mean)
    aggregator_rng: np.random.Generator | None = None
    reference: Array | None = None
    memory: Mapping[str, Array] = field(default_factory=dict)

    def generator(self, attack: str) -> np.random.Generator:
        """Returns `rng`.

        Raises:
            ConfigError: there is none.
        """
        if self.rng is None:
            raise ConfigError(
                f"{attack} draws at random: pass a scene with "
                "rng=fl.randomness.generator(seed, purpose, round)"
            )
        return self.rng


class Forged(NamedTuple):
    """What an attack makes of a round.

    Attributes:
        rows: what the f clients send, shape (f, d), read-only where they are copies of one vector.
        memory: for the next round's scene.
    """

    rows: Array
    memory: Mapping[str, Array]


class Attack(ABC):
    """Forges the vectors of the Byzantine clients of a round."""

    @property
    @abstractmethod
    def knowledge(self) -> Knowledge:
        """What the attack reads; on a deployment, no client has more than its own vector."""

    def __call__(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns what the Byzantine clients send.

        Args:
            honest: the honest vectors, shape (h, d), float32 or float64; not written to. Attacks
                that know only their own vector do not read it.
            own: what the Byzantine clients would send if they were honest, shape (f, d).
            scene: the rest.

        Raises:
            ConfigError: the shapes do not fit, f is negative, or the attack lacks something.
        """
        if honest.ndim != 2 or own.ndim != 2 or own.shape != (scene.f, honest.shape[1]):
            raise ConfigError(
                f"honest vectors of shape {honest.shape} and own vectors of shape {own.shape} for "
                f"f={scene.f}: need (h, d) and (f, d)"
            )
        if scene.f == 0:
            return Forged(own, scene.memory)
        if self.knowledge != "own" and not len(honest):
            raise ConfigError(f"{type(self).__name__} needs at least one honest vector")
        return self.forge(honest, own, scene)

    @abstractmethod
    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns what the clients send; the shapes fit, and f is positive."""


class SameVector(Attack):
    """An attack whose clients all send one vector, and which remembers nothing."""

    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns f times `vector`, without copying it."""
        vector = self.vector(honest, scene).astype(honest.dtype, copy=False)
        return Forged(np.broadcast_to(vector, own.shape), {})

    @abstractmethod
    def vector(self, honest: Array, scene: Scene) -> Array:
        """Returns what every Byzantine client sends, shape (d,)."""


class LineAttack(SameVector):
    """An attack that sends origin + factor direction, where `Optimized` can choose the factor."""

    def vector(self, honest: Array, scene: Scene) -> Array:
        """Returns the point of the line at the attack's own factor, shape (d,)."""
        origin, direction = self.line(honest)
        return point(origin, direction, self.own_factor(honest, scene))

    @abstractmethod
    def line(self, honest: Array) -> tuple[Array, Array]:
        """Returns origin and direction, shape (d,) each."""

    @abstractmethod
    def own_factor(self, honest: Array, scene: Scene) -> float:
        """Returns the factor the attack has by itself."""


def point(origin: Array, direction: Array, factor: float) -> Array:
    """Returns origin + factor direction, in the type of the direction."""
    return np.asarray(origin + direction.dtype.type(factor) * direction)


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
