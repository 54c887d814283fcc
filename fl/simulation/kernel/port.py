"""One direction of the server's link: transfers begin, share it, and arrive."""

from __future__ import annotations

import math
from collections.abc import Callable

from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.shared_link import SharedLink


class Port:
    """One direction of the server's link, with the transfers in flight on it.

    Args:
        capacity_bps: of the link, bit/s.
        queue: of the engine.
        arrived: called with each dispatch whose transfer has ended.
    """

    def __init__(
        self, capacity_bps: float, queue: EventQueue, arrived: Callable[[Dispatch], None]
    ) -> None:
        self._link = SharedLink(capacity_bps)
        self._queue = queue
        self._arrived = arrived
        self._dispatches: dict[int, Dispatch] = {}
        self._caps: dict[int, dict[int, float]] = {}  # client -> {flow: cap of its own link}
        self._armed = math.inf

    def start(self, flow: int, dispatch: Dispatch, size: int, cap_bps: float) -> None:
        """Starts a transfer of `size` bytes, at most as fast as the client's own link."""
        self._dispatches[flow] = dispatch
        flows = self._caps.setdefault(dispatch.client, {})
        flows[flow] = cap_bps
        self._link.add(self._queue.now, flow, 8.0 * size, cap_bps / len(flows))
        if len(flows) > 1:
            self._share(flows)
        self._arm()

    def abort(self, flow: int) -> None:
        """Ends a transfer that does not arrive."""
        dispatch = self._dispatches.pop(flow)
        self._link.remove(self._queue.now, flow)
        self._leave({flow: dispatch})
        self._arm()

    def _leave(self, gone: dict[int, Dispatch]) -> None:
        """Gives what flows that left the link had of their clients' own links to the others."""
        left: dict[int, dict[int, float]] = {}
        for flow, dispatch in gone.items():
            flows = self._caps[dispatch.client]
            del flows[flow]
            if flows:
                left[dispatch.client] = flows
            else:
                del self._caps[dispatch.client]
        for flows in left.values():
            self._share(flows)

    def _share(self, flows: dict[int, float]) -> None:
        for flow, cap in flows.items():
            self._link.set_cap(self._queue.now, flow, cap / len(flows))

    def _arm(self) -> None:
        # An alarm that turns out too early finds nothing completed and is set anew; one that is
        # overtaken by an earlier alarm is ignored. So each change pushes at most one event.
        time = self._link.next_completion()
        if time < self._armed:
            self._armed = time
            self._queue.schedule(time, Priority.PROGRESS, self._alarm, time)

    def _alarm(self, time: float) -> None:
        if time != self._armed:
            return
        self._armed = math.inf
        done = {
            flow: self._dispatches.pop(flow) for flow in self._link.pop_completed(self._queue.now)
        }
        self._leave(done)
        for dispatch in done.values():
            self._arrived(dispatch)
        self._arm()
