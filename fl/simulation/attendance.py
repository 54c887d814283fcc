"""Who is there, and whether an app that asks again and again waits for somebody who may come."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fl.errors import SimulationError
from fl.flower.identity import FIRST_NODE_ID
from fl.simulation.kernel.charges import Charges
from fl.simulation.world.availability import Availability
from fl.simulation.world.fleet import Fleet

_SAME_POLLS = 3  # so many equal polls in a row mean that the app is waiting for time to pass
_MANY_POLLS = 1000  # after so many, somebody asks whether what the app waits for can happen
_LONG_WAIT_S = 7 * 86400.0  # longer than the period of any behaviour that repeats itself daily


class Attendance:
    """Answers who is available, and lets time pass for an app that polls.

    Args:
        fleet: the clients.
        now: returns virtual time in s.
        charges: of their batteries; None without any.

    Attributes:
        seen: what the ServerApp's thread was told last; None before it has asked.
    """

    lasting = ("_since", "_last", "_total", "_same")

    def __init__(
        self, fleet: Fleet, now: Callable[[], float], charges: Charges | None = None
    ) -> None:
        self.seen: list[int] | None = None
        self._fleet = fleet
        self._now = now
        self._charges = charges
        self._presence: Availability = fleet.availability if charges is None else charges
        self._all: list[int] | None = None
        self.reset()

    def reset(self) -> None:
        """Notes that the app has sent or pulled something: it did not only ask."""
        self._since = 0.0  # virtual time of the first poll since
        self._last = -1.0  # virtual time of the latest
        self._total = 0
        self._same = 0  # polls in a row at the time of the latest

    def nodes(self) -> list[int]:
        """Returns the ids of the clients that are available now, in ascending order."""
        online = self._presence.online(self._now())
        if online.all():
            if self._all is None:
                self._all = list(range(FIRST_NODE_ID, FIRST_NODE_ID + len(self._fleet)))
            return self._all
        there: list[int] = (online.nonzero()[0] + FIRST_NODE_ID).tolist()
        return there

    def were_there(self) -> NDArray[np.bool_]:
        """Returns which clients were available at some time so far, shape (n,)."""
        availability, now = self._fleet.availability, self._now()
        found = availability.online(0.0).copy()
        for client in np.flatnonzero(~found).tolist():
            found[client] = availability.next_change(client, 0.0) <= now
        return found if self._charges is None else found & self._charges.ever

    def poll(self, step: Callable[[float], bool]) -> list[int]:
        """Returns `nodes` to the ServerApp, after time has passed if it only waits for that.

        It is the same list where nobody has come or gone: not to be changed.

        Args:
            step: runs the next instant, not later than a given time.

        Raises:
            SimulationError: the app waits for clients that will never come.
        """
        nodes = self.nodes()
        now = self._now()
        if self._total == 0:
            self._since = now
        self._total += 1
        self._same = self._same + 1 if self._last == now else 1
        if self._total % _MANY_POLLS == 0:
            self._check_wait(len(nodes))
        if self._same > _SAME_POLLS and len(nodes) < len(self._fleet):
            step(self._next_arrival())
            nodes, self._same = self.nodes(), 1
        self._last = self._now()
        self.seen = nodes
        return nodes

    def _next_arrival(self) -> float:
        """Returns the time at which the next of the unavailable clients comes."""
        availability, now = self._presence, self._now()
        away = (~availability.online(now)).nonzero()[0]
        return min((availability.next_change(int(i), now) for i in away), default=math.inf)

    def _check_wait(self, available: int) -> None:
        waited = self._now() - self._since
        hopeless = math.isinf(self._next_arrival())
        if hopeless or waited > _LONG_WAIT_S:
            batteries = "" if self._charges is None else ", and whose batteries fill (battery)"
            raise SimulationError(
                f"the ServerApp has asked {self._total} times in a row which clients are "
                f"available, for {waited:g} s of virtual time: {available} of {len(self._fleet)} "
                f"are{', and no other will ever come' if hopeless else ''}. Ask for fewer "
                "(which a strategy has of min_available_nodes, min_train_nodes, "
                "min_evaluate_nodes, workers, fewest), or use a larger fleet, or one whose "
                f"clients are there (fleet/availability){batteries}"
            )
