"""The life of a task in virtual time: download, compute, upload, on a fleet that may fail.

The engine knows devices, links and faults, and nothing of Flower or of training. What a task
computes, and how many bytes its reply has, it asks of a `Host`.

A task passes through: wait at the server until the client takes up its message, download, compute,
upload. The server's two directions are each one link shared max-min fairly by the transfers in
flight; a client's own link is shared equally by that client's transfers.

A client is a SuperNode of Flower (read at flwr 1.41, `flwr/supernode/start_client_internal.py`).
Its main loop takes one message from the SuperLink, waits until the ClientApp has made the reply,
uploads that, and only then looks for the next: it never downloads while it computes. The SuperLink
gives out the oldest message whose time to live has not run out (`created_at + ttl > now`, in
`linkstate`); a message that has been taken is worked on to the end, whether anybody still waits for
the reply or not. A client of a fleet with `prefetch` downloads everything at once instead: what has
arrived waits for the device (one task computes at a time, first come first served), and is thrown
away when its time to live runs out before its turn.

A task whose message comes from the client's peers is not downloaded: it waits for the time at which
the last of them has arrived, then for the device, and its reply is there when it has computed. What
peers send each other does not compete with what the server sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import islice
from typing import Any, Protocol

from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.links import SharedLink
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.faults import TaskFaults
from fl.simulation.world.fleet import Fleet

_INTERRUPTIONS = (Event.DEPARTURE, Event.CANCELLED)  # they can come during a transfer


class Stage(IntEnum):
    """Where a task is."""

    WAITING = 0  # its message is at the server
    DOWNLOADING = 1  # or waits for what the client's peers send
    QUEUED = 2  # its message is at the client, whose device works on another task
    COMPUTING = 3
    UPLOADING = 4
    DONE = 5


class Task:
    """What one message causes on one client.

    Attributes:
        client: index in the fleet.
        dispatch: running number of the client's tasks; (client, dispatch) names the task.
        size_down: bytes of the message.
        faults: what will go wrong, drawn from (seed, client, dispatch).
        content: whatever the host needs to remember; the engine never looks at it.
        past_s: seconds the device computed for the task before the message came, for its energy.
        ready_s: when the client has what it needs, if that comes from its peers and not from the
            server; then nothing is downloaded or uploaded. None for an ordinary task.
    """

    __slots__ = (
        "client",
        "compute_s",
        "content",
        "dispatch",
        "faults",
        "flow",
        "idle_s",
        "past_s",
        "radio_s",
        "ready_s",
        "size_down",
        "size_up",
        "stage",
        "stage_began",
    )

    def __init__(
        self,
        client: int,
        dispatch: int,
        size_down: int,
        faults: TaskFaults,
        content: Any,
        ready_s: float | None = None,
    ) -> None:
        self.client = client
        self.dispatch = dispatch
        self.size_down = size_down
        self.size_up = 0
        self.faults = faults
        self.content = content
        self.stage = Stage.WAITING
        self.stage_began = 0.0
        self.idle_s = 0.0
        self.compute_s = 0.0
        self.past_s = 0.0
        self.radio_s = 0.0
        self.ready_s = ready_s
        self.flow = -1


class Host(Protocol):
    """What the engine asks of whoever owns the tasks."""

    def compute_seconds(self, task: Task) -> float:
        """Returns how long the client's device works on the task, in s."""

    def computed(self, task: Task) -> int:
        """Called when the work is done; returns the reply's size in bytes."""

    def replied(self, task: Task) -> None:
        """Called when the reply has arrived at the server."""

    def failed(self, task: Task, kind: Event) -> None:
        """Called when the task can bring no reply any more."""

    def server_learns(self, task: Task, kind: Event) -> None:
        """Called when the server finds out that the task failed."""

    def valid(self, task: Task) -> bool:
        """Returns whether the message's time to live has not run out."""


class _Client:
    """A client that has tasks.

    Attributes:
        waiting: tasks whose messages it has not taken up, in the order in which they were sent.
        taken: those that it has, from download to upload.
        computing: the one that its device works on.
        queue: those that wait for the device, in order of arrival.
    """

    __slots__ = ("computing", "queue", "taken", "waiting")

    def __init__(self) -> None:
        # Dictionaries are sets in order of insertion, from which any task can be removed at once.
        self.waiting: dict[Task, None] = {}
        self.taken: dict[Task, None] = {}
        self.computing: Task | None = None
        self.queue: dict[Task, None] = {}


