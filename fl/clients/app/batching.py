"""Whether a run's clients train together, who decides it, and what they decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fl.errors import ConfigError

Mode = Literal["auto", "on", "off", "measured"]

_TURNS = 3


@dataclass(frozen=True)
class Batching:
    """Whether tasks that may train together do.

    Attributes:
        mode: who decides: `auto`, a rule on the model's structure, the same on every machine;
            `measured`, a trial on this machine; `on` and `off`, the user. Whatever the mode, what
            cannot train together does not.
        together: the decision.
        why: the reason, if they do not.
        alone_s, together_s: seconds of a task in the trial; None without one.
    """

    mode: Mode
    together: bool
    why: str = ""
    alone_s: float | None = None
    together_s: float | None = None

    def summary(self) -> dict[str, Any]:
        """Returns the choice for a run's summary, and how to make it again."""
        facts: dict[str, Any] = {"mode": self.mode, "together": self.together}
        if self.why:
            facts["why"] = self.why
        if self.alone_s is not None:
            facts |= {"alone_s": self.alone_s, "together_s": self.together_s}
        if self.mode == "measured":
            facts["repeat_with"] = f"client.batching={'on' if self.together else 'off'}"
        return facts


def check_mode(mode: object) -> None:
    """Checks a value of `client.batching`.

    Raises:
        ConfigError: there is no such mode.
    """
    if mode not in get_args(Mode):
        # YAML reads a bare on or off as true or false.
        raise ConfigError(f"batching is {mode!r}; it must be one of {', '.join(get_args(Mode))}")


def compare(alone: Callable[[], int], together: Callable[[], int]) -> Batching:
    """Times both ways on this machine.

    Args:
        alone: trains some tasks one by one, and returns how many.
        together: trains some tasks together, and returns how many.
    """
    alone_s, together_s = (_seconds(way) for way in (alone, together))
    why = "" if together_s < alone_s else "measured: one by one is faster here"
    return Batching("measured", together_s < alone_s, why, alone_s, together_s)


def _seconds(way: Callable[[], int]) -> float:
    way()  # imports, caches
    taken = []
    for _ in range(_TURNS):
        began = time.perf_counter()
        tasks = way()
        taken.append((time.perf_counter() - began) / tasks)
    return min(taken)  # what else the machine does only adds
