"""Processes of aggregators on a hierarchy's machines: which is cold, warm, kept, or gone."""

from __future__ import annotations

import math

from fl.simulation.kernel.events import EventQueue
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.hierarchies.hierarchy import Hierarchy


class AggregatorProcess:
    """An aggregator's process.

    Attributes:
        machine: where it is.
        role: for which it was started: leaf, middle or top.
        born_s: when that was.
        ready_s: when it can work.
        free_s: since when it has nothing to do; it may be in the future, of one that starts.
        held: whether it has a part of a round.
        pinned: whether it is kept for the round that is open, however long it is idle.
    """

    __slots__ = ("born_s", "free_s", "held", "machine", "pinned", "ready_s", "role")

    def __init__(self, machine: int, role: str, born_s: float, ready_s: float) -> None:
        self.machine = machine
        self.role = role
        self.born_s = born_s
        self.ready_s = self.free_s = ready_s
        self.held = self.pinned = False


class AggregatorProcesses:
    """Those of all machines, the cloud's as the last.

    Args:
        hierarchy: of aggregators.
        queue: of the engine.
        trace: where starts are recorded.

    Attributes:
        cold_starts, warm_starts: how many there were.
        busy_s: seconds that processes have worked or started, all together.
    """

    def __init__(self, hierarchy: Hierarchy, queue: EventQueue, trace: Trace) -> None:
        self.cold_starts = self.warm_starts = 0
        self.busy_s = 0.0
        self._hierarchy = hierarchy
        self._queue = queue
        self._trace = trace
        self._mean_updates: list[float | None] = [None] * hierarchy.machines
        machines = hierarchy.machines + hierarchy.has_cloud
        self._pool: list[list[AggregatorProcess]] = [[] for _ in range(machines)]
        self._gone_alive_s = 0.0  # of processes that are no more
        self._on: list[list[tuple[float, float]]] = [[] for _ in range(machines)]
        if hierarchy.always_on:
            for machine, pool in enumerate(self._pool):
                pool.append(AggregatorProcess(machine, "leaf", 0.0, 0.0))

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return len(self._pool)

    # ---- a part's process ------------------------------------------------------------------------

    def take(self, machine: int, role: str) -> AggregatorProcess:
        """Returns a process for a part of a round: one that is idle, or else a new one."""
        now, profile = self._queue.now, self._hierarchy.machine
        idle = self._idle(machine, role)
        if idle:
            process = idle[0]
            if not self._hierarchy.always_on:
                self.warm_starts += 1
                process.ready_s = max(process.ready_s, now + profile.warm_s)
        else:
            process = self._started(machine, role)
        process.held = True
        return process

    def release(self, process: AggregatorProcess) -> None:
        """Notes that a process has nothing to do from now on."""
        process.held = False
        process.free_s = self._queue.now

    def bury(self, process: AggregatorProcess, end_s: float) -> None:
        """Notes that a process has ended."""
        self._pool[process.machine].remove(process)
        self._gone_alive_s += end_s - process.born_s
        self._on[process.machine].append((process.born_s, end_s))

    def _expires_s(self, process: AggregatorProcess) -> float:
        if process.held or process.pinned or self._hierarchy.always_on:
            return math.inf
        return process.free_s + self._hierarchy.machine.keep_alive_s

    def _idle(self, machine: int, role: str) -> list[AggregatorProcess]:
        """Returns processes that could take a part, the soonest first; forgets those that ended."""
        now, hierarchy, pool = self._queue.now, self._hierarchy, self._pool[machine]
        for process in [p for p in pool if self._expires_s(p) < now]:
            self.bury(process, self._expires_s(process))
        anything = hierarchy.reuse or hierarchy.always_on
        idle = [p for p in pool if not p.held and (anything or p.role == role)]
        return sorted(idle, key=lambda p: max(p.ready_s, now))

    def _started(self, machine: int, role: str) -> AggregatorProcess:
        now, cold_s = self._queue.now, self._hierarchy.machine.cold_s
        process = AggregatorProcess(machine, role, now, now + cold_s)
        self._pool[machine].append(process)
        self.cold_starts += 1
        self.busy_s += cold_s
        self._trace.record(now, Event.AGGREGATOR_START, dispatch=machine, value=cold_s)
        return process

    # ---- before a round --------------------------------------------------------------------------

    def plan(self, last_top: int) -> None:
        """Has as many leaves as expected, and what is above them, started now.

        Args:
            last_top: the machine on which the sums of the last round came together.
        """
        fan_in = self._hierarchy.fan_in
        expected = [mean or 0.0 for mean in self._mean_updates]
        for machine, mean in enumerate(expected):
            leaves = math.ceil(mean / fan_in) if fan_in else min(1, math.ceil(mean))
            wanted = {"leaf": leaves}
            if not self._hierarchy.reuse:
                several = sum(m > 0 for m in expected) > 1
                wanted["middle"] = int(leaves > 1)
                wanted["top"] = int(several and machine == last_top)
            for role, number in wanted.items():
                idle = self._idle(machine, role)[:number]
                idle += [self._started(machine, role) for _ in range(number - len(idle))]
                for process in idle:
                    process.pinned = True

    def learn(self, machine: int, updates: int) -> None:
        """Notes how many updates a machine had in a round."""
        a, mean = self._hierarchy.smoothing, self._mean_updates[machine]
        self._mean_updates[machine] = updates if mean is None else a * mean + (1 - a) * updates

    def unpin(self) -> None:
        """Keeps nobody any more for the round that was planned."""
        for process in (process for pool in self._pool for process in pool):
            if process.pinned and not process.held:
                process.free_s = max(process.free_s, self._queue.now)
            process.pinned = False

    # ---- what they have cost ---------------------------------------------------------------------

    def _until(self, process: AggregatorProcess) -> float:
        return max(process.born_s, min(self._queue.now, self._expires_s(process)))

    @property
    def alive_s(self) -> float:
        """Seconds that processes have been alive so far, all together."""
        alive = (self._until(p) - p.born_s for pool in self._pool for p in pool)
        return self._gone_alive_s + sum(alive)

    @property
    def on_s(self) -> float:
        """Seconds that machines have had a process on them, all together."""
        total = 0.0
        for machine, intervals in enumerate(self._on):
            alive = [(p.born_s, self._until(p)) for p in self._pool[machine]]
            end = -math.inf
            for begins, ends in sorted([*intervals, *alive]):
                total += max(0.0, ends - max(begins, end))
                end = max(end, ends)
        return total
