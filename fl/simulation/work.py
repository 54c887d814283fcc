"""What local work costs: planned by our own ClientApp, charged by a rule for anybody else's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fl.checks import read_if
from fl.errors import ConfigError
from fl.execution.executor import Assignment, Outcome
from fl.flower.payload import num_scalars
from fl.simulation.world.fleet import Fleet

FORWARD_FLOPS = 2  # a multiply and an add per weight and example, for dense layers
BACKWARD_FLOPS = 4  # twice the forward pass: gradients of inputs and of weights
OLDER_EXAMPLES_KEY = "num_examples"  # where Flower puts the number that a NumPyClient returns


class Plan(Protocol):
    """Work known before it is done."""

    @property
    def flops(self) -> float:
        """FLOPs of the work."""

    @property
    def past_flops(self) -> float:
        """FLOPs of work done before the message came: they cost energy, but no more time."""

    @property
    def work(self) -> dict[str, int] | None:
        """What the device has time for, told to the client in the record `fl.work`."""

    @property
    def reply_bytes(self) -> int | None:
        """Bytes of the reply's content, if they are known and the client keeps nothing."""


Planner = Callable[[Assignment, float], Plan]
"""From an assignment and the device's seconds per FLOP to the plan of its work."""


@read_if(
    lambda a: not a["measured"] > 0,
    "flops_per_example",
    "seconds",
    "examples_key",
    only="{at}measured counts instead",
)
@dataclass(frozen=True)
class Charge:
    """The cost of a ClientApp that gives no plan.

    A reply that reports how many examples it used (`examples_key` in a MetricRecord, or what a
    NumPyClient returns) is charged per example; any other, also one whose number is negative or not
    finite, or whose work is not, a constant. Seconds the app slept are added in either case. Host
    time is used only if `measured` says so, and then two runs differ.

    Attributes:
        flops_per_example: FLOPs per reported example; None estimates them from the number of
            scalars d in the message's arrays as 6 d for `train` (2 d forward, 4 d backward) and 2 d
            for other messages. Local epochs are not known: report examples times epochs, or set
            this.
        seconds: constant for replies that report no examples, and for errors.
        measured: charge the host seconds the app took, times this factor; 0 never does.
        examples_key: name of the metric.

    Raises:
        ConfigError: a number is negative or not finite.
    """

    flops_per_example: float | None = None
    seconds: float = 1.0
    measured: float = 0.0
    examples_key: str = "num-examples"

    def __post_init__(self) -> None:
        for name in ("flops_per_example", "seconds", "measured"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; it must be finite and at least 0")

    def seconds_for(
        self, fleet: Fleet, client: int, dispatch: int, assignment: Assignment, outcome: Outcome
    ) -> float:
        """Returns the virtual seconds the client's device was busy with the assignment."""
        if self.measured > 0:
            return outcome.host_s * self.measured + outcome.slept_s
        examples = _examples(outcome, self.examples_key)
        if examples is None:
            return self.seconds + outcome.slept_s
        per_example = self.flops_per_example
        if per_example is None:
            training = assignment.message_type.startswith("train")
            per_example = num_scalars(assignment.payload.content) * (
                FORWARD_FLOPS + BACKWARD_FLOPS * training
            )
        flops = per_example * examples
        if not math.isfinite(flops):  # a client may say anything
            return self.seconds + outcome.slept_s
        return fleet.compute_seconds(client, dispatch, flops) + outcome.slept_s


def _examples(outcome: Outcome, key: str) -> float | None:
    if outcome.content is None:
        return None
    for record in outcome.content.metric_records.values():
        value = record.get(key, record.get(OLDER_EXAMPLES_KEY))
        if isinstance(value, int | float) and 0 <= value <= sys.float_info.max:
            return float(value)
    return None
