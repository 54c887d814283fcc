"""Corrections of the local gradient, and any local optimizer with one.

Many methods differ from FedAvg in what their clients add to each gradient before they step by it: a
pull towards the received model (FedProx), control variates (SCAFFOLD). The step itself may be that
of any optimizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from fl.clients.local_optimizer import LocalOptimizer, clip
from fl.clients.rule import Batch, Finished, Received, Role, Rule, Scalar, State
from fl.vectors.layout import Layout


class Correction(ABC):
    """What a client makes of a gradient before its optimizer sees it.

    A frozen dataclass of hyperparameters whose methods are pure functions of tensors, within the
    limits of `fl.clients.rule`. What it keeps from task to task is its own: names in its memory are
    other than the optimizers'.

    Attributes:
        clip_first: clip the gradient alone and correct the result; otherwise the corrected gradient
            is clipped.
        counts_on_length: whether it is undone, or led astray, by an optimizer whose steps are not
            as long as what it makes of a gradient (`LocalOptimizer.rescales`).
    """

    counts_on_length: ClassVar[bool] = False

    clip_first: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """Records of the message that hold a vector beside the model."""
        return ()

    @property
    def uploads(self) -> tuple[str, ...]:
        """Records of the reply that hold a vector beside the model, `Finished.extras`."""
        return ()

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """Keys of the message's configuration, to the hyperparameters each stands in for."""
        return {}

    @property
    def requires(self) -> tuple[str, ...]:
        """Keys of the message's configuration without which it is refused; see `Rule.requires`."""
        return ()

    @property
    def personalises(self) -> bool:
        """Whether a client predicts with another model than the one it receives."""
        return type(self).personal is not Correction.personal

    @property
    def keeps_statistics(self) -> Literal["", "own", "sent"]:
        """Which running statistics a client keeps for `personal`; see `Rule.keeps_statistics`."""
        return ""

    @property
    def gradients_per_step(self) -> float:
        """Gradient evaluations that it adds to those of the optimizer."""
        return 0.0

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns what a task is, with the gradients that are added; see `Rule.role`."""
        return Role("", self.needs, self.gradients_per_step)

    @property
    def differentiates(self) -> bool:
        """Whether it takes more derivatives of a batch than `grad`; see `Rule.differentiates`."""
        return False

    def vectors(self, is_plain: bool) -> int:
        """Returns how many vectors of length p it adds to a client's memory."""
        return 0

    def check_model(self, model: nn.Module) -> None:
        """Raises ConfigError if the correction can do nothing with the model."""
        return

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers of this task that the message may change; see `Rule.scalars`."""
        return {}

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns the memory of a client that has never been asked before."""
        return {}

    def begin(self, w: Tensor, received: Received) -> Tensor:
        """Returns the weights that training begins with, shape (p,): by default those received.

        Args:
            w: the received weights, shape (p,).
            received: constants of the task.
        """
        return w

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns the state before the first step.

        Args:
            received: constants of the task.
            is_plain: whether w - lr g is all of the optimizer's step.
        """
        return ()

    def first(self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch) -> State:
        """Returns the state, having seen the first batch of a task, before it is corrected.

        Args:
            g: what the optimizer would follow at `w`, not clipped, shape (p,).
            w: the received weights, shape (p,).
            state: as returned by `init`.
            received: constants of the task.
            batch: the first.
        """
        return state

    @abstractmethod
    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns the corrected gradient, shape (p,), and the state.

        Args:
            g: what the optimizer would follow at `w`, shape (p,).
            w: weights, shape (p,).
            state: as returned by `init` or the last step.
            received: constants of the task.
            batch: the mini-batch, for gradients elsewhere.
            lr: learning rate of the step.
        """

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns what to upload and what to keep; called after at least one step.

        Args:
            w: weights after the last step, shape (p,).
            state: after the last step.
            received: constants of the task.
        """
        return Finished(w, {}, {})

    def personal(self, received: Received) -> Tensor:
        """Returns the weights that the client would predict with; see `Rule.personal`."""
        return received.w


@dataclass(frozen=True)
class Corrected(Rule):
    """A local optimizer that follows corrected gradients.

        g <- gradient of the batch at w;    g <- clip(correct(g));    w <- update(w, g)

    A correction is about what clients have in common: the gradient of numbers that stay with the
    client (`Received.local`) is not corrected, nor is what becomes of them in the end.

    Where the optimizer takes its gradient elsewhere, as SAM does, the correction is still at w.

    Attributes:
        optimizer: makes a step of a gradient.
        correction: what becomes of the gradient before.
    """

    optimizer: LocalOptimizer
    correction: Correction

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the same of the optimizer for a model."""
        return replace(self, optimizer=self.optimizer.for_model(model, layout))

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the correction."""
        return self.correction.needs

    @property
    def uploads(self) -> tuple[str, ...]:
        """Those of the correction."""
        return self.correction.uploads

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """Those of both."""
        return {**self.optimizer.honours, **self.correction.honours}

    @property
    def requires(self) -> tuple[str, ...]:
        """Those of the correction."""
        return self.correction.requires

    @property
    def batchable(self) -> bool:
        """Whether `vmap` takes the optimizer."""
        return self.optimizer.batchable

    @property
    def personalises(self) -> bool:
        """Whether the correction does."""
        return self.correction.personalises

    @property
    def keeps_statistics(self) -> Literal["", "own", "sent"]:
        """Those of the correction."""
        return self.correction.keeps_statistics

    @property
    def gradients_per_step(self) -> float:
        """Those of both."""
        return self.optimizer.gradients_per_step + self.correction.gradients_per_step

    @property
    def differentiates(self) -> bool:
        """Whether either does."""
        return self.optimizer.differentiates or self.correction.differentiates

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns that of the correction, with the gradients of both."""
        role = self.correction.role(scalars)
        own = self.optimizer.gradients_per_step
        return role._replace(gradients_per_step=own + role.gradients_per_step)

    @property
    def vectors(self) -> int:
        """Those of both."""
        return self.optimizer.vectors + self.correction.vectors(self.optimizer.is_plain)

    @property
    def returns_only_the_model(self) -> bool:
        """Whether nothing comes of either but the model."""
        return self.optimizer.returns_only_the_model and (
            type(self.correction).finish is Correction.finish
        )

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns those of both."""
        return {**self.optimizer.scalars(config), **self.correction.scalars(config)}

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns the memories of both."""
        return {**self.optimizer.first_memory(w, scalars), **self.correction.first_memory(w)}

    def init(self, received: Received) -> State:
        """Returns the states of both."""
        of_correction = self.correction.init(received, self.optimizer.is_plain)
        return self.optimizer.init(received), of_correction

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, states, loss) after one step."""
        of_optimizer, of_correction = state
        bound, first = self.optimizer.clip_norm, self.correction.clip_first
        lr = self.optimizer.step_lr(received, t)
        w = w if t else self.correction.begin(w, received)
        g, loss = self.optimizer.gradient(w, batch)
        if t == 0:
            of_correction = self.correction.first(g, w, of_correction, received, batch)
        g = clip(g, bound) if first else g
        own = g
        g, of_correction = self.correction.correct(g, w, of_correction, received, batch, lr)
        g = g if received.local is None else torch.where(received.local, own, g)
        g = g if first else clip(g, bound)
        w, of_optimizer = self.optimizer.update(w, g, of_optimizer, received, t)
        return w, (of_optimizer, of_correction), loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model as the correction sends it, and what both keep."""
        of_optimizer, of_correction = state
        kept = self.optimizer.finish(w, of_optimizer, received, steps).memory
        finished = self.correction.finish(w, of_correction, received)
        if received.local is not None and finished.w.shape[0]:
            finished = finished._replace(w=torch.where(received.local, w, finished.w))
        return finished._replace(memory={**kept, **finished.memory})

    def personal(self, received: Received) -> Tensor:
        """Returns what the correction would predict with."""
        return self.correction.personal(received)
