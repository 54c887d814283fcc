"""One all-reduce: what the workers of a fragment sent, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fl.errors import NoStep
from fl.strategies.outer_optimizers import Vector

if TYPE_CHECKING:
    from fl.strategies.drivers.outer.run import Participant


class ReceivedOuterGradient(NamedTuple):
    """An outer gradient that has come.

    Attributes:
        delta: Delta_m as the others read it, shape (n,), float64.
        weight: in the mean, not negative.
        size: bytes that it was sent as.
        message_id: of the task that it came of.
    """

    delta: Vector
    weight: float
    size: int
    message_id: str


@dataclass(slots=True, eq=False)
class Reduction:
    """An all-reduce of one fragment.

    Attributes:
        fragment: p.
        step: inner steps after which the workers take part.
        site: whose workers they are; None of all.
        own: what every worker sent, by Flower id, before any attack.
        sent: what the others got of it, when the all-reduce has begun.
        lost: workers whose outer gradient was lost.
        refused: why further outer gradients were none.
        mean: of what was sent, shape (n,), where it is compressed, or quantised on its way; or why
            there is none.
        order: around the ring of those who were in it to the end, by Flower id.
        gone: workers that went offline before its end, by Flower id.
        missing: those of them that took part in the run when it began.
        since_s: when the first outer gradient was there, s; infinity until one is.
        finish_s: when it is finished, s; infinity until it begins.
        done: whether it is finished.
        outcome: the fragment's state when it was; of a site, the mean of its workers' parameters,
            None if there is none.
    """

    fragment: int
    step: int
    site: int | None = None
    own: dict[int, ReceivedOuterGradient] = field(default_factory=dict)
    sent: dict[int, ReceivedOuterGradient] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    mean: Vector | NoStep | None = None
    order: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    missing: list[Participant] = field(default_factory=list)
    since_s: float = math.inf
    finish_s: float = math.inf
    done: bool = False
    outcome: Any = None

    @property
    def begun(self) -> bool:
        """Whether the workers have begun it."""
        return math.isfinite(self.finish_s)
