"""The all-reduces of outer steps: when one begins, whom it waits for, and what it ends with."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from fl.checks import is_a, not_negative, read_if
from fl.collectives import Buckets, Collective, Failure, RingAllReduce
from fl.strategies.drivers.outer import step as outer_step
from fl.strategies.drivers.outer.membership import OuterMembership
from fl.strategies.drivers.outer.reduction import Reduction
from fl.strategies.drivers.outer.run import OuterRun, Participant
from fl.strategies.outer_rule import OuterRule

log = logging.getLogger("fl")


@read_if(
    lambda a: a["on_failure"] is not None,
    "detection_s",
    "heartbeat_s",
    only="{at}on_failure=retry, alone or discard reads it",
)
@read_if(
    lambda a: a["on_failure"] in ("retry", "alone"),
    "retries",
    only="{at}on_failure=retry or alone reads it",
)
class OuterMeetings(OuterMembership):
    """When workers meet, and when they go on.

    An all-reduce begins when all who take part have done their steps, or have been waited for in
    vain, and ends when its collective does. Workers go on from it then, or `overlap` steps later.

    Args:
        rule: makes new outer parameters.
        allreduce: by which workers come to have the mean, of payloads that can be added on their
            way; None is a ring.
        on_failure: what they do if one goes offline in the middle: "retry", "alone" or "discard",
            see `fl.collectives.Failure`; None leaves it without effect, as if it had done its part.
        detection_s: time until the others notice that.
        heartbeat_s: between two signs of life, by which they do; see `Failure`.
        retries: how often they try again.
        buckets: in which gradients are all-reduced while the backward pass goes on, for rules whose
            workers send gradients; None begins when it has ended.
        waiting_s: how long the first worker at an all-reduce waits for the others, which are then
            left out; None waits as long as there is patience. The two ways of OpenDiLoCo
            (arXiv:2407.07852): some time for its peers to find each other, or all of them.
        **driver: other arguments of `OuterMembership`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    default_allreduce: ClassVar[Collective] = RingAllReduce()

    def __init__(
        self,
        rule: OuterRule,
        *,
        allreduce: Collective | None = None,
        on_failure: str | None = None,
        detection_s: float = 10.0,
        heartbeat_s: float = 0.0,
        retries: int = 2,
        buckets: Buckets | None = None,
        waiting_s: float | None = None,
        **driver: Any,
    ) -> None:
        super().__init__(rule, **driver)
        self.allreduce = self.default_allreduce if allreduce is None else allreduce
        is_a("allreduce", self.allreduce, Collective)
        self.failure = None
        if on_failure is not None:
            self.failure = Failure(on_failure, detection_s, retries, heartbeat_s)
        self.buckets = buckets
        if buckets is not None:
            is_a("buckets", buckets, Buckets)
        if waiting_s is not None:
            not_negative("waiting_s", waiting_s)
        self.waiting_s = math.inf if waiting_s is None else waiting_s

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

    def _waits_until(self, reduction: Reduction) -> float:
        """Returns when the workers at an all-reduce go on without the others, s."""
        return math.inf if reduction.begun else reduction.since_s + self.waiting_s

    def _give_up_waiting(self, run: OuterRun, reduction: Reduction) -> None:
        """Leaves out who has not come to an all-reduce in time."""
        absent = [w for w in run.takers(reduction) if w.step < reduction.step]
        for worker in [*absent, *(run.workers[node] for node in run.fetching)]:
            self._leave_out(run, worker, "the others have waited for waiting_s")

    def _begin(self, run: OuterRun, reduction: Reduction) -> None:
        reduction.finish_s = run.tasks.now()
        if reduction.own:
            tasks, key = run.tasks, (reduction.fragment, reduction.step, reduction.site)
            reduction.refused = run.refused.pop(key, [])
            ends = [run.workers[m].last_step for m in reduction.own if m in run.workers]
            reduction.finish_s = max(
                tasks.now(),
                run.all_reduce.begin(
                    *(reduction, tasks.peers, tasks.control, ends, self._helpers(run)),
                    run.apportioned,
                ),
            )
            if self.stragglers is not None and reduction.site is None:
                self._isolate(run, self.stragglers, reduction)
            if self.slow_links is not None and reduction.site is None:
                self._go_around(run, self.slow_links, reduction)
            reduction.missing = [run.workers[m] for m in sorted(reduction.gone) if m in run.workers]

    def _helpers(self, run: OuterRun) -> Sequence[int]:
        """Returns the clients that take part in an all-reduce without a vector of their own."""
        return ()

    def _finish(self, run: OuterRun, reduction: Reduction) -> None:
        reduction.done = run.stirred = True
        for worker in reduction.missing:
            if run.workers.get(worker.node) is worker:  # it may have failed, and be back, since
                self._leave_out(run, worker, "it went offline during an all-reduce")
        if reduction.site is not None:
            reduction.outcome = outer_step.local_mean(run, reduction)
            return
        run.entry = max(run.entry, reduction.step)
        run.tasks.control.stepped(run.version + 1, outer_step.reduced(run, reduction))
        reduction.outcome = run.states[reduction.fragment]
        run.finished_rounds += reduction.fragment == 0

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
            worker.held[p] = worker.merge[p] = outer_step.resumed(run, worker, p, reduction)
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


def _order(reduction: Reduction) -> tuple[int, int, int]:
    """Returns by what all-reduces of an instant come one after the other."""
    site = -1 if reduction.site is None else reduction.site
    return reduction.step, reduction.fragment, site
