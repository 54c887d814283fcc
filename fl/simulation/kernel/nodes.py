"""The clients' nodes: when they look for messages, and what a task takes beside its work.

Read at flwr 1.41 (`flwr/supernode/start_client_internal.py`, `flwr/supercore/superexec`): a
SuperNode looks for a message; if there is none, it sleeps and looks again. With one, it waits for
the reply, looking for that every so often, sends it, and looks for the next message at once. A
process beside it looks for tasks at a pace of its own, and starts a process for each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fl.randomness import client_keys, uniforms
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.trace import Trace
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.runtime import Runtime


class _Node(NamedTuple):
    """What stays of a client's node.

    Attributes:
        rtt_s: one round trip and what both ends do for it.
        connect_s: to open a connection.
        every_s: between two looks for a message.
        phase_s: of its looks for tasks, in [0, task_poll_s).
        scale: how many times as long its processor takes as that of reference.
        start_key: of the draws of how long it takes to start the app.
    """

    rtt_s: float
    connect_s: float
    every_s: float
    phase_s: float
    scale: float
    start_key: int


class Nodes:
    """Answers what a runtime adds to the stages of a dispatch, and records it.

    Args:
        runtime: what it takes.
        fleet: the clients.
        trace: where each term is recorded, with the s that it takes.

    Attributes:
        runtime: what it takes.
        looked: when a client's node has last looked for a message, as far as is known, s: it has
            come, or ended a task.
    """

    def __init__(self, runtime: Runtime, fleet: Fleet, trace: Trace) -> None:
        self.runtime = runtime
        self._fleet = fleet
        self._trips: dict[tuple[int, int], tuple[float, float]] = {}  # of numbers of objects
        # What each task reads, kept together.
        self._of_work = (
            runtime.task_poll_s,
            runtime.decode_s_per_byte,
            runtime.step_s,
            runtime.step_s_per_parameter,
            runtime.sustained < 1,
        )
        self._of_upload = (
            runtime.encode_s_per_byte,
            runtime.reply_poll_s,
            math.inf if runtime.keep_alive_s is None else runtime.keep_alive_s,
        )
        self._starts_ahead = runtime.starts_ahead
        clients = np.arange(len(fleet))
        # Columns: drawn one by one they would be most of what a client's first task costs.
        phase_of = np.zeros_like(clients) if runtime.together else clients
        self._task_phase = uniforms(fleet.seed, "task-poll", phase_of)
        self._node_phase = uniforms(fleet.seed, "node-poll", phase_of)
        self._start_key = client_keys(fleet.seed, "app-start", clients)
        self._record = trace.record_terms
        self._nodes: dict[int, _Node] = {}
        self.looked: dict[int, float] = {}
        self._heat: dict[int, tuple[float, float]] = {}  # of its device, and when it was that hot

    def _node(self, client: int) -> _Node:
        """Returns a client's node, whose phases are from (seed, "node-poll" or "task-poll", i)."""
        runtime, fleet = self.runtime, self._fleet
        rtt_s = 2 * fleet.latency_s(client)
        every_s = runtime.poll_s + rtt_s if runtime.poll_s else 0.0
        reference = runtime.reference_flops
        node = self._nodes[client] = _Node(
            rtt_s + runtime.call_s,
            runtime.connect_trips * rtt_s,
            every_s,
            runtime.task_poll_s * self._task_phase.item(client),
            1.0 if reference is None else reference / fleet.devices.flops.item(client),
            self._start_key.item(client),
        )
        self.looked.setdefault(client, -every_s * self._node_phase.item(client))
        return node

    # ---- looking for messages --------------------------------------------------------------------

    def next_look(self, client: int, now: float) -> float:
        """Returns when an idle client's node looks for a message, from now on, s."""
        every_s = (self._nodes.get(client) or self._node(client)).every_s
        if every_s == 0:
            return now
        since = self.looked[client]
        look = since + math.ceil((now - since) / every_s) * every_s
        return look if look > now else now

    def download_delay(self, dispatch: Dispatch, sent_s: float, now: float) -> float:
        """Returns what the calls take before the bytes of a message flow that is taken up, s.

        Args:
            dispatch: of the message.
            sent_s: when the server has sent it.
            now: when it is taken up.
        """
        client, objects = dispatch.client, dispatch.objects
        rtt_s = (self._nodes.get(client) or self._node(client))[0]
        calls_s = (self._trips.get(objects) or self._trips_of(objects))[0] * rtt_s
        # It has waited since it was sent, or since the node was idle.
        waits_since = self.looked[client]
        if waits_since < sent_s:
            waits_since = sent_s
        dispatch.terms = (now - waits_since if now > waits_since else 0.0, calls_s)
        if self._starts_ahead:
            dispatch.told_s = now + rtt_s
        return calls_s

    def _trips_of(self, objects: tuple[int, int]) -> tuple[float, float]:
        """Returns the round trips of a message and of its reply with so many objects."""
        runtime = self.runtime
        down = runtime.trips(runtime.trips_down, objects[0])
        found = self._trips[objects] = down, runtime.trips(runtime.trips_up, objects[1])
        return found

    # ---- work ------------------------------------------------------------------------------------

    def work_seconds(self, dispatch: Dispatch, work_s: float, now: float) -> float:
        """Returns how long a task is at the device, s.

        Args:
            dispatch: the task.
            work_s: what its FLOPs take on a cold device, at its power.
            now: when it begins.
        """
        client, runtime = dispatch.client, self.runtime
        _, _, _, phase_s, scale, start_key = self._nodes.get(client) or self._node(client)
        every_s, decode_s_per_byte, step_s, step_s_per_parameter, heats = self._of_work
        scale /= dispatch.speed
        start_s = runtime.seconds_to_start(start_key, dispatch.number) * scale
        told_s = dispatch.told_s
        if told_s < now == dispatch.arrived_s:  # one that has waited for another did not
            # Its app has started ahead, since its starter looked.
            began = told_s + ((phase_s - told_s) % every_s if every_s else 0.0)
            wait_s, ahead_s = 0.0, now - began
            if ahead_s <= 0:
                wait_s, ahead_s = began - now, 0.0
            elif ahead_s > start_s:  # and has looked for the message since
                missing_s = ahead_s - start_s
                wait_s, ahead_s = runtime.found_after(missing_s) - missing_s, start_s
            start_s -= ahead_s
        else:
            wait_s, ahead_s = (phase_s - now) % every_s if every_s else 0.0, 0.0
        decode_s = decode_s_per_byte * dispatch.size_down * scale
        steps_s = 0.0
        if dispatch.steps:
            per_step_s = step_s + step_s_per_parameter * dispatch.scalars
            steps_s = per_step_s * dispatch.steps * scale
        busy_s = hot_s = start_s + decode_s + steps_s + work_s
        begins = now + wait_s
        if heats:
            hot_s = self._heated(client, busy_s, begins, ahead_s)
        dispatch.idle_s += wait_s
        dispatch.stage_began = begins - ahead_s  # the device computes from then on
        dispatch.terms += (wait_s, start_s, decode_s, steps_s, hot_s - busy_s)
        return wait_s + hot_s

    def upload_delay(self, dispatch: Dispatch, now: float) -> float:
        """Returns what happens between the end of the work and the reply's first byte, s.

        The reply is serialised, the node finds it, and calls. Of that, the device computes for the
        first. A reply that peers get is there at once.
        """
        client, arrived = dispatch.client, dispatch.arrived_s
        encode_s = waited_s = calls_s = 0.0
        if dispatch.ready_s is None:
            rtt_s, connect_s, _, _, scale, _ = self._nodes.get(client) or self._node(client)
            encode_s_per_byte, every_s, keep_alive_s = self._of_upload
            encode_s = encode_s_per_byte * dispatch.size_up * scale / dispatch.speed
            made = now + encode_s
            if every_s:
                waited_s = (arrived - made) % every_s
            objects = dispatch.objects
            calls_s = (self._trips.get(objects) or self._trips_of(objects))[1] * rtt_s
            found = made + waited_s
            if found - arrived > keep_alive_s:
                calls_s += connect_s
            dispatch.compute_s += encode_s
            dispatch.idle_s += waited_s
            dispatch.stage_began = found  # the radio is silent until then
        terms = (*dispatch.terms, encode_s, waited_s, calls_s)
        self._record(now, client, dispatch.number, terms)
        return encode_s + waited_s + calls_s

    def _heated(self, client: int, busy_s: float, begins: float, ahead_s: float) -> float:
        heat, since = self._heat.get(client, (0.0, begins))
        heat = self.runtime.cooled(heat, max(0.0, begins - ahead_s - since))
        heat = 1 - (1 - heat) * self.runtime.cooled(1.0, ahead_s) if ahead_s else heat
        seconds, heat = self.runtime.heated(busy_s, heat)
        self._heat[client] = heat, begins + seconds
        return seconds
