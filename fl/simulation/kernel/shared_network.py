"""Links that flows in flight share, several on the way of each; it knows no clients and no events.

Rates are bits per second, sizes bits, times virtual seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from fl.errors import SimulationError
from fl.simulation.kernel.max_min import Demand, max_min
from fl.simulation.kernel.shared_link import check_flow
from fl.simulation.kernel.water_filling import check_order, slack

_SAME = 1e-9
"""Levels and loads that differ by less, relatively, are equal but for rounding."""


class _Flow:
    """A flow in flight.

    Attributes:
        left: bits that it had to carry at `since`.
        end: when it ends if its rate stays.
    """

    __slots__ = ("cap", "end", "left", "number", "rate", "route", "since", "weight")

    def __init__(
        self, number: int, route: Sequence[int], size: float, cap: float, weight: float, now: float
    ) -> None:
        self.number = number
        self.route = route
        self.left = size
        self.cap = cap
        self.weight = weight
        self.since = now
        self.rate = 0.0
        self.end = math.inf

    def left_at(self, now: float) -> float:
        """Returns the bits that it has to carry from a time on."""
        if math.isinf(self.rate):
            return 0.0
        return max(0.0, self.left - self.rate * (now - self.since))


class _Link:
    """A link that flows are on, in the order in which they came, and the sum of their rates."""

    __slots__ = ("capacity", "flows", "used")

    def __init__(self, capacity: float) -> None:
        self.flows: dict[int, _Flow] = {}
        self.used = 0.0
        self.capacity = capacity

    def full(self, used: float) -> bool:
        """Returns whether so much is all that it has, but for rounding."""
        return used >= self.capacity * (1 - _SAME)


class SharedNetwork:
    """Links shared by the flows in flight, weighted max-min fair, each flow with its own cap.

    A flow crosses the links of its route at one rate. Rates are those of `max_min` at every
    instant: a fluid model, in which they change at once when a flow comes, goes or gets another
    cap, or a link another capacity. With one link and equal weights this is `SharedLink`, of which
    the ends of flows differ by rounding, less than 1e-9 of the time that they take.

    The caller moves time forward, as with `SharedLink`: it asks `next_completion`, and at that time
    calls `pop_completed`.

    An allocation is the max-min fair one if and only if every flow is at its cap, or has a
    bottleneck: a full link on which nobody has a higher level. So a change asks for new rates of
    the flows on the links that it makes full or not full any more; if that takes the bottleneck
    from others, they are asked next, and so on. Who shares no bottleneck with anybody concerned is
    not looked at. The rates are found when they are needed, not at each of several calls at one
    instant.

    Args:
        capacity_bps: of each link, bit/s, positive, finite where a flow crosses it.
    """

    def __init__(self, capacity_bps: Sequence[float]) -> None:
        self._capacity = capacity_bps
        self._now = 0.0
        self._flows: dict[int, _Flow] = {}
        self._links: dict[int, _Link] = {}  # that were ever used
        self._ends: list[tuple[float, int]] = []  # (end, flow); stale if not what the flow says
        self._changed: dict[int, None] = {}  # links on which something has
        self._asked: dict[int, _Flow] = {}  # flows whose rate is not right, whatever their links

    def __len__(self) -> int:
        """Returns the number of flows in flight."""
        return len(self._flows)

    def crossed(self, link: int) -> bool:
        """Returns whether flows are on a link."""
        return link in self._links and bool(self._links[link].flows)

    def add(
        self,
        now: float,
        flow: int,
        size_bits: float,
        cap_bps: float,
        route: Sequence[int],
        weight: float = 1.0,
    ) -> None:
        """Starts a flow.

        Args:
            now: virtual time in s.
            flow: the caller's number for it, not in flight yet; ties are resolved in its order.
            size_bits: what it has to carry; 0 completes now.
            cap_bps: the most it can get, positive, may be infinite.
            route: links that it crosses, each once.
            weight: positive and finite.

        Raises:
            ConfigError: size or cap out of range.
            SimulationError: the flow is in flight already, or time is out of order.
        """
        check_flow(flow, size_bits, cap_bps)
        if flow in self._flows:
            raise SimulationError(f"flow {flow} is already in flight at t={now} s.")
        self._move(now)
        new = self._flows[flow] = _Flow(flow, route, size_bits, cap_bps, weight, now)
        for link in route:
            self._link(link).flows[flow] = new
            self._changed[link] = None
        self._asked[flow] = new

    def remove(self, now: float, flow: int) -> float:
        """Takes a flow off its links and returns the bits that it had still to carry.

        Raises:
            SimulationError: no such flow is in flight, or time is out of order.
        """
        known = self._known(now, flow)
        self._move(now)
        left = known.left_at(now)
        self._delete(known)
        return left

    def set_cap(self, now: float, flow: int, cap_bps: float) -> None:
        """Gives a flow another cap, for what is left of it.

        Raises:
            ConfigError: the cap is not positive.
            SimulationError: no such flow is in flight, or time is out of order.
        """
        check_flow(flow, 0.0, cap_bps)
        known = self._known(now, flow)
        self._move(now)
        if cap_bps != known.cap:
            known.cap = cap_bps
            self._asked[flow] = known
            self._changed.update(dict.fromkeys(known.route))

    def set_capacity(self, now: float, link: int, capacity_bps: float) -> None:
        """Gives a link another capacity, positive and finite."""
        self._move(now)
        found = self._link(link)
        if capacity_bps != found.capacity:
            was_full = found.full(found.used)
            found.capacity = capacity_bps
            self._changed[link] = None
            if was_full:
                self._asked.update(found.flows)

    def rate_bps(self, flow: int) -> float:
        """Returns the flow's rate since the last call, in bit/s.

        Raises:
            KeyError: no such flow is in flight.
        """
        self._solve()
        return self._flows[flow].rate

    def next_completion(self) -> float:
        """Returns the time in s at which the next flow ends if nothing changes; else infinity.

        Never before the time of the last call.
        """
        self._solve()
        ends = self._ends
        while ends:
            end, number = ends[0]
            flow = self._flows.get(number)
            if flow is not None and flow.end == end:
                return max(end, self._now)
            heappop(ends)
        return math.inf

    def pop_completed(self, now: float) -> list[int]:
        """Takes off the flows that have ended by `now`.

        Returns:
            Their numbers, in order of time, and at the same instant in order of flow number. Ends
            less than 2**-44 of `now` apart count as the same instant: that is rounding.
        """
        done: list[int] = []
        while (at := self.next_completion()) <= now + slack(now):
            self._now = max(self._now, min(at, now))
            batch: list[int] = []
            while self._ends and self._ends[0][0] <= at + slack(at):
                end, number = heappop(self._ends)
                flow = self._flows.get(number)
                if flow is not None and flow.end == end:
                    self._delete(flow)
                    batch.append(number)
            done += sorted(batch)
            if at >= now:
                return done  # rates are found when all that happens now has happened
        self._move(now)
        return done

    def _known(self, now: float, flow: int) -> _Flow:
        if flow not in self._flows:
            raise SimulationError(f"flow {flow} is not in flight at t={now} s.")
        return self._flows[flow]

    def _link(self, number: int) -> _Link:
        if number not in self._links:
            self._links[number] = _Link(self._capacity[number])
        return self._links[number]

    def _move(self, now: float) -> None:
        if now != self._now:
            check_order(now, self._now, self.next_completion())
            self._now = now

    def _delete(self, flow: _Flow) -> None:
        del self._flows[flow.number]
        self._asked.pop(flow.number, None)
        for number in flow.route:
            link = self._links[number]
            del link.flows[flow.number]
            if link.full(link.used):
                self._asked.update(link.flows)
            link.used = link.used - flow.rate if link.flows else 0.0

    # ---- rates -------------------------------------------------------------------------------

    def _solve(self) -> None:
        """Gives new rates to the flows that what has changed concerns."""
        if not (self._asked or self._changed):
            return
        asked = self._asked
        for number in self._changed:
            link = self._links[number]
            if link.full(link.used):
                asked.update(link.flows)
        while asked:
            rates, used, doubtful = self._rates(asked)
            more = self._upset(asked, rates, used, doubtful) if doubtful else {}
            if not more:
                self._give(asked, rates, used)
                break
            asked.update(more)
        self._asked, self._changed = {}, {}

    def _rates(
        self, asked: dict[int, _Flow]
    ) -> tuple[dict[int, float], dict[int, float], list[_Link]]:
        """Finds the max-min fair rates of flows while all others keep theirs.

        Returns:
            The rates; what is then used of the links that the flows are on; and of those links the
            ones that are, or were, the bottleneck of others as well.
        """
        before: dict[int, float] = {}  # of what is used, by the flows that are asked
        count: dict[int, int] = {}
        demands = []
        for flow in asked.values():
            demands.append(Demand(flow.route, flow.cap, flow.weight))
            for number in flow.route:
                before[number] = before.get(number, 0.0) + flow.rate
                count[number] = count.get(number, 0) + 1
        left, others = {}, {}
        for number, own in before.items():
            link = self._links[number]
            # Where all are asked, nothing is left of the rounding of what was.
            others[number] = link.used - own if count[number] < len(link.flows) else 0.0
            left[number] = max(0.0, link.capacity - others[number])
        found = max_min(demands, dict(left))
        used = others
        for demand, rate in zip(demands, found, strict=True):
            for number in demand.route:
                used[number] += rate
        doubtful = [
            link
            for number, load in used.items()
            if count[number] < len((link := self._links[number]).flows)
            if link.full(load) or link.full(link.used)
        ]
        return dict(zip(asked, found, strict=True)), used, doubtful

    def _upset(
        self,
        asked: dict[int, _Flow],
        rates: dict[int, float],
        used: dict[int, float],
        doubtful: list[_Link],
    ) -> dict[int, _Flow]:
        """Returns the flows, not among those asked, whose rates are not right beside the new ones.

        That is those that have lost their bottleneck, and those that take more than their share of
        a full link from a flow that has no other bottleneck.
        """
        levels: dict[int, float] = {}

        def level(flow: _Flow) -> float:
            return rates.get(flow.number, flow.rate) / flow.weight

        def settled(flow: _Flow) -> bool:
            own = level(flow)
            if own * flow.weight >= flow.cap * (1 - _SAME):
                return True
            for number in flow.route:
                link = self._links[number]
                if link.full(used.get(number, link.used)):
                    if number not in levels:
                        levels[number] = max(map(level, link.flows.values()))
                    if own >= levels[number] * (1 - _SAME):
                        return True
            return False

        upset: dict[int, _Flow] = {}
        for link in doubtful:
            for flow in link.flows.values():
                if settled(flow):
                    continue
                if flow.number not in asked:
                    upset[flow.number] = flow
                    continue
                own = level(flow)
                for other in link.flows.values():
                    if other.number not in asked and level(other) > own:
                        upset[other.number] = other
        return upset

    def _give(
        self, asked: dict[int, _Flow], rates: dict[int, float], used: dict[int, float]
    ) -> None:
        now, ends = self._now, self._ends
        many = 4 * len(asked) > len(self._flows)
        for flow, rate in zip(asked.values(), rates.values(), strict=True):
            if rate == flow.rate:
                continue
            flow.left = flow.left_at(now)
            flow.since, flow.rate = now, rate
            flow.end = now if math.isinf(rate) else now + flow.left / rate
            if not many:
                heappush(ends, (flow.end, flow.number))
        for number, load in used.items():
            self._links[number].used = load
        if many or len(ends) > 2 * len(self._flows) + 64:
            self._ends = [(flow.end, number) for number, flow in self._flows.items()]
            heapify(self._ends)
