"""The driver of methods whose workers train by themselves and meet for outer steps.

M workers, each with its own parameters theta_m, do inner steps. Every H of them, for each fragment
of the parameters, they take the mean of

    Delta_m = theta - theta_m,    theta the outer parameters they hold,

by an all-reduce among themselves, with which an outer optimizer makes new outer parameters. Some
inner steps later (the lag, 0 if the workers wait) they go on from these. A method says what to do
with the mean; the driver does schedule, messages, waiting, membership and evaluation.

There is no server in these methods. The process that runs the strategy does the arithmetic of the
all-reduce and of the outer optimizer, which every worker would do for itself; on the simulator what
it sends and receives costs nothing, and the all-reduce costs what its ring costs on the direct
links between the workers. On a deployment fragments travel through the SuperLink.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.aggregation import check_result, check_weights, shown, weight_of
from fl.checks import read_if
from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE
from fl.clients.island import (
    MERGE,
    MIXING,
    RESET,
    SEND,
    Fragments,
    Island,
    Pattern,
    fragment_of,
    fragment_record,
)
from fl.clients.scheduled import FIRST_STEP_KEY
from fl.compression import Channel, Compressor, PayloadError
from fl.errors import ConfigError, NoStep, NotFinite, SimulationError
from fl.flower.records import from_record, layout_of, to_record
from fl.randomness import generator
from fl.strategies.drivers.driver import Driver, Traits
from fl.strategies.drivers.events import EvaluateFn, at_least, positive, share, wait_for_nodes
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.tasks import TTL_S, Failures, Task, Tasks
from fl.strategies.outer_optimizers import OuterOptimizer, State, Vector
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

log = logging.getLogger("fl")


class _NotSent(PayloadError):
    """A worker sends no payload of a fragment that is not finite."""


@dataclass(slots=True, eq=False)
class Outer:
    """Outer parameters in fragments, with the optimizer's state.

    Attributes:
        theta: of each fragment, float32, read-only; a new array for every step.
        state: of each fragment.
        steps: outer steps that each fragment has had.
    """

    theta: list[Row]
    state: list[State]
    steps: list[int]

    def step(self, optimizer: OuterOptimizer, p: int, delta: Vector) -> None:
        """Moves fragment p by an outer gradient.

        Raises:
            NotFinite: the parameters would not be finite; then nothing has changed.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            theta, state = optimizer.step(self.theta[p], delta, self.state[p], self.steps[p])
        check_result(f"the outer step of fragment {p}", theta)
        self.theta[p], self.state[p] = theta, state
        self.steps[p] += 1

    def copy(self) -> Outer:
        """Returns one that may go its own way."""
        return Outer(list(self.theta), list(self.state), list(self.steps))


@dataclass(frozen=True, slots=True, eq=False)
class EarlyStep:
    """An outer step that was taken before its all-reduce had finished.

    Attributes:
        step: inner steps after which.
        theta, state: of the fragment, before it.
        others: what it took of the all-reduce before.
    """

    step: int
    theta: Row
    state: State
    others: Vector


@dataclass(slots=True, eq=False)
class Worker:
    """A worker as the driver sees it.

    Attributes:
        node: Flower id.
        step: inner steps it has done; those of the segment it is at are not counted.
        held: fragments of outer parameters that its next outer gradients are measured against.
        ready_s: when it has what its next message says, s.
        reset: whether that message brings the whole model.
        merge: otherwise, the fragments it brings.
        missed: all-reduces, by (fragment, step), that lost its outer gradient; it does not see
            their outcome either.
        passed: the last step at which it went on.
        task: the segment that it is at, or was at last.
    """

    node: int
    step: int
    held: list[Row]
    ready_s: float
    reset: bool = True
    merge: dict[int, Row] = field(default_factory=dict)
    missed: set[tuple[int, int]] = field(default_factory=set)
    passed: int = -1
    task: Task[Segment] | None = None


