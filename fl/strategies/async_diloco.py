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


class DelayedNesterov(NamedTuple):
    """What the server knows.

    Attributes:
        w: the model, shape (d,), float32.
        m: momentum, shape (d,), float64.
        gathered: Delta, the sum of the outer gradients in the buffer, likewise.
        t: outer gradients applied.
        speeds: v_i, steps per second of workers that have answered, from message to answer.
        workers: that have been asked, by Flower id.
        steps: inner steps that outer gradients were made of.
    """

    w: Row
    m: Vector
    gathered: Vector
    t: int = 0
    speeds: Mapping[int, float] = {}
    workers: frozenset[int] = frozenset()
    steps: int = 0


@dataclass(frozen=True)
class AsyncDiLoCo(EventRule):
    """A worker is sent the model as soon as it has answered; the server does not wait for others.

    For outer gradient number t = 0, 1, ..., g = x_0 - x_i of the model that worker i was sent:

        Delta <- Delta + g
        if t + 1 is a multiple of N:
            m <- beta m + Delta / N;    Delta <- 0
            w <- w - lr ((1 - c N + c) beta m + g / N)
        else:
            w <- w - lr (c beta m + g / N)

    so that stale outer gradients move the model at once, and momentum does once a buffer of N. With
    N = 1 it is Nesterov's, and with one worker `DiLoCo`. A constant g moves the model by
    lr g / (1 - beta) a buffer in the end, whatever c is.

    Dynamic local updates: worker i does H_i = max(1, ceil(H v_i / max_j v_j)) inner steps, v_i its
    speed in its last task, and H in its first, so that all answer about equally often. (The paper
    is said to round down; the authors of HALoS round up.)

    Workers keep the states of their inner optimizers. Their `step_schedule` follows the inner steps
    of all divided by the number of workers, which messages tell ("first-step").

    What clients change but do not train, as statistics of normalisation layers, moves by its own
    change over N.

    Attributes:
        inner_steps: H.
        lr: above 0.
        beta: momentum, in [0, 1).
        buffer_size: N; the number of workers, in the paper.
        activation: c, how much of the momentum every outer gradient applies, in [0, 1 / N].
        dynamic: H_i by speed; False has H for all.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    returns: ClassVar[bool] = True

    inner_steps: int = 30
    lr: float = 0.7
    beta: float = 0.9
    buffer_size: int = 4
    activation: float = 0.0
    dynamic: bool = True

    def __post_init__(self) -> None:
        at_least("inner_steps", self.inner_steps, 1)
        positive("lr", self.lr)
        share("beta", self.beta)
        at_least("buffer_size", self.buffer_size, 1)
        if not 0 <= self.activation <= 1 / self.buffer_size:
            raise ConfigError(
                f"activation is {self.activation}; it must be at least 0 and at most 1 over "
                f"buffer_size, {1 / self.buffer_size:g}"
            )

    @property
    def tells(self) -> Mapping[str, str]:
        """How many inner steps to do, and how many there were."""
        return {"local-steps": "inner_steps", FIRST_STEP_KEY: "inner_steps"}

    def init(self, w: Row, p: int) -> DelayedNesterov:
        """Returns the state without momentum and speeds."""
        zero = np.zeros(len(w))
        return DelayedNesterov(w, zero, zero)

    def assign(
        self, state: DelayedNesterov, node: int, now: float
    ) -> tuple[DelayedNesterov, Mapping[str, Any]]:
        """Gives a worker its number of inner steps."""
        state = state._replace(workers=state.workers | {node})
        first = state.steps // len(state.workers)
        return state, {"local-steps": self.steps_of(state, node), FIRST_STEP_KEY: first}

    def steps_of(self, state: DelayedNesterov, node: int) -> int:
        """Returns H_i."""
        if not self.dynamic or node not in state.speeds:
            return self.inner_steps
        relative = state.speeds[node] / max(state.speeds.values())
        # The last bit of a quotient must not make another step.
        return max(1, math.ceil(self.inner_steps * relative - 1e-9))

    def receive(self, state: DelayedNesterov, update: Arrival, tau: int) -> Decision:
        """Notes the worker's speed, and applies its outer gradient."""
        steps = int(update.config["local-steps"])
        speed = steps / max(update.received_s - update.sent_s, _LEAST_S)
        speeds = {**state.speeds, update.node: speed}
        return Decision(state._replace(speeds=speeds, steps=state.steps + steps), apply=(update,))

    def step(self, state: DelayedNesterov, updates: Arrivals) -> DelayedNesterov:
        """Returns the state with the next model."""
        N, c, beta = self.buffer_size, self.activation, self.beta
        change = updates.only.delta
        g = -updates.without_statistics(change).astype(np.float64)
        m, gathered, of_m = state.m, state.gathered + g, c
        if (state.t + 1) % N == 0:
            m, gathered, of_m = beta * m + gathered / N, np.zeros_like(g), 1 - c * N + c
        w = (state.w - self.lr * (of_m * beta * m + g / N)).astype(np.float32)
        for place in updates.statistics:
            w[place] = state.w[place] + change[place] / np.float32(N)
        return state._replace(w=w, m=m, gathered=gathered, t=state.t + 1)
