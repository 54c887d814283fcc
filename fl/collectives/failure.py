"""What a collective's ranks do when one of them falls silent in the middle."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least, not_negative
from fl.errors import ConfigError

_KINDS = ("retry", "alone", "discard")


@dataclass(frozen=True)
class Failure:
    """The others notice it some time later, and begin again without it, or give the step up.

    "retry": the group is formed again of those that are there, and the collective run again, up to
    `retries` times; then the step is given up.

    "alone" is PRIME (arXiv:2412.01152): the same, but after the last retry every worker goes on by
    its own outer gradient, and parts from the others for good.

    "discard" is torchft: all vote on every collective, with one small message each way, and a step
    that not all vote for is not taken. The next collective is without the one that fell silent.

    By "retry" and "discard" no part of the ranks applies what the others do not. What was begun
    before is charged.

    Attributes:
        kind: "retry", "alone" or "discard".
        detection_s: time until the others notice, from its last heartbeat; PRIME's code has 10 s,
            and torchft waits 60 s for an operation.
        retries: how often at most it is run again, for "retry" and "alone".
        heartbeat_s: time between two heartbeats of a rank, 2 s in PRIME's code, at most
            `detection_s`; 0 has one at any time. So a silence is noticed detection_s - heartbeat_s
            to detection_s after it began.

    Raises:
        ConfigError: another kind, or a number out of range.
    """

    kind: str
    detection_s: float = 10.0
    retries: int = 2
    heartbeat_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"on_failure is {self.kind!r}; it must be null, {', '.join(_KINDS)}")
        not_negative("detection_s", self.detection_s)
        at_least("retries", self.retries, 0)
        not_negative("heartbeat_s", self.heartbeat_s)
        if self.heartbeat_s > self.detection_s:
            raise ConfigError(
                f"heartbeat_s is {self.heartbeat_s}, and detection_s {self.detection_s}: a rank "
                "would be taken for dead between two heartbeats. Set heartbeat_s to less"
            )

    @property
    def parts(self) -> bool:
        """Whether ranks go on alone after the last retry."""
        return self.kind == "alone"

    @property
    def votes(self) -> bool:
        """Whether every collective ends with a vote."""
        return self.kind == "discard"

    def noticed_s(self, when: float, phase: float) -> float:
        """Returns when the others notice that a rank has fallen silent, s.

        Args:
            when: it did, s.
            phase: of its heartbeats, in [0, 1): they are at (phase + k) heartbeat_s.
        """
        if not self.heartbeat_s:
            return when + self.detection_s
        since_last = (when - phase * self.heartbeat_s) % self.heartbeat_s
        return when - since_last + self.detection_s

    @property
    def attempts(self) -> int:
        """How often a collective is run at most."""
        return 1 if self.votes else 1 + self.retries
