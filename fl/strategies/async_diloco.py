"""Asynchronous DiLoCo: outer gradients are applied as they come, their momentum once a buffer.

Liu, Chhaparia, Douillard, Kale, Rusu, Shen, Szlam, Ranzato, "Asynchronous Local-SGD Training for
Language Modeling", 2024, arXiv:2401.09135, Algorithm 3 (delayed Nesterov) and dynamic local
updates, as utnslab/halos has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, positive, share
from fl.clients.local_optimizer import FIRST_STEP_KEY
from fl.errors import ConfigError
from fl.strategies.event_rule import Arrival, Arrivals, Decision, EventRule
from fl.strategies.outer_optimizers import Vector
from fl.vectors.rows import Row

_LEAST_S = 1e-9  # a task that took no time must not make a speed infinite


class DelayedMomentum(NamedTuple):
    """What delayed Nesterov remembers.

    Attributes:
        m: momentum, shape (d,), float64.
        gathered: Delta, the sum of the outer gradients in the buffer, likewise.
        t: outer gradients applied.
    """

    m: Vector
    gathered: Vector
    t: int = 0


@dataclass(frozen=True)
class DelayedNesterov:
    """Outer gradients move the model as they come, their momentum does once a buffer of N.

    For outer gradient number t = 0, 1, ..., g = x_0 - x_i of the model that worker i was sent:

        Delta <- Delta + g
        if t + 1 is a multiple of N:
            m <- beta m + Delta / N;    Delta <- 0
            w <- w - lr ((1 - c N + c) beta m + g / N)
        else:
            w <- w - lr (c beta m + g / N)

    With N = 1 it is Nesterov's. A constant g moves the model by lr g / (1 - beta) a buffer in the
    end, whatever c is.

    What clients change but do not train, as statistics of normalisation layers, moves by its own
    change over N.

    Attributes:
        lr: above 0.
        beta: momentum, in [0, 1).
        buffer_size: N.
        activation: c, how much of the momentum every outer gradient applies, in [0, 1 / N].

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float
    beta: float
    buffer_size: int
    activation: float = 0.0

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        share("beta", self.beta)
        at_least("buffer_size", self.buffer_size, 1)
        if not 0 <= self.activation <= 1 / self.buffer_size:
            raise ConfigError(
                f"activation is {self.activation}; it must be at least 0 and at most 1 over "
                f"buffer_size, {1 / self.buffer_size:g}"
            )

    def init(self, d: int) -> DelayedMomentum:
        """Returns no momentum, of d entries."""
        return DelayedMomentum(np.zeros(d), np.zeros(d))

    def step(self, w: Row, s: DelayedMomentum, updates: Arrivals) -> tuple[Row, DelayedMomentum]:
        """Returns the next model, shape (d,), float32, and momentum, after one update."""
        N, c, beta = self.buffer_size, self.activation, self.beta
        change = updates.only.delta
        g = -updates.without_statistics(change).astype(np.float64)
        m, gathered, of_m = s.m, s.gathered + g, c
        if (s.t + 1) % N == 0:
            m, gathered, of_m = beta * m + gathered / N, np.zeros_like(g), 1 - c * N + c
        moved = (w - self.lr * (of_m * beta * m + g / N)).astype(np.float32)
        for place in updates.statistics:
            moved[place] = w[place] + change[place] / np.float32(N)
        return moved, DelayedMomentum(m, gathered, s.t + 1)


class WorkerSpeeds(NamedTuple):
    """What a server knows of its workers.

    Attributes:
        speeds: v_i, steps per second of workers that have answered, from message to answer.
        asked: workers that were sent a model, by Flower id.
        steps: inner steps that outer gradients were made of.
    """

    speeds: Mapping[int, float] = {}
    asked: frozenset[int] = frozenset()
    steps: int = 0


