"""Client rules that step by the batches' gradients, at a learning rate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.checks import positive
from fl.clients.app.message_config import read_float, read_int
from fl.clients.rule import Batch, Received, Rule, Scalar, State
from fl.clients.schedule import Schedule, check_schedule
from fl.errors import ConfigError

FIRST_STEP_KEY = "first-step"
LR_FACTOR_KEY = "lr-factor"


class LocalOptimizer(Rule):
    """A rule whose step follows the batch's gradient g.

        g <- gradient of the batch at w;    g <- clip(g);    w <- update(w, g)

    With a correction (`fl.clients.Corrected`) g is corrected before or after it is clipped; the
    optimizer takes what comes of that for the gradient.

    A message's "lr" replaces `lr` and `round_schedule` for its task; `step_schedule` still applies.
    Its "lr-factor", of servers that have a schedule of their own, multiplies what comes of that.
    A message's "first-step" says how many steps there were before the task, in strategies whose
    clients go on from where they were: `step_schedule` then counts from there.

    Attributes:
        rescales: whether a step is as long for a small gradient as for a large one.
        lr: learning rate, above 0.
        clip_norm: bound on the 2-norm of the gradient of all parameters together; None does not
            clip.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    rescales: ClassVar[bool] = False

    lr: float
    clip_norm: float | None = None
    round_schedule: Schedule | None = None
    step_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        if self.clip_norm is not None:
            positive("clip_norm", self.clip_norm)
        check_schedule("round_schedule", self.round_schedule)
        check_schedule("step_schedule", self.step_schedule)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The learning rate, and where the schedule of its steps begins."""
        return {"lr": ("lr", "round_schedule"), LR_FACTOR_KEY: (), FIRST_STEP_KEY: ()}

    @property
    def is_plain(self) -> bool:
        """Whether w - lr g is all of a step: a task's change then tells the sum of its g."""
        return False

    @property
    def keeps(self) -> bool | None:
        """Whether anything outlives a task; None is as the strategy needs it, see `goes_on`."""
        return type(self).finish is not Rule.finish

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the learning rate of this task, and its "first-step" if the message has one."""
        scalars = {"lr": round_lr(config, self.lr, self.round_schedule)}
        first_step = read_int(config, FIRST_STEP_KEY, least=0)
        return scalars if first_step is None else {**scalars, FIRST_STEP_KEY: first_step}

    def step_lr(self, received: Received, t: int) -> Scalar:
        """Returns the learning rate of step t of the task."""
        lr = received.scalars["lr"]
        if self.step_schedule is None:
            return lr
        # Not a tensor: tasks that begin at different steps are never trained together.
        return lr * self.step_schedule(int(received.scalars.get(FIRST_STEP_KEY, 0)) + t)

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, state, loss) after one step."""
        g, loss = self.gradient(w, batch)
        w, state = self.update(w, clip(g, self.clip_norm), state, received, t)
        return w, state, loss

    def gradient(self, w: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the gradient that a step from `w` follows, shape (p,), and the loss at `w`."""
        return batch.grad(w)

    @abstractmethod
    def update(
        self, w: Tensor, g: Tensor, state: State, received: Received, t: int
    ) -> tuple[Tensor, State]:
        """Returns weights and state after step t.

        Args:
            w: weights, shape (p,).
            g: the gradient, corrected and clipped, shape (p,).
            state: as returned by `init` or the last step.
            received: constants of the task.
            t: index of the step in the task, from 0.
        """


class Descent(LocalOptimizer):
    """An optimizer whose step has a direction that its learning rate is no part of.

        d <- direction(w, g);    w <- w - lr d

    Where a server does the stepping, clients send d in the place of a gradient
    (`fl.clients.Direction`).
    """

    @abstractmethod
    def direction(self, w: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns d, shape (p,), and the state.

        Args:
            w: weights, shape (p,).
            g: the gradient, corrected and clipped, shape (p,).
            state: as returned by `init` or the last step.
        """

    def update(
        self, w: Tensor, g: Tensor, state: State, received: Received, t: int
    ) -> tuple[Tensor, State]:
        """Returns (w - lr d, state)."""
        d, state = self.direction(w, g, state)
        return descend(w, self.step_lr(received, t), d), state


def goes_on(keep: bool | None, scalars: Mapping[str, Scalar]) -> bool:
    """Returns whether a client's moments outlive the task.

    Args:
        keep: the rule's choice; None is as the strategy needs it: where clients go on from where
            they were, which the message tells by "first-step", they do.
        scalars: of the task.
    """
    return FIRST_STEP_KEY in scalars if keep is None else keep


def round_lr(config: Mapping[str, Any], lr: float, schedule: Schedule | None) -> float:
    """Returns the learning rate of a task.

    Args:
        config: the message's configuration: "lr" wins; else "server-round" (from 1) sets the index.
            "lr-factor" multiplies either.
        lr: the rule's own.
        schedule: over rounds; None is constant.

    Raises:
        ConfigError: "lr" or its factor is not above 0, or a schedule is set and the message names
            no round.
    """
    factor = read_float(config, LR_FACTOR_KEY, above=0.0)
    if factor is not None:
        own = {key: value for key, value in config.items() if key != LR_FACTOR_KEY}
        return factor * round_lr(own, lr, schedule)
    override = read_float(config, "lr", above=0.0)
    if override is not None:
        return override
    if schedule is None:
        return float(lr)
    server_round = read_int(config, "server-round", least=0)
    if server_round is None:
        raise ConfigError(
            "round_schedule needs the message's 'server-round', and there is none: have the "
            "strategy send it, or send 'lr' instead"
        )
    return lr * schedule(max(server_round - 1, 0))


def clip(g: Tensor, max_norm: float | None) -> Tensor:
    """Returns g min(1, max_norm / (|g| + 1e-6)), the formula of `clip_grad_norm_`.

    Args:
        g: shape (p,).
        max_norm: bound; None returns `g`.
    """
    if max_norm is None:
        return g
    return g * torch.clamp(max_norm / (torch.linalg.vector_norm(g) + 1e-6), max=1.0)


def descend(w: Tensor, lr: Scalar, g: Tensor) -> Tensor:
    """Returns w - lr g, in one pass over memory where `lr` is a float."""
    if isinstance(lr, Tensor):
        return w - lr * g
    return torch.add(w, g, alpha=-lr)
