"""Sums of a round's updates on a hierarchy: which aggregator adds what, when, and at what cost.

The strategy says when a round begins, which replies count, and when no more come. Aggregators add
them up meanwhile, as events of the queue: nothing here knows what will come. The numbers themselves
are added by the strategy, in the order that it is told (`fl.vectors.sum_tree`).

A sum travels as n_i x_i and n_i: as many bytes as a vector, four for each number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Message

from fl.errors import SimulationError
from fl.flower.grid_view import Summed
from fl.flower.identity import client_of
from fl.flower.payload import payload_bytes
from fl.randomness import uniform
from fl.simulation.aggregators import AggregatorProcess, AggregatorProcesses
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies.hierarchy import Hierarchy
from fl.vectors.sum_tree import SumTree, leaves_of

_NUMBER_BYTES = 4


class _Part:
    """What one aggregator adds up.

    Attributes:
        role: leaf, middle or top.
        machine: where it is.
        process: that has it; None before it is known which.
        tree: what has been added, in this order.
        adds: vectors that had to be added; one that began with a sum of its own has one less.
        end_s: when all of them are added; of a lazy one, when the last has come.
    """

    __slots__ = ("adds", "end_s", "machine", "process", "role", "tree")

    def __init__(self, role: str, machine: int, process: AggregatorProcess) -> None:
        self.role = role
        self.machine = machine
        self.process = process
        self.tree: list[SumTree] = []
        self.adds = 0
        self.end_s = process.ready_s


class _OfMachine:
    """A machine's share of a round.

    Attributes:
        updates: that went to it.
        leaves: that it has, or had.
        open: the leaf that still takes updates.
        alone: the first leaf, done, while there is no other.
        middle: adds up the leaves.
        came: sums of leaves that the middle has, or that will never come.
    """

    __slots__ = ("alone", "came", "leaves", "middle", "open", "updates")

    def __init__(self) -> None:
        self.updates = self.leaves = self.came = 0
        self.open: _Part | None = None
        self.alone: _Part | None = None
        self.middle: _Part | None = None


class _OpenRound:
    """An open round.

    Attributes:
        number: from 0.
        size: bytes of a sum.
        machines: their shares.
        closed: whether no more updates come.
        whole: whether the machines' sums become one.
        top: adds those up.
        came: sums of machines that are there, or that will never come.
        sums: trees of machines, of a round that ends there.
        lost: messages whose updates are lost.
        parts: aggregators that have died, or done their part; names their draws.
        result: what has come of it.
    """

    def __init__(self, number: int, size: int, machines: int) -> None:
        self.number = number
        self.size = size
        self.machines = [_OfMachine() for _ in range(machines)]
        self.closed = False
        self.whole = True
        self.top: _Part | None = None
        self.came = 0
        self.sums: list[SumTree] = []
        self.lost: list[str] = []
        self.parts = 0
        self.result: Summed | None = None

    @property
    def used(self) -> int:
        """How many machines have updates."""
        return sum(machine.updates > 0 for machine in self.machines)


class SimSummation:
    """Has rounds' updates added up on a hierarchy; `fl.flower.grid_view.Summation`.

    Args:
        hierarchy: of aggregators.
        fleet: the clients, with the server's own link.
        queue: of the engine.
        trace: where starts, failures and transfers are recorded.
        step: runs the next instant; False when there is none.
        advance: moves virtual time on to so many s.

    Attributes:
        bytes_between: payload bytes that crossed links between machines, both ways.
        bytes_within: bytes of sums that aggregators of one machine handed on.
        processes: of aggregators.
        failures: aggregators that died.
        lost: updates that were lost with them.
        moving_s: processor seconds of encoding, decoding and copying.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        fleet: Fleet,
        queue: EventQueue,
        trace: Trace,
        step: Callable[[float], bool],
        advance: Callable[[float], None],
    ) -> None:
        self.hierarchy = hierarchy
        self.may_lose = hierarchy.failure > 0 and hierarchy.on_failure == "lost"
        self.bytes_between = self.bytes_within = 0
        self.failures = self.lost = 0
        self.moving_s = 0.0
        self.processes = AggregatorProcesses(hierarchy, queue, trace)
        self._fleet = fleet
        self._queue = queue
        self._trace = trace
        self._step = step
        self._advance = advance
        self._sizes: dict[str, int] = {}  # of the replies that were pulled last
        self._round: _OpenRound | None = None
        self._rounds = 0
        self._used = 0  # machines of all rounds
        self._completion_s = 0.0  # of all rounds, from the end of a round to its sum
        self._nic_free_s = 0.0  # of the top's machine
        self._last_top = 0
        self._at_machines = False  # the sums of the last round

    # ---- what is sent ----------------------------------------------------------------------------

    def sends(self, messages: Sequence[Message]) -> None:
        """Passes what messages take from the top to the machines; equal contents travel once.

        After a round that ended at the machines, they have what its clients train next.
        """
        trains = messages[0].metadata.message_type.startswith("train")
        if not self.hierarchy.has_cloud or (trains and self._at_machines):
            return
        contents: dict[int, dict[int, Any]] = {}
        for message in messages:
            client = client_of(message.metadata.dst_node_id)
            machine = self.hierarchy.place(client, ())
            contents.setdefault(machine, {})[id(message.content)] = message.content
        sizes = [sum(map(payload_bytes, each.values())) for each in contents.values()]
        self.bytes_between += sum(sizes)
        seconds = self.hierarchy.relay_s(self._fleet, sizes)
        if seconds:
            now = self._queue.now
            self._trace.record(now, Event.RELAY, size=sum(sizes), value=seconds)
            self._advance(now + seconds)

    def weigh(self, dispatches: Iterable[Dispatch]) -> None:
        """Notes the bytes of replies that the strategy is given now."""
        self._sizes = {dispatch.name: dispatch.size_up for dispatch in dispatches}

    # ---- what the strategy says ------------------------------------------------------------------

    def begin(self, numbers: int) -> None:
        """Begins a round whose sums have so many numbers."""
        size = _NUMBER_BYTES * numbers
        self._round = _OpenRound(self._rounds, size, self.hierarchy.machines)
        self._rounds += 1
        if self.hierarchy.planned:
            self.processes.plan(self._last_top)

    def add(self, message_id: str) -> None:
        """Takes a reply into the round, now."""
        opened = self._open_round()
        size = self._sizes.get(message_id, opened.size)
        assigned = [machine.updates for machine in opened.machines]
        where = self.hierarchy.place(int(message_id.partition(".")[0]), assigned)
        machine = opened.machines[where]
        machine.updates += 1
        now = self._queue.now
        leaf = machine.open
        if leaf is None:
            leaf = machine.open = _Part("leaf", where, self.processes.take(where, "leaf"))
            machine.leaves += 1
            if machine.alone is not None:  # another one's sum will come
                first, machine.alone = machine.alone, None
                self._to_middle(opened, first)
        self._input(leaf, message_id, now + self._ingress_s(size), opened.size)
        if len(leaf.tree) == self.hierarchy.fan_in:
            machine.open = None
            self._complete(opened, leaf)

    def close(self, *, whole: bool = True) -> Summed:
        """Ends the round: waits until its sum is there.

        Args:
            whole: whether the machines' sums become one; otherwise they stay where they are.

        Returns:
            In which order its updates are added, and which are lost.
        """
        opened = self._open_round()
        opened.closed, opened.whole = True, whole
        closed_s = self._queue.now
        for where, machine in enumerate(opened.machines):
            if self.hierarchy.planned:
                self.processes.learn(where, machine.updates)
            if (leaf := machine.open) is not None:
                machine.open = None
                self._complete(opened, leaf)
            self._machine_complete(opened, where)
        self.processes.unpin()
        if not opened.used:
            opened.result = Summed((), [])
        while opened.result is None:
            if not self._step(math.inf):
                raise SimulationError("the aggregators wait for sums that will not come")
        self._round = None
        self._at_machines = not whole
        if opened.used:
            self._used += opened.used
            self._completion_s += self._queue.now - closed_s
        return opened.result

    def _open_round(self) -> _OpenRound:
        if self._round is None or self._round.closed:
            raise SimulationError("no round of a hierarchy is open")
        return self._round

    # ---- aggregators -----------------------------------------------------------------------------

    def _input(self, part: _Part, tree: SumTree, at_s: float, size: int) -> None:
        """Has an aggregator add what it has at a time."""
        part.tree.append(tree)
        part.adds += 1
        part.end_s = max(part.end_s, at_s)
        if self.hierarchy.eager:
            part.end_s += self.hierarchy.machine.add_s(size)

    def _complete(self, opened: _OpenRound, part: _Part) -> None:
        """Schedules the end of a part that gets nothing more."""
        seconds = part.adds * self.hierarchy.machine.add_s(opened.size)
        if not self.hierarchy.eager:
            part.end_s += seconds
        self.processes.busy_s += seconds
        end = max(part.end_s, self._queue.now)
        self._queue.schedule(end, Priority.PROGRESS, self._done, (opened, part))

    def _done(self, done: tuple[_OpenRound, _Part]) -> None:
        """An aggregator has its sum, or dies."""
        opened, part = done
        hierarchy, now, seed = self.hierarchy, self._queue.now, self._fleet.seed
        draw = uniform(seed, "aggregator", opened.number, opened.parts)
        opened.parts += 1
        if draw < hierarchy.failure:
            self.failures += 1
            lost = leaves_of(part.tree) if hierarchy.on_failure == "lost" else []
            self._trace.record(
                now, Event.AGGREGATOR_FAILED, dispatch=part.machine, value=float(len(lost))
            )
            self.processes.bury(part.process, now)
            if hierarchy.on_failure == "retry":
                self._queue.schedule(
                    now + hierarchy.detection_s, Priority.PROGRESS, self._redo, (opened, part)
                )
                return
            self.lost += len(lost)
            opened.lost += lost
            part.tree = []
        if part.role == "leaf":
            self._leaf_done(opened, part)
        elif part.role == "middle":
            self._machine_done(opened, part)
        else:
            self._finish(opened, part)

    def _redo(self, failed: tuple[_OpenRound, _Part]) -> None:
        """Another process adds up what the machine has kept."""
        opened, part = failed
        part.process = self.processes.take(part.machine, part.role)
        part.end_s = max(part.process.ready_s, self._queue.now)
        seconds = len(part.tree) * self.hierarchy.machine.add_s(opened.size)
        self.processes.busy_s += seconds
        end = part.end_s + seconds
        self._queue.schedule(end, Priority.PROGRESS, self._done, (opened, part))

    def _leaf_done(self, opened: _OpenRound, leaf: _Part) -> None:
        machine = opened.machines[leaf.machine]
        if not leaf.tree:
            machine.came += 1
        elif machine.leaves == 1:
            machine.alone = leaf
        else:
            self._to_middle(opened, leaf)
        self._machine_complete(opened, leaf.machine)

    def _to_middle(self, opened: _OpenRound, leaf: _Part) -> None:
        """Hands a leaf's sum to its machine's middle."""
        machine = opened.machines[leaf.machine]
        if machine.middle is None and self.hierarchy.reuse:
            machine.middle = self._promoted(leaf, "middle")
            machine.came += 1
            return
        if machine.middle is None:
            process = self.processes.take(leaf.machine, "middle")
            machine.middle = _Part("middle", leaf.machine, process)
        self.processes.release(leaf.process)
        seconds = self._hop_s(opened.size)
        at = self._queue.now + seconds
        self._queue.schedule(at, Priority.PROGRESS, self._at_middle, (opened, leaf))

    def _promoted(self, part: _Part, role: str) -> _Part:
        """Returns the part of an aggregator that goes on with the sum it has."""
        above = _Part(role, part.machine, part.process)
        above.tree.append(tuple(part.tree))
        above.end_s = self._queue.now
        return above

    def _at_middle(self, handed: tuple[_OpenRound, _Part]) -> None:
        opened, leaf = handed
        machine = opened.machines[leaf.machine]
        assert machine.middle is not None  # it was there when the sum was handed on
        self._input(machine.middle, tuple(leaf.tree), self._queue.now, opened.size)
        machine.came += 1
        self._machine_complete(opened, leaf.machine)

    def _machine_complete(self, opened: _OpenRound, where: int) -> None:
        """Goes on with a machine's sum if nothing more comes to it."""
        machine = opened.machines[where]
        if not opened.closed or not machine.updates or machine.open is not None:
            return
        if machine.alone is not None:
            alone, machine.alone = machine.alone, None
            machine.came += 1
            self._machine_done(opened, alone)
        elif machine.came == machine.leaves and machine.middle is not None:
            middle, machine.middle = machine.middle, None
            self._complete(opened, middle)
        elif machine.came == machine.leaves and machine.leaves > 0:
            machine.leaves = 0  # all are lost: told once
            self._at_top((opened, None))

    def _machine_done(self, opened: _OpenRound, part: _Part) -> None:
        """Hands a machine's sum to the top, or leaves it where it is."""
        hierarchy, now = self.hierarchy, self._queue.now
        if not part.tree:
            self._at_top((opened, None))
            return
        if not opened.whole:
            self.processes.release(part.process)
            opened.sums.append(tuple(part.tree))
            self._at_top((opened, None))
            return
        if opened.top is None and opened.used == 1 and not hierarchy.has_cloud:
            self._finish(opened, part)
            return
        if opened.top is None and hierarchy.reuse:
            opened.top = self._promoted(part, "top")
            self._nic_free_s, self._last_top = now, part.machine
            self._at_top((opened, None))
            return
        if opened.top is None:
            where = hierarchy.machines if hierarchy.has_cloud else part.machine
            opened.top = _Part("top", where, self.processes.take(where, "top"))
            self._nic_free_s, self._last_top = now, part.machine
        self.processes.release(part.process)
        if part.machine == opened.top.machine:
            at = now + self._hop_s(opened.size)
        else:
            at = self._crossed_s(opened.size)
        self._queue.schedule(at, Priority.PROGRESS, self._at_top, (opened, part))

    def _at_top(self, handed: tuple[_OpenRound, _Part | None]) -> None:
        """Counts a machine's sum that is at the top, or, of None, that needs not be added there."""
        opened, part = handed
        opened.came += 1
        if part is not None:
            assert opened.top is not None
            self._input(opened.top, tuple(part.tree), self._queue.now, opened.size)
        if opened.came < opened.used:
            return
        if opened.top is not None:
            self._complete(opened, opened.top)
        else:
            opened.result = Summed(tuple(opened.sums), opened.lost)

    def _finish(self, opened: _OpenRound, part: _Part) -> None:
        if part.tree:
            self.processes.release(part.process)
        opened.result = Summed(tuple(part.tree), opened.lost)

    # ---- moving ----------------------------------------------------------------------------------

    def _ingress_s(self, size: int) -> float:
        """Returns how long a client's payload takes to a leaf of its machine, s."""
        machine, shared = self.hierarchy.machine, self.hierarchy.shared_memory
        copies = 0.0 if shared else 2 * machine.copy_s_per_byte * size
        moving = machine.encode_s_per_byte * size + copies
        self.moving_s += moving
        return machine.hop_s + moving

    def _hop_s(self, size: int) -> float:
        """Returns how long a sum takes to another aggregator of its machine, s."""
        self.bytes_within += size
        machine = self.hierarchy.machine
        if self.hierarchy.shared_memory:
            return machine.hop_s
        moving = 2 * (machine.encode_s_per_byte + machine.copy_s_per_byte) * size
        self.moving_s += moving
        return machine.hop_s + moving

    def _crossed_s(self, size: int) -> float:
        """Returns when a sum that is sent now is on the top's machine, which takes one at a time.

        With a cloud, that is at the end of the server's own link.
        """
        machine, server, now = self.hierarchy.machine, self._fleet.server, self._queue.now
        encoding, wire, delay = (
            machine.encode_s_per_byte * size,
            machine.wire_s(size),
            machine.nic_latency_s,
        )
        if self.hierarchy.has_cloud:
            wire = max(wire, 8 * size / server.down_bps)
            delay += server.latency_s
        begins = max(now + encoding, self._nic_free_s)
        self._nic_free_s = begins + wire
        at = begins + wire + delay + encoding
        self.moving_s += 2 * encoding
        self.bytes_between += size
        self._trace.record(now, Event.PARTIAL_SUM, size=size, value=at - now)
        return at

    # ---- what it has cost ------------------------------------------------------------------------

    @property
    def energy_j(self) -> float:
        """Joules of the hierarchy's machines so far."""
        machine = self.hierarchy.machine
        return machine.idle_w * self.processes.on_s + machine.work_w * self._worked_s

    @property
    def _worked_s(self) -> float:
        return self.processes.busy_s + self.moving_s

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary."""
        processes, rounds = self.processes, max(1, self._rounds)
        waiting_s = max(0.0, processes.alive_s - processes.busy_s)
        return {
            "machines": processes.machines,
            "machines_used": self._used / rounds,
            "completion_s": self._completion_s / rounds,
            "cold_starts": processes.cold_starts,
            "warm_starts": processes.warm_starts,
            "failures": self.failures,
            "lost_updates": self.lost,
            "bytes_between": self.bytes_between,
            "bytes_within": self.bytes_within,
            "busy_s": processes.busy_s,
            "moving_s": self.moving_s,
            "waiting_s": waiting_s,
            "cpu_s": self._worked_s + self.hierarchy.machine.idle_cpu * waiting_s,
            "energy_j": self.energy_j,
        }