class _Port:
    """One direction of the server's link, with the transfers in flight on it."""

    def __init__(
        self, capacity_bps: float, queue: EventQueue, arrived: Callable[[Task], None]
    ) -> None:
        self._link = SharedLink(capacity_bps)
        self._queue = queue
        self._arrived = arrived
        self._tasks: dict[int, Task] = {}
        self._caps: dict[int, dict[int, float]] = {}  # client -> {flow: cap of its own link}
        self._armed = math.inf

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, flow: int, task: Task, size: int, cap_bps: float) -> None:
        self._tasks[flow] = task
        flows = self._caps.setdefault(task.client, {})
        flows[flow] = cap_bps
        self._link.add(self._queue.now, flow, 8.0 * size, cap_bps / len(flows))
        if len(flows) > 1:
            self._share(flows)
        self._arm()

    def abort(self, flow: int) -> None:
        task = self._tasks.pop(flow)
        self._link.remove(self._queue.now, flow)
        self._leave({flow: task})
        self._arm()

    def _leave(self, gone: dict[int, Task]) -> None:
        """Gives what flows that left the link had of their clients' own links to the others."""
        left: dict[int, dict[int, float]] = {}
        for flow, task in gone.items():
            flows = self._caps[task.client]
            del flows[flow]
            if flows:
                left[task.client] = flows
            else:
                del self._caps[task.client]
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
        done = {flow: self._tasks.pop(flow) for flow in self._link.pop_completed(self._queue.now)}
        self._leave(done)
        for task in done.values():
            self._arrived(task)
        self._arm()


