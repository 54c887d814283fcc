"""The event queue: the only thing that moves virtual time."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from itertools import chain, count
from operator import itemgetter
from typing import Any, TypeVar

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


_BUCKET = 512  # events that a new bucket has, about
_MOST = 2048  # events that are sorted or heaped without being parted first
_SAMPLED = 16  # one event of so many says where to part them


T = TypeVar("T")
_Entry = tuple[float, int, int, Callable[[Any], object], Any]
_ORDER = itemgetter(0, 1, 2)


class EventQueue:
    """Events ordered by (time, priority, sequence number); ties run in the order of scheduling.

    Up to `_MOST` events wait in a heap. Of more, only the nearest are kept in order; the others lie
    in buckets, one for each interval of time, as they were scheduled. When time comes to a bucket,
    it is parted into smaller ones if it is large, and the first of these is sorted. So an event is
    moved a few times in its life, whatever the number of the others, where a heap moves it along
    some of log2(n) places, each a cache miss.

    The idea is that of the ladder queue (Tang, Goh, Thng, "Ladder queue: an O(1) priority queue
    structure for large-scale discrete event simulation", ACM TOMACS 15(3), 2005). Its rungs part
    time into equal widths; here the bounds are quantiles of a sample of the events, which suits any
    distribution, so one level of buckets will do. Whatever the bounds, an operation takes an
    amortised O(log n) comparisons, as in a heap.

    Attributes:
        now: virtual time in s, never decreasing.
        processed: number of events run so far.
    """

    __slots__ = (
        "_bounds",
        "_buckets",
        "_end",
        "_heap",
        "_most",
        "_near",
        "_sequence",
        "now",
        "processed",
    )

    def __init__(self) -> None:
        self.now = 0.0
        self.processed = 0
        self._sequence = count()
        # Events up to `_end`: in descending order, and a heap of those that came since.
        self._near: list[_Entry] = []
        self._heap: list[_Entry] = []
        self._end = math.inf
        self._most = _MOST  # events in the heap before they are parted
        # Events later than bounds[i], and not later than the next bound, in the order of their
        # scheduling. Each is four items: a tuple would be one more thing to fetch from memory, and
        # the garbage collector's.
        self._bounds: list[float] = []
        self._buckets: list[list[Any]] = []

    def __len__(self) -> int:
        return len(self._near) + len(self._heap) + sum(map(len, self._buckets)) // 4

    def schedule(
        self, time: float, priority: Priority, action: Callable[[T], object], argument: T
    ) -> None:
        """Runs `action(argument)` when virtual time reaches `time`.

        Raises:
            SimulationError: `time` lies in the past or is not a number.
        """
        if not time >= self.now:
            raise SimulationError(
                f"event {getattr(action, '__qualname__', action)} scheduled at {time} s, "
                f"but virtual time is already {self.now} s"
            )
        if time > self._end:
            bucket = self._buckets[bisect_left(self._bounds, time) - 1]
            bucket += (time, priority, action, argument)
            return
        heap = self._heap
        heappush(heap, (time, priority, next(self._sequence), action, argument))
        if len(heap) > self._most:
            self._part_heap()

    def pending(self) -> list[tuple[float, int, Callable[[Any], object], Any]]:
        """Returns time, priority, action and argument of the events to come, in their order."""
        near = [(t, p, a, x) for t, p, _, a, x in sorted(self._near + self._heap, key=_ORDER)]
        far = [e for bucket in self._buckets for e in zip(*[iter(bucket)] * 4, strict=True)]
        return near + sorted(far, key=itemgetter(0, 1))

    def restart(self, now: float) -> None:
        """Forgets all events, and goes on at another time, s."""
        self.now, self._end = now, math.inf
        for events in (self._near, self._heap, self._bounds, self._buckets):
            events.clear()

    def next_time(self) -> float:
        """Returns the time in s of the next event; infinity if there is none."""
        near, heap = self._near, self._heap
        if not (near or heap):
            self._approach()
        if near and not (heap and heap[0] < near[-1]):
            return near[-1][0]
        return heap[0][0] if heap else math.inf

    def run_instant(self) -> None:
        """Moves to the next event's time and runs every event of that instant.

        Events that these schedule for the same instant run as well.
        """
        near, heap = self._near, self._heap
        if not (near or heap):
            self._approach()
        time = near[-1][0] if near and not (heap and heap[0] < near[-1]) else heap[0][0]
        self.now = time
        done = 0
        while True:
            if near and not (heap and heap[0] < near[-1]):
                if near[-1][0] != time:
                    break
                _, _, _, action, argument = near.pop()
            elif heap and heap[0][0] == time:
                _, _, _, action, argument = heappop(heap)
            else:
                break
            done += 1
            action(argument)
        self.processed += done

    def advance(self, until: float) -> bool:
        """Runs the next instant if it is not later than `until`.

        Returns:
            True if events ran; False if none was due, and then time is `until` (if finite).
        """
        if self.next_time() <= until and (self._near or self._heap):
            self.run_instant()
            return True
        if math.isfinite(until) and until > self.now:
            self.now = until
        return False

    def _approach(self) -> None:
        """Brings the next bucket near, if there is one; nothing is near."""
        while self._buckets and not self._near:
            entries = self._buckets.pop(0)
            del self._bounds[0]
            self._end = self._bounds[0] if self._bounds else math.inf
            self._arrange(entries)

    def _part_heap(self) -> None:
        """Keeps of the events that are near only the first; they have become too many."""
        entries = sorted(self._near + self._heap, key=itemgetter(2))  # as they were scheduled
        self._heap.clear()
        self._arrange([*chain.from_iterable((t, p, a, x) for t, p, _, a, x in entries)])

    def _arrange(self, entries: list[Any]) -> None:
        """Makes these events the near ones, or the first of them if they are many."""
        if len(entries) > 4 * _MOST:
            entries = self._part(entries)
        # Numbered here, in the order of scheduling: what is scheduled later comes later.
        self._near[:] = zip(
            entries[::4], entries[1::4], self._sequence, entries[2::4], entries[3::4], strict=False
        )
        self._near.sort(reverse=True)
        self._most = max(_MOST, len(self._near))  # so that parting pays, even where all are equal

    def _part(self, entries: list[Any]) -> list[Any]:
        """Puts the events into new buckets, before the others; returns the first."""
        sample = sorted(entries[:: 4 * _SAMPLED])
        step = _BUCKET // _SAMPLED
        # Copies, which lie side by side in memory: they are searched for each event.
        bounds = [time + 0.0 for time in sorted(set(sample[step::step]))]
        buckets: list[list[Any]] = [[] for _ in range(len(bounds) + 1)]
        for entry in zip(*[iter(entries)] * 4, strict=True):
            buckets[bisect_left(bounds, entry[0])] += entry
        self._bounds[:0] = bounds
        self._buckets[:0] = buckets[1:]
        self._end = self._bounds[0]
        return buckets[0]
