"""The event queue: the only thing that moves virtual time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from fl.errors import SimulationError


class Priority(IntEnum):
    """Order among events of the same instant.

    Everything that arrives or completes is seen before a timer that is due at the same instant
    fires, and both before anything new is sent. Equalities such as "a full buffer at equal speeds
    is a synchronous round" hold only with this order.
    """

    PROGRESS = 0  # a transfer or a computation completes
    TIMER = 1  # a deadline, a tick
    AVAILABILITY = 2  # a client comes or goes
    DISPATCH = 3  # something new starts


class EventQueue:
    """Events ordered by (time, priority, sequence number); ties run in the order of scheduling.

    Attributes:
        now: virtual time in s, never decreasing.
        processed: number of events run so far.
    """

    __slots__ = ("_heap", "_sequence", "now", "processed")

    def __init__(self) -> None:
        self.now = 0.0
        self.processed = 0
        self._heap: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def schedule(
        self, time: float, priority: Priority, action: Callable[..., None], *args: Any
    ) -> None:
        """Runs `action(*args)` when virtual time reaches `time`.

        Raises:
            SimulationError: `time` lies in the past or is not a number.
        """
        if not time >= self.now:
            raise SimulationError(
                f"event {getattr(action, '__qualname__', action)} scheduled at {time} s, "
                f"but virtual time is already {self.now} s"
            )
        self._sequence += 1
        heapq.heappush(self._heap, (time, priority, self._sequence, action, args))

    def next_time(self) -> float:
        """Returns the time in s of the next event; infinity if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def run_instant(self) -> None:
        """Moves to the next event's time and runs every event of that instant.

        Events that these schedule for the same instant run as well.
        """
        heap = self._heap
        time = self.now = heap[0][0]
        count = 0
        while heap and heap[0][0] == time:
            _, _, _, action, args = heapq.heappop(heap)
            count += 1
            action(*args)
        self.processed += count

    def advance(self, until: float) -> bool:
        """Runs the next instant if it is not later than `until`.

        Returns:
            True if events ran; False if none was due, and then time is `until` (if finite).
        """
        if self._heap and self._heap[0][0] <= until:
            self.run_instant()
            return True
        if math.isfinite(until) and until > self.now:
            self.now = until
        return False
