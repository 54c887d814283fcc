"""Where transfers begin, share what they cross, and arrive."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.shared_link import SharedLink

Ramp = Callable[[Dispatch, int, float], float]
"""From a dispatch, the bytes of its transfer, and the most that it gets, to the seconds that the
transfer takes longer because it begins slowly."""


class Shared(Protocol):
    """What transfers share, as a port sees it; see `SharedLink`."""

    def remove(self, now: float, flow: int) -> float:
        """Takes a flow off; returns the bits that it had still to carry."""

    def set_cap(self, now: float, flow: int, cap_bps: float) -> None:
        """Gives a flow another cap."""

    def next_completion(self) -> float:
        """Returns when the next flow ends, s."""

    def pop_completed(self, now: float) -> list[int]:
        """Takes off the flows that have ended, and returns them in order."""


class Port(ABC):
    """Transfers in flight, and the alarm for the next that ends.

    Args:
        shared: what they share.
        queue: of the engine.
        arrived: called with each dispatch whose transfer has ended.
        ramp: how slowly transfers begin; None begins at full rate.

    Attributes:
        armed: when the alarm is, s; infinity without.
    """

    def __init__(
        self,
        shared: Shared,
        queue: EventQueue,
        arrived: Callable[[Dispatch], None],
        ramp: Ramp | None = None,
    ) -> None:
        self._shared = shared
        self._queue = queue
        self._arrived = arrived
        self._ramp = ramp
        self._ramping: set[int] = set()  # flows that wait to begin
        self._dispatches: dict[int, Dispatch] = {}
        self._caps: dict[int, dict[int, float]] = {}  # `_end` -> {flow: cap of its link}
        self.armed = math.inf

    def start(self, flow: int, dispatch: Dispatch, size: int, cap_bps: float) -> None:
        """Starts a transfer of `size` bytes, at most as fast as the client's own link."""
        wait = 0.0 if self._ramp is None else self._ramp(dispatch, size, cap_bps)
        if wait > 0.0:
            self._ramping.add(flow)
            time = self._queue.now + wait
            self._queue.schedule(
                time, Priority.PROGRESS, self._ramped, (flow, dispatch, size, cap_bps)
            )
        else:
            self._begin(flow, dispatch, size, cap_bps)

    def _ramped(self, transfer: tuple[int, Dispatch, int, float]) -> None:
        if transfer[0] in self._ramping:
            self._ramping.remove(transfer[0])
            self._begin(*transfer)

    def _begin(self, flow: int, dispatch: Dispatch, size: int, cap_bps: float) -> None:
        self._dispatches[flow] = dispatch
        flows = self._caps.setdefault(self._end(dispatch), {})
        flows[flow] = cap_bps
        self._add(flow, dispatch, 8.0 * size, cap_bps / len(flows))
        if len(flows) > 1:
            self._share(flows)
        self._arm()

    @abstractmethod
    def _end(self, dispatch: Dispatch) -> int:
        """Returns a number of the link that a transfer shares with others of its client alone."""

    @abstractmethod
    def _add(self, flow: int, dispatch: Dispatch, size_bits: float, cap_bps: float) -> None:
        """Starts a flow."""

    def abort(self, flow: int) -> float:
        """Ends a transfer that does not arrive; returns the bits that it had still to carry.

        They are infinitely many where it has not begun, as its size is not known here.
        """
        if flow in self._ramping:
            self._ramping.remove(flow)
            return math.inf
        dispatch = self._dispatches.pop(flow)
        left = self._shared.remove(self._queue.now, flow)
        self._leave({flow: dispatch})
        self._arm()
        return left

    def _leave(self, gone: dict[int, Dispatch]) -> None:
        """Gives what flows that left the link had of their clients' own links to the others."""
        left: dict[int, dict[int, float]] = {}
        for flow, dispatch in gone.items():
            end = self._end(dispatch)
            flows = self._caps[end]
            del flows[flow]
            if flows:
                left[end] = flows
            else:
                del self._caps[end]
        for flows in left.values():
            self._share(flows)

    def _share(self, flows: dict[int, float]) -> None:
        for flow, cap in flows.items():
            self._shared.set_cap(self._queue.now, flow, cap / len(flows))

    def _arm(self) -> None:
        # An alarm that turns out too early finds nothing completed and is set anew; one that is
        # overtaken by an earlier alarm is ignored. So each change pushes at most one event.
        time = self._shared.next_completion()
        if time < self.armed:
            self.armed = time
            self._queue.schedule(time, Priority.PROGRESS, self._alarm, time)

    def _alarm(self, time: float) -> None:
        if time != self.armed:
            return
        self.armed = math.inf
        done = {
            flow: self._dispatches.pop(flow) for flow in self._shared.pop_completed(self._queue.now)
        }
        self._leave(done)
        for dispatch in done.values():
            self._arrived(dispatch)
        self._arm()


class LinkPort(Port):
    """One direction of the server's link.

    Args:
        capacity_bps: of the link, bit/s.
        queue: of the engine.
        arrived: called with each dispatch whose transfer has ended.
        ramp: how slowly transfers begin; None begins at full rate.
    """

    def __init__(
        self,
        capacity_bps: float,
        queue: EventQueue,
        arrived: Callable[[Dispatch], None],
        ramp: Ramp | None = None,
    ) -> None:
        self._link = SharedLink(capacity_bps)
        super().__init__(self._link, queue, arrived, ramp)

    def _end(self, dispatch: Dispatch) -> int:
        return dispatch.client

    def _add(self, flow: int, dispatch: Dispatch, size_bits: float, cap_bps: float) -> None:
        self._link.add(self._queue.now, flow, size_bits, cap_bps)
