"""The driver of methods whose workers train by themselves and meet for outer steps.

The rule is `fl.strategies.outer_rule`; this does schedule, messages, waiting, membership and
evaluation.

There is no server in these methods. The process that runs the strategy does the arithmetic of the
all-reduce and of the outer optimizer, which every worker would do for itself; on the simulator what
it sends and receives costs nothing, and the all-reduce costs what it costs on the direct links
between the workers (`fl.strategies.drivers.all_reduce`). On a deployment fragments travel through
the SuperLink.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.aggregation import Aggregator, Mean, shown, weight_of
from fl.checks import at_least, is_a, not_negative, positive, read_if, share
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
from fl.collectives import Buckets, Collective, Failure, RingAllReduce, Stragglers
from fl.compression import Channel, PayloadError, mean_compressor
from fl.errors import ConfigError, NoStep, NotFinite, SimulationError
from fl.flower.records import from_record, layout_of, to_record
from fl.randomness import generator
from fl.strategies.drivers.aggregating import own_f
from fl.strategies.drivers.all_reduce import AllReduce
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.events import EvaluateFn, wait_for_nodes
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.outer_checks import check_payloads, check_together
from fl.strategies.drivers.outer_run import Key, OuterRun, Participant, Segment
from fl.strategies.drivers.reduction import ReceivedOuterGradient, Reduction
from fl.strategies.drivers.tasks import TTL_S, Task, Tasks
from fl.strategies.outer_rule import OuterRule, WorkerView, check_divides, moved
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

log = logging.getLogger("fl")


class _NotSent(PayloadError):
    """A worker sends no payload of a fragment that is not finite."""


@read_if(
    lambda a: a["on_failure"] is not None,
    "detection_s",
    only="{at}on_failure=retry or discard reads it",
)
@read_if(lambda a: a["on_failure"] == "retry", "retries", only="{at}on_failure=retry reads it")
@own_f
class OuterSteps(RuleDriver):
    """Outer steps by a rule.

    A round ends with fragment 0's all-reduce, after k H steps, and `num_rounds` rounds are
    num_rounds H inner steps; the model that is evaluated is the outer parameters, whose other
    fragments are then up to H steps older. When which fragment is due says `Schedule`.

    Messages tell workers how many steps to do ("local-steps") and how many they have done
    ("first-step"), by which the client's `step_schedule` follows the global count.

    Who takes part: all clients that are available at the beginning. A worker whose task fails or is
    late (`patience`) is left out of the all-reduces that have not begun, whose mean is then over
    the survivors. One that comes back, or comes late, fetches the outer parameters from a peer, and
    enters at the next step at which others go on; what it has done alone is not used, and its
    compressor starts over. If all fail, all enter again where the outer parameters are, at no cost.

    With an aggregator F, outer gradients become one by F instead of their mean. What is no outer
    gradient of the right form, or not finite, counts as one of the f that F tolerates. If too few
    workers are left for F, the outer parameters stay.

    Byzantine workers train as others do, and send what the attack makes of the outer gradients
    that meet in an all-reduce. Where every worker steps for itself (`EagerUpdates`), liars know
    their true ones, and the model that is evaluated is that of the others.

    Args:
        rule: makes new outer parameters.
        aggregator: F; None is the mean.
        allreduce: by which workers come to have the mean, of payloads that can be added on their
            way; None is a ring.
        on_failure: what they do if one goes offline in the middle: "retry" or "discard", see
            `fl.collectives.Failure`; None leaves it without effect, as if it had done its part.
        detection_s: time until the others notice that.
        retries: how often they try again.
        buckets: in which gradients are all-reduced while the backward pass goes on, for rules whose
            workers send gradients; None begins when it has ended.
        accumulate: micro-batches whose mean gradient a worker sends, for the same rules: `no_sync`
            of PyTorch in all but the last of them.
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
        joiners: what a worker does that comes while the others are on their way to an all-reduce:
            "train", from the next step at which these go on; or "zero", as in PRIME
            (arXiv:2412.01152): it does no inner steps in this phase, and takes part in the
            all-reduce with an outer gradient of 0, by which the mean is divided as well. The others
            wait for it to have the checkpoint, as they do for anybody.
        local_every: H0, inner steps after which the workers of a site average their parameters
            among themselves, between the steps of all: a divisor of H. None has none. Inner
            optimizers keep what they remember, and outer gradients are those of the whole phase.
            (PyTorch's hierarchical model averager is this with an average as the outer step.)
        workers: how many take part at a time; others that are there are spares, who take the place
            of those that are left out. None has all take part.
        stragglers: by what workers are found slow, whose places spares take as long as there are
            some; None leaves them. Who was found slow does not take part again.
        waiting_s: how long the first worker at an all-reduce waits for the others, which are then
            left out; None waits as long as there is patience. The two ways of OpenDiLoCo
            (arXiv:2407.07852): some time for its peers to find each other, or all of them.
        patience: see `RuleDriver`; a worker's tasks are segments, and one that has done none is
            late after so many times the longest of the others.
        **driver: other arguments of `RuleDriver`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = OuterRule
    example = "DiLoCo"
    runs: ClassVar[type[OuterRun]] = OuterRun
    default_allreduce: ClassVar[Collective] = RingAllReduce()
    rule: OuterRule

    def __init__(
        self,
        rule: OuterRule,
        *,
        aggregator: Aggregator | None = None,
        allreduce: Collective | None = None,
        on_failure: str | None = None,
        detection_s: float = 10.0,
        retries: int = 2,
        buckets: Buckets | None = None,
        accumulate: int = 1,
        f: int | None = None,
        drop: float = 0.0,
        compress_mean: bool = False,
        weighted_by_key: str | None = None,
        joiners: str = "train",
        local_every: int | None = None,
        workers: int | None = None,
        stragglers: Stragglers | None = None,
        waiting_s: float | None = None,
        patience: float | None = 10.0,
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
        self.allreduce = self.default_allreduce if allreduce is None else allreduce
        is_a("allreduce", self.allreduce, Collective)
        self.failure = None if on_failure is None else Failure(on_failure, detection_s, retries)
        self.buckets = buckets
        if buckets is not None:
            is_a("buckets", buckets, Buckets)
        at_least("accumulate", accumulate, 1)
        self.accumulate = accumulate
        self.compress_mean = compress_mean
        self.weighted_by_key = weighted_by_key
        if joiners not in ("train", "zero"):
            raise ConfigError(f"joiners is {joiners!r}; it must be train or zero")
        self.joiners = joiners
        if local_every is not None:
            at_least("local_every", local_every, 1)
            if rule.inner_steps % local_every:
                raise ConfigError(
                    f"local_every is {local_every}, and inner_steps {rule.inner_steps}: it must "
                    "divide them"
                )
        self.local_every = local_every
        if workers is not None:
            at_least("workers", workers, 1)
        self.workers = math.inf if workers is None else workers
        if stragglers is not None:
            is_a("stragglers", stragglers, Stragglers)
            if workers is None:
                raise ConfigError(
                    f"stragglers is {stragglers}, but workers is null, so that there are no "
                    "spares: set workers to less than num_clients"
                )
        self.stragglers = stragglers
        if waiting_s is not None:
            not_negative("waiting_s", waiting_s)
        self.waiting_s = math.inf if waiting_s is None else waiting_s
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
        return {"local-steps": steps, FIRST_STEP_KEY: 0}

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
        """Raises ConfigError if the workers are too few for the aggregator."""
        taking_part = min(num_clients, self.workers)
        if num_clients < self.workers < math.inf:
            raise ConfigError(
                f"workers is {self.workers}, and there are {num_clients} clients: set it to fewer, "
                "which leaves the others as spares, or leave it out"
            )
        self.aggregator.check(int(taking_part))
        if self.stragglers is not None and taking_part == num_clients:
            raise ConfigError(
                f"workers is {self.workers}, and there are no more clients ({num_clients}) who "
                "could take the place of stragglers: set it to less than that"
            )

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
        run = self.runs(
            self.rule, cut, layout, w, tasks, all_reduce, num_rounds, config, self.local_every
        )
        result = Result()

        def evaluate() -> None:
            reduction = run.reductions.get((0, run.version * self.rule.inner_steps, None))
            islands = len(run.workers) if reduction is None else len(reduction.own)
            told = self.told_of(run, reduction)
            result.train_metrics_clientapp[run.version] = MetricRecord({"islands": islands, **told})
            tasks.control.measured({name: float(value) for name, value in told.items()})
            record = to_record(layout, self._model(run))
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
            ended = min(self._rounds_done(run), num_rounds)
            if ended == num_rounds and all(r.done for r in run.reductions.values()):
                self._conclude(run)
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
        return {}

    # ---- the rule --------------------------------------------------------------------------------

    def _step(self, run: OuterRun, p: int, step: Callable[[], Any]) -> NoStep | None:
        """Makes what `step` returns the state of fragment p; returns why not, if it cannot."""
        why_not = None
        try:
            run.states[p] = step()
        except NoStep as error:
            why_not = error
        run.all_reduce.ended(stepped=why_not is None)
        return why_not

    def _reduced(self, run: OuterRun, reduction: Reduction) -> NoStep | None:
        """Takes the step of an all-reduce that is finished; returns why not, if there is none."""
        p = reduction.fragment
        if not reduction.sent:
            gone = "a worker went offline during the all-reduce"
            return NoStep(gone if reduction.gone else "no outer gradient has come")
        gradients = run.all_reduce.gradients(reduction)
        return self._step(run, p, partial(self.rule.reduced, run.states[p], gradients))

    def _resumed(self, run: OuterRun, worker: Participant, p: int, before: Reduction | None) -> Row:
        """Returns the outer parameters that a worker goes on from."""
        m, step = worker.node, worker.step
        now = run.reductions.get((p, step, None))
        own = None if now is None else now.own.get(m)
        arrival = WorkerView(
            m,
            run.present,
            None if own is None else (own.delta, own.weight),
            run.all_reduce.gradients(before, m) if before and before.sent else None,
            step + self.rule.inner_steps > run.last_step,
            run.all_reduce.combining(Reduction(p, step) if now is None else now, m),
        )
        why_not = self._step(run, p, partial(self.rule.resumed, run.states[p], arrival))
        if why_not is not None:
            run.tasks.control.stepped(run.version + 1, why_not)
        if self.rule.own_outer:
            return self.rule.theta(run.states[p], m)
        # Not the newest: by the time of this one, others may have finished.
        return worker.held[p] if before is None else self.rule.theta(before.outcome, m)

    def _conclude(self, run: OuterRun) -> None:
        """Takes in what is left when all steps are done and no all-reduce is in flight any more."""
        of_all = [r for r in run.reductions.values() if r.site is None]
        for reduction in sorted(of_all, key=lambda r: (r.fragment, r.step)):
            p, step = reduction.fragment, reduction.step
            if step + self.rule.inner_steps <= run.last_step or not reduction.sent:
                continue
            for m in run.present:
                gradients = run.all_reduce.gradients(reduction, m)
                concluded = partial(self.rule.concluded, run.states[p], m, gradients)
                if (why_not := self._step(run, p, concluded)) is not None:
                    run.tasks.control.stepped(run.version, why_not)

    def _rounds_done(self, run: OuterRun) -> int:
        """Returns how many rounds have ended; the last does when nothing is in flight any more."""
        if not self.rule.own_outer:
            return run.finished_rounds
        h = self.rule.inner_steps
        passed = [worker.passed for worker in run.workers.values()]
        return min(passed, default=run.version * h) // h

    def _model(self, run: OuterRun) -> Row:
        """Returns the model to evaluate, shape (d,)."""
        present = run.present
        honest = [m for m in present if not run.all_reduce.is_liar(m)] or present
        return run.row([self.rule.model(state, honest) for state in run.states])

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

    def _give_up_waiting(self, run: OuterRun, reduction: Reduction) -> None:
        """Leaves out who has not come to an all-reduce in time."""
        absent = [w for w in run.takers(reduction) if w.step < reduction.step]
        for worker in [*absent, *(run.workers[node] for node in run.fetching)]:
            self._leave_out(run, worker, "the others have waited for waiting_s")

    def _waits_until(self, reduction: Reduction) -> float:
        """Returns when the workers at an all-reduce go on without the others, s."""
        return math.inf if reduction.begun else reduction.since_s + self.waiting_s

    def _settle(self, run: OuterRun) -> None:
        """Begins and ends all-reduces, and lets workers go on, until nothing changes any more."""
        run.have_fetched()
        changed = True
        while changed:
            for reduction in sorted(run.reductions.values(), key=_order):
                if not reduction.begun and self._complete(run, reduction):
                    self._begin(run, reduction)
            gone = False
            for reduction in sorted(
                (r for r in run.reductions.values() if not r.done),
                key=lambda r: (r.finish_s, *_order(r)),
            ):
                if reduction.finish_s <= run.tasks.now():
                    self._finish(run, reduction)
                    gone = gone or bool(reduction.gone)
            passed = run.unblock(partial(self._go_on, run))
            changed = bool(passed) or gone
            entries = [
                worker.step
                for worker in passed
                if worker.merge and not run.schedule.is_local(worker.step)
            ]
            if entries:
                run.entry = max(run.entry, *entries)
                self._forget(run)
                if min(entries) < run.last_step:
                    self._admit(run, min(entries))

    def _complete(self, run: OuterRun, reduction: Reduction) -> bool:
        """Returns whether all are there whom an all-reduce waits for."""
        there = all(worker.step >= reduction.step for worker in run.takers(reduction))
        return there and not run.fetching

    def _begin(self, run: OuterRun, reduction: Reduction) -> None:
        reduction.finish_s = run.tasks.now()
        if reduction.own:
            tasks, key = run.tasks, (reduction.fragment, reduction.step, reduction.site)
            reduction.refused = run.refused.pop(key, [])
            ends = [run.workers[m].last_step for m in reduction.own if m in run.workers]
            reduction.finish_s = max(
                tasks.now(),
                run.all_reduce.begin(
                    reduction, tasks.peers, tasks.control, ends, self._helpers(run)
                ),
            )
            if self.stragglers is not None and reduction.site is None:
                self._isolate(run, self.stragglers, reduction)
            reduction.missing = [run.workers[m] for m in sorted(reduction.gone) if m in run.workers]

    def _isolate(self, run: OuterRun, stragglers: Stragglers, reduction: Reduction) -> None:
        """Takes out those that are found slow, if there are spares; their last part counts."""
        takers = [run.workers[m] for m in sorted(reduction.own) if m in run.workers]
        arrivals = {w.node: (w.last_step[0], w.last_step[0] - w.began_s) for w in takers}
        run.lateness, slow = stragglers.step(run.lateness, arrivals)
        for node in slow[: len(self._spares(run))]:
            run.slow.add(node)
            run.tasks.control.absent(node, run.version + 1)
            self._leave_out(run, run.workers[node], "it is slow")

    def _spares(self, run: OuterRun) -> list[int]:
        """Returns the clients that are there, and could take part."""
        return [
            node
            for node in sorted(run.tasks.idle())
            if node not in run.workers and node not in run.slow and self._trains(run, node)
        ]

    def _finish(self, run: OuterRun, reduction: Reduction) -> None:
        reduction.done = run.stirred = True
        for worker in reduction.missing:
            if run.workers.get(worker.node) is worker:  # it may have failed, and be back, since
                self._leave_out(run, worker, "it went offline during an all-reduce")
        if reduction.site is not None:
            reduction.outcome = self._local_mean(run, reduction)
            return
        run.entry = max(run.entry, reduction.step)
        run.tasks.control.stepped(run.version + 1, self._reduced(run, reduction))
        reduction.outcome = run.states[reduction.fragment]
        run.finished_rounds += reduction.fragment == 0

    def _local_mean(self, run: OuterRun, reduction: Reduction) -> Row | None:
        """Returns the mean of the parameters of a site's workers; None if there is none."""
        if not reduction.sent:
            return None
        theta = self.rule.theta(run.states[reduction.fragment], next(iter(reduction.sent)))
        try:
            return moved(theta, run.all_reduce.gradients(reduction).mean())
        except NoStep as error:
            log.warning("the workers of site %s go on apart: %s", reduction.site, error)
            return None

    def _go_on(self, run: OuterRun, worker: Participant) -> bool:
        """Lets a worker pass the step at which it is; returns whether it did so just now."""
        step = worker.step
        if worker.passed == step:
            return False
        passing = []
        for p in range(len(run.cut)):
            if run.schedule.merges(p, step):
                key = run.key(p, step - self.rule.overlap, worker.node)
                reduction = run.reductions.get(key)
                if key in worker.missed:
                    continue
                if reduction is not None and not reduction.done:
                    return False
                passing.append((p, reduction))
        for p, reduction in passing:
            if run.schedule.is_local(step):
                if reduction is not None and reduction.outcome is not None:
                    worker.merge[p] = reduction.outcome
                continue
            worker.held[p] = worker.merge[p] = self._resumed(run, worker, p, reduction)
        worker.passed = step
        worker.ready_s = run.tasks.now()
        return True

    def _forget(self, run: OuterRun) -> None:
        """Drops all-reduces that all workers have seen the outcome of."""
        seen = min(worker.passed for worker in run.workers.values())
        for key in [
            k for k, r in run.reductions.items() if r.done and r.step + self.rule.overlap < seen
        ]:
            del run.reductions[key]

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, run: OuterRun) -> None:
        """Sends the workers that have gone on into their next segments."""
        groups: dict[Any, list[Participant]] = {}
        for worker in (run.workers[node] for node in sorted(run.ready)):
            if worker.passed == worker.step < run.last_step:
                fragments = tuple((p, id(row)) for p, row in sorted(worker.merge.items()))
                whole = tuple(id(row) for row in worker.held) if worker.reset else ()
                key = (worker.step, whole, fragments, tuple(sorted(worker.afresh)))
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
            weight = self._weight(metrics)
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

    def _admit(self, run: OuterRun, step: int | None = None) -> None:
        """Takes in clients that are available and do not take part.

        Args:
            run: the run.
            step: at which they enter; None if nobody takes part.
        """
        source = self._source(run)
        for node in self._spares(run):
            if len(run.workers) >= self.workers:
                break
            now = ready_s = run.tasks.now()
            if source is not None:
                size = self._entry_bytes(run)
                run.transfers += 1
                ready_s, arrives = run.tasks.peers.transfer(
                    source, node, size, now, index=run.transfers
                )
                if not arrives:
                    continue
            present = run.present
            for p, state in enumerate(run.states):
                run.states[p] = self.rule.entered(state, node, present)
                run.all_reduce.forget(node, p)
            worker = Participant(node, run.entry if step is None else step, [], ready_s)
            worker.passed = worker.step
            worker.held = [self.rule.theta(state, node) for state in run.states]
            run.enter(worker)
            if source is not None and step is not None and self.joiners == "zero":
                self._bring_nothing(run, worker, ready_s)
            log.info("node %d takes part from step %d, at %g s", node, worker.step, ready_s)

    def _entry_bytes(self, run: OuterRun) -> int:
        """Returns the bytes that a worker fetches when it enters."""
        numbers = run.layout.size + sum(map(self.rule.beside, run.states))
        return 4 * numbers + int(run.all_reduce.memory_bytes)

    def _source(self, run: OuterRun) -> int | None:
        """Returns the worker that those who enter have the outer parameters from, if any."""
        return min(run.workers, default=None)

    def _helpers(self, run: OuterRun) -> Sequence[int]:
        """Returns the clients that take part in an all-reduce without a vector of their own."""
        return ()

    def _trains(self, run: OuterRun, node: int) -> bool:
        """Returns whether a client is to be a worker."""
        return True

    def _bring_nothing(self, run: OuterRun, worker: Participant, ready_s: float) -> None:
        """Has a worker take part in the next all-reduce by 0, when it has the checkpoint."""
        worker.step = run.schedule.next_stop(worker.step, run.last_step)
        run.arrive(worker)
        run.fetching[worker.node] = ready_s
        zero, size = np.zeros(run.layout.size), 4 * run.layout.size
        own = run.reduction((0, worker.step, None)).own
        own[worker.node] = ReceivedOuterGradient(zero, 1.0, size, "")

    @staticmethod
    def _is_at(run: OuterRun, task: Task[Segment]) -> bool:
        """Returns whether a worker that takes part is at this task."""
        worker = run.workers.get(task.node)
        return worker is not None and worker.task is task

    def _leave_out(self, run: OuterRun, worker: Participant, reason: str) -> None:
        """Does without a worker that failed, or is late."""
        log.info("node %d is left out after step %d: %s", worker.node, worker.step, reason)
        run.leave(worker)
        for key, reduction in list(run.reductions.items()):
            if not reduction.begun:
                reduction.own.pop(worker.node, None)
                reduction.lost.discard(worker.node)
                if not reduction.own and not reduction.lost:
                    del run.reductions[key]


def _order(reduction: Reduction) -> tuple[int, int, int]:
    """Returns by what all-reduces of an instant come one after the other."""
    site = -1 if reduction.site is None else reduction.site
    return reduction.step, reduction.fragment, site
