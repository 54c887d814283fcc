"""The driver of methods whose workers train by themselves and meet for outer steps.

The rule is `fl.strategies.outer_rule`. What there is to decide is in modules of its own, each on
top of the one before: who takes part (`membership`), when they meet and go on
(`meetings`), what is sent, taken in and evaluated (this one). The rule's steps are made in
`step`, the state of a run is `run`.

There is no server in these methods. The process that runs the strategy does the arithmetic of the
all-reduce and of the outer optimizer, which every worker would do for itself; on the simulator what
it sends and receives costs nothing, and the all-reduce costs what it costs on the direct links
between the workers (`all_reduce`). On a deployment fragments travel through the SuperLink.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.aggregation import Aggregator, Mean, shown, weight_of
from fl.checks import at_least, is_a, positive, share
from fl.clients.app.batches import covered_examples
from fl.clients.app.island import (
    AFRESH,
    MERGE,
    MIXING,
    RESET,
    SEND,
    Fragments,
    Island,
    fragment_of,
    fragment_record,
)
from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE
from fl.clients.local_optimizer import FIRST_STEP_KEY
from fl.compression import Channel, PayloadError, mean_compressor
from fl.errors import ConfigError, NotFinite, SimulationError
from fl.flower.records import from_record, layout_of, to_record
from fl.randomness import generator
from fl.strategies.cephalo import Cephalo
from fl.strategies.drivers.aggregating import own_f
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.events import EvaluateFn, wait_for_nodes
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.outer import step as outer_step
from fl.strategies.drivers.outer.all_reduce import AllReduce
from fl.strategies.drivers.outer.apportioning import Apportioning
from fl.strategies.drivers.outer.checks import check_payloads, check_together
from fl.strategies.drivers.outer.meetings import OuterMeetings
from fl.strategies.drivers.outer.reduction import ReceivedOuterGradient, Reduction
from fl.strategies.drivers.outer.run import Key, OuterRun, Participant, Segment
from fl.strategies.drivers.tasks import TTL_S, Task, Tasks
from fl.strategies.outer_rule import OuterRule, check_divides
from fl.vectors.layout import Layout

log = logging.getLogger("fl")


class _NotSent(PayloadError):
    """A worker sends no payload of a fragment that is not finite."""


@own_f
class OuterSteps(OuterMeetings):
    """Outer steps by a rule.

    A round ends with fragment 0's all-reduce, after k H steps, and `num_rounds` rounds are
    num_rounds H inner steps; the model that is evaluated is the outer parameters, whose other
    fragments are then up to H steps older. When which fragment is due says `Schedule`.

    Messages tell workers how many steps to do ("local-steps") and how many they have done
    ("first-step"), by which the client's `step_schedule` follows the global count.

    Who takes part says `OuterMembership`, and when they meet `OuterMeetings`.

    With an aggregator F, outer gradients become one by F instead of their mean. What is no outer
    gradient of the right form, or not finite, counts as one of the f that F tolerates. If too few
    workers are left for F, the outer parameters stay.

    Byzantine workers train as others do, and send what the attack makes of the outer gradients
    that meet in an all-reduce. Where every worker steps for itself (`EagerUpdates`), liars know
    their true ones, and the model that is evaluated is that of the others.

    Args:
        rule: makes new outer parameters.
        aggregator: F; None is the mean.
        accumulate: micro-batches whose mean gradient a worker sends, for rules whose workers send
            gradients: `no_sync` of PyTorch in all but the last of them.
        f: how many Byzantine workers F is to tolerate, instead of what it says itself; None leaves
            it as it is.
        drop: probability that a worker's outer gradient is lost. It goes on from its own
            parameters, with the outer ones it held before: its next outer gradient covers both
            phases, and its compressor starts over.
        compress_mean: the workers compress the mean of their outer gradients, by several
            all-reduces, and not each its own, as the papers of PowerSGD and TernGrad do. On a
            deployment the process that runs the strategy is in between, and is sent outer gradients
            as they are.
        weighted_by_key: metric of the clients that weights the mean; None is the plain mean.
        sharding: who takes how much of the batch, and of the state, for the same rules; None has
            all take a batch of the client's, and hold all of the state.
        local_every: H0, inner steps after which the workers of a site average their parameters
            among themselves, between the steps of all: a divisor of H. None has none. Inner
            optimizers keep what they remember, and outer gradients are those of the whole phase.
            (PyTorch's hierarchical model averager is this with an average as the outer step.)
        patience: see `RuleDriver`; a worker's tasks are segments, and one that has done none is
            late after so many times the longest of the others.
        **driver: other arguments of `OuterMeetings`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    runs: ClassVar[type[OuterRun]] = OuterRun

    def __init__(
        self,
        rule: OuterRule,
        *,
        aggregator: Aggregator | None = None,
        accumulate: int = 1,
        f: int | None = None,
        drop: float = 0.0,
        compress_mean: bool = False,
        weighted_by_key: str | None = None,
        sharding: Cephalo | None = None,
        local_every: int | None = None,
        patience: float | None = 5.0,
        **driver: Any,
    ) -> None:
        super().__init__(rule, patience=patience, **driver)
        share("drop", drop)
        if drop and rule.why_no_drop:
            raise ConfigError(
                f"drop is {drop}, but with {type(rule).__name__} {rule.why_no_drop}: leave it out"
            )
        aggregator = Mean() if aggregator is None else aggregator
        if aggregator.reference in ("trusted-update", "own-vector"):
            raise ConfigError(
                f"aggregator is {aggregator.name}, which compares vectors with one of whoever "
                "aggregates, and here every worker does: each would make another model of them. "
                "Use another aggregator"
            )
        self.aggregator = aggregator if f is None else aggregator.tolerating(f)
        self.drop = drop
        at_least("accumulate", accumulate, 1)
        self.accumulate = accumulate
        self.compress_mean = compress_mean
        self.weighted_by_key = weighted_by_key
        if sharding is not None:
            is_a("sharding", sharding, Cephalo)
        self.sharding = sharding
        if local_every is not None:
            at_least("local_every", local_every, 1)
            if rule.inner_steps % local_every:
                raise ConfigError(
                    f"local_every is {local_every}, and inner_steps {rule.inner_steps}: it must "
                    "divide them"
                )
        self.local_every = local_every
        check_together(self)

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(
            meets="ring",
            sends="gradient" if self.rule.sends_gradients else "model",
            downlink=False,
            continues=True,
        )

    @property
    def tells(self) -> Mapping[str, Any]:
        """What every message says beside the model, by the argument that it comes from."""
        steps = "accumulate" if self.rule.sends_gradients else "rule.inner_steps"
        told = {"local-steps": steps, FIRST_STEP_KEY: 0}
        return told if self.sharding is None else {**told, "batch-size": "sharding.batch"}

    @property
    def sends_payloads(self) -> bool:
        """Whether workers encode what they send; else their vectors come as they are."""
        return not self.compress_mean

    @property
    def unread(self) -> Mapping[str, str]:
        """Arguments that the aggregator does not read."""
        if self.aggregator.has_f:
            return {}
        return {"f": f"{self.aggregator.name} has no number of Byzantine clients"}

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if the workers are too few for what they are to do."""
        super().check_clients(num_clients)
        taking_part = int(min(num_clients, self.workers))
        self.aggregator.check(taking_part)
        if self.sharding is not None:
            self.sharding.check_machines(taking_part)

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Any, Any]:
        """Returns the worker, which is both ends."""
        payloads = uplink if self.sends_payloads else None
        island = Island(self.rule.fragments, self.rule.pattern, payloads, *self.keys)
        return island, island

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`."""
        if self.compress_mean:
            if exchange.uplink is None:
                raise ConfigError(
                    "compress_mean is true, but compressor is null: choose compressor=powersgd, "
                    "lowrank, terngrad or grass, or leave it out"
                )
            mean_compressor(exchange.uplink)
        check_payloads(self, exchange)
        made = super().within(exchange)
        if exchange.layout is not None:
            made.cut(exchange.layout)
        return made

    def cut(self, layout: Layout) -> Fragments:
        """Returns the fragments of a model.

        Raises:
            ConfigError: it cannot be cut into so many, they do not divide H, or the compressor
                cannot work on them.
        """
        cut = Fragments.of(layout, self.rule.fragments, self.rule.pattern)
        check_divides(self.rule.inner_steps, len(cut))
        if self.exchange.uplink is not None:
            for shapes in cut.shapes:
                self.exchange.uplink.init(shapes)
        return cut

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
        self.exchange.check(grid)
        layout = layout_of(initial_arrays)
        cut = self.cut(layout)
        w = from_record(layout, initial_arrays)
        tasks: Tasks[Segment] = Tasks(grid, TTL_S, self.patience)
        all_reduce = AllReduce(
            self.exchange,
            cut,
            self.aggregator,
            self.seed,
            collective=self.allreduce,
            failure=self.failure,
            buckets=self.buckets,
            compress_mean=self.compress_mean,
        )
        config = dict(train_config or {})
        may_part = self.failure is not None and self.failure.parts
        run = self.runs(
            *(self.rule, cut, layout, w, tasks, all_reduce, num_rounds, config),
            local_every=self.local_every,
            may_part=may_part,
        )
        if self.sharding is not None:
            run.apportioned = Apportioning(self.sharding, layout.size, tasks.peers)
        result = Result()

        def evaluate() -> None:
            reduction = run.reductions.get((0, run.version * self.rule.inner_steps, None))
            islands = len(run.workers) if reduction is None else len(reduction.own)
            told = self.told_of(run, reduction)
            result.train_metrics_clientapp[run.version] = MetricRecord({"islands": islands, **told})
            tasks.control.measured({name: float(value) for name, value in told.items()})
            record = to_record(layout, outer_step.model(run))
            metrics = evaluate_fn(run.version, record) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[run.version] = metrics
            result.arrays = record

        evaluate()
        wait_for_nodes(run.tasks, self.min_available_nodes, self.retry_s)
        self._admit(run)
        self.aggregator.check(len(run.workers))
        while True:
            self._settle(run)
            ended = min(outer_step.rounds_done(run), num_rounds)
            if ended == num_rounds and all(r.done for r in run.reductions.values()):
                outer_step.conclude(run)
            else:
                ended = min(ended, num_rounds - 1)
            while run.version < ended:
                run.version += 1
                evaluate()
            if run.version == num_rounds:
                return result
            self._send(run)
            self._receive(run)

    def told_of(self, run: OuterRun, reduction: Reduction | None) -> Mapping[str, int]:
        """Returns what a round's record says of its all-reduce beside the number of workers.

        It is what the next row of metrics.csv says as well.
        """
        if self.sharding is None or reduction is None:
            return {}
        return {"samples": round(sum(one.weight for one in reduction.own.values()))}

    # ---- one instant -----------------------------------------------------------------------------

    def _receive(self, run: OuterRun) -> None:
        """Waits for replies, or for the end of an all-reduce."""
        open_ones = [r for r in run.reductions.values() if not r.done]
        until = min((r.finish_s for r in open_ones), default=math.inf)
        until = min([until, *(self._waits_until(r) for r in open_ones), *run.fetching.values()])
        if not run.workers and math.isinf(until):
            self._admit(run)
            if run.workers:
                return
            until = run.tasks.now() + run.tasks.pause_s(self.retry_s)
        if math.isinf(until) and not run.tasks.any_open:
            raise SimulationError(f"{self.name} waits for nothing at {run.tasks.now():g} s")
        for task, reply in run.tasks.receive(until):
            self._take(run, task, reply)
        for task in run.tasks.became_late:
            if self._is_at(run, task):
                self._leave_out(run, run.workers[task.node], "it is late")
        for reduction in open_ones:
            if self._waits_until(reduction) <= run.tasks.now():
                self._give_up_waiting(run, reduction)

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, run: OuterRun) -> None:
        """Sends the workers that have gone on into their next segments."""
        groups: dict[Any, list[Participant]] = {}
        if run.apportioned is not None and run.ready:
            run.apportioned.deal(run.present)
        for worker in (run.workers[node] for node in sorted(run.ready)):
            if worker.passed == worker.step < run.last_step:
                fragments = tuple((p, id(row)) for p, row in sorted(worker.merge.items()))
                whole = tuple(id(row) for row in worker.held) if worker.reset else ()
                part = run.apportioned and run.apportioned.parts[worker.node]
                key = (worker.step, whole, fragments, tuple(sorted(worker.afresh)), part)
                groups.setdefault(key, []).append(worker)
        for members in groups.values():
            first = members[0]
            stop = run.schedule.next_stop(first.step, run.last_step)
            content = self._content(run, first, stop)
            nodes = [worker.node for worker in members]
            segments = [Segment(first.step, stop)] * len(nodes)
            ready_s = [worker.ready_s for worker in members]
            sent = run.tasks.send_from_peers([content] * len(nodes), nodes, segments, ready_s)
            for worker, task in zip(members, sent, strict=True):
                worker.reset, worker.merge, worker.task = False, {}, task
                worker.afresh.clear()
                run.ready.discard(worker.node)

    def _content(self, run: OuterRun, worker: Participant, stop: int) -> RecordDict:
        config = {
            **run.config,
            "server-round": run.version + 1,
            "local-steps": (stop - worker.step) * self.accumulate,
            FIRST_STEP_KEY: worker.step,
            RESET: worker.reset,
            MERGE: [] if worker.reset else sorted(worker.merge),
            MIXING: float(self.rule.mixing),
            SEND: run.schedule.sent(stop),
        }
        if run.apportioned is not None:
            size, count = run.apportioned.parts[worker.node]
            config |= {"local-steps": count, "batch-size": size}
        if worker.afresh:
            config[AFRESH] = sorted(worker.afresh)
        arrays = (
            to_record(run.layout, run.row(worker.held))
            if worker.reset
            else fragment_record(worker.merge)
        )
        return RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: ConfigRecord(config)}
        )

    def _take(self, run: OuterRun, task: Task[Segment], reply: Message) -> None:
        """Takes in a worker's reply."""
        if reply.has_error():
            run.failures.add(task, reply, run.tasks.now(), len(run.workers))
        if not self._is_at(run, task):
            if not reply.has_error():
                run.tasks.control.discarded(task.message_id, 0)
            return
        worker, stop = run.workers[task.node], task.memo.stop
        if reply.has_error():
            self._leave_out(run, worker, reply.error.reason or "")
            return
        metrics: Mapping[str, Any] = next(iter(reply.content.metric_records.values()), {})
        due = run.schedule.sent(stop)
        try:
            weight = self._weight(run, worker, metrics)
            sent = {p: self._sent(run, worker, p, weight, reply.content) for p in due}
        except (ConfigError, PayloadError) as error:
            log.warning("node %d left out: %s", task.node, error)
            run.tasks.control.rejected(task.message_id)
            diverged = isinstance(error, NotFinite | _NotSent)
            run.failures.add(
                task, reply, run.tasks.now(), len(run.workers), why=str(error), diverged=diverged
            )
            self._leave_out(run, worker, str(error))
            for p in due:
                key = run.key(p, stop, task.node)
                run.refused.setdefault(key, []).append(str(error))
            return
        run.failures.clear()
        now, steps = run.tasks.now(), (stop - worker.step) * self.accumulate
        if run.apportioned is not None:
            run.apportioned.measured(worker.node, now - worker.ready_s)
        worker.last_step, worker.began_s = (now, (now - worker.ready_s) / steps), worker.ready_s
        self._came(run, worker, task, sent, metrics)

    def _came(
        self,
        run: OuterRun,
        worker: Participant,
        task: Task[Segment],
        sent: Mapping[int, ReceivedOuterGradient],
        metrics: Mapping[str, Any],
    ) -> None:
        """Takes in the outer gradients of a worker that has done its segment, by fragment."""
        stop = task.memo.stop
        worker.step = stop
        run.arrive(worker)
        lost = False
        for p, one in sent.items():
            key = run.key(p, stop, task.node)
            reduction = run.reduction(key)
            reduction.since_s = min(reduction.since_s, run.tasks.now())
            if self._drops(worker, key):
                reduction.lost.add(worker.node)
                worker.missed.add(key)
                if self.exchange.uplink is not None:
                    worker.afresh.add(p)
                    run.all_reduce.forget(worker.node, p)
                lost = True
            else:
                reduction.own[worker.node] = one
        if lost:
            run.tasks.control.discarded(task.message_id, 0)
        else:
            run.tasks.control.applied(task.message_id, 0, metrics)

    def _drops(self, worker: Participant, key: Key) -> bool:
        if not self.drop:
            return False
        p, step, _ = key
        return generator(self.seed, "outer gradient", worker.node, p, step).random() < self.drop

    def _sent(
        self, run: OuterRun, worker: Participant, p: int, weight: float, content: RecordDict
    ) -> ReceivedOuterGradient:
        """Returns a worker's outer gradient of fragment p.

        Raises:
            ConfigError, PayloadError: it is missing, of another form, or not finite.
        """
        record = content.get(self.arrayrecord_key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(f"the reply has no ArrayRecord '{self.arrayrecord_key}'")
        message_id = "" if worker.task is None else worker.task.message_id
        if self.exchange.uplink is None or not self.sends_payloads:
            size = run.cut.shapes[p].size
            sent = fragment_of(record, p, size).astype(np.float64)
            delta = sent if self.rule.sends_gradients else worker.held[p] - sent
            return ReceivedOuterGradient(delta, weight, 4 * size, message_id)
        array = record.get(f"{PAYLOAD_KEY}.{p}")
        if array is None or array.stype != PAYLOAD_STYPE:
            raise _NotSent(f"there is no payload of fragment {p}: the worker may have diverged")
        delta = run.all_reduce.read(p, worker.node, array.data)
        return ReceivedOuterGradient(delta, weight, len(array.data), message_id)

    def _weight(self, run: OuterRun, worker: Participant, metrics: Mapping[str, Any]) -> float:
        if run.apportioned is not None:
            examples = examples_of(metrics)
            size, count = run.apportioned.parts[worker.node]
            return covered_examples(count, examples, size)
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

    @staticmethod
    def _is_at(run: OuterRun, task: Task[Segment]) -> bool:
        """Returns whether a worker that takes part is at this task."""
        worker = run.workers.get(task.node)
        return worker is not None and worker.task is task


def examples_of(metrics: Mapping[str, Any]) -> int:
    """Returns how many examples the sender of a reply has.

    Raises:
        ConfigError: it does not say so.
    """
    examples = weight_of(metrics.get("num-examples"))
    if examples is None or examples != int(examples):
        raise ConfigError(
            f"the reply's metric 'num-examples' is {shown(metrics.get('num-examples'))}; it "
            "must be a whole number, not negative"
        )
    return int(examples)
