"""Client rules with a learning rate: the message's, or one that follows schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fl.clients.message_config import read_float, read_int
from fl.clients.rule import Received, Rule, Scalar
from fl.clients.schedule import Schedule
from fl.errors import ConfigError

FIRST_STEP_KEY = "first-step"


class Scheduled(Rule):
    """A rule whose steps have a learning rate.

    A message's "lr" replaces `lr` and `round_schedule` for its task; `step_schedule` still applies.
    A message's "first-step" says how many steps there were before the task, in strategies whose
    clients go on from where they were: `step_schedule` then counts from there.

    Attributes:
        lr: learning rate, above 0.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.
    """

    honours: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "lr": ("lr", "round_schedule"),
        FIRST_STEP_KEY: (),
    }

    lr: float
    round_schedule: Schedule | None
    step_schedule: Schedule | None

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the learning rate of this task, and where the schedule of its steps begins."""
        scalars = {"lr": round_lr(config, self.lr, self.round_schedule)}
        if self.step_schedule is not None:
            scalars[FIRST_STEP_KEY] = read_int(config, FIRST_STEP_KEY, least=0) or 0
        return scalars

    def step_lr(self, received: Received, t: int) -> Scalar:
        """Returns the learning rate of step t of the task."""
        lr = received.scalars["lr"]
        if self.step_schedule is None:
            return lr
        # Not a tensor: tasks that begin at different steps are never trained together.
        return lr * self.step_schedule(int(received.scalars[FIRST_STEP_KEY]) + t)


def round_lr(config: Mapping[str, Any], lr: float, schedule: Schedule | None) -> float:
    """Returns the learning rate of a task.

    Args:
        config: the message's configuration: "lr" wins; else "server-round" (from 1) sets the index.
        lr: the rule's own.
        schedule: over rounds; None is constant.

    Raises:
        ConfigError: "lr" is not above 0, or a schedule is set and the message names no round.
    """
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
