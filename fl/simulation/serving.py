"""What the server's process does one thing after the other, and when it looks for replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, RecordDict

from fl.flower.payload import num_objects, payload_bytes
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.runtime import Runtime

_ANSWER_OBJECTS = 3  # of a reply without a model: the message, its content, a record of metrics
_MOST_FORMS = 1000  # of replies, whose objects are kept


class Serving:
    """Passes the time that a runtime has the server take, and records it.

    Args:
        runtime: what it takes.
        trace: where each term is recorded, with the s that it takes.
        now: returns virtual time in s.
        advance: moves virtual time on to so many s, and runs what happens meanwhile.
        foreign: the app is somebody else's, whose `send_and_receive` is Flower's; that of `fl`
            looks as often as its strategies do.
        adds: whether it reads and adds up what clients have trained; machines before it may.

    Attributes:
        busy_s: seconds that it has worked so far.
    """

    def __init__(
        self,
        runtime: Runtime,
        trace: Trace,
        now: Callable[[], float],
        advance: Callable[[float], None],
        foreign: bool,
        adds: bool = True,
    ) -> None:
        self.busy_s = 0.0
        self._adds = adds
        self._runtime = runtime
        self._objects: dict[tuple[int, int], int] = {}  # of replies
        self._trace = trace
        self._now = now
        self._advance = advance
        self._exchange_poll_s = runtime.exchange_poll_s if foreign else runtime.server_poll_s

    def weigh(self, dispatch: Dispatch) -> None:
        """Notes of what its message is made, while that is there."""
        payload, kind = dispatch.request.payload, dispatch.metadata.message_type
        dispatch.scalars, objects = payload.shape(self._runtime.chunk_bytes)
        dispatch.objects = objects, objects if kind.startswith("train") else _ANSWER_OBJECTS

    def weigh_reply(self, dispatch: Dispatch, content: RecordDict, size: int) -> None:
        """Notes of how many objects its reply is, once that is there; of `size` bytes."""
        form = size, len(content)  # bytes of keys among them: what else is so has as many arrays
        objects = self._objects.get(form)
        if objects is None:
            if len(self._objects) >= _MOST_FORMS:
                self._objects.clear()
            objects = self._objects[form] = num_objects(content, self._runtime.chunk_bytes)
        dispatch.objects = dispatch.objects[0], objects

    def sends(self, messages: Sequence[Message]) -> None:
        """Passes what it takes to send messages; what they share is serialised once."""
        runtime = self._runtime
        contents = {id(message.content): message.content for message in messages}
        size = sum(map(payload_bytes, contents.values()))
        seconds = runtime.send_s * len(messages) + runtime.send_s_per_byte * size
        self._spend((Event.SERVER_SEND, seconds, size))

    def receives(self, dispatches: Iterable[Dispatch]) -> None:
        """Passes what it takes to read the replies to dispatches, and to add up the models."""
        runtime = self._runtime
        replies, size, numbers = 0, 0, 0
        for dispatch in dispatches:
            trained = dispatch.metadata.message_type.startswith("train")
            if trained and not self._adds:
                continue
            replies += 1
            size += dispatch.size_up
            if trained:
                numbers += dispatch.scalars
        self._spend(
            (
                Event.SERVER_RECEIVE,
                runtime.receive_s * replies + runtime.receive_s_per_byte * size,
                size,
            ),
            (Event.AGGREGATE, runtime.aggregate_s_per_parameter * numbers, 0),
        )

    def evaluates(self, flops: float) -> None:
        """Passes what it takes to evaluate a model on the server."""
        runtime = self._runtime
        seconds = runtime.evaluate_s
        if runtime.server_flops is not None:
            seconds += flops / runtime.server_flops
        self._spend((Event.SERVER_EVALUATE, seconds, 0))

    def waits(self, looked: float, until: float, *, exchange: bool = False) -> None:
        """Moves on to the next look, for a reply that is there now.

        Args:
            looked: when the server has looked last, s.
            until: when it looks at the latest, s.
            exchange: whether it waits in `send_and_receive`.
        """
        every = self._exchange_poll_s if exchange else self._runtime.server_poll_s
        now = self._now()
        if every == 0:
            return
        looks = looked + max(1, math.ceil((now - looked) / every)) * every
        looks = max(now, min(looks, until))
        self._advance(looks)
        self._trace.record(looks, Event.SERVER_POLL, value=looks - now)

    def _spend(self, *terms: tuple[Event, float, int]) -> None:
        now = self._now()
        for kind, seconds, size in terms:
            if seconds:
                self._trace.record(now, kind, size=size, value=seconds)
        total = sum(seconds for _, seconds, _ in terms)
        self.busy_s += total
        if total:
            self._advance(now + total)

    @property
    def energy_j(self) -> float:
        """Joules of the server's machine so far: working, and idle the rest of the time."""
        runtime = self._runtime
        idle_s = max(0.0, self._now() - self.busy_s)
        return runtime.server_work_w * self.busy_s + runtime.server_idle_w * idle_s

    def report(self) -> dict[str, float]:
        """Returns facts for the run's summary."""
        return {"busy_s": self.busy_s, "energy_j": self.energy_j}
