"""The charge of the clients' batteries, and who is there because of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.availability import Availability
from fl.simulation.world.battery import Battery
from fl.simulation.world.fleet import Fleet

_LEAST = 1e-9  # of charge: nearer than this to a level is at it
_MOST_CHANGES = 64  # of plugs that are looked ahead for when a client becomes low, or is so no more


class Charges:
    """An availability: clients that the fleet's has there, and whose battery is not low.

    Other than that of a fleet it has a state, which goes forward with virtual time: it knows the
    present, and what comes if loads stay as they are. Whoever waits for a change that it has
    foretold looks again when the time has come.

    A client that is found low, or no longer so, is recorded: at the very time if it has a message,
    else when somebody next asks who is there.

    Args:
        fleet: with its availability.
        battery: of its clients.
        trace: where it is recorded.
        now: returns virtual time in s.

    Attributes:
        ever: which clients have ever been found not to be low, shape (n,).
    """

    def __init__(
        self, fleet: Fleet, battery: Battery, trace: Trace, now: Callable[[], float]
    ) -> None:
        n = len(fleet)
        self._around: Availability = fleet.availability
        self._battery = battery
        self._trace = trace
        self._now = now
        self._capacity = battery.capacities(fleet.devices)
        self._mains = ~np.isfinite(self._capacity)
        self._charge = np.where(self._mains, 1.0, battery.first_charges(fleet.seed, n))
        self._since = np.where(self._mains, math.inf, 0.0)
        self._load = np.full(n, float(battery.other_w))
        plugged = battery.plugged
        self._plugged = plugged.online(0.0).copy()
        self._until = np.array([plugged.next_change(client, 0.0) for client in range(n)])
        self._low = ~self._mains & (self._charge <= battery.threshold + _LEAST)
        self.ever = ~self._low
        self._recorded = np.zeros(n, np.bool_)  # low, by the trace
        self._note(np.flatnonzero(self._low))

    # ---- who is there ----------------------------------------------------------------------------

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is there and not low at time t, which is the present, shape (n,)."""
        self._advance(np.arange(len(self._charge)))
        return self._around.online(t) & ~self._low

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether a client is there and not low at t; of the future, as far as foreseen."""
        self._advance(np.array([client]))
        low = bool(self._low[client])
        if t > self._now() and self.next_flip(client) <= t:
            low = not low
        return not low and self._around.is_online(client, t)

    def next_change(self, client: int, t: float) -> float:
        """Returns when it is worth while to look at the client again, s: not sooner than a change.

        Args:
            client: which.
            t: the present, s, or a time about which the fleet's availability is asked.
        """
        self._advance(np.array([client]))
        flip = self.next_flip(client)
        if self._low[client]:
            return flip
        change = self._around.next_change(client, t)
        return min(change, flip) if self._around.is_online(client, t) else change

    def next_flip(self, client: int) -> float:
        """Returns when a client becomes low, or is no longer so, if loads stay as they are, s."""
        battery = self._battery
        never = self._low[client] and battery.most <= battery.resume - _LEAST
        if self._mains[client] or never:
            return math.inf
        charge, time = float(self._charge[client]), float(self._since[client])
        load, capacity = float(self._load[client]), float(self._capacity[client])
        plugged, until = bool(self._plugged[client]), float(self._until[client])
        level = battery.resume if self._low[client] else battery.threshold
        for _ in range(_MOST_CHANGES):
            end = time + battery.seconds_until(charge, level, load, capacity, plugged)
            if end <= until:
                return end
            if math.isinf(until):
                break
            charge = float(
                battery.after(
                    np.array([charge]),
                    np.array([until - time]),
                    np.array([load]),
                    np.array([capacity]),
                    np.array([plugged]),
                )[0]
            )
            time = until
            plugged = battery.plugged.is_online(client, time)
            until = battery.plugged.next_change(client, time)
        return until  # infinity, or a time at which to look again

    def charge_of(self, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the charge of clients now, in [0, 1], shape (n,); 1 on the mains."""
        self._advance(clients)
        return self._charge[clients]

    def report(self) -> dict[str, float]:
        """Returns facts for the run's summary: the charges at the end, and who is low."""
        who = np.flatnonzero(~self._mains)
        charge = self.charge_of(who)
        if not len(who):
            return {"batteries": 0}
        return {
            "batteries": len(who),
            "mean_charge": float(charge.mean()),
            "least_charge": float(charge.min()),
            "low": int(self._low[who].sum()),
        }

    # ---- what changes it -------------------------------------------------------------------------

    def add_load(self, client: int, watts: float) -> None:
        """Has a client draw so much more from now on, W."""
        self._advance(np.array([client]))
        self._load[client] += watts

    def spend(self, client: int, joules: float) -> None:
        """Takes so much out of a client's battery, J, at once."""
        who = np.array([client])
        self._advance(who)
        charge = self._charge[client] - joules / self._capacity[client]
        self._charge[client] = min(max(charge, 0.0), 1.0)
        self._judge(who)
        self._note(who)

    def _advance(self, who: NDArray[np.int64]) -> None:
        """Brings clients to the present."""
        now = self._now()
        late = who[self._since[who] < now]
        while len(late):
            end = np.minimum(now, self._until[late])
            self._charge[late] = self._battery.after(
                self._charge[late],
                end - self._since[late],
                self._load[late],
                self._capacity[late],
                self._plugged[late],
            )
            self._since[late] = end
            self._judge(late)
            for client in late[self._until[late] <= end].tolist():
                time = self._until.item(client)
                self._plugged[client] = self._battery.plugged.is_online(client, time)
                self._until[client] = self._battery.plugged.next_change(client, time)
            late = late[self._since[late] < now]
        self._note(who)

    def _judge(self, who: NDArray[np.int64]) -> None:
        """Says who is low: within a step, charges only rise or only fall."""
        charge, low = self._charge[who], self._low[who]
        falls = charge <= self._battery.threshold + _LEAST
        rises = charge >= self._battery.resume - _LEAST
        self._low[who] = ~self._mains[who] & ((low & ~rises) | falls)
        self.ever[who] |= ~self._low[who]

    def _note(self, who: NDArray[np.int64]) -> None:
        """Records what is new of clients."""
        for client in who[self._low[who] != self._recorded[who]].tolist():
            low = bool(self._low[client])
            self._recorded[client] = low
            kind = Event.BATTERY_LOW if low else Event.BATTERY_RESUMED
            self._trace.record(self._now(), kind, client, value=self._charge.item(client))
