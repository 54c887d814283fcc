"""The life of a dispatch in virtual time: download, compute, upload, on a fleet that may fail.

The engine knows devices, links and faults, and nothing of Flower or of training. What a dispatch
computes, and how many bytes its reply has, it asks of a `Host`.

A dispatch passes through: wait at the server until the client takes up its message, download,
compute, upload. The server's two directions are each one link shared max-min fairly by the
transfers in flight, or, where the fleet has a network, all links on the way are; a client's own
link is shared equally by that client's transfers.

A client is a SuperNode of Flower (read at flwr 1.41, `flwr/supernode/start_client_internal.py`).
Its main loop takes one message from the SuperLink, waits until the ClientApp has made the reply,
uploads that, and only then looks for the next: it never downloads while it computes. The SuperLink
gives out the oldest message whose time to live has not run out (`created_at + ttl > now`, in
`linkstate`); a message that has been taken is worked on to the end, whether anybody still waits for
the reply or not. A client of a fleet with `prefetch` downloads everything at once instead: what has
arrived waits for the device (one dispatch computes at a time, first come first served), and is
thrown away when its time to live runs out before its turn.

A dispatch whose message comes from the client's peers is not downloaded: it waits for the time at
which the last of them has arrived, then for the device, and its reply is there when it has
computed. What peers send each other does not compete with what the server sends.
"""

from __future__ import annotations

import math
from typing import Protocol

from fl.simulation.kernel.airtime import Airtime
from fl.simulation.kernel.charges import Charges
from fl.simulation.kernel.dispatch import Dispatch, Stage
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.network_port import ports
from fl.simulation.kernel.nodes import Nodes
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.availability import Availability
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.power import Power
from fl.simulation.world.runtime import Runtime

_INTERRUPTIONS = (Event.DEPARTURE, Event.CANCELLED)  # they can come during a transfer


class Host(Protocol):
    """What the engine asks of whoever owns the dispatches."""

    def compute_seconds(self, dispatch: Dispatch) -> float:
        """Returns how long the client's device works on the dispatch, in s."""

    def computed(self, dispatch: Dispatch) -> int:
        """Called when the work is done; returns the reply's size in bytes."""

    def replied(self, dispatch: Dispatch) -> None:
        """Called when the reply has arrived at the server."""

    def failed(self, dispatch: Dispatch, kind: Event) -> None:
        """Called when the dispatch can bring no reply any more."""

    def server_learns(self, dispatch: Dispatch, kind: Event) -> None:
        """Called when the server finds out that the dispatch failed."""


class _Client:
    """A client that has dispatches.

    Attributes:
        waiting: those whose messages it has not taken up, in the order in which they were sent.
        taken: those that it has, from download to upload.
        computing: the one that its device works on.
        queue: those that wait for the device, in order of arrival.
    """

    __slots__ = ("computing", "queue", "taken", "waiting")

    def __init__(self) -> None:
        # Dictionaries are sets in order of insertion, from which any one can be removed at once.
        self.waiting: dict[Dispatch, None] = {}
        self.taken: dict[Dispatch, None] = {}
        self.computing: Dispatch | None = None
        self.queue: dict[Dispatch, None] = {}


