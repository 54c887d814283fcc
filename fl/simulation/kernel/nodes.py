"""The clients' nodes: when they look for messages, and what a task takes beside its work.

Read at flwr 1.41 (`flwr/supernode/start_client_internal.py`, `flwr/supercore/superexec`): a
SuperNode looks for a message; if there is none, it sleeps and looks again. With one, it waits for
the reply, looking for that every so often, sends it, and looks for the next message at once. A
process beside it looks for tasks at a pace of its own, and starts a process for each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fl.randomness import uniform
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
    """

    rtt_s: float
    connect_s: float
    every_s: float
    phase_s: float
    scale: float


class Nodes:
    """Answers what a runtime adds to the stages of a dispatch, and records it.

    Args:
        runtime: what it takes.
        fleet: the clients.
        trace: where each term is recorded, with the s that it takes.
    """

    def __init__(self, runtime: Runtime, fleet: Fleet, trace: Trace) -> None:
        self.runtime = runtime
        self._fleet = fleet
        self._trace = trace
        self._nodes: dict[int, _Node] = {}
        self._looked: dict[int, float] = {}  # when a client's node has looked, as far as is known
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
            runtime.task_poll_s * uniform(fleet.seed, "task-poll", client),
            1.0 if reference is None else reference / fleet.devices.flops.item(client),
        )
        self._looked.setdefault(client, -every_s * uniform(fleet.seed, "node-poll", client))
        return node

    # ---- looking for messages --------------------------------------------------------------------

    def looks(self, client: int, now: float) -> None:
        """Notes that the client's node looks for a message now: it has come, or ended a task."""
        self._looked[client] = now

    def next_look(self, client: int, now: float) -> float:
        """Returns when an idle client's node looks for a message, from now on, s."""
        every_s = (self._nodes.get(client) or self._node(client)).every_s
        if every_s == 0:
            return now
        since = self._looked[client]
        return max(now, since + math.ceil((now - since) / every_s) * every_s)

    def download_delay(self, dispatch: Dispatch, sent_s: float, now: float) -> float:
        """Returns what the calls take before the bytes of a message flow that is taken up, s.

        Args:
            dispatch: of the message.
            sent_s: when the server has sent it.
            now: when it is taken up.
        """
        client, runtime = dispatch.client, self.runtime
        node = self._nodes.get(client) or self._node(client)
        calls_s = runtime.trips(runtime.trips_down, dispatch.objects[0]) * node.rtt_s
        # It has waited since it was sent, or since the node was idle.
        dispatch.terms = (max(0.0, now - max(sent_s, self._looked[client])), calls_s)
        return calls_s

    # ---- work ------------------------------------------------------------------------------------

    def work_seconds(self, dispatch: Dispatch, work_s: float, now: float) -> float:
        """Returns how long a task is at the device, s.

        Args:
            dispatch: the task.
            work_s: what its FLOPs take on a cold device, at its power.
            now: when it begins.
        """
        client, runtime = dispatch.client, self.runtime
        node = self._nodes.get(client) or self._node(client)
        wait_s, every_s, scale = 0.0, runtime.task_poll_s, node.scale / dispatch.speed
        if every_s:
            wait_s = (node.phase_s - now) % every_s
        start_s = runtime.seconds_to_start(self._fleet.seed, client, dispatch.number) * scale
        decode_s = runtime.decode_s_per_byte * dispatch.size_down * scale
        per_step_s = runtime.step_s + runtime.step_s_per_parameter * dispatch.scalars
        steps_s = per_step_s * dispatch.steps * scale
        busy_s = hot_s = start_s + decode_s + steps_s + work_s
        if runtime.sustained < 1:
            hot_s = self._heated(client, busy_s, now + wait_s)
        dispatch.idle_s += wait_s
        dispatch.stage_began = now + wait_s  # the device computes from then on
        dispatch.terms += (wait_s, start_s, decode_s, steps_s, hot_s - busy_s)
        return wait_s + hot_s

    def upload_delay(self, dispatch: Dispatch, now: float) -> float:
        """Returns what happens between the end of the work and the reply's first byte, s.

        The reply is serialised, the node finds it, and calls. Of that, the device computes for the
        first. A reply that peers get is there at once.
        """
        client, runtime, arrived = dispatch.client, self.runtime, dispatch.arrived_s
        encode_s = waited_s = calls_s = 0.0
        if dispatch.ready_s is None:
            node = self._nodes.get(client) or self._node(client)
            encode_s = runtime.encode_s_per_byte * dispatch.size_up * node.scale / dispatch.speed
            made = now + encode_s
            if runtime.reply_poll_s:
                waited_s = (arrived - made) % runtime.reply_poll_s
            calls_s = runtime.trips(runtime.trips_up, dispatch.objects[1]) * node.rtt_s
            found = made + waited_s
            if runtime.keep_alive_s is not None and found - arrived > runtime.keep_alive_s:
                calls_s += node.connect_s
            dispatch.compute_s += encode_s
            dispatch.idle_s += waited_s
            dispatch.stage_began = found  # the radio is silent until then
        self._trace.record_terms(
            now, client, dispatch.number, *dispatch.terms, encode_s, waited_s, calls_s
        )
        return encode_s + waited_s + calls_s

    def _heated(self, client: int, busy_s: float, begins: float) -> float:
        heat, since = self._heat.get(client, (0.0, begins))
        heat = self.runtime.cooled(heat, max(0.0, begins - since))
        seconds, heat = self.runtime.heated(busy_s, heat)
        self._heat[client] = heat, begins + seconds
        return seconds
