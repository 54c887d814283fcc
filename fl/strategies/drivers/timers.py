"""What a strategy is to do at times to come."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any


class Timers:
    """What is to be done at times to come; at one time, in the order in which it was noted."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = count()

    @property
    def first_s(self) -> float:
        """When the first is due, s; infinite if nothing is to be done."""
        return self._heap[0][0] if self._heap else math.inf

    def at(self, time: float, act: Callable[..., None], *arguments: Any) -> None:
        """Notes what is to be done, and with what."""
        heapq.heappush(self._heap, (time, next(self._sequence), act, arguments))

    def act(self, now: float) -> bool:
        """Does the first that is due; returns whether there was one."""
        if self.first_s > now or not self._heap:
            return False
        _, _, act, arguments = heapq.heappop(self._heap)
        act(*arguments)
        return True