class Engine:
    """Runs dispatches on a fleet.

    Args:
        fleet: devices, links, availability and faults of the clients.
        trace: where every event is recorded.
        runtime: what software adds to the stages; None adds nothing.

    Attributes:
        host: answers what the engine asks; to be set before the first dispatch.
        queue: the event queue; `queue.now` is virtual time in s.
        in_flight: number of dispatches sent and not ended.
        bytes_down, bytes_up: payload bytes sent by the server and by the clients so far, lost ones
            included, unfinished ones not; what clients send each other is in `bytes_up`.
        energy_j: joules spent on dispatches so far: compute, radio, idle (waiting at the client for
            the device, which works on an earlier one).
        busy_s: seconds that devices have computed so far, all together.
        charges: of the clients' batteries; None without any.
        presence: who is there when: the fleet's availability, or `charges`.
    """

    lasting = ("bytes_down", "bytes_up", "energy_j", "busy_s", "_flow", "calendar", "_airtime")
    host: Host

    def __init__(self, fleet: Fleet, trace: Trace, runtime: Runtime | None = None) -> None:
        self.fleet = fleet
        self.trace = trace
        self.queue = EventQueue()
        self.in_flight = 0
        self.bytes_down = 0
        self.bytes_up = 0
        self.energy_j = {"compute": 0.0, "radio": 0.0, "idle": 0.0}
        self.busy_s = 0.0
        self.charges: Charges | None = None
        if fleet.battery is not None:
            self.charges = Charges(fleet, fleet.battery, trace, lambda: self.queue.now)
        self.presence: Availability = fleet.availability if self.charges is None else self.charges
        self._flow = 0
        self._airtime = None if fleet.radios is None else Airtime(fleet, fleet.radios)
        self._downlink, self._uplink = ports(fleet, self.queue, self._downloaded, self._uploaded)
        self._clients: dict[int, _Client] = {}  # only while they have dispatches
        self._nodes = None if runtime is None else Nodes(runtime, fleet, trace)
        self._framing = 0 if runtime is None else runtime.framing_bytes
        self._looks: set[int] = set()  # clients whose node's next look is scheduled
        self._departures: set[int] = set()  # clients whose next departure is scheduled
        self._returns: set[int] = set()  # clients whose next return is

    # ---- between dispatches ----------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Whether no client has anything to do: then `lasting` is all that there is to know."""
        ports = (self._downlink, self._uplink)
        return not self._clients and all(math.isinf(port.armed) for port in ports)

    @property
    def calendar(self) -> tuple[float, list[tuple[float, bool, int]]]:
        """Now, in s, and who will be looked at because he departs, or not departs but returns.

        Each with the time, in the order of the queue. What else is in the queue while nobody has
        anything to do is of dispatches that have ended, and has no effect.
        """
        watches = {self._depart: True, self._return: False}
        return self.queue.now, [
            (time, watches[action], client)
            for time, _, action, client in self.queue.pending()
            if action in watches
        ]

    @calendar.setter
    def calendar(self, calendar: tuple[float, list[tuple[float, bool, int]]]) -> None:
        now, watches = calendar
        self.queue.restart(now)
        self._departures = {client for _, departs, client in watches if departs}
        self._returns = {client for _, departs, client in watches if not departs}
        for time, departs, client in watches:
            if departs:
                self.queue.schedule(time, Priority.AVAILABILITY, self._depart, client)
            else:
                self.queue.schedule(time, Priority.DISPATCH, self._return, client)

    # ---- dispatch and download ---------------------------------------------------------------

    def send(self, dispatch: Dispatch) -> None:
        """Sends the dispatch's message now."""
        now = self.queue.now
        self.in_flight += 1
        dispatch.stage_began = now
        self.trace.record(now, Event.DISPATCH, dispatch.client, dispatch.number, dispatch.size_down)
        client = self._clients.get(dispatch.client)
        if client is None:
            client = self._clients[dispatch.client] = _Client()
        client.waiting[dispatch] = None
        if not self.presence.is_online(dispatch.client, now):
            self._watch_return(dispatch.client)
        elif dispatch.ready_s is not None:
            self._take(client, dispatch)
        elif self._nodes is None:
            self._take_up(client)
        elif dispatch.client not in self._looks and (not client.taken or self.fleet.prefetch):
            # Its node is idle, and finds the message when it looks next.
            self._looks.add(dispatch.client)
            time = self._nodes.next_look(dispatch.client, now)
            self.queue.schedule(time, Priority.DISPATCH, self._polled, dispatch.client)

    def _polled(self, number: int) -> None:
        """A client's node looks for messages."""
        self._looks.discard(number)
        self._look(number)

    def _take_up(self, client: _Client) -> None:
        """Has a client that is there take up its next message, if it is at nothing else."""
        now = self.queue.now
        if self.fleet.prefetch:
            for dispatch in [dispatch for dispatch in client.waiting if now < dispatch.expiry]:
                self._take(client, dispatch)
        elif not client.taken:
            for dispatch in client.waiting:
                if now < dispatch.expiry:
                    self._take(client, dispatch)
                    return

    def _look(self, number: int) -> None:
        """Has a client look for its next message, if it is there."""
        client = self._clients.get(number)
        if client is None or not client.waiting:
            return
        if self.presence.is_online(number, self.queue.now):
            self._take_up(client)
        else:
            self._watch_return(number)

    def _take(self, client: _Client, dispatch: Dispatch) -> None:
        now = self.queue.now
        sent_s = dispatch.stage_began
        del client.waiting[dispatch]
        client.taken[dispatch] = None
        dispatch.stage_began = now
        dispatch.stage = Stage.DOWNLOADING
        self._watch_departure(dispatch.client)
        self._draw(dispatch)
        if dispatch.ready_s is not None:
            self.queue.schedule(
                max(now, dispatch.ready_s), Priority.PROGRESS, self._served, dispatch
            )
            return
        self.trace.record(
            now, Event.DOWNLOAD_START, dispatch.client, dispatch.number, dispatch.size_down
        )
        if self._nodes is None:
            delay = self.fleet.latency_s(dispatch.client)
        else:
            delay = self._nodes.download_delay(dispatch, sent_s, now)
        self.queue.schedule(now + delay, Priority.PROGRESS, self._start_download, dispatch)

    def _start_download(self, dispatch: Dispatch) -> None:
        if dispatch.stage is not Stage.DOWNLOADING:
            return
        cap = self.fleet.down_cap(dispatch.client, dispatch.number)
        dispatch.flow = self._next_flow()
        self._downlink.start(dispatch.flow, dispatch, dispatch.size_down + self._framing, cap)

    def _downloaded(self, dispatch: Dispatch) -> None:
        now = self.queue.now
        dispatch.flow = -1
        dispatch.radio_s += now - dispatch.stage_began
        if self._airtime is not None:
            self._bill_transfer(self._airtime, dispatch, dispatch.size_down)
        self.bytes_down += dispatch.size_down
        if dispatch.faults.lose_download:
            self._end(dispatch, Event.DOWNLOAD_LOST, dispatch.size_down)
            return
        self.trace.record(
            now, Event.DOWNLOAD_END, dispatch.client, dispatch.number, dispatch.size_down
        )
        self._queue_up(dispatch)

    def _served(self, dispatch: Dispatch) -> None:
        """The dispatch's client has what it needs from its peers."""
        if dispatch.stage is Stage.DOWNLOADING:
            self._queue_up(dispatch)

    def _queue_up(self, dispatch: Dispatch) -> None:
        """The dispatch's message is at the client."""
        client = self._clients[dispatch.client]
        dispatch.stage = Stage.QUEUED
        dispatch.stage_began = dispatch.arrived_s = self.queue.now
        if client.computing is None:
            self._compute(client, dispatch)
            return
        self._draw(dispatch)
        client.queue[dispatch] = None
        if not self.queue.now < dispatch.expiry:
            self.expire(dispatch)

    # ---- compute -----------------------------------------------------------------------------

    def _compute(self, client: _Client, dispatch: Dispatch) -> None:
        now = self.queue.now
        client.computing = dispatch
        dispatch.idle_s = now - dispatch.stage_began
        dispatch.stage = Stage.COMPUTING
        dispatch.stage_began = now
        seconds = self.host.compute_seconds(dispatch)
        if self.fleet.power is not None:
            seconds = self._at_power(self.fleet.power, dispatch, seconds)
        self._draw(dispatch)
        if self._nodes is not None:
            seconds = self._nodes.work_seconds(dispatch, seconds, now)
        faults = dispatch.faults
        if faults.slowdown != 1.0:
            self.trace.record(
                now, Event.SLOWDOWN, dispatch.client, dispatch.number, value=faults.slowdown
            )
        self.trace.record(now, Event.COMPUTE_START, dispatch.client, dispatch.number, value=seconds)
        stop, kind = 1.0, None
        for fraction, fault in (
            (faults.crash_at, Event.CRASH),
            (faults.dropout_at, Event.DROPOUT),
        ):
            if fraction is not None and fraction < stop:
                stop, kind = fraction, fault
        if kind is None:
            self.queue.schedule(now + seconds, Priority.PROGRESS, self._computed, dispatch)
        else:
            self.queue.schedule(
                now + stop * seconds, Priority.PROGRESS, self._break, (dispatch, kind)
            )

    def _at_power(self, power: Power, dispatch: Dispatch, seconds: float) -> float:
        """Chooses the task's cap; returns how long it computes under it, s."""
        kind = self.fleet.devices.kind_name(dispatch.client)
        state = power.state(kind, seconds, dispatch.asked_cap)
        dispatch.speed, dispatch.draw = state.speed, state.draw
        dispatch.past_s /= state.speed
        self.trace.record(
            self.queue.now, Event.POWER, dispatch.client, dispatch.number, value=state.cap
        )
        return seconds / state.speed

    def _break(self, broken: tuple[Dispatch, Event]) -> None:
        dispatch, kind = broken
        if dispatch.stage is Stage.COMPUTING:
            self._end(dispatch, kind)

    def _computed(self, dispatch: Dispatch) -> None:
        if dispatch.stage is not Stage.COMPUTING:
            return
        now = self.queue.now
        dispatch.compute_s = now - dispatch.stage_began
        self.trace.record(now, Event.COMPUTE_END, dispatch.client, dispatch.number)
        dispatch.size_up = self.host.computed(dispatch)
        dispatch.stage = Stage.UPLOADING
        dispatch.stage_began = now
        self._draw(dispatch)
        self._free_device(dispatch)
        delay = 0.0 if self._nodes is None else self._nodes.upload_delay(dispatch, now)
        if dispatch.ready_s is not None:
            self._settle(dispatch)
            self.host.replied(dispatch)
            return
        self.trace.record(
            now, Event.UPLOAD_START, dispatch.client, dispatch.number, dispatch.size_up
        )
        if self._nodes is None:
            delay = self.fleet.latency_s(dispatch.client)
        self.queue.schedule(now + delay, Priority.PROGRESS, self._start_upload, dispatch)

    def _free_device(self, dispatch: Dispatch) -> None:
        client = self._clients[dispatch.client]
        client.computing = None
        if client.queue:
            # Scheduled, not called: the dispatches before it in this instant settle first.
            self.queue.schedule(
                self.queue.now, Priority.PROGRESS, self._start_next, dispatch.client
            )

    def _start_next(self, number: int) -> None:
        client = self._clients.get(number)
        if client is None or client.computing is not None:
            return
        dispatch = next(
            (dispatch for dispatch in client.queue if self.queue.now < dispatch.expiry), None
        )
        if dispatch is not None:
            del client.queue[dispatch]
            self._compute(client, dispatch)

    # ---- upload ------------------------------------------------------------------------------

    def _start_upload(self, dispatch: Dispatch) -> None:
        if dispatch.stage is not Stage.UPLOADING:
            return
        cap = self.fleet.up_cap(dispatch.client, dispatch.number)
        dispatch.flow = self._next_flow()
        self._uplink.start(dispatch.flow, dispatch, dispatch.size_up + self._framing, cap)

    def _uploaded(self, dispatch: Dispatch) -> None:
        now = self.queue.now
        dispatch.flow = -1
        dispatch.radio_s += now - dispatch.stage_began
        if self._airtime is not None:
            self._bill_transfer(self._airtime, dispatch, dispatch.size_up)
        self.bytes_up += dispatch.size_up
        if dispatch.faults.lose_upload:
            self._end(dispatch, Event.UPLOAD_LOST, dispatch.size_up)
            return
        self.trace.record(now, Event.UPLOAD_END, dispatch.client, dispatch.number, dispatch.size_up)
        self._settle(dispatch)
        self.host.replied(dispatch)

    def _bill_transfer(
        self, airtime: Airtime, dispatch: Dispatch, size: int, left_bits: float = 0.0
    ) -> None:
        """Adds what a transfer of so many bytes has taken that ends now, but for what is left."""
        bits = max(0.0, 8.0 * (size + self._framing) - left_bits)
        began, now = dispatch.stage_began, self.queue.now
        down, up = (bits, 0.0) if dispatch.stage is Stage.DOWNLOADING else (0.0, bits)
        dispatch.radio_j += airtime.joules(dispatch.client, began, now, now - began, down, up)

    def _next_flow(self) -> int:
        self._flow += 1
        return self._flow

    # ---- how dispatches end ------------------------------------------------------------------

    def _watch_departure(self, number: int) -> None:
        if number not in self._departures:
            time = self.presence.next_change(number, self.queue.now)
            if math.isfinite(time):
                self._departures.add(number)
                self.queue.schedule(time, Priority.AVAILABILITY, self._depart, number)

    def _watch_return(self, number: int) -> None:
        if number not in self._returns:
            time = self.presence.next_change(number, self.queue.now)
            if math.isfinite(time):
                self._returns.add(number)
                self.queue.schedule(time, Priority.DISPATCH, self._return, number)

    def _depart(self, number: int) -> None:
        self._departures.discard(number)
        client = self._clients.get(number)
        if client is None:
            return
        if self.charges is not None and self.charges.is_online(number, self.queue.now):
            if client.taken:  # it draws less than when this was foretold
                self._watch_departure(number)
            return
        for dispatch in list(client.taken):
            self._end(dispatch, Event.DEPARTURE)
        if client.waiting:
            self._watch_return(number)

    def _return(self, number: int) -> None:
        self._returns.discard(number)
        client = self._clients.get(number)
        if client is None:
            return
        if self.charges is not None and not self.charges.is_online(number, self.queue.now):
            self._watch_return(number)
            return
        for dispatch in [dispatch for dispatch in client.waiting if dispatch.ready_s is not None]:
            self._take(client, dispatch)
        if self._nodes is not None:
            self._nodes.looked[number] = self.queue.now
        self._take_up(client)

    def _end(self, dispatch: Dispatch, kind: Event, size: int = 0) -> None:
        """Ends a dispatch that brings no reply, in whatever stage it is after it was taken up."""
        now = self.queue.now
        self.trace.record(now, kind, dispatch.client, dispatch.number, size)
        if dispatch.stage in (Stage.DOWNLOADING, Stage.UPLOADING) and kind in _INTERRUPTIONS:
            dispatch.radio_s += max(0.0, now - dispatch.stage_began)
            downloads, left = dispatch.stage is Stage.DOWNLOADING, math.inf
            if dispatch.flow >= 0:
                left = (self._downlink if downloads else self._uplink).abort(dispatch.flow)
            if self._airtime is not None and now > dispatch.stage_began:
                size = dispatch.size_down if downloads else dispatch.size_up
                self._bill_transfer(self._airtime, dispatch, size, left)
        elif dispatch.stage is Stage.COMPUTING:
            dispatch.compute_s = max(0.0, now - dispatch.stage_began)
            dispatch.stage = Stage.DONE
            self._free_device(dispatch)
        elif dispatch.stage is Stage.QUEUED:
            self._leave_queue(dispatch)
        self._settle(dispatch)
        self.host.failed(dispatch, kind)
        detection_s = self.fleet.faults.detection_s
        if kind is Event.CRASH:
            # The node is still there and reports at once that its app died.
            detection_s = self.fleet.latency_s(dispatch.client)
        if kind in (Event.CRASH, Event.DROPOUT, Event.DEPARTURE) and detection_s is not None:
            self.queue.schedule(
                now + detection_s, Priority.PROGRESS, self._detected, (dispatch, kind)
            )

    def _detected(self, broken: tuple[Dispatch, Event]) -> None:
        self.host.server_learns(*broken)

    def cancel(self, dispatch: Dispatch) -> None:
        """Tells the dispatch's client to stop; the word takes the latency of its link.

        A message that the client has not taken up is withdrawn at once: it is at the server.
        """
        if dispatch.stage is Stage.WAITING:
            self.trace.record(self.queue.now, Event.CANCELLED, dispatch.client, dispatch.number)
            self._forget(dispatch)
            self.host.failed(dispatch, Event.CANCELLED)
            return
        delay = self.fleet.latency_s(dispatch.client)
        self.queue.schedule(self.queue.now + delay, Priority.PROGRESS, self._cancelled, dispatch)

    def _cancelled(self, dispatch: Dispatch) -> None:
        if dispatch.stage is not Stage.DONE:
            self._end(dispatch, Event.CANCELLED)

    def waits(self, dispatch: Dispatch) -> bool:
        """Returns whether a dispatch waits, or may have to, so that it is dropped if it expires."""
        if dispatch.stage is Stage.DOWNLOADING:
            return dispatch.ready_s is not None or self.fleet.prefetch
        return dispatch.stage in (Stage.WAITING, Stage.QUEUED)

    def expire(self, dispatch: Dispatch) -> None:
        """Drops a dispatch whose message's time to live has run out, if it waits; others go on.

        It waits at the server, for the device, or for what peers send.
        """
        if dispatch.stage is Stage.QUEUED:
            self._leave_queue(dispatch)
        elif not self.waits(dispatch) or (
            dispatch.stage is Stage.DOWNLOADING and dispatch.ready_s is None
        ):
            return
        self._settle(dispatch)
        self.host.failed(dispatch, Event.EXPIRED)

    def _leave_queue(self, dispatch: Dispatch) -> None:
        dispatch.idle_s = self.queue.now - dispatch.stage_began
        del self._clients[dispatch.client].queue[dispatch]

    def _forget(self, dispatch: Dispatch) -> None:
        dispatch.stage = Stage.DONE
        self._draw(dispatch)
        self.in_flight -= 1
        client = self._clients[dispatch.client]
        if dispatch in client.waiting:
            del client.waiting[dispatch]
        else:
            del client.taken[dispatch]
            if self._nodes is not None and not client.taken:
                self._nodes.looked[dispatch.client] = self.queue.now
            if client.waiting:
                # Scheduled, not called: what else happens in this instant comes first.
                self.queue.schedule(self.queue.now, Priority.DISPATCH, self._look, dispatch.client)
        if not client.waiting and not client.taken:
            del self._clients[dispatch.client]

    def spend_radio(
        self,
        client: int,
        seconds: float,
        began_s: float,
        ended_s: float,
        *,
        received: float = 0.0,
        sent: float = 0.0,
    ) -> None:
        """Counts the joules of a transfer between clients, for one of them.

        Args:
            client: whose radio is on for it.
            seconds: for how long, s.
            began_s: when it began, s.
            ended_s: when it ended, s.
            received: bytes that came.
            sent: bytes that went.
        """
        if self._airtime is None:
            joules = self.fleet.devices.radio_w.item(client) * seconds
        else:
            joules = self._airtime.joules(
                client, began_s, ended_s, seconds, 8.0 * received, 8.0 * sent
            )
        self.energy_j["radio"] += joules
        if self.charges is not None:
            self.charges.spend(client, joules)

    def _draw(self, dispatch: Dispatch) -> None:
        """Has a dispatch draw of its client's battery, if it has one, what its stage takes."""
        if self.charges is None:
            return
        devices, client, now = self.fleet.devices, dispatch.client, self.queue.now
        watts = 0.0
        if dispatch.stage is Stage.COMPUTING:
            watts = devices.compute_w.item(client) * dispatch.draw
        elif dispatch.stage is Stage.QUEUED:
            watts = devices.idle_w.item(client)
        elif dispatch.stage in (Stage.DOWNLOADING, Stage.UPLOADING) and dispatch.ready_s is None:
            if self._airtime is None:
                watts = devices.radio_w.item(client)
            else:
                watts = self._airtime.watts(client)
        dispatch.drained_j += dispatch.load_w * (now - dispatch.load_since)
        self.charges.add_load(client, watts - dispatch.load_w)
        dispatch.load_w, dispatch.load_since = watts, now
        flip = self.charges.next_flip(client)
        if watts and math.isfinite(flip):
            self.queue.schedule(max(now, flip), Priority.AVAILABILITY, self._depart, client)

    def _settle(self, dispatch: Dispatch) -> None:
        self._forget(dispatch)
        devices, client, energy_j = self.fleet.devices, dispatch.client, self.energy_j
        busy_s = dispatch.compute_s + dispatch.past_s
        self.busy_s += busy_s
        compute_j = devices.compute_w.item(client) * busy_s * dispatch.draw
        radio_j = dispatch.radio_j
        if self._airtime is None:
            radio_j = devices.radio_w.item(client) * dispatch.radio_s
        idle_j = devices.idle_w.item(client) * dispatch.idle_s
        energy_j["compute"] += compute_j
        energy_j["radio"] += radio_j
        energy_j["idle"] += idle_j
        if self.charges is not None:  # what stages are made of, and work done before the message
            self.charges.spend(client, compute_j + radio_j + idle_j - dispatch.drained_j)
