"""Asynchronous SGD with steps that adapt to the delay.

Koloskova, Stich, Jaggi, "Sharper Convergence Guarantees for Asynchronous SGD for Distributed and
Federated Learning", arXiv:2206.08307. Mishchenko, Bach, Even, Woodworth, "Asynchronous SGD Beats
Minibatch SGD Under Arbitrary Delays", arXiv:2206.07638.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fl.checks import positive
from fl.strategies.event_rule import Arrivals, EventRule
from fl.strategies.fedavg import Model
from fl.vectors.rows import Row


class AsyncGradientRule(EventRule):
    """Base of the rules of parameter servers: every worker sends a gradient, and gets the model.

    Clients run plain SGD of rate eta (`client=sgd_step`), and every message asks for one step, so
    x_i - x_0 = -eta g. Workers get the new model as soon as they have answered, and only they; a
    worker that failed is replaced by an idle client.
    """

    returns: ClassVar[bool] = True

    def config(self) -> Mapping[str, Any]:
        """Returns what every message says beside the model."""
        return {"local-steps": 1}

    def init(self, w: Row, p: int) -> Any:
        """Returns the initial state."""
        return Model(w)


@dataclass(frozen=True)
class AsyncSGD(AsyncGradientRule):
    """Every gradient is a step.

        w <- w - eta_t g    as    w <- w + (eta_t / eta) (x_i - x_0)

    With tau the delay of the gradient in versions and C the number of workers, eta_t / eta is
    min(1, C / tau): full steps for ordinary delays, shorter ones beyond; that is the proportion of
    arXiv:2206.08307, eta_t ~ 1 / tau for tau > C, without its constant 1 / (4 L), which needs the
    smoothness L.

    Attributes:
        adaptive: as above; False has full steps whatever the delay.
        scale: factor on all steps, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    adaptive: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def step(self, state: Model, updates: Arrivals) -> Model:
        """Returns the state with the next model."""
        (tau,) = updates.staleness
        workers = updates.concurrency or updates.available
        factor = min(1.0, workers / tau) if self.adaptive and tau else 1.0
        return Model(state.w + self.scale * factor * updates.only.delta)
