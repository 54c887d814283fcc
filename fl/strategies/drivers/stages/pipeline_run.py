"""A run through pipeline stages: which machine holds what, and what crosses between them."""

from __future__ import annotations

import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fl.clients.app import stage_app as wire
from fl.compression import Channel, PayloadError, Shapes
from fl.errors import ConfigError, NotFinite, SimulationError
from fl.flower.arrays import read_array
from fl.flower.records import VECTOR, record_vector, tensors_record, vector_record
from fl.randomness import generator
from fl.strategies.drivers.tasks import Failures, Task, Tasks
from fl.vectors.layout import FLOAT_BYTES
from fl.vectors.rows import Row, as_tensor, is_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fl.stages import Cut

log = logging.getLogger("fl")

Place = tuple[int, int]
"""A pipeline and a stage."""


class StageTask(NamedTuple):
    """What a machine has been asked.

    Attributes:
        place: pipeline and stage.
        kind: see `fl.clients.StageApp`.
        m: the micro-batch.
        position: in the micro-batch's route.
    """

    place: Place
    kind: wire.Kind
    m: int = 0
    position: int = 0


class _Crossing(NamedTuple):
    """A message whose content is on its way to a machine."""

    memo: StageTask
    node: int
    content: RecordDict


class StageGradient(NamedTuple):
    """A stage's mean gradient over a pipeline's micro-batches.

    Attributes:
        g: shape (d_i,), float32.
        message_id: of the message that it answers.
    """

    g: Row
    message_id: str


@dataclass(slots=True, eq=False)
class Passage:
    """A micro-batch on its way.

    Attributes:
        examples: in it; 0 until the first machine has said.
        labels: for the last machine, if it is not the first.
        labels_s: when they are there, s.
        loss: that the turn reported; None if it did not.
    """

    examples: int = 0
    labels: ArrayRecord | None = None
    labels_s: float = 0.0
    loss: float | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """A pipeline's part of a step.

    Attributes:
        waiting: micro-batches that have not begun.
        under_way: those that have, by number.
        done: that have gone back.
    """

    waiting: deque[int]
    under_way: dict[int, Passage] = field(default_factory=dict)
    done: dict[int, Passage] = field(default_factory=dict)


