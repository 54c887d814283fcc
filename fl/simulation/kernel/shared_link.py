"""The server's link as the transfers in flight see it; it knows neither clients nor events.

Rates are bits per second, sizes bits, times virtual seconds.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Protocol

from fl.errors import ConfigError, SimulationError
from fl.simulation.kernel.water_filling import WaterFilling, check_order, slack


class SharedLink:
    """One link shared by the flows in flight, max-min fair, each flow with its own cap.

    At every instant flow i gets rate_i = min(cap_i, level), and the level is such that the rates
    add up to the capacity; if the caps add up to less, every flow gets its cap ("water filling",
    Bertsekas and Gallager, Data Networks, section 6.5.2). A fluid model: rates change at once when
    a flow comes, goes or gets another cap.

    The caller moves time forward: it asks `next_completion`, and at that time calls
    `pop_completed`. Calls must come in order of time, and no call may pass over a completion.

    With infinite capacity each flow runs at its own cap and ends exactly at start + size / cap;
    a flow whose cap is infinite too ends at once.

    Cost: flows of equal cap form one group, whatever their number. A call costs O(log n), the shift
    of a list of n pointers, and some additions for every group whose cap the level passes: about
    one group where caps are spread out, many where they crowd around the level without being
    equal. Calls at one instant pay for the level's way from the first state to the last.

    Args:
        capacity_bps: bit/s, positive, may be infinite.

    Raises:
        ConfigError: the capacity is not positive.
    """

    def __init__(self, capacity_bps: float) -> None:
        if not capacity_bps > 0:
            raise ConfigError(
                f"capacity_bps is {capacity_bps}; a shared link needs a positive capacity, or .inf "
                "for one that is never the bottleneck."
            )
        self.capacity_bps = float(capacity_bps)
        self._flows: _Sharing = (
            _Unlimited() if math.isinf(capacity_bps) else WaterFilling(self.capacity_bps)
        )

    def __len__(self) -> int:
        """Returns the number of flows in flight."""
        return len(self._flows)

    def add(self, now: float, flow: int, size_bits: float, cap_bps: float) -> None:
        """Starts a flow.

        Args:
            now: virtual time in s.
            flow: the caller's number for it, not in flight yet; ties are resolved in its order.
            size_bits: what it has to carry; 0 completes now.
            cap_bps: the most it can get, positive, may be infinite.

        Raises:
            ConfigError: size or cap out of range.
            SimulationError: the flow is in flight already, or time is out of order.
        """
        check_flow(flow, size_bits, cap_bps)
        if flow in self._flows:
            raise SimulationError(f"flow {flow} is already in flight at t={now} s.")
        self._flows.add(now, flow, size_bits, cap_bps)

    def remove(self, now: float, flow: int) -> float:
        """Takes a flow off the link and returns the bits that it had still to carry.

        Raises:
            SimulationError: no such flow is in flight, or time is out of order.
        """
        self._check_known(now, flow)
        return self._flows.remove(now, flow)

    def set_cap(self, now: float, flow: int, cap_bps: float) -> None:
        """Gives a flow another cap, for what is left of it.

        Raises:
            ConfigError: the cap is not positive.
            SimulationError: no such flow is in flight, or time is out of order.
        """
        check_flow(flow, 0.0, cap_bps)
        self._check_known(now, flow)
        self._flows.set_cap(now, flow, cap_bps)

    def rate_bps(self, flow: int) -> float:
        """Returns the flow's rate since the last call, in bit/s.

        Raises:
            KeyError: no such flow is in flight.
        """
        return self._flows.rate_bps(flow)

    def next_completion(self) -> float:
        """Returns the time in s at which the next flow ends if none comes or goes; else infinity.

        Never before the time of the last call.
        """
        return self._flows.next_completion()

    def pop_completed(self, now: float) -> list[int]:
        """Takes off the flows that have ended by `now`.

        Returns:
            Their numbers, in order of time, and at the same instant in order of flow number. Ends
            less than 2**-44 of `now` apart count as the same instant: that is rounding.
        """
        return self._flows.pop_completed(now)

    def _check_known(self, now: float, flow: int) -> None:
        if flow not in self._flows:
            raise SimulationError(f"flow {flow} is not in flight at t={now} s.")


def check_flow(flow: int, size_bits: float, cap_bps: float) -> None:
    """Checks what a flow has to carry, and its cap.

    Raises:
        ConfigError: the size is not finite or negative, or the cap is not positive.
    """
    if not (size_bits >= 0 and math.isfinite(size_bits)):
        raise ConfigError(
            f"flow {flow} has size_bits {size_bits}; it must be finite and at least 0."
        )
    if not cap_bps > 0:
        raise ConfigError(
            f"flow {flow} has cap_bps {cap_bps}; a flow needs a positive rate, or .inf for no cap."
        )


class _Sharing(Protocol):
    """What `SharedLink` asks of its two implementations."""

    def __len__(self) -> int: ...
    def __contains__(self, flow: int) -> bool: ...
    def add(self, now: float, flow: int, size: float, cap: float) -> None: ...
    def remove(self, now: float, flow: int) -> float: ...
    def set_cap(self, now: float, flow: int, cap: float) -> None: ...
    def rate_bps(self, flow: int) -> float: ...
    def next_completion(self) -> float: ...
    def pop_completed(self, now: float) -> list[int]: ...


class _Unlimited:
    """Flows on a link without limit: each at its own cap, one heap of end times."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[int, tuple[float, float]] = {}  # flow -> (end, cap)
        self._heap: list[tuple[float, int]] = []  # (end, flow); stale if not what _ends says

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, flow: int) -> bool:
        return flow in self._ends

    def add(self, now: float, flow: int, size: float, cap: float) -> None:
        self._move(now)
        self._insert(now, flow, size, cap)

    def remove(self, now: float, flow: int) -> float:
        self._move(now)
        return self._delete(now, flow)

    def set_cap(self, now: float, flow: int, cap: float) -> None:
        self._move(now)
        if cap != self._ends[flow][1]:
            self._insert(now, flow, self._delete(now, flow), cap)

    def rate_bps(self, flow: int) -> float:
        return self._ends[flow][1]

    def next_completion(self) -> float:
        heap, ends = self._heap, self._ends
        while heap:
            end, flow = heap[0]
            entry = ends.get(flow)
            if entry is not None and entry[0] == end:
                return max(end, self._now)
            heappop(heap)
        return math.inf

    def pop_completed(self, now: float) -> list[int]:
        done: list[int] = []
        while (at := self.next_completion()) <= now + slack(now):
            batch: list[int] = []
            while self.next_completion() <= at + slack(at):
                flow = heappop(self._heap)[1]
                del self._ends[flow]
                batch.append(flow)
            batch.sort()
            done += batch
        self._move(now)
        return done

    def _move(self, now: float) -> None:
        check_order(now, self._now, self.next_completion())
        self._now = now

    def _insert(self, now: float, flow: int, size: float, cap: float) -> None:
        end = now + size / cap
        self._ends[flow] = (end, cap)
        heappush(self._heap, (end, flow))
        if len(self._heap) > 2 * len(self._ends) + 64:
            self._heap = [(end, flow) for flow, (end, _) in self._ends.items()]
            heapify(self._heap)

    def _delete(self, now: float, flow: int) -> float:
        end, cap = self._ends.pop(flow)
        return (end - now) * cap if end > now else 0.0