@dataclass(frozen=True)
class DynamicLocalUpdates(EventRule):
    """Base of rules whose workers do the more steps, the faster they are; states have `workers`.

    Worker i does H_i = max(1, ceil(H v_i / max_j v_j)) inner steps, v_i its speed in its last task,
    and H in its first, so that all answer about equally often. (The paper is said to round down;
    the authors of HALoS round up.)

    Workers keep the states of their inner optimizers. Their `step_schedule` follows the inner steps
    of all divided by the number of workers, which messages tell ("first-step").

    Attributes:
        inner_steps: H.
        dynamic: H_i by speed; False has H for all.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    returns: ClassVar[bool] = True

    inner_steps: int = 30
    dynamic: bool = True

    def __post_init__(self) -> None:
        at_least("inner_steps", self.inner_steps, 1)

    @property
    def tells(self) -> Mapping[str, str]:
        """How many inner steps to do, and how many there were."""
        return {"local-steps": "inner_steps", FIRST_STEP_KEY: "inner_steps"}

    def assign(self, state: Any, node: int, now: float) -> tuple[Any, Mapping[str, Any]]:
        """Gives a worker its number of inner steps."""
        workers = state.workers._replace(asked=state.workers.asked | {node})
        state, first = state._replace(workers=workers), workers.steps // len(workers.asked)
        return state, {"local-steps": self.steps_of(state, node), FIRST_STEP_KEY: first}

    def steps_of(self, state: Any, node: int) -> int:
        """Returns H_i."""
        speeds: Mapping[int, float] = state.workers.speeds
        if not self.dynamic or node not in speeds:
            return self.inner_steps
        # The last bit of a quotient must not make another step.
        return max(1, math.ceil(self.inner_steps * speeds[node] / max(speeds.values()) - 1e-9))

    def noted(self, state: Any, update: Arrival) -> Any:
        """Returns the state with the speed of a worker that has answered."""
        workers, steps = state.workers, int(update.config["local-steps"])
        speed = steps / max(update.received_s - update.sent_s, _LEAST_S)
        speeds = {**workers.speeds, update.node: speed}
        workers = workers._replace(speeds=speeds, steps=workers.steps + steps)
        return state._replace(workers=workers)


class AsyncDiLoCoState(NamedTuple):
    """What the server knows.

    Attributes:
        w: the model, shape (d,), float32.
        outer: its momentum.
        workers: their speeds.
    """

    w: Row
    outer: DelayedMomentum
    workers: WorkerSpeeds = WorkerSpeeds()


@dataclass(frozen=True)
class AsyncDiLoCo(DynamicLocalUpdates):
    """A worker is sent the model as soon as it has answered; the server does not wait for others.

    Stale outer gradients move the model at once by `DelayedNesterov`, and momentum does once a
    buffer of N. With one worker and N = 1 it is `DiLoCo`. Workers do their steps by
    `DynamicLocalUpdates`.

    Attributes:
        lr: above 0.
        beta: momentum, in [0, 1).
        buffer_size: N; the number of workers, in the paper.
        activation: c, how much of the momentum every outer gradient applies, in [0, 1 / N].

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 0.7
    beta: float = 0.9
    buffer_size: int = 4
    activation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.outer  # which refuses what is out of range

    @property
    def outer(self) -> DelayedNesterov:
        """The outer optimizer."""
        return DelayedNesterov(self.lr, self.beta, self.buffer_size, self.activation)

    def init(self, w: Row, p: int) -> AsyncDiLoCoState:
        """Returns the state without momentum and speeds."""
        return AsyncDiLoCoState(w, self.outer.init(len(w)))

    def receive(self, state: AsyncDiLoCoState, update: Arrival, tau: int) -> Decision:
        """Notes the worker's speed, and applies its outer gradient."""
        return Decision(self.noted(state, update), apply=(update,))

    def step(self, state: AsyncDiLoCoState, updates: Arrivals) -> AsyncDiLoCoState:
        """Returns the state with the next model."""
        w, outer = self.outer.step(state.w, state.outer, updates)
        return state._replace(w=w, outer=outer)