class PipelineRun:
    """Machines, messages and transfers of a run.

    Args:
        cut: the stages.
        sizes: of the stages' parameters, in numbers.
        tasks: on the grid.
        channel: carries activations and their gradients; None sends them as they are.
        seed: of the channel.
        keys: name of the configuration in messages, and what every message says.
        micro_batches: M.
        in_flight: most micro-batches of a pipeline under way.
        redundant: machines also compute their successors' forward passes.
        swapped: the route of every other micro-batch.

    Attributes:
        at: the machine of each place, by Flower id.
        whole: places whose machine has the stage's present state.
        facts: what has happened since they were last read, by name.
        version: the round that goes on, from 1.
        failures: ends a run in which nothing works.
        idle_heads: machines without examples, which cannot have the first stage.
        failed: at which attempt a machine was lost last, by Flower id.
    """

    def __init__(
        self,
        cut: Cut,
        sizes: Sequence[int],
        tasks: Tasks[StageTask],
        channel: Channel | None,
        seed: int,
        keys: tuple[str, Mapping[str, Any]],
        *,
        micro_batches: int,
        in_flight: int | None,
        redundant: bool,
        swapped: bool,
    ) -> None:
        self.cut = cut
        self.sizes = sizes
        self.tasks = tasks
        self.at: dict[Place, int] = {}
        self.whole: set[Place] = set()
        self.facts: Counter[str] = Counter()
        self.version = 1
        self.failures = Failures("gradient", None)
        self.idle_heads: set[int] = set()
        self.failed: dict[int, int] = {}
        self._channel = channel
        self._seed = seed
        self._config_key, self._config = keys
        self._micro_batches = micro_batches
        self._in_flight = micro_batches if in_flight is None else in_flight
        self._redundant = redundant
        self._routes = [cut.route(), cut.route(swapped=swapped)]
        self._transfers: Counter[tuple[int, int]] = Counter()
        self._attempt = 0
        self._crossing: list[tuple[float, int, _Crossing]] = []  # (there at, number, message)
        self._sends = 0

    @property
    def now(self) -> float:
        """Time in s."""
        return self.tasks.now()

    # ---- machines --------------------------------------------------------------------------------

    def lose(self, place: Place, reason: str) -> None:
        """Does without the machine of a place."""
        node = self.at.pop(place, None)
        self.whole.discard(place)
        if node is not None:
            self.failed[node] = self._attempt
            self.tasks.control.absent(node, self.version)
        self.facts["lost_machines"] += 1
        log.info("stage %d of pipeline %d is lost with node %s: %s", *place[::-1], node, reason)

    def carry(self, source: int, target: int, size: int) -> float:
        """Sends a payload from one machine to another, by Flower ids; returns when it is there, s.

        A machine's payloads leave one after the other. One that is lost is sent again.
        """
        while source != target:
            index = self._transfers[source, target]
            self._transfers[source, target] += 1
            arrival, arrived = self.tasks.peers.transfer(
                source, target, size, self.now, index=index, in_turn=True
            )
            if arrived:
                return arrival
            self.facts["lost_payloads"] += 1
        return self.now

    def wait(self, until: float) -> None:
        """Lets time pass, in which nothing comes but what became of tasks that were late."""
        while self.now < until:
            for task, reply in self.tasks.receive(until):
                if reply.has_error():
                    self.failures.add(task, reply, self.now, max(1, len(self.at)))

    # ---- messages --------------------------------------------------------------------------------

    def _send(
        self,
        memo: StageTask,
        step: int,
        records: Mapping[str, ArrayRecord],
        ready_s: float | None = None,
        also: Sequence[int] = (),
    ) -> None:
        route = self._route(memo.m)
        config = {
            **self._config,
            wire.WORK_KEY: memo.kind,
            wire.STAGE_KEY: memo.place[1],
            wire.SPAN_KEY: route[memo.position],
            wire.MICRO_BATCH_KEY: memo.m,
            wire.MICRO_BATCHES_KEY: self._micro_batches,
            wire.STEP_KEY: step,
            wire.ALSO_KEY: list(also),
        }
        content = RecordDict({self._config_key: ConfigRecord(config), **records})
        node = self.at[memo.place]
        if ready_s is None or ready_s <= self.now:
            self.tasks.send_from_peers([content], [node], [memo])
        else:  # not before: a machine is asked nothing while it waits for what it needs
            self._sends += 1
            heapq.heappush(self._crossing, (ready_s, self._sends, _Crossing(memo, node, content)))

    def _route(self, m: int) -> tuple[int, ...]:
        return self._routes[m % 2]

    def _exchange(
        self,
        pipelines: dict[int, Any],
        take: Callable[[Task[StageTask], RecordDict], None],
    ) -> None:
        """Takes in what comes at the next instant.

        What machines answer that do not take part any more is thrown away. A pipeline with a
        machine that has failed, is late, or sends what is of no use takes part no more.

        Args:
            pipelines: that take part, as keys.
            take: takes in a reply's content, and raises ConfigError or PayloadError if it is none.

        Raises:
            SimulationError: nothing will come.
        """
        until = self._crossing[0][0] if self._crossing else np.inf
        replies = self.tasks.receive(until)
        while self._crossing and self._crossing[0][0] <= self.now:
            _, _, sent = heapq.heappop(self._crossing)
            place = sent.memo.place
            if place[0] in pipelines and self.at.get(place) == sent.node:
                self.tasks.send_from_peers([sent.content], [sent.node], [sent.memo])
        late = list(self.tasks.became_late)
        if not (replies or late or self.tasks.any_open or self._crossing):
            raise SimulationError(f"the machines of stages wait for nothing at {self.now:g} s")
        for task, reply in replies:
            if reply.has_error():
                self.failures.add(task, reply, self.now, max(1, len(self.at)))
            if not self._current(task, pipelines):
                continue
            if reply.has_error():
                self._break(pipelines, task.memo.place, reply.error.reason or "an error")
                continue
            try:
                take(task, reply.content)
            except (ConfigError, PayloadError) as error:
                self.tasks.control.rejected(task.message_id)
                diverged = isinstance(error, NotFinite)
                self.failures.add(
                    task, reply, self.now, len(self.at), why=str(error), diverged=diverged
                )
                self._break(pipelines, task.memo.place, str(error))
        for task in late:
            if self._current(task, pipelines):
                self._break(pipelines, task.memo.place, "it is late")

    def _current(self, task: Task[StageTask], pipelines: Mapping[int, Any]) -> bool:
        place = task.memo.place
        return place[0] in pipelines and self.at.get(place) == task.node

    def _break(self, pipelines: dict[int, Any], place: Place, reason: str) -> None:
        """Ends a pipeline's part in a step, with the machine that it cannot go on with."""
        pipelines.pop(place[0], None)
        self._crossing = [each for each in self._crossing if each[2].memo.place[0] != place[0]]
        heapq.heapify(self._crossing)
        late = self.at.get(place)
        for task in self.tasks.open():
            # Of one that is late it is heard in the end, if only that it has lost its task.
            if task.memo.place[0] == place[0] and task.node != late:
                self.tasks.cancel(task)
        self.lose(place, reason)

    # ---- what machines do ------------------------------------------------------------------------

    def hold(
        self,
        pipelines: Sequence[int],
        step: int,
        rows: Sequence[Row],
        ready_s: Mapping[Place, float],
    ) -> list[int]:
        """Gives every machine its stage, and returns the pipelines whose machines all have it.

        Args:
            pipelines: those with a machine at every place.
            step: t.
            rows: the stages' parameters.
            ready_s: when machines have them, s; now, if it is not said.
        """
        self._attempt += 1
        there: dict[int, set[int]] = {p: set() for p in pipelines}
        weights = [{wire.WEIGHTS_KEY: vector_record(as_tensor(row))} for row in rows]
        for p in pipelines:
            for i in range(len(rows)):
                self._send(StageTask((p, i), "hold"), step, weights[i], ready_s.get((p, i)))

        def take(task: Task[StageTask], content: RecordDict) -> None:
            p, i = place = task.memo.place
            if i == 0 and not _examples(content):
                self.idle_heads.add(task.node)
                self._break(there, place, "it has no examples")
                return
            self.whole.add(place)
            there[p].add(i)

        while any(len(own) < len(rows) for own in there.values()):
            self._exchange(there, take)
        return list(there)

    def micro_batches(self, pipelines: Sequence[int], step: int) -> dict[int, list[Passage]]:
        """Sends a step's micro-batches through pipelines and back; returns those that came back.

        Returns:
            By pipeline, for those that have lost no machine.
        """
        flights = {p: Flight(deque(range(self._micro_batches))) for p in pipelines}
        finished: dict[int, list[Passage]] = {}
        for p, flight in flights.items():
            self._begin(p, flight, step)

        def take(task: Task[StageTask], content: RecordDict) -> None:
            p = task.memo.place[0]
            self._go_on(flights[p], task, content, step)
            if len(flights[p].done) == self._micro_batches:
                finished[p] = list(flights.pop(p).done.values())

        while flights:
            self._exchange(flights, take)
        return finished

    def gradients(self, pipelines: Sequence[int], step: int) -> dict[int, list[StageGradient]]:
        """Returns each pipeline's gradient of every stage, for those that can."""
        given: dict[int, dict[int, StageGradient]] = {p: {} for p in pipelines}
        for p in pipelines:
            for i in range(len(self.sizes)):
                self._send(StageTask((p, i), "give"), step, {})

        def take(task: Task[StageTask], content: RecordDict) -> None:
            p, i = task.memo.place
            record = _record(content, wire.GRADIENT_KEY)
            g = record_vector(record, self.sizes[i], "the gradient").numpy()
            given[p][i] = StageGradient(g, task.message_id)

        while any(len(own) < len(self.sizes) for own in given.values()):
            self._exchange(given, take)
        return {p: [own[i] for i in range(len(self.sizes))] for p, own in given.items()}

    # ---- a micro-batch's way ---------------------------------------------------------------------

    def _begin(self, p: int, flight: Flight, step: int) -> None:
        """Begins as many micro-batches as may be under way."""
        while flight.waiting and len(flight.under_way) < self._in_flight:
            m = flight.waiting.popleft()
            flight.under_way[m] = Passage()
            self._compute(p, m, 0, "forward", step, {}, None)

    def _compute(
        self,
        p: int,
        m: int,
        position: int,
        kind: wire.Kind,
        step: int,
        records: Mapping[str, ArrayRecord],
        ready_s: float | None,
    ) -> None:
        route = self._route(m)
        also: tuple[int, ...] = ()
        if self._redundant and kind != "backward":
            also = route[position + 1 : position + 2]
        place = (p, self.cut.spans[route[position]].stage)
        self._send(StageTask(place, kind, m, position), step, records, ready_s, also)

    def _go_on(self, flight: Flight, task: Task[StageTask], content: RecordDict, step: int) -> None:
        """Sends on what a machine has computed.

        Raises:
            ConfigError, PayloadError: it is not what it must be, or cannot be compressed.
        """
        memo = task.memo
        p, m, micro = memo.place[0], memo.m, flight.under_way[memo.m]
        route = self._route(m)
        span = self.cut.spans[route[memo.position]]
        last = len(route) - 1
        if memo.kind == "forward":
            values = self._activations(content, micro, span.output_shape)
            if memo.position == 0 and wire.LABELS_KEY in content:
                micro.labels = _record(content, wire.LABELS_KEY)
                labels = _labels(micro.labels, micro.examples)
                place = (p, self.cut.spans[route[last]].stage)
                micro.labels_s = self.carry(task.node, self.at[place], labels.nbytes)
            to = memo.position + 1
            kind: wire.Kind = "turn" if to == last else "forward"
        elif memo.kind == "backward" and memo.position == 0:
            flight.done[m] = flight.under_way.pop(m)
            self._begin(p, flight, step)
            return
        else:
            if memo.kind == "turn":
                metrics: Mapping[str, Any] = next(iter(content.metric_records.values()), {})
                loss = metrics.get("train-loss")
                micro.loss = float(loss) if isinstance(loss, int | float) else None
            values = self._activations(content, micro, span.input_shape)
            to, kind = memo.position - 1, "backward"
        place = (p, self.cut.spans[route[to]].stage)
        came, size = self._passed(values, (self._attempt, p, m, memo.position, memo.kind))
        ready_s = self.carry(task.node, self.at[place], size)
        records = {wire.ACTIVATIONS_KEY: tensors_record({VECTOR: as_tensor(came)})}
        if kind == "turn" and micro.labels is not None:
            records[wire.LABELS_KEY] = micro.labels
            ready_s = max(ready_s, micro.labels_s)
        self._compute(p, m, to, kind, step, records, ready_s)

    def _activations(
        self, content: RecordDict, micro: Passage, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Returns activations, or their gradient, shape (B, *shape), finite.

        Raises:
            ConfigError: they are something else.
        """
        array = _record(content, wire.ACTIVATIONS_KEY).get(VECTOR)
        values: NDArray[Any] = np.empty(0) if array is None else read_array(array)
        b = micro.examples or (len(values) if values.ndim else 0)
        if values.dtype != np.float32 or values.shape != (b, *shape) or b == 0:
            raise ConfigError(
                f"activations have shape {values.shape} and type {values.dtype}; they must be "
                f"float32, ({b or 'B'}, {', '.join(map(str, shape))})"
            )
        if not is_finite(values.reshape(-1)):
            raise NotFinite("activations are not finite; training may have diverged")
        micro.examples = b
        return values

    def _passed(
        self, values: NDArray[np.float32], key: tuple[int | str, ...]
    ) -> tuple[NDArray[np.float32], int]:
        """Returns what the receiver makes of activations, and the bytes that they were sent as."""
        if self._channel is None:
            return values, values.size * FLOAT_BYTES
        shapes = Shapes((values.shape,))
        rng = generator(self._seed, "activations", *key)
        flat = np.ascontiguousarray(values.reshape(-1))
        payload, _ = self._channel.encode(flat, shapes, {}, rng)
        came, _ = self._channel.receive(payload, shapes, {})
        came = came.reshape(values.shape)
        came.flags.writeable = False
        return came, len(payload)


def _record(content: RecordDict, name: str) -> ArrayRecord:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise ConfigError(f"the reply has no ArrayRecord {name!r}, only {sorted(content)}")
    return record


def _labels(record: ArrayRecord, examples: int) -> NDArray[Any]:
    array: Array | None = record.get(VECTOR)
    labels: NDArray[Any] = np.empty(0) if array is None else read_array(array)
    if labels.ndim == 0 or len(labels) != examples or labels.dtype not in (np.int64, np.float32):
        raise ConfigError(
            f"labels have shape {labels.shape} and type {labels.dtype}; they must be int64 or "
            f"float32, of {examples} examples"
        )
    return labels


def _examples(content: RecordDict) -> float:
    metrics: Mapping[str, Any] = next(iter(content.metric_records.values()), {})
    count = metrics.get("num-examples", 0)
    return count if isinstance(count, int | float) else 0