@dataclass(slots=True, eq=False)
class Reduction:
    """An all-reduce of one fragment.

    Attributes:
        fragment: p.
        step: inner steps after which the workers take part.
        gradients: Delta_m by Flower id, as they were sent, float64.
        weights: of the workers in the mean, not negative.
        lost: workers whose outer gradient was lost.
        size: bytes of each worker's payload.
        finish_s: when it is finished, s; infinity until it begins.
        done: whether it is finished.
        outcome: the outer parameters of the fragment when it was, shape (n,).
    """

    fragment: int
    step: int
    gradients: dict[int, Vector] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    size: int = 0
    finish_s: float = math.inf
    done: bool = False
    outcome: Row | None = None

    def mean(self) -> Vector:
        """Returns the weighted mean of the outer gradients that are there, shape (n,).

        Raises:
            NoStep: none of them weighs anything.
        """
        check_weights(list(self.weights.values()))
        return mean_of(self.gradients, self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Inner steps that a worker does at a stretch: from `start` to `stop`."""

    start: int
    stop: int


class Run:
    """What a run consists of.

    Attributes:
        cut: the fragments.
        outer: the outer parameters.
        copies: those of every worker by Flower id, in methods where they differ.
        last: every worker's last outer step of each fragment, by (Flower id, fragment), in methods
            that take it before its all-reduce has finished.
        workers: those that take part, by Flower id.
        reductions: by (fragment, step); finished ones until nobody needs them any more.
        version: rounds that have ended.
        last_step: inner steps after which the run ends.
        entry: inner steps after which a worker enters when nobody else is there.
    """

    def __init__(
        self,
        cut: Fragments,
        layout: Layout,
        w: Row,
        optimizer: OuterOptimizer,
        tasks: Tasks[Segment],
        last_step: int,
    ) -> None:
        self.cut = cut
        self.layout = layout
        self.outer = Outer(
            [cut.take(w, p) for p in range(len(cut))],
            [optimizer.init(shapes.size) for shapes in cut.shapes],
            [0] * len(cut),
        )
        self.tasks = tasks
        self.copies: dict[int, Outer] = {}
        self.last: dict[tuple[int, int], EarlyStep] = {}
        self.workers: dict[int, Worker] = {}
        self.reductions: dict[tuple[int, int], Reduction] = {}
        self.version = 0
        self.last_step = last_step
        self.finished_rounds = 0  # all-reduces of fragment 0 that are finished
        self.entry = 0
        self.failures = Failures("outer gradient", None)
        self.transfers = 0
        self.config: Mapping[str, Any] = {}

    def row(self, fragments: Sequence[Row]) -> Row:
        """Returns the row that the fragments make up, shape (d,), read-only."""
        row = np.empty(self.layout.size, dtype=np.float32)
        for p, fragment in enumerate(fragments):
            self.cut.put(row, p, fragment)
        row.flags.writeable = False
        return row

    def waiting(self) -> list[Worker]:
        """Returns the workers that are not at work, in the order of their ids."""
        return [self.workers[node] for node in sorted(self.workers) if not self.tasks.busy(node)]


@read_if(
    lambda a: a["fragments"] != 1,
    "pattern",
    only="it deals blocks to several fragments, and {at}fragments is 1",
)
class OuterSteps(Driver):
    """Base of the strategies with outer steps.

    Fragment p of P is reduced after the inner steps t for which (t - t_p) mod H = 0, t_p = p H / P:
    a fragment every H / P steps, fragment 1 being the first and fragment 0 the last of each H. So
    the first outer gradients of fragments other than 0 are of p H / P steps, as in torchft
    (github.com/pytorch/torchft). A round ends with fragment 0's, after k H steps, and
    `num_rounds` rounds are num_rounds H inner steps; the model that is evaluated is the outer
    parameters, whose other fragments are then up to H steps older.

    Messages tell workers how many steps to do ("local-steps") and how many they have done
    ("first-step"), by which the client's `step_schedule` follows the global count.

    Who takes part: all clients that are available at the beginning. A worker whose task fails or is
    late (`patience`) is left out of the all-reduces that have not begun, whose mean is then over
    the survivors. One that comes back, or comes late, fetches the outer parameters from a peer, and
    enters at the next step at which others go on; what it has done alone is not used. If all fail,
    all enter again where the outer parameters are, at no cost.

    Args:
        inner_steps: H.
        optimizer: of the outer parameters.
        fragments: P, which divides H; None is one for every three blocks of the model.
        pattern: how blocks are dealt to fragments.
        overlap: the lag in inner steps, at most H.
        mixing: alpha, share of its own parameters that a worker keeps when it takes over outer
            ones.
        drop: probability that a worker's outer gradient is lost. It goes on from its own
            parameters, with the outer ones it held before: its next outer gradient covers both
            phases.
        weighted_by_key: metric of the clients that weights the mean; None is the plain mean.
        quantiser: of outer gradients; None sends float32.
        min_available_nodes: clients that must be available at the beginning.
        retry_s: how long to wait before looking for clients again when none is available.
        patience: a worker is late after so many times the longest segment it has done, one that has
            done none after so many times the longest of the others; see `patience.Patience`.
            None waits for ever.
        seed: of what is lost.
        arrayrecord_key, configrecord_key: names of the records in messages.

    Attributes:
        sends_gradients: whether the workers send gradients of the loss.

    Raises:
        ConfigError: an argument is out of its range.
    """

    sends_gradients = False
    tells: ClassVar[Mapping[str, Any]] = {"local-steps": "inner_steps", FIRST_STEP_KEY: 0}

    def __init__(
        self,
        *,
        inner_steps: int,
        optimizer: OuterOptimizer,
        fragments: int | None = 1,
        pattern: Pattern = "strided",
        overlap: int = 0,
        mixing: float = 0.0,
        drop: float = 0.0,
        weighted_by_key: str | None = None,
        quantiser: Compressor | None = None,
        min_available_nodes: int = 1,
        retry_s: float = 10.0,
        patience: float | None = 10.0,
        seed: int = 0,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
    ) -> None:
        at_least("inner_steps", inner_steps, 1)
        if fragments is not None:
            at_least("fragments", fragments, 1)
            _check_divides(inner_steps, fragments)
        if pattern not in ("strided", "sequential"):
            raise ConfigError(f"pattern is {pattern!r}; it must be strided or sequential")
        at_least("overlap", overlap, 0)
        share("mixing", mixing)
        share("drop", drop)
        at_least("min_available_nodes", min_available_nodes, 1)
        positive("retry_s", retry_s)
        if patience is not None:
            positive("patience", patience)
        self.patience = patience
        self.inner_steps = inner_steps
        self.optimizer = optimizer
        self.fragments = fragments
        self.pattern: Pattern = pattern
        self.overlap = overlap
        self.mixing = mixing
        self.drop = drop
        self.weighted_by_key = weighted_by_key
        self.quantiser = quantiser
        self.min_available_nodes = min_available_nodes
        self.retry_s = retry_s
        self.seed = seed
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(
            meets="ring",
            sends="gradient" if self.sends_gradients else "model",
            compressors="memoryless",
            downlink=False,
            forges=False,
            continues=True,
        )

    @property
    def worker(self) -> Island:
        """Uplink and downlink of the workers' app."""
        return self.ends(self.quantiser, None)[0]

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Island, Island]:
        """Returns the clients' ends of the links, see `Driver.ends`."""
        if uplink is not None and not isinstance(uplink, Compressor):
            raise ConfigError(
                f"compressor is {type(uplink).__name__}, which keeps a state at the receiver; "
                "outer gradients take one without memory: bf16, fp8_e4m3, e3m0, int8"
            )
        keys = self.arrayrecord_key, self.configrecord_key
        worker = Island(self.fragments, self.pattern, uplink, *keys)
        return worker, worker

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`."""
        made = super().within(exchange)
        if isinstance(exchange.uplink, Compressor):
            made.quantiser = exchange.uplink
        if exchange.layout is not None:
            made.cut(exchange.layout)
        return made

    def cut(self, layout: Layout) -> Fragments:
        """Returns the fragments of a model.

        Raises:
            ConfigError: the model cannot be cut into so many, they do not divide H, or the
                quantiser has a memory.
        """
        cut = Fragments.of(layout, self.fragments, self.pattern)
        _check_divides(self.inner_steps, len(cut))
        if self.quantiser is not None and self.quantiser.init(cut.shapes[0]):
            raise ConfigError(
                f"compressor is {type(self.quantiser).__name__}, which remembers what it sent "
                "before; outer gradients take one without memory: bf16, fp8_e4m3, e3m0, int8"
            )
        return cut

    # ---- the method ------------------------------------------------------------------------------

    def reduced(self, run: Run, reduction: Reduction) -> None:
        """Acts on an all-reduce that is finished; some outer gradients are there."""
        run.outer.step(self.optimizer, reduction.fragment, reduction.mean())

    def joined(self, run: Run, worker: Worker) -> Sequence[Row]:
        """Returns the outer parameters, in fragments, that a worker begins with."""
        return run.outer.theta

    def continued(self, run: Run, worker: Worker, p: int, reduction: Reduction | None) -> Row:
        """Returns the outer parameters that a worker goes on from.

        Args:
            run: the run.
            worker: the worker.
            p: number of the fragment.
            reduction: the one that began `overlap` inner steps ago, finished; None if there was
                none.
        """
        # Not the newest: by the time of this one, others may have finished.
        if reduction is None or reduction.outcome is None:
            return worker.held[p]
        return reduction.outcome

    def conclude(self, run: Run) -> None:
        """Takes in what is left when all steps are done and no all-reduce is in flight any more."""

    def rounds_done(self, run: Run) -> int:
        """Returns how many rounds have ended; the last does when nothing is in flight any more."""
        return run.finished_rounds

    def evaluated(self, run: Run) -> Row:
        """Returns the model to evaluate, shape (d,)."""
        return run.row(run.outer.theta)

    # ---- the schedule ----------------------------------------------------------------------------

    def sends(self, p: int, step: int, count: int) -> bool:
        """Returns whether fragment p of `count` is reduced after so many inner steps."""
        first = p * self.inner_steps // count or self.inner_steps
        return step >= first and (step - first) % self.inner_steps == 0

    def merges(self, p: int, step: int, count: int) -> bool:
        """Returns whether workers go on from new outer parameters after so many inner steps."""
        if self.overlap == self.inner_steps:  # also the first time, when nothing has come yet
            return self.sends(p, step, count)
        return self.sends(p, step - self.overlap, count)

    def next_stop(self, step: int, count: int, last: int) -> int:
        """Returns the next step after `step` at which a worker sends or merges, at most `last`."""
        for stop in range(step + 1, last):
            if any(self.sends(p, stop, count) or self.merges(p, stop, count) for p in range(count)):
                return stop
        return last

    # ---- Flower's Strategy -----------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Runs the strategy for `num_rounds` H inner steps.

        Args:
            grid: Flower's, simulated or real.
            initial_arrays: the initial model.
            num_rounds: rounds of H inner steps.
            timeout: not read: see `patience`.
            train_config: sent with every message.
            evaluate_config: not used: workers do not evaluate here.
            evaluate_fn: called with number and model, for the first model and after every round.

        Returns:
            The last model; for each round what `evaluate_fn` returned, and in
            `train_metrics_clientapp` how many islands took part in it.

        Raises:
            ConfigError: an argument is out of its range.
            SimulationError: workers do nothing but fail.
            Diverged: they do nothing but diverge.
        """
        at_least("num_rounds", num_rounds, 1)
        positive("timeout", timeout)
        layout = layout_of(initial_arrays)
        cut = self.cut(layout)
        w = from_record(layout, initial_arrays)
        last_step = num_rounds * self.inner_steps
        tasks: Tasks[Segment] = Tasks(grid, TTL_S, self.patience)
        run = Run(cut, layout, w, self.optimizer, tasks, last_step)
        run.config = dict(train_config or {})
        result = Result()

        def evaluate() -> None:
            reduction = run.reductions.get((0, run.version * self.inner_steps))
            islands = len(run.workers) if reduction is None else len(reduction.gradients)
            result.train_metrics_clientapp[run.version] = MetricRecord({"islands": islands})
            record = to_record(layout, self.evaluated(run))
            metrics = evaluate_fn(run.version, record) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[run.version] = metrics
            result.arrays = record

        evaluate()
        wait_for_nodes(run.tasks, self.min_available_nodes, self.retry_s)
        self._admit(run)
        while True:
            self._settle(run)
            ended = min(self.rounds_done(run), num_rounds)
            if ended == num_rounds and all(r.done for r in run.reductions.values()):
                self.conclude(run)
            else:
                ended = min(ended, num_rounds - 1)
            while run.version < ended:
                run.version += 1
                evaluate()
            if run.version == num_rounds:
                return result
            self._send(run)
            self._receive(run)

    # ---- one instant -----------------------------------------------------------------------------

    def _receive(self, run: Run) -> None:
        """Waits for replies, or for the end of an all-reduce."""
        begun = [r.finish_s for r in run.reductions.values() if not r.done]
        until = min(begun, default=math.inf)
        if not run.workers and math.isinf(until):
            self._admit(run)
            if run.workers:
                return
            until = run.tasks.now() + run.tasks.pause_s(self.retry_s)
        if math.isinf(until) and not run.tasks.any_open:
            raise SimulationError(
                f"{type(self).__name__} waits for nothing at {run.tasks.now():g} s"
            )
        for task, reply in run.tasks.receive(until):
            self._take(run, task, reply)
        for task in run.tasks.became_late:
            if self._is_at(run, task):
                self._leave_out(run, run.workers[task.node], "it is late")

    def _settle(self, run: Run) -> None:
        """Begins and ends all-reduces, and lets workers go on, until nothing changes any more."""
        changed = True
        while changed:
            for reduction in sorted(run.reductions.values(), key=lambda r: (r.step, r.fragment)):
                if math.isinf(reduction.finish_s) and all(
                    worker.step >= reduction.step for worker in run.workers.values()
                ):
                    self._begin(run, reduction)
            for reduction in sorted(
                (r for r in run.reductions.values() if not r.done),
                key=lambda r: (r.finish_s, r.step, r.fragment),
            ):
                if reduction.finish_s <= run.tasks.now():
                    self._finish(run, reduction)
            passed = [worker for worker in run.waiting() if self._go_on(run, worker)]
            changed = bool(passed)
            entries = [worker.step for worker in passed if worker.merge]
            if entries:
                run.entry = max(run.entry, *entries)
                self._forget(run)
                if min(entries) < run.last_step:
                    self._admit(run, min(entries))

    def _begin(self, run: Run, reduction: Reduction) -> None:
        reduction.finish_s = run.tasks.now()
        if reduction.gradients:
            nodes = sorted(reduction.gradients)
            reduction.finish_s = run.tasks.peers.all_reduce(nodes, reduction.size)

    def _finish(self, run: Run, reduction: Reduction) -> None:
        reduction.done = True
        run.entry = max(run.entry, reduction.step)
        why_not: NoStep | None = NoStep("no outer gradient has come")
        if reduction.gradients:
            try:
                self.reduced(run, reduction)
                why_not = None
            except NoStep as error:
                why_not = error
        run.tasks.control.stepped(run.version + 1, why_not)
        reduction.outcome = run.outer.theta[reduction.fragment]
        run.finished_rounds += reduction.fragment == 0

    def _go_on(self, run: Run, worker: Worker) -> bool:
        """Lets a worker pass the step at which it is; returns whether it did so just now."""
        step, count = worker.step, len(run.cut)
        if worker.passed == step:
            return False
        passing = []
        for p in range(count):
            if self.merges(p, step, count):
                key = (p, step - self.overlap)
                reduction = run.reductions.get(key)
                if key in worker.missed:
                    continue
                if reduction is not None and not reduction.done:
                    return False
                passing.append((p, reduction))
        for p, reduction in passing:
            worker.held[p] = worker.merge[p] = self.continued(run, worker, p, reduction)
        worker.passed = step
        worker.ready_s = run.tasks.now()
        return True

    def _forget(self, run: Run) -> None:
        """Drops all-reduces that all workers have seen the outcome of."""
        seen = min(worker.passed for worker in run.workers.values())
        for key in [
            k for k, r in run.reductions.items() if r.done and r.step + self.overlap < seen
        ]:
            del run.reductions[key]

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, run: Run) -> None:
        """Sends the workers that have gone on into their next segments."""
        groups: dict[Any, list[Worker]] = {}
        for worker in run.waiting():
            if worker.passed == worker.step < run.last_step:
                fragments = tuple((p, id(row)) for p, row in sorted(worker.merge.items()))
                whole = tuple(id(row) for row in worker.held) if worker.reset else ()
                key = (worker.step, whole, fragments)
                groups.setdefault(key, []).append(worker)
        for members in groups.values():
            first = members[0]
            stop = self.next_stop(first.step, len(run.cut), run.last_step)
            content = self._content(run, first, stop)
            nodes = [worker.node for worker in members]
            segments = [Segment(first.step, stop)] * len(nodes)
            ready_s = [worker.ready_s for worker in members]
            sent = run.tasks.send_from_peers([content] * len(nodes), nodes, segments, ready_s)
            for worker, task in zip(members, sent, strict=True):
                worker.reset, worker.merge, worker.task = False, {}, task

    def _content(self, run: Run, worker: Worker, stop: int) -> RecordDict:
        count = len(run.cut)
        config = {
            **run.config,
            "server-round": run.version + 1,
            "local-steps": stop - worker.step,
            FIRST_STEP_KEY: worker.step,
            RESET: worker.reset,
            MERGE: [] if worker.reset else sorted(worker.merge),
            MIXING: float(self.mixing),
            SEND: [p for p in range(count) if self.sends(p, stop, count)],
        }
        arrays = (
            to_record(run.layout, run.row(worker.held))
            if worker.reset
            else fragment_record(worker.merge)
        )
        return RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: ConfigRecord(config)}
        )

    def _take(self, run: Run, task: Task[Segment], reply: Message) -> None:
        """Takes in a worker's reply."""
        if reply.has_error():
            run.failures.add(task, reply, run.tasks.now(), len(run.workers))
        if not self._is_at(run, task):
            if not reply.has_error():
                run.tasks.control.discarded(task.message_id, 0)
            return
        worker = run.workers[task.node]
        if reply.has_error():
            self._leave_out(run, worker, reply.error.reason or "")
            return
        metrics: Mapping[str, Any] = next(iter(reply.content.metric_records.values()), {})
        sent: dict[int, tuple[Vector, int]] = {}
        try:
            for p in range(len(run.cut)):
                if self.sends(p, task.memo.stop, len(run.cut)):
                    sent[p] = self._gradient(run, worker, p, reply.content)
            weight = self._weight(metrics)
        except (ConfigError, PayloadError) as error:
            log.warning("node %d left out: %s", task.node, error)
            run.tasks.control.rejected(task.message_id)
            diverged = isinstance(error, NotFinite | _NotSent)
            run.failures.add(
                task,
                reply,
                run.tasks.now(),
                len(run.workers),
                why=str(error),
                diverged=diverged,
            )
            self._leave_out(run, worker, str(error))
            return
        run.failures.clear()
        worker.step = task.memo.stop
        lost = False
        for p, (delta, size) in sent.items():
            key = (p, worker.step)
            reduction = run.reductions.setdefault(key, Reduction(*key))
            if self._drops(worker, key):
                reduction.lost.add(worker.node)
                worker.missed.add(key)
                lost = True
                continue
            reduction.gradients[worker.node] = delta
            reduction.weights[worker.node] = weight
            reduction.size = max(reduction.size, size)
        if lost:
            run.tasks.control.discarded(task.message_id, 0)
        else:
            run.tasks.control.applied(task.message_id, 0, metrics)

    def _drops(self, worker: Worker, key: tuple[int, int]) -> bool:
        if not self.drop:
            return False
        return generator(self.seed, "outer gradient", worker.node, *key).random() < self.drop

    def _gradient(
        self, run: Run, worker: Worker, p: int, content: RecordDict
    ) -> tuple[Vector, int]:
        """Returns a worker's outer gradient of fragment p, and the bytes it was sent as.

        Raises:
            ConfigError, PayloadError: it is missing, of another form, or not finite.
        """
        record = content.get(self.arrayrecord_key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(f"the reply has no ArrayRecord '{self.arrayrecord_key}'")
        shapes = run.cut.shapes[p]
        if self.quantiser is None:
            sent = fragment_of(record, p, shapes.size).astype(np.float64)
            delta = sent if self.sends_gradients else worker.held[p] - sent
            return delta, 4 * shapes.size
        array = record.get(f"{PAYLOAD_KEY}.{p}")
        if array is None or array.stype != PAYLOAD_STYPE:
            raise _NotSent(f"there is no payload of fragment {p}: the worker may have diverged")
        decoded = self.quantiser.decode(array.data, shapes)
        return decoded.astype(np.float64), len(array.data)

    def _weight(self, metrics: Mapping[str, Any]) -> float:
        if self.weighted_by_key is None:
            return 1.0
        weight = weight_of(metrics.get(self.weighted_by_key))
        if weight is None:
            raise ConfigError(
                f"the reply's metric {self.weighted_by_key!r} is "
                f"{shown(metrics.get(self.weighted_by_key))}; to weight by it, it must be a finite "
                "number, not negative"
            )
        return weight

    # ---- membership ------------------------------------------------------------------------------

    def _admit(self, run: Run, step: int | None = None) -> None:
        """Takes in clients that are available and do not take part.

        Args:
            run: the run.
            step: at which they enter; None if nobody takes part.
        """
        sources = sorted(run.workers)
        for node in sorted(run.tasks.idle()):
            if node in run.workers:
                continue
            now = ready_s = run.tasks.now()
            if sources:
                size, run.transfers = 4 * run.layout.size, run.transfers + 1
                ready_s, arrives = run.tasks.peers.transfer(
                    sources[0], node, size, now, index=run.transfers
                )
                if not arrives:
                    continue
            worker = Worker(node, run.entry if step is None else step, [], ready_s)
            worker.passed = worker.step
            worker.held = list(self.joined(run, worker))
            run.workers[node] = worker
            log.info("node %d takes part from step %d, at %g s", node, worker.step, ready_s)

    @staticmethod
    def _is_at(run: Run, task: Task[Segment]) -> bool:
        """Returns whether a worker that takes part is at this task."""
        worker = run.workers.get(task.node)
        return worker is not None and worker.task is task

    def _leave_out(self, run: Run, worker: Worker, reason: str) -> None:
        """Does without a worker that failed, or is late."""
        log.info("node %d is left out after step %d: %s", worker.node, worker.step, reason)
        del run.workers[worker.node]
        for key, reduction in list(run.reductions.items()):
            if math.isinf(reduction.finish_s):
                reduction.gradients.pop(worker.node, None)
                reduction.lost.discard(worker.node)
                if not reduction.gradients and not reduction.lost:
                    del run.reductions[key]


def mean_of(vectors: Mapping[int, Vector], weights: Mapping[int, float]) -> Vector:
    """Returns the weighted mean of vectors, shape (n,); zeros if no weight is positive.

    Args:
        vectors: of shape (n,) each, by any key.
        weights: of the vectors' keys, not negative.
    """
    nodes = sorted(vectors)
    largest = max(weights[node] for node in nodes)
    if not largest > 0:
        return np.zeros_like(vectors[nodes[0]], dtype=np.float64)
    relative = {node: weights[node] / largest for node in nodes}  # equal weights are 1
    first, *others = [node for node in nodes if relative[node] > 0]
    total, whole = relative[first] * vectors[first], relative[first]
    for node in others:
        total = total + relative[node] * vectors[node]
        whole += relative[node]
    return np.asarray(total / whole, dtype=np.float64)


def _check_divides(inner_steps: int, fragments: int) -> None:
    if inner_steps % fragments:
        raise ConfigError(
            f"strategy.inner_steps is {inner_steps}, which {fragments} fragments do not divide: a "
            f"fragment is due every inner_steps / fragments steps; set it to a multiple of "
            f"{fragments}"
        )
