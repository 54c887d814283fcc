"""Max-min fair sharing of a finite capacity by flows with caps of their own."""

from __future__ import annotations

import math
from bisect import bisect_left
from heapq import heapify, heappop, heappush
from itertools import count

from fl.errors import SimulationError

_UNITS_PER_BPS = 2.0**40
"""Caps are added up as integers of this fineness, exactly: 4096 bit/s and more lose nothing."""


class _Group:
    """The flows of one cap. All of them get the same rate, min(cap, level), at any time.

    So one counter, the bits served to each of them since the group began, serves all: a flow that
    came when the counter was s ends when it is s + size. The counter is linear in time while the
    group is free (at its own cap), and linear in the volume, the integral of the level, while it is
    held (at the level). Passing from one to the other touches the group, not its flows.
    """

    __slots__ = ("cap", "count", "heap", "held", "mark", "moved", "served", "stamp", "units")

    def __init__(self, cap: float, held: bool, mark: float) -> None:
        self.cap = cap
        self.units = int(cap * _UNITS_PER_BPS) or 1
        self.held = held
        self.mark = mark  # a time while free, a volume while held
        self.served = 0.0  # the counter at `mark`
        self.heap: list[tuple[float, int]] = []  # (counter at the end, flow)
        self.count = 0
        self.stamp = 0  # number of the group's valid entry in a heap of ends
        self.moved = False  # whether it changed sides since that entry was made


_NEAR = 64  # groups that come near at a time
_MOST_NEAR = 1024  # before half of them are far


class _Side:
    """The groups on one side of the level, those next to it first.

    The nearest are a list, whose end is next to the level: a level that swings over many caps moves
    them one by one for an addition each. The others are a heap, so that what comes or goes far away
    does not move all of them.

    Args:
        sign: 1 if the slowest are the farthest from the level, -1 if the fastest are.
    """

    __slots__ = ("_far", "_gone", "_groups", "_keys", "_numbers", "_sign")

    def __init__(self, sign: float) -> None:
        self._sign = sign
        self._keys: list[float] = []  # of the near ones, ascending
        self._groups: list[_Group] = []  # likewise
        self._far: list[tuple[float, int, _Group]] = []  # a heap; without flows: gone
        self._gone = 0  # at most so many of these
        self._numbers = count()

    def nearest(self) -> _Group | None:
        """Returns the group next to the level; None if there is none."""
        if not self._groups and self._far:
            self._approach()
        return self._groups[-1] if self._groups else None

    def pop(self) -> None:
        """Takes off the group that `nearest` has returned."""
        self._keys.pop()
        self._groups.pop()

    def push(self, group: _Group) -> None:
        """Takes a group that comes over the level."""
        self._keys.append(self._sign * group.cap)
        self._groups.append(group)
        if len(self._keys) > _MOST_NEAR:
            half = _MOST_NEAR // 2
            for key, far in zip(self._keys[:half], self._groups[:half], strict=True):
                heappush(self._far, (-key, next(self._numbers), far))
            del self._keys[:half], self._groups[:half]

    def add(self, group: _Group) -> None:
        """Takes a group with a cap that no other has."""
        key, keys = self._sign * group.cap, self._keys
        if keys and key > keys[0]:
            place = bisect_left(keys, key)
            keys.insert(place, key)
            self._groups.insert(place, group)
        else:
            heappush(self._far, (-key, next(self._numbers), group))

    def remove(self, group: _Group) -> None:
        """Takes off a group, which has no flows any more."""
        key, keys = self._sign * group.cap, self._keys
        if keys and key >= keys[0]:
            place = bisect_left(keys, key)
            del keys[place], self._groups[place]
            return
        self._gone += 1
        if self._gone > len(self._far) // 2 + 64:
            self._far = [entry for entry in self._far if entry[2].count]
            heapify(self._far)
            self._gone = 0

    def _approach(self) -> None:
        """Brings the next ones near; none is."""
        while self._far and len(self._keys) < _NEAR:
            key, _, group = heappop(self._far)
            if group.count:
                self._keys.append(-key)
                self._groups.append(group)
            else:
                self._gone -= 1
        self._keys.reverse()
        self._groups.reverse()


