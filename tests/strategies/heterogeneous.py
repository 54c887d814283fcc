"""Fixture Q: clients with quadratic losses of their own, and rounds of a rule without a grid.

f_i(x) = (x - c_i)^T A_i (x - c_i) / 2, A_i diagonal, with full gradients; what is sought is the
minimum of the plain mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fl.clients import Received, Rule
from fl.strategies import RoundRule, Updates

N, DIM, STEPS, LR = 8, 5, 10, 0.05


class Losses:
    """A_i with entries in [0.5, 2), c_i of norm about 6."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.a = rng.uniform(0.5, 2, (N, DIM))
        self.c = 3 * rng.standard_normal((N, DIM))
        self.optimum = (self.a * self.c).sum(axis=0) / self.a.sum(axis=0)

    def error(self, x: np.ndarray) -> float:
        """Distance to the optimum, relative to its norm."""
        return float(np.linalg.norm(x - self.optimum) / np.linalg.norm(self.optimum))

    def gradient(self, i: int, x: np.ndarray) -> np.ndarray:
        """Of f_i."""
        return self.a[i] * (x - self.c[i])


class Batch:
    """All of a client's data."""

    examples = 1

    def __init__(self, losses: Losses, i: int) -> None:
        self.a, self.c = (torch.from_numpy(v[i].astype(np.float32)) for v in (losses.a, losses.c))

    def grad(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient and loss."""
        return self.a * (w - self.c), (self.a * (w - self.c) ** 2).sum() / 2

    def hessian_product(self, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A_i v."""
        return self.a * v


def cohorts(clients: int, rounds: int, seed: int = 1) -> list[list[int]]:
    """Who takes part in each round."""
    rng = np.random.default_rng(seed)
    return [sorted(rng.choice(N, clients, replace=False).tolist()) for _ in range(rounds)]


def sent_or(vector: torch.Tensor, otherwise: np.ndarray) -> np.ndarray:
    """What the server takes a vector for, which does not travel if it is empty."""
    return vector.numpy() if len(vector) else otherwise


class Learnt:
    """Rounds of a server rule with clients of a client rule.

    Attributes:
        models: after every round, and before the first.
        states: of the server, likewise.
        memories: what each client keeps at the end.
    """

    def __init__(
        self,
        server: RoundRule,
        client: Rule,
        asked: list[list[int]],
        *,
        steps: int | Callable[[int], int] = STEPS,
        losses: Losses | None = None,
    ) -> None:
        self.losses = losses or Losses()
        self.memories: dict[int, dict[str, torch.Tensor]] = {}
        state = server.init(np.zeros(DIM, np.float32), DIM)
        self.states, self.models = [state], [state.w.astype(float)]
        for r, cohort in enumerate(asked):
            if server.asks_everybody(state):
                cohort = list(range(N))
            configs = server.configs(state, r + 1, len(cohort), np.random.default_rng(r))
            sent = {name: torch.from_numpy(v) for name, v in server.broadcast(state).items()}
            done, metrics = [], []
            for i, config in zip(cohort, configs, strict=True):
                k = steps(i) if callable(steps) else steps
                told = dict(config or {})
                k = told.get("local-steps", told.get("local-epochs", k))  # an epoch is one batch
                done.append(self._trained(client, i, state.w, sent, dict(config or {}), k))
                metrics.append({"steps": k, "train-loss": 0.0})
            deltas = np.stack([sent_or(finished.w, state.w) - state.w for finished in done])
            zero = np.zeros(DIM, np.float32)
            extras = {
                name: np.stack([sent_or(finished.extras[name], zero) for finished in done])
                for name in server.needs
            }
            weights = 1.0 + np.array(cohort)  # examples, which these rules must not weigh by
            who = {"clients": cohort, "told": configs}
            state = server.step(state, Updates(deltas, weights, metrics, extras, **who))
            self.states.append(state)
            self.models.append(state.w.astype(float))

    def _trained(
        self, rule: Rule, i: int, w: np.ndarray, sent: dict, config: dict[str, Any], steps: int
    ):
        start = torch.from_numpy(w.copy())
        scalars = rule.scalars({"server-round": 1, **config})
        memory = self.memories.get(i) or rule.first_memory(start, scalars)
        server = {name: sent[name] for name in rule.role(scalars).needs}
        received = Received(start, server, memory, scalars, steps)
        state, batch, v = rule.init(received), Batch(self.losses, i), start
        for t in range(steps):
            v, state, _ = rule.step(v, state, received, batch, t)
        finished = rule.finish(v, state, received, steps)
        if finished.memory:
            self.memories[i] = finished.memory
        return finished

    @property
    def error(self) -> float:
        """Of the last model."""
        return self.losses.error(self.models[-1])

    def kept(self, name: str) -> np.ndarray:
        """What all clients keep under a name, 0 for those never asked, shape (N, DIM)."""
        rows = np.zeros((N, DIM))
        for i, memory in self.memories.items():
            rows[i] = memory[name].numpy()
        return rows
