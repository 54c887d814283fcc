"""What local work costs: planned by our own ClientApp, by a rule for anybody else's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from fl.checks import not_negative, read_if
from fl.execution.contract import Request, Result, Workload
from fl.flower.payload import num_scalars
from fl.simulation.world.fleet import Fleet

FORWARD_FLOPS = 2  # a multiply and an add per weight and example, for dense layers
BACKWARD_FLOPS = 4  # twice the forward pass: gradients of inputs and of weights
OLDER_EXAMPLES_KEY = "num_examples"  # where Flower puts the number that a NumPyClient returns


Planner = Callable[[Request, float], Workload]
"""From a request and the device's seconds per FLOP to its workload."""


@read_if(
    lambda a: not a["measured"] > 0,
    "flops_per_example",
    "seconds",
    "examples_key",
    only="{at}measured counts instead",
)
@dataclass(frozen=True)
class CostModel:
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
            if value is not None:
                not_negative(name, value)

    def seconds_of(self, fleet: Fleet, request: Request, result: Result) -> float:
        """Returns the virtual seconds the client's device was busy with the request."""
        if self.measured > 0:
            return result.host_s * self.measured + result.slept_s
        examples = _examples(result, self.examples_key)
        if examples is None:
            return self.seconds + result.slept_s
        per_example = self.flops_per_example
        if per_example is None:
            training = request.message_type.startswith("train")
            per_example = num_scalars(request.payload.content) * (
                FORWARD_FLOPS + BACKWARD_FLOPS * training
            )
        flops = per_example * examples
        if not math.isfinite(flops):  # a client may say anything
            return self.seconds + result.slept_s
        return fleet.compute_seconds(request.client, request.dispatch, flops) + result.slept_s


def _examples(result: Result, key: str) -> float | None:
    if result.content is None:
        return None
    for record in result.content.metric_records.values():
        value = record.get(key, record.get(OLDER_EXAMPLES_KEY))
        if isinstance(value, int | float) and 0 <= value <= sys.float_info.max:
            return float(value)
    return None
