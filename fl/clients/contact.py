"""When a client ends its local work and contacts the server.

In client-driven federated learning (Li, Zhu, arXiv:2405.15407) that is the client's decision. What
the paper's clients decide by could not be had, so these rules are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl.checks import not_negative, positive, within_unit


class Contact:
    """A client's decision to contact the server before all of its local work is done.

    The local work (`local_epochs` or `local_steps`) is the most that it does in any case. What is
    not done takes no time and no energy.
    """

    @property
    def seconds(self) -> float | None:
        """How long it works at most, s, in whole steps and at least one; None has no limit."""
        return None

    @property
    def watches(self) -> bool:
        """Whether it looks at the loss of each epoch."""
        return type(self).now is not Contact.now

    def now(self, losses: Sequence[float], last: float | None) -> bool:
        """Returns whether it contacts the server now, after an epoch; never, by default.

        Args:
            losses: of each epoch so far, at least one: mean over the steps, before each.
            last: of the last epoch of its last task; None if there was none.
        """
        return False


@dataclass(frozen=True)
class Periodic(Contact):
    """Contact as soon as another step would not end in time, counted from when it began to work.

    Attributes:
        period_s: s, above 0.

    Raises:
        ConfigError: it is not above 0.
    """

    period_s: float = 10.0

    def __post_init__(self) -> None:
        positive("period_s", self.period_s)

    @property
    def seconds(self) -> float:
        """The period."""
        return self.period_s


@dataclass(frozen=True)
class Plateau(Contact):
    """Contact when training alone no longer helps: an epoch's loss is not below the last one's.

        F_e > (1 - fall) F_(e-1)

    Attributes:
        fall: relative fall of the loss that is worth another epoch, in [0, 1].

    Raises:
        ConfigError: it is not in [0, 1].
    """

    fall: float = 0.05

    def __post_init__(self) -> None:
        within_unit("fall", self.fall)

    def now(self, losses: Sequence[float], last: float | None) -> bool:
        """Returns whether the loss has not fallen enough."""
        return len(losses) > 1 and not losses[-1] <= (1 - self.fall) * losses[-2]


@dataclass(frozen=True)
class DriftNoticed(Contact):
    """Contact after the first epoch if the client finds that its data are no longer what they were.

        F_1 > (1 + rise) F_last

    F_1 is the loss of the model it has been given, on the data it has now, and F_last that of the
    last epoch before the client's last contact. A client that has made none, or has lost its memory
    in a crash, does all of its work.

    Attributes:
        rise: relative rise of the loss that tells drift, at least 0.

    Raises:
        ConfigError: it is negative or not finite.
    """

    rise: float = 0.5

    def __post_init__(self) -> None:
        not_negative("rise", self.rise)

    def now(self, losses: Sequence[float], last: float | None) -> bool:
        """Returns whether the first epoch's loss is above what it was."""
        return len(losses) == 1 and last is not None and not losses[0] <= (1 + self.rise) * last
