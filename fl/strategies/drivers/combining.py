"""What drivers share that may combine several updates by an aggregator, outside of rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fl.aggregation import Aggregator, Dropped, Guard, Mean
from fl.checks import read_if
from fl.errors import ConfigError, NoStep
from fl.randomness import generator
from fl.strategies.drivers.events import EventDriven, Server, Update
from fl.strategies.event_rule import Combine
from fl.vectors.rows import Row


@read_if(
    lambda a: a["f"] is None,
    "aggregator.f",
    "aggregator.rule.f",
    "aggregator.pre.*.f",
    only="{at}f counts instead",
)
@read_if(
    lambda a: False,
    "aggregator.weighted",
    only="here updates do not weigh by numbers of examples",
)
class Combining(EventDriven):
    """Base of drivers without rounds whose steps may be made of several updates.

    The updates of a step become one by the aggregator F: their mean, or a robust rule of the
    vectors that the method adds up. A forged update that is not finite never reaches F: it counts
    as one of the f that F tolerates, and is an event of the trace. Where more than f are such, F
    cannot work with so few, or its result is not finite, the model stays as it is.

    An attack that knows F forges when a step is made, with what honest clients contribute to that;
    others forge when an update arrives.

    Args:
        aggregator: F; None is the mean.
        f: how many Byzantine clients F is to tolerate, instead of what it says itself; None leaves
            it as it is.
        **events: arguments of `EventDriven`.

    Raises:
        ConfigError: an argument is out of its range; F compares updates with one of the server's
            own, which here would begin with another model than theirs.
    """

    def __init__(
        self, *, aggregator: Aggregator | None = None, f: int | None = None, **events: Any
    ) -> None:
        super().__init__(**events)
        aggregator = Mean() if aggregator is None else aggregator
        self.aggregator = aggregator if f is None else aggregator.tolerating(f)
        if self.aggregator.reference in ("trusted-update", "own-vector"):
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, which compares updates with the server's "
                "own, and here they did not all begin with the same model: use another aggregator, "
                "or a strategy with rounds"
            )

    @property
    def robust(self) -> bool:
        """Whether F is more than a mean."""
        return not isinstance(self.aggregator, Mean)
