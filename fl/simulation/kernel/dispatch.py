"""A dispatch: one request on its way through virtual time, from the push of its message on."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING

from fl.simulation.world.faults import TaskFaults

if TYPE_CHECKING:
    from flwr.app import Message, Metadata

    from fl.execution.contract import Request, Result, Workload


class Stage(IntEnum):
    """Where a dispatch is."""

    WAITING = 0  # its message is at the server
    DOWNLOADING = 1  # or waits for what the client's peers send
    QUEUED = 2  # its message is at the client, whose device works on another one
    COMPUTING = 3
    UPLOADING = 4
    DONE = 5


class Dispatch:
    """What one message causes on one client.

    The engine moves it from stage to stage and looks at nothing of what it carries.

    Attributes:
        name: the message's id.
        client: index in the fleet.
        number: running number of the client's dispatches; (client, number) names this one.
        size_down: bytes of the message.
        faults: what will go wrong, drawn from (seed, client, number).
        expiry: when the message's time to live runs out, s.
        ready_s: when the client has what it needs, if that comes from its peers and not from the
            server; then nothing is downloaded or uploaded. None for an ordinary message.
        stage, stage_began: where it is, and since when, s.
        arrived_s: when its message came to the client.
        told_s: when the client's node knew of it, if a runtime has its app start from then on.
        steps: local steps of its work, as far as they are known.
        scalars: numbers in its message's arrays; 0 where nothing depends on them.
        objects: of its message and of its reply, that Flower moves by themselves; likewise.
        flow: of the transfer that goes on; -1 without.
        size_up: bytes of the reply.
        terms: s that the runtime has added so far, see `fl.simulation.kernel.nodes`.
        idle_s, compute_s, radio_s: what it has taken of the device so far, s.
        radio_j: what its transfers have taken so far, J, where radios have states.
        past_s: what the device computed for it before the message came, s, for its energy.
        asked_cap: share of full power at which the server has it worked on; None if it says none.
        speed, draw: shares of full speed, and of the power of that, with which the device computes.
        load_w, load_since, drained_j: what it draws of a battery in its stage, W; since when, s;
            and what it has drawn before, J.
        metadata: of the message.
        request: what the client is asked.
        plan: what that costs, if its app plans.
        reply_bytes: of the reply's content, if the plan knows them; then the client keeps nothing.
        submitted: whether an executor has the request.
        result: what came of it, once somebody has asked.
        reply: to the message, once it has arrived and until it is pulled.
        unread: whether the reply has arrived and is not filled yet: if the plan knows its size and
            the client keeps nothing, the work may be done when somebody reads it.
    """

    __slots__ = (
        "arrived_s",
        "asked_cap",
        "client",
        "compute_s",
        "drained_j",
        "draw",
        "expiry",
        "faults",
        "flow",
        "idle_s",
        "load_since",
        "load_w",
        "metadata",
        "name",
        "number",
        "objects",
        "past_s",
        "plan",
        "radio_j",
        "radio_s",
        "ready_s",
        "reply",
        "reply_bytes",
        "request",
        "result",
        "scalars",
        "size_down",
        "size_up",
        "speed",
        "stage",
        "stage_began",
        "steps",
        "submitted",
        "terms",
        "told_s",
        "unread",
    )

    def __init__(
        self,
        name: str,
        client: int,
        number: int,
        size_down: int,
        faults: TaskFaults,
        expiry: float,
        metadata: Metadata,
        request: Request,
        plan: Workload | None = None,
        ready_s: float | None = None,
    ) -> None:
        self.name = name
        self.client = client
        self.number = number
        self.size_down = size_down
        self.faults = faults
        self.expiry = expiry
        self.ready_s = ready_s
        self.stage = Stage.WAITING
        self.stage_began = 0.0
        self.arrived_s = 0.0
        self.told_s = math.inf
        self.steps = 0
        self.scalars = 0
        self.objects = (0, 0)
        self.terms: tuple[float, ...] = (0.0, 0.0)
        self.flow = -1
        self.size_up = 0
        self.idle_s = 0.0
        self.compute_s = 0.0
        self.past_s = 0.0
        self.asked_cap: float | None = None
        self.speed = 1.0
        self.draw = 1.0
        self.load_w = 0.0
        self.load_since = 0.0
        self.drained_j = 0.0
        self.radio_j = 0.0
        self.radio_s = 0.0
        self.metadata = metadata
        self.request = request
        self.plan = plan
        self.reply_bytes = None if plan is None else plan.reply_bytes
        self.submitted = False
        self.result: Result | None = None
        self.reply: Message | None = None
        self.unread = False
