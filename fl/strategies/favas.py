"""FAVAS (FAVANO): interrupted clients, re-weighted by the steps they can be expected to make.

Leconte, Nguyen, Moulines, "FAVANO: Federated Averaging with Asynchronous Nodes", arXiv:2305.16099
(ICASSP 2024), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fl.aggregation import MOST_WEIGHT, shown
from fl.errors import ConfigError
from fl.strategies.drivers.contacts import Contacts
from fl.strategies.drivers.events import Server, Update
from fl.vectors.rows import Row

Alpha = Literal["expected", "stochastic", "none"]


class Favas(Contacts):
    """Averages the server's model with those of interrupted clients, re-weighted.

    At every contact with a set S of s clients,

        w <- (w + sum_{i in S} (w_i^0 + (w_i - w_i^0) / alpha_i)) / (s + 1)

    and they go on from the new w. w_i is client i's model after q_i <= K steps from w_i^0. With E_i
    the number of steps it had time for, the division makes the mean of what a contact with a client
    adds one step, slow or fast:

        expected      alpha_i = E[min(E_i, K)], here the mean of q_i over its contacts so far
        stochastic    alpha_i = P(E_i > 0) min(E_i, K), the share of its contacts with q_i > 0
                      times q_i
        none          alpha_i = 1: fast clients count more

    A client without a whole step adds w_i^0. A contact that is not answered adds nothing and counts
    with q_i = 0, so that who loses answers counts no less in the long run. The paper computes the
    means from a law of step times that it assumes, and loses nothing; no law is assumed here.

    Args:
        alpha: one of the three.
        **contacts: arguments of `Contacts`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, *, alpha: Alpha = "expected", **contacts: Any) -> None:
        super().__init__(**contacts)
        if alpha not in ("expected", "stochastic", "none"):
            raise ConfigError(f"alpha is {alpha!r}; it must be 'expected', 'stochastic' or 'none'")
        self.alpha = alpha

    def unusable(self, update: Update) -> str | None:
        """Refuses a client that does not say how many steps it has done."""
        steps = update.metrics.get("steps")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MOST_WEIGHT:
            return (
                f"it reports steps {shown(steps)}; this strategy needs the metric 'steps' of "
                "fl.clients.TrainingApp, a whole number"
            )
        return None

    def begin(self, server: Server) -> None:
        """Forgets the clients' steps."""
        super().begin(server)
        self.steps: dict[int, list[int]] = {}  # client -> contacts with steps, steps in all

    def merge(self, server: Server, answers: Sequence[Update]) -> tuple[Row, dict[int, Row]]:
        """Averages the server's model and the unbiased ones."""
        total = server.w
        for update in answers:
            q = int(update.metrics["steps"])
            alpha = self._count(update.node, q)
            total = total + (update.task.memo.w + update.delta / alpha if q else update.task.memo.w)
        w = total / np.float32(len(answers) + 1)
        return w, {update.node: w for update in answers}

    def _count(self, node: int, q: int) -> float:
        """Counts an answer and returns alpha_i; not used if q is 0."""
        seen = self.steps.setdefault(node, [0, 0])
        seen[0] += q > 0
        seen[1] += q
        (working, steps), contacts = seen, self.contacts[node]
        if self.alpha == "none":
            return 1.0
        if self.alpha == "stochastic":
            return working / contacts * q
        return steps / contacts
