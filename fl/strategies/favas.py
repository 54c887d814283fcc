"""FAVAS (FAVANO): interrupted clients, re-weighted by the steps they can be expected to make.

Leconte, Nguyen, Moulines, "FAVANO: Federated Averaging with Asynchronous Nodes", arXiv:2305.16099
(ICASSP 2024), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from fl.aggregation import MOST_WEIGHT, shown
from fl.errors import ConfigError
from fl.strategies.event_rule import Answers, PollingRule
from fl.vectors.rows import Row

Alpha = Literal["expected", "stochastic", "none"]


class Seen(NamedTuple):
    """What is known of a client: answers with steps, and steps in all."""

    working: int = 0
    steps: int = 0


class Counted(NamedTuple):
    """The model, shape (d,), and what is known of clients."""

    w: Row
    seen: Mapping[int, Seen]


@dataclass(frozen=True)
class FAVAS(PollingRule):
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

    With an aggregator F, the sum over S is s (w + F(y_1 - w, ..., y_s - w)), y_i its terms.

    Attributes:
        alpha: one of the three.

    Raises:
        ConfigError: alpha is none of the three.
    """

    alpha: Alpha = "expected"

    def __post_init__(self) -> None:
        if self.alpha not in ("expected", "stochastic", "none"):
            raise ConfigError(
                f"alpha is {self.alpha!r}; it must be 'expected', 'stochastic' or 'none'"
            )

    def refuses(self, metrics: Mapping[str, Any]) -> str | None:
        """Refuses a client that does not say how many steps it has done."""
        steps = metrics.get("steps")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MOST_WEIGHT:
            return (
                f"it reports steps {shown(steps)}; this strategy needs the metric 'steps' of "
                "fl.clients.TrainingApp, a whole number"
            )
        return None

    def init(self, w: Row, p: int) -> Counted:
        """Returns the initial state."""
        return Counted(w, {})

    def step(self, state: Counted, answers: Answers) -> tuple[Counted, Sequence[Row]]:
        """Averages as above."""
        seen = dict(state.seen)
        y = []
        for update, w_0, contacts in zip(answers, answers.starts, answers.contacts, strict=True):
            q = int(update.metrics["steps"])
            working, steps = seen.get(update.node, Seen())
            seen[update.node] = now = Seen(working + (q > 0), steps + q)
            y.append(w_0 + update.delta / self.alpha_of(now, contacts, q) if q else w_0)
        w = answers.total(y, state.w) / np.float32(len(answers) + 1)
        return Counted(w, seen), [w] * len(answers)

    def alpha_of(self, seen: Seen, contacts: int, q: int) -> float:
        """Returns alpha_i of a client that has answered with q > 0 steps."""
        if self.alpha == "none":
            return 1.0
        if self.alpha == "stochastic":
            return seen.working / contacts * q
        return seen.steps / contacts
