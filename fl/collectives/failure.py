"""What a collective's ranks do when one of them falls silent in the middle."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least, not_negative
from fl.errors import ConfigError

_KINDS = ("retry", "discard")


@dataclass(frozen=True)
class Failure:
    """The others notice it some time later, and begin again without it, or give the step up.

    "retry" is PRIME (arXiv:2412.01152): the group is formed again of those that are there, and the
    collective run again, up to `retries` times; then the step is given up. There a worker then goes
    on by its own outer gradient, and parts from the others for good.

    "discard" is torchft: all vote on every collective, with one small message each way, and a step
    that not all vote for is not taken. The next collective is without the one that fell silent.

    In both no part of the ranks applies what the others do not. What was begun before is charged.

    Attributes:
        kind: "retry" or "discard".
        detection_s: time until the others notice; 10 s are PRIME's heartbeats, and torchft waits
            60 s for an operation.
        retries: how often at most it is run again, for "retry".

    Raises:
        ConfigError: another kind, or a number out of range.
    """

    kind: str
    detection_s: float = 10.0
    retries: int = 2

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"on_failure is {self.kind!r}; it must be null, {', '.join(_KINDS)}")
        not_negative("detection_s", self.detection_s)
        at_least("retries", self.retries, 0)

    @property
    def votes(self) -> bool:
        """Whether every collective ends with a vote."""
        return self.kind == "discard"

    @property
    def attempts(self) -> int:
        """How often a collective is run at most."""
        return 1 if self.votes else 1 + self.retries
