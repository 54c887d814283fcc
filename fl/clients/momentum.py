"""Worker momentum: clients send a running mean of their gradients, not the gradients.

Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021,
arXiv:2012.10333, Algorithm 2; El Mhamdi, Guerraoui, Rouault: Distributed Momentum for
Byzantine-resilient Learning, ICLR 2021, arXiv:2003.00010. Averaging over time shrinks the variance
of what honest clients send, so that there is less for an attacker to hide in. Most guarantees of
robust rules are for clients of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.checks import not_negative, share
from fl.clients.local_optimizer import Descent
from fl.clients.rule import Finished, Received, Scalar, State
from fl.clients.schedule import Schedule


@dataclass(frozen=True)
class Momentum(Descent):
    """Polyak averaging of the client's gradients, kept from task to task.

        g <- clip(gradient of the batch at w) + weight_decay w
        m <- beta m + (1 - beta) g                     (m is 0 before the client's first step)
        w <- w - lr m

    In a task of one step, which is the papers' setting, the client's change of the model is
    -lr m: the server aggregates the clients' momenta. With more steps m goes on within the task,
    and the change is the sum of what it was. With beta = 0 the rule is SGD.

    As in ByzFL and MoNNA, m starts at 0 and (1 - beta) damps the gradient. The code of Karimireddy
    et al. starts with the first gradient and does not damp, which is a larger learning rate.

    A message's "lr" replaces `lr` and `round_schedule` for its task; `step_schedule` still applies.

    Attributes:
        lr: learning rate, above 0.
        beta: decay of the average, in [0, 1).
        weight_decay: coefficient of w added to the gradient, at least 0.
        clip_norm: bound on the gradient's 2-norm, before weight decay; None does not clip.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float
    beta: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    round_schedule: Schedule | None = None
    step_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("weight_decay", self.weight_decay)
        share("beta", self.beta)

    @property
    def vectors(self) -> int:
        """The average m."""
        return 1

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns an average of nothing."""
        return {"m": torch.zeros_like(w)}

    def init(self, received: Received) -> State:
        """Returns m as the last task left it."""
        return received.memory["m"]

    def direction(self, w: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns m, twice."""
        if self.weight_decay:
            g = torch.add(g, w, alpha=self.weight_decay)
        m = self.beta * state + (1 - self.beta) * g
        return m, m

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model, and m for the next task."""
        return Finished(w, {}, {"m": state})