class Engine:
    """Runs tasks on a fleet.

    Args:
        fleet: devices, links, availability and faults of the clients.
        host: owner of the tasks.
        trace: where every event is recorded.

    Attributes:
        queue: the event queue; `queue.now` is virtual time in s.
        in_flight: number of tasks dispatched and not ended.
        bytes_down, bytes_up: payload bytes sent by the server and by the clients so far, lost ones
            included, unfinished ones not; what clients send each other is in `bytes_up`.
        energy_j: joules spent on tasks so far: compute, radio, idle (waiting at the client for the
            device, which works on an earlier task).
        busy_s: seconds that devices have computed so far, all together.
    """

    def __init__(self, fleet: Fleet, host: Host, trace: Trace) -> None:
        self.fleet = fleet
        self.host = host
        self.trace = trace
        self.queue = EventQueue()
        self.in_flight = 0
        self.bytes_down = 0
        self.bytes_up = 0
        self.energy_j = {"compute": 0.0, "radio": 0.0, "idle": 0.0}
        self.busy_s = 0.0
        self._flow = 0
        self._downlink = _Port(fleet.server.up_bps, self.queue, self._downloaded)
        self._uplink = _Port(fleet.server.down_bps, self.queue, self._uploaded)
        self._clients: dict[int, _Client] = {}  # only while they have tasks
        self._departures: set[int] = set()  # clients whose next departure is scheduled
        self._returns: set[int] = set()  # clients whose next return is
        self._reducing: dict[int, float] = {}  # client -> end of its last all-reduce

    # ---- dispatch and download ---------------------------------------------------------------

    def dispatch(self, task: Task) -> None:
        """Sends the task's message now."""
        now = self.queue.now
        self.in_flight += 1
        task.stage_began = now
        self.trace.record(now, Event.DISPATCH, task.client, task.dispatch, task.size_down)
        client = self._clients.get(task.client)
        if client is None:
            client = self._clients[task.client] = _Client()
        client.waiting[task] = None
        if not self.fleet.availability.is_online(task.client, now):
            self._watch_return(task.client)
        elif task.ready_s is not None:
            self._take(client, task)
        else:
            self._take_up(client)

    def _take_up(self, client: _Client) -> None:
        """Has a client that is there take up its next message, if it is at nothing else."""
        if client.taken and not self.fleet.prefetch:
            return
        valid = (task for task in client.waiting if self.host.valid(task))
        for task in list(islice(valid, None if self.fleet.prefetch else 1)):
            self._take(client, task)

    def _look(self, number: int) -> None:
        """Has a client that has ended a task look for the next, if it is there."""
        client = self._clients.get(number)
        if client is None or not client.waiting:
            return
        if self.fleet.availability.is_online(number, self.queue.now):
            self._take_up(client)
        else:
            self._watch_return(number)

    def _take(self, client: _Client, task: Task) -> None:
        now = self.queue.now
        del client.waiting[task]
        client.taken[task] = None
        task.stage_began = now
        task.stage = Stage.DOWNLOADING
        self._watch_departure(task.client)
        if task.ready_s is not None:
            self.queue.schedule(max(now, task.ready_s), Priority.PROGRESS, self._served, task)
            return
        self.trace.record(now, Event.DOWNLOAD_START, task.client, task.dispatch, task.size_down)
        delay = self.fleet.latency_s(task.client)
        self.queue.schedule(now + delay, Priority.PROGRESS, self._start_download, task)

    def _start_download(self, task: Task) -> None:
        if task.stage is not Stage.DOWNLOADING:
            return
        cap = self.fleet.down_cap(task.client, task.dispatch)
        task.flow = self._next_flow()
        self._downlink.start(task.flow, task, task.size_down, cap)

    def _downloaded(self, task: Task) -> None:
        now = self.queue.now
        task.flow = -1
        task.radio_s += now - task.stage_began
        self.bytes_down += task.size_down
        if task.faults.lose_download:
            self._end(task, Event.DOWNLOAD_LOST, task.size_down)
            return
        self.trace.record(now, Event.DOWNLOAD_END, task.client, task.dispatch, task.size_down)
        self._queue_up(task)

    def _served(self, task: Task) -> None:
        """The task's client has what it needs from its peers."""
        if task.stage is Stage.DOWNLOADING:
            self._queue_up(task)

    def _queue_up(self, task: Task) -> None:
        """The task's message is at the client."""
        client = self._clients[task.client]
        task.stage = Stage.QUEUED
        task.stage_began = self.queue.now
        if client.computing is None:
            self._compute(client, task)
            return
        client.queue[task] = None
        if not self.host.valid(task):
            self.expire(task)

    # ---- compute -----------------------------------------------------------------------------

    def _compute(self, client: _Client, task: Task) -> None:
        now = self.queue.now
        client.computing = task
        task.idle_s = now - task.stage_began
        task.stage = Stage.COMPUTING
        task.stage_began = now
        seconds = self.host.compute_seconds(task)
        faults = task.faults
        if faults.slowdown != 1.0:
            self.trace.record(
                now, Event.SLOWDOWN, task.client, task.dispatch, value=faults.slowdown
            )
        self.trace.record(now, Event.COMPUTE_START, task.client, task.dispatch, value=seconds)
        stop, kind = 1.0, None
        for fraction, fault in (
            (faults.crash_at, Event.CRASH),
            (faults.dropout_at, Event.DROPOUT),
        ):
            if fraction is not None and fraction < stop:
                stop, kind = fraction, fault
        if kind is None:
            self.queue.schedule(now + seconds, Priority.PROGRESS, self._computed, task)
        else:
            self.queue.schedule(now + stop * seconds, Priority.PROGRESS, self._break, (task, kind))

    def _break(self, broken: tuple[Task, Event]) -> None:
        task, kind = broken
        if task.stage is Stage.COMPUTING:
            self._end(task, kind)

    def _computed(self, task: Task) -> None:
        if task.stage is not Stage.COMPUTING:
            return
        now = self.queue.now
        task.compute_s = now - task.stage_began
        self.trace.record(now, Event.COMPUTE_END, task.client, task.dispatch)
        task.size_up = self.host.computed(task)
        task.stage = Stage.UPLOADING
        task.stage_began = now
        self._free_device(task)
        if task.ready_s is not None:
            self._settle(task)
            self.host.replied(task)
            return
        self.trace.record(now, Event.UPLOAD_START, task.client, task.dispatch, task.size_up)
        delay = self.fleet.latency_s(task.client)
        self.queue.schedule(now + delay, Priority.PROGRESS, self._start_upload, task)

    def _free_device(self, task: Task) -> None:
        client = self._clients[task.client]
        client.computing = None
        if client.queue:
            # Scheduled, not called: the tasks before it in this instant settle first.
            self.queue.schedule(self.queue.now, Priority.PROGRESS, self._start_next, task.client)

    def _start_next(self, number: int) -> None:
        client = self._clients.get(number)
        if client is None or client.computing is not None:
            return
        task = next((task for task in client.queue if self.host.valid(task)), None)
        if task is not None:
            del client.queue[task]
            self._compute(client, task)

    # ---- upload ------------------------------------------------------------------------------

    def _start_upload(self, task: Task) -> None:
        if task.stage is not Stage.UPLOADING:
            return
        cap = self.fleet.up_cap(task.client, task.dispatch)
        task.flow = self._next_flow()
        self._uplink.start(task.flow, task, task.size_up, cap)

    def _uploaded(self, task: Task) -> None:
        now = self.queue.now
        task.flow = -1
        task.radio_s += now - task.stage_began
        self.bytes_up += task.size_up
        if task.faults.lose_upload:
            self._end(task, Event.UPLOAD_LOST, task.size_up)
            return
        self.trace.record(now, Event.UPLOAD_END, task.client, task.dispatch, task.size_up)
        self._settle(task)
        self.host.replied(task)

    def _next_flow(self) -> int:
        self._flow += 1
        return self._flow

    # ---- among clients -----------------------------------------------------------------------

    def transfer(
        self,
        source: int,
        target: int,
        size: int,
        since: float,
        fanout: int,
        fanin: int,
        index: int,
    ) -> tuple[float, bool]:
        """Sends a payload from client to client; see `fl.flower.grid_view.Peers.transfer`.

        The sender's radio is on for 1/fanout of the transfer, the receiver's for 1/fanin: what
        several transfers at once share is paid once.
        """
        peers, faults = self.fleet.peers, self.fleet.faults
        seconds = peers.transfer_s(source, target, size, fanout=fanout, fanin=fanin)
        arrival = max(self.queue.now, since + peers.latency_s(source, target) + seconds)
        lost = faults.loses_transfer(self.fleet.seed, source, target, index)
        kind = Event.TRANSFER_LOST if lost else Event.TRANSFER
        self._spend_radio(source, seconds / fanout)
        self._spend_radio(target, seconds / fanin)
        sent = (kind, target, size, float(source))
        if arrival > self.queue.now:
            self.queue.schedule(arrival, Priority.PROGRESS, self._sent, sent)
        else:  # the caller may use it now, so it has to be counted now
            self._sent(sent)
        return arrival, not lost

    def all_reduce(self, clients: Sequence[int], size: int) -> float:
        """Averages payloads around a ring; see `fl.flower.grid_view.Peers.all_reduce`."""
        m = len(clients)
        seconds = 2 * (m - 1) * self._hop_s(clients, [size / m] * m) if m > 1 else 0.0
        return self._around_ring(clients, seconds, [math.ceil(2 * (m - 1) * size / m)] * m)

    def all_gather(self, clients: Sequence[int], sizes: Sequence[int]) -> float:
        """Brings all payloads to all clients; see `fl.flower.grid_view.Peers.all_gather`."""
        m, total = len(clients), sum(sizes)
        seconds = sum(self._hop_s(clients, [sizes[i - k] for i in range(m)]) for k in range(m - 1))
        return self._around_ring(clients, seconds, [total - sizes[(i + 1) % m] for i in range(m)])

    def _hop_s(self, clients: Sequence[int], sizes: Sequence[float]) -> float:
        """Returns how long all take to hand a payload each to the next one in the ring, s."""
        peers = self.fleet.peers
        return max(
            peers.latency_s(i, j) + 8.0 * size / peers.bandwidth_bps(i, j)
            for i, j, size in zip(clients, [*clients[1:], clients[0]], sizes, strict=True)
        )

    def _around_ring(self, clients: Sequence[int], seconds: float, sizes: Sequence[int]) -> float:
        """Has clients send so many bytes each in so many seconds; returns when that ends, s."""
        now = self.queue.now
        began = max(now, *(self._reducing.get(client, now) for client in clients))
        finished = began + seconds
        for client, size in zip(clients, sizes, strict=True):
            self._reducing[client] = finished
            self._spend_radio(client, seconds)
            self.queue.schedule(
                finished, Priority.PROGRESS, self._sent, (Event.ALL_REDUCE, client, size, seconds)
            )
        return finished

    def _sent(self, transfer: tuple[Event, int, int, float]) -> None:
        kind, client, size, value = transfer
        self.bytes_up += size
        self.trace.record(self.queue.now, kind, client, size=size, value=value)

    def _spend_radio(self, client: int, seconds: float) -> None:
        self.energy_j["radio"] += self.fleet.devices.radio_w.item(client) * seconds

    # ---- how tasks end -----------------------------------------------------------------------

    def _watch_departure(self, number: int) -> None:
        if number not in self._departures:
            time = self.fleet.availability.next_change(number, self.queue.now)
            if math.isfinite(time):
                self._departures.add(number)
                self.queue.schedule(time, Priority.AVAILABILITY, self._depart, number)

    def _watch_return(self, number: int) -> None:
        if number not in self._returns:
            time = self.fleet.availability.next_change(number, self.queue.now)
            if math.isfinite(time):
                self._returns.add(number)
                self.queue.schedule(time, Priority.DISPATCH, self._return, number)

    def _depart(self, number: int) -> None:
        self._departures.discard(number)
        client = self._clients.get(number)
        if client is None:
            return
        for task in list(client.taken):
            self._end(task, Event.DEPARTURE)
        if client.waiting:
            self._watch_return(number)

    def _return(self, number: int) -> None:
        self._returns.discard(number)
        client = self._clients.get(number)
        if client is None:
            return
        for task in [task for task in client.waiting if task.ready_s is not None]:
            self._take(client, task)
        self._take_up(client)

    def _end(self, task: Task, kind: Event, size: int = 0) -> None:
        """Ends a task that brings no reply, in whatever stage it is after it was taken up."""
        now = self.queue.now
        self.trace.record(now, kind, task.client, task.dispatch, size)
        if task.stage in (Stage.DOWNLOADING, Stage.UPLOADING) and kind in _INTERRUPTIONS:
            task.radio_s += now - task.stage_began
            if task.flow >= 0:
                port = self._downlink if task.stage is Stage.DOWNLOADING else self._uplink
                port.abort(task.flow)
        elif task.stage is Stage.COMPUTING:
            task.compute_s = now - task.stage_began
            task.stage = Stage.DONE
            self._free_device(task)
        elif task.stage is Stage.QUEUED:
            self._leave_queue(task)
        self._settle(task)
        self.host.failed(task, kind)
        detection_s = self.fleet.faults.detection_s
        if kind is Event.CRASH:
            # The node is still there and reports at once that its app died.
            detection_s = self.fleet.latency_s(task.client)
        if kind in (Event.CRASH, Event.DROPOUT, Event.DEPARTURE) and detection_s is not None:
            self.queue.schedule(now + detection_s, Priority.PROGRESS, self._detected, (task, kind))

    def _detected(self, broken: tuple[Task, Event]) -> None:
        self.host.server_learns(*broken)

    def cancel(self, task: Task) -> None:
        """Tells the task's client to stop; the word takes the latency of its link.

        A message that the client has not taken up is withdrawn at once: it is at the server.
        """
        if task.stage is Stage.WAITING:
            self.trace.record(self.queue.now, Event.CANCELLED, task.client, task.dispatch)
            self._forget(task)
            self.host.failed(task, Event.CANCELLED)
            return
        delay = self.fleet.latency_s(task.client)
        self.queue.schedule(self.queue.now + delay, Priority.PROGRESS, self._cancelled, task)

    def _cancelled(self, task: Task) -> None:
        if task.stage is not Stage.DONE:
            self._end(task, Event.CANCELLED)

    def waits(self, task: Task) -> bool:
        """Returns whether the task waits, or may have to, so that it is dropped if it expires."""
        if task.stage is Stage.DOWNLOADING:
            return task.ready_s is not None or self.fleet.prefetch
        return task.stage in (Stage.WAITING, Stage.QUEUED)

    def expire(self, task: Task) -> None:
        """Drops a task whose message's time to live has run out, if it waits; others go on.

        It waits at the server, for the device, or for what peers send.
        """
        if task.stage is Stage.QUEUED:
            self._leave_queue(task)
        elif not self.waits(task) or (task.stage is Stage.DOWNLOADING and task.ready_s is None):
            return
        self._settle(task)
        self.host.failed(task, Event.EXPIRED)

    def _leave_queue(self, task: Task) -> None:
        task.idle_s = self.queue.now - task.stage_began
        del self._clients[task.client].queue[task]

    def _forget(self, task: Task) -> None:
        task.stage = Stage.DONE
        self.in_flight -= 1
        client = self._clients[task.client]
        if task in client.waiting:
            del client.waiting[task]
        else:
            del client.taken[task]
            if client.waiting:
                # Scheduled, not called: what else happens in this instant comes first.
                self.queue.schedule(self.queue.now, Priority.DISPATCH, self._look, task.client)
        if not client.waiting and not client.taken:
            del self._clients[task.client]

    def _settle(self, task: Task) -> None:
        self._forget(task)
        devices, client, energy_j = self.fleet.devices, task.client, self.energy_j
        busy_s = task.compute_s + task.past_s
        self.busy_s += busy_s
        energy_j["compute"] += devices.compute_w.item(client) * busy_s
        energy_j["radio"] += devices.radio_w.item(client) * task.radio_s
        energy_j["idle"] += devices.idle_w.item(client) * task.idle_s
