"""How long tasks take, drawn from a distribution instead of following from FLOPs and speed.

Papers on stragglers state their systems as distributions of a task's time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import positive
from fl.errors import ConfigError
from fl.randomness import uniform
from fl.simulation.world.slowdowns import Distribution, Slowdowns


@dataclass(frozen=True, eq=False)
class DrawnSeconds:
    """Drawn task times: task k of client i takes seconds f_i X_ik.

    X_ik is the quantile at the stream (seed, "task-duration", client, dispatch).

    Attributes:
        seed: root seed of the run.
        seconds: of a task of slowdowns 1, above 0.
        client_slowdowns: f, float64, shape (n,), positive.
        task_slowdown: distribution of X.
        flops: work that takes these seconds, other work in proportion; None: every task does.

    Raises:
        ConfigError: `seconds`, `flops` or what the distribution gives is not positive and finite.
    """

    seed: int
    seconds: float
    client_slowdowns: Slowdowns
    task_slowdown: Distribution
    flops: float | None = None

    def __post_init__(self) -> None:
        positive("seconds", self.seconds)
        self.task_slowdown.check()
        if self.flops is not None:
            positive("task_flops", self.flops)

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there is not one slowdown for each client."""
        if len(self.client_slowdowns) != num_clients:
            raise ConfigError(
                f"client_slowdowns has {len(self.client_slowdowns)} entries; there are "
                f"{num_clients} clients"
            )

    def of(self, client: int, dispatch: int) -> float:
        """Returns the seconds of the client's task number `dispatch`."""
        u = uniform(self.seed, "task-duration", client, dispatch)
        x = self.task_slowdown.quantile(np.float64(u))  # type: ignore[arg-type]
        return float(self.seconds * self.client_slowdowns[client] * x)
