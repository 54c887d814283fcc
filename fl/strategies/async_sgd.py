"""Asynchronous SGD with steps that adapt to the delay.

Koloskova, Stich, Jaggi, "Sharper Convergence Guarantees for Asynchronous SGD for Distributed and
Federated Learning", arXiv:2206.08307. Mishchenko, Bach, Even, Woodworth, "Asynchronous SGD Beats
Minibatch SGD Under Arbitrary Delays", arXiv:2206.07638. "Discard" with R = `max_delay` is the rule
of Ringmaster ASGD: Maranjyan, Tyurin, Richtarik, arXiv:2501.16168. Rennala SGD: Tyurin, Richtarik,
arXiv:2305.12387.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fl.checks import read_if
from fl.errors import ConfigError
from fl.strategies.drivers.events import EventDriven, Server, Update, at_least, positive

Rule = Literal["constant", "adaptive", "ringmaster", "rennala"]
_RULES = ("constant", "adaptive", "ringmaster", "rennala")


@read_if(lambda a: a["rule"] == "ringmaster", "max_delay", only="only {at}rule=ringmaster reads it")
@read_if(lambda a: a["rule"] == "rennala", "batch", only="only {at}rule=rennala reads it")
class AsyncSgd(EventDriven):
    """Every worker sends a gradient and gets the newest model back.

        w <- w - eta_t g    as    w <- w + (eta_t / eta) (x_i - x_0)

    Clients run plain SGD of rate eta (`client=sgd_step`), and every message asks for one step, so
    x_i - x_0 = -eta g. With tau the delay of the gradient in versions and C the number of workers,
    the factor eta_t / eta is

        constant      1
        adaptive      min(1, C / tau): full steps for ordinary delays, shorter ones beyond
        ringmaster    1 if tau < R, else 0: the gradient is ignored
        rennala       1 / B for gradients of the current model, 0 for others; one version for B

    Workers get the new model as soon as they have answered, and only they; a worker that failed is
    replaced by an idle client. With Rennala a version needs `batch` gradients of one model.

    "adaptive" has the proportion of arXiv:2206.08307, eta_t ~ 1 / tau for tau > C, without its
    constant 1 / (4 L), which needs the smoothness L.

    Args:
        rule: which of the four.
        max_delay: R of ringmaster, at least 1.
        batch: B of rennala, at least 1.
        scale: factor on all steps, above 0.
        **events: arguments of `EventDriven`; `concurrency` is the number of workers C.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        rule: Rule = "adaptive",
        max_delay: int = 10,
        batch: int = 10,
        scale: float = 1.0,
        **events: Any,
    ) -> None:
        super().__init__(**events)
        if rule not in _RULES:
            raise ConfigError(f"rule is {rule!r}; it must be one of {', '.join(_RULES)}")
        at_least("max_delay", max_delay, 1)
        at_least("batch", batch, 1)
        positive("scale", scale)
        self.rule = rule
        self.max_delay = max_delay
        self.batch = batch
        self.scale = scale

    def begin(self, server: Server) -> None:
        """Empties the batch."""
        self.sum = np.zeros_like(server.w)
        self.gathered: list[Update] = []
        self.free: list[int] = []  # workers that have answered in this instant

    def config(self) -> Mapping[str, Any]:
        """Returns that workers compute one gradient."""
        return {"local-steps": 1}

    def receive(self, server: Server, update: Update) -> None:
        """Steps along the gradient, if its delay allows."""
        self.free.append(update.node)
        tau = server.staleness(update)
        if (self.rule == "ringmaster" and tau >= self.max_delay) or (
            self.rule == "rennala" and tau > 0
        ):
            server.discard(update)
        elif self.rule == "rennala":
            self._gather(server, update)
        else:
            server.step(server.w + self.scale * self._factor(server, tau) * update.delta, [update])

    def dispatch(self, server: Server) -> None:
        """Sends the model back to who has answered, and to idle clients in free slots."""
        idle = set(server.tasks.idle())
        back = [node for node in self.free if node in idle]
        self.free = []
        server.send(back[: max(0, self.free_slots(server))], self.config())
        super().dispatch(server)

    def _factor(self, server: Server, tau: int) -> float:
        if self.rule != "adaptive" or tau == 0:
            return 1.0
        workers = self.concurrency or len(server.tasks.nodes())
        return min(1.0, workers / tau)

    def _gather(self, server: Server, update: Update) -> None:
        self.sum += update.delta
        self.gathered.append(update)
        if len(self.gathered) == self.batch:
            step, contributors = self.sum * (self.scale / self.batch), self.gathered
            self.sum, self.gathered = np.zeros_like(server.w), []
            server.step(server.w + step, contributors)