class WaterFilling:
    """Flows on a link of finite capacity.

    The slower groups are free, the others are held, see `_Side`.

    A group's next end is in one of two heaps, of times and of volumes. While the group is free the
    time is right however the level changes, while it is held the volume is. When it changes sides
    its entry stays where it is: the group's rate is never above its cap nor above the level, so
    the entry says too early an end, and is made anew when it comes to the top. A level that swings
    across the caps of many groups costs each of them an addition, not a place in a heap.

    The level is found when it is needed, not at each of several calls at one instant. It is
    computed from exact integers: it is a function of the flows in flight, with no trace of those
    that came and went.
    """

    def __init__(self, capacity: float) -> None:
        self._capacity = capacity
        self._units = int(capacity * _UNITS_PER_BPS)
        self._now = 0.0
        self._level = math.inf
        self._volume = 0.0  # bits that a flow held all the time has got
        self._flows: dict[int, tuple[_Group, float]] = {}  # flow -> group, counter at the end
        self._groups: dict[float, _Group] = {}  # by cap
        self._free, self._held = _Side(1.0), _Side(-1.0)
        self._free_units = 0  # sum of the caps of free flows
        self._held_count = 0  # number of held flows
        self._free_ends: list[tuple[float, int, _Group]] = []  # (time, stamp, group)
        self._held_ends: list[tuple[float, int, _Group]] = []  # (volume, stamp, group)
        self._stamps = 0
        self._next: float | None = None  # what next_completion found, if nothing changed since

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, flow: int) -> bool:
        return flow in self._flows

    def add(self, now: float, flow: int, size: float, cap: float) -> None:
        """Starts a flow of `size` bits."""
        self._move(now)
        self._insert(flow, size, cap)

    def remove(self, now: float, flow: int) -> float:
        """Ends a flow before its time; returns the bits that were left."""
        self._move(now)
        group, end = self._flows[flow]
        remaining = max(0.0, end - self._served(group))
        self._delete(flow)
        return remaining

    def set_cap(self, now: float, flow: int, cap: float) -> None:
        """Changes a flow's cap."""
        self._move(now)
        if min(cap, self._capacity) != self._flows[flow][0].cap:
            self._insert(flow, self.remove(now, flow), cap)

    def rate_bps(self, flow: int) -> float:
        """Returns a flow's rate."""
        self.next_completion()  # finds the level
        group = self._flows[flow][0]
        return self._level if group.held else group.cap

    def next_completion(self) -> float:
        """Returns when the next flow ends, s."""
        if self._next is None:
            self._fill()
            self._settle()
            at = self._free_ends[0][0] if self._free_ends else math.inf
            if self._held_ends:
                at = min(at, self._next_held())
            self._next = max(at, self._now)
        return self._next

    def pop_completed(self, now: float) -> list[int]:
        """Ends the flows that are done by now, and returns them in order of their ends."""
        done: list[int] = []
        while (at := self.next_completion()) <= now + slack(now):
            limit = at + slack(at)
            volume_limit = -math.inf
            if self._held_ends and self._next_held() <= limit:
                # The head is taken by its own volume: computing its time and going back may round
                # to just below it, and nothing would end at the time announced.
                volume_limit = max(
                    self._held_ends[0][0], self._volume + self._level * (limit - self._now)
                )
            self._advance(min(at, now))
            done += self._take(limit, volume_limit)
            if at >= now:
                return done
        self._move(now)
        return done

    def _take(self, limit: float, volume_limit: float) -> list[int]:
        """Takes off the flows that end up to a time or a volume."""
        batch: list[int] = []
        while True:
            # Equal ends of one group have equal keys, so they go together.
            if self._free_ends and self._free_ends[0][0] <= limit:
                group = self._free_ends[0][2]
            elif self._held_ends and self._held_ends[0][0] <= volume_limit:
                group = self._held_ends[0][2]
            else:
                break
            flow = group.heap[0][1]
            self._delete(flow)
            batch.append(flow)
            self._settle()
        batch.sort()
        return batch

    def _move(self, now: float) -> None:
        if now != self._now:
            completion = self.next_completion()
            if not self._now < now <= completion:
                check_order(now, self._now, completion)
            self._advance(now)

    def _advance(self, now: float) -> None:
        if self._held_count:
            self._volume += self._level * (now - self._now)
        self._now = now
        self._next = None

    def _next_held(self) -> float:
        return self._now + (self._held_ends[0][0] - self._volume) / self._level

    def _served(self, group: _Group) -> float:
        if group.held:
            return group.served + (self._volume - group.mark)
        return group.served + group.cap * (self._now - group.mark)

    def _insert(self, flow: int, size: float, cap: float) -> None:
        self._next = None
        # No flow can get more than the link has, so larger caps are all the same.
        cap = min(cap, self._capacity)
        group = self._groups.get(cap)
        if group is None:
            # A cap between the two sides begins free; `_fill` says where it belongs.
            slowest = self._held.nearest()
            held = slowest is not None and slowest.cap < cap
            group = _Group(cap, held, self._volume if held else self._now)
            (self._held if held else self._free).add(group)
            self._groups[cap] = group
            end = size
        else:
            end = self._served(group) + size
        heappush(group.heap, (end, flow))
        group.count += 1
        self._flows[flow] = (group, end)
        if group.held:
            self._held_count += 1
        else:
            self._free_units += group.units
        if group.heap[0][1] == flow:
            self._schedule(group)

    def _delete(self, flow: int) -> None:
        self._next = None
        group, end = self._flows.pop(flow)
        group.count -= 1
        if group.held:
            self._held_count -= 1
        else:
            self._free_units -= group.units
        heap = group.heap
        if group.count == 0:
            del self._groups[group.cap]
            (self._held if group.held else self._free).remove(group)
            group.stamp = 0
        elif heap[0] == (end, flow):
            while not self._current(group, heap[0]):
                heappop(heap)
            self._schedule(group)
        elif len(heap) > 2 * group.count + 64:
            group.heap = [entry for entry in heap if self._current(group, entry)]
            heapify(group.heap)

    def _current(self, group: _Group, entry: tuple[float, int]) -> bool:
        known = self._flows.get(entry[1])
        return known is not None and known[0] is group and known[1] == entry[0]

    def _schedule(self, group: _Group) -> None:
        """Puts the end of the group's first flow into the heap of its side."""
        self._stamps += 1
        group.stamp = self._stamps
        group.moved = False
        left = group.heap[0][0] - group.served
        if group.held:
            ends, key = self._held_ends, group.mark + left
        else:
            ends, key = self._free_ends, group.mark + left / group.cap
        heappush(ends, (key, group.stamp, group))
        if len(ends) > 2 * len(self._groups) + 64:
            ends[:] = [entry for entry in ends if entry[2].stamp == entry[1]]
            heapify(ends)

    def _settle(self) -> None:
        """Makes the tops of both heaps right: drops what is gone, moves what changed sides."""
        for ends in (self._free_ends, self._held_ends):
            while ends:
                _, stamp, group = ends[0]
                if group.stamp != stamp:
                    heappop(ends)
                elif group.moved:
                    heappop(ends)
                    self._schedule(group)
                else:
                    break

    def _fill(self) -> None:
        """Finds the level: holds fast groups down while the link is full, then lets slow ones go.

        With F the caps of the free flows, h the number of held ones and C the capacity, the level
        is (C - F) / h. A free group is too fast if cap * h > C - F, which for h = 0 reads F > C; a
        held one is below the level if cap * h <= C - F. Letting a group go raises the level, so no
        free group becomes too fast again.
        """
        if not self._held_count:
            if self._level < math.inf:
                self._restart_volume()
            if self._free_units <= self._units:
                return
        free, held, now, volume = self._free, self._held, self._now, self._volume
        spare, count = self._units - self._free_units, self._held_count
        while (group := free.nearest()) is not None:
            if group.units * count <= spare:
                break
            free.pop()
            held.push(group)
            spare += group.units * group.count
            count += group.count
            group.served += group.cap * (now - group.mark)
            group.mark = volume
            group.held = group.moved = True
        while (group := held.nearest()) is not None:
            if group.units * count > spare:
                break
            held.pop()
            free.push(group)
            spare -= group.units * group.count
            count -= group.count
            group.served += volume - group.mark
            group.mark = now
            group.held, group.moved = False, True
        self._free_units, self._held_count = self._units - spare, count
        if count:
            self._level = spare / (count * int(_UNITS_PER_BPS))
        else:
            self._restart_volume()

    def _restart_volume(self) -> None:
        """Begins the volume anew while no group is held; ends in volumes become times."""
        self._level, self._volume = math.inf, 0.0
        ends, self._held_ends = self._held_ends, []
        for _, stamp, group in ends:
            if group.stamp == stamp:
                self._schedule(group)


def check_order(now: float, last: float, completion: float) -> None:
    """Checks that a link moves forward in time, and not past the end of a flow.

    Args:
        now: where it moves to.
        last: where it is.
        completion: when the next flow ends.

    Raises:
        SimulationError: it does not.
    """
    if now < last:
        raise SimulationError(f"a shared link at t={last} s cannot go back to t={now} s.")
    if completion < now - slack(now):
        raise SimulationError(
            f"a flow ended at t={completion} s; call pop_completed before moving to t={now} s."
        )


def slack(now: float) -> float:
    """Returns 256 units in the last place of `now`: what rounding can put between equal times."""
    return now * 2.0**-44
