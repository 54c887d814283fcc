"""The step of an outer rule: what workers make of an all-reduce, and of what they know.

Functions of a run; when each is called says `fl.strategies.drivers.outer.outer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fl.errors import NoStep
from fl.strategies.drivers.outer.reduction import Reduction
from fl.strategies.drivers.outer.run import OuterRun, Participant
from fl.strategies.outer_rule import WorkerView, moved
from fl.strategies.per_worker_rule import PerWorkerRule
from fl.vectors.rows import Row

log = logging.getLogger("fl")


def reduced(run: OuterRun, reduction: Reduction) -> NoStep | None:
    """Takes the step of an all-reduce that is finished; returns why not, if there is none."""
    p = reduction.fragment
    if not reduction.sent:
        if reduction.gone and isinstance(run.rule, PerWorkerRule):
            return _alone(run, run.rule, reduction)
        gone = "a worker went offline during the all-reduce"
        return NoStep(gone if reduction.gone else "no outer gradient has come")
    gradients = run.all_reduce.gradients(reduction)
    return _step(run, p, partial(run.rule.reduced, run.states[p], gradients))


def resumed(run: OuterRun, worker: Participant, p: int, before: Reduction | None) -> Row:
    """Returns the outer parameters that a worker goes on from."""
    m, step, rule = worker.node, worker.step, run.rule
    now = run.reductions.get((p, step, None))
    own = None if now is None else now.own.get(m)
    arrival = WorkerView(
        m,
        run.present,
        None if own is None else (own.delta, own.weight),
        run.all_reduce.gradients(before, m) if before and before.sent else None,
        step + rule.inner_steps > run.last_step,
        run.all_reduce.combining(Reduction(p, step) if now is None else now, m),
    )
    why_not = _step(run, p, partial(rule.resumed, run.states[p], arrival))
    if why_not is not None:
        run.tasks.control.stepped(run.version + 1, why_not)
    if rule.own_outer:
        return rule.theta(run.states[p], m)
    # Not the newest: by the time of this one, others may have finished.
    return worker.held[p] if before is None else rule.theta(before.outcome, m)


def conclude(run: OuterRun) -> None:
    """Takes in what is left when all steps are done and no all-reduce is in flight any more."""
    of_all = [r for r in run.reductions.values() if r.site is None]
    for reduction in sorted(of_all, key=lambda r: (r.fragment, r.step)):
        p, step = reduction.fragment, reduction.step
        if step + run.rule.inner_steps <= run.last_step or not reduction.sent:
            continue
        for m in run.present:
            gradients = run.all_reduce.gradients(reduction, m)
            concluded = partial(run.rule.concluded, run.states[p], m, gradients)
            if (why_not := _step(run, p, concluded)) is not None:
                run.tasks.control.stepped(run.version, why_not)


def local_mean(run: OuterRun, reduction: Reduction) -> Row | None:
    """Returns the mean of the parameters of a site's workers; None if there is none."""
    if not reduction.sent:
        return None
    theta = run.rule.theta(run.states[reduction.fragment], next(iter(reduction.sent)))
    try:
        return moved(theta, run.all_reduce.gradients(reduction).mean())
    except NoStep as error:
        log.warning("the workers of site %s go on apart: %s", reduction.site, error)
        return None


def rounds_done(run: OuterRun) -> int:
    """Returns how many rounds have ended; the last does when nothing is in flight any more."""
    if not run.rule.own_outer:
        return run.finished_rounds
    h = run.rule.inner_steps
    passed = [worker.passed for worker in run.workers.values()]
    return min(passed, default=run.version * h) // h


def model(run: OuterRun) -> Row:
    """Returns the model to evaluate, shape (d,)."""
    present = run.present
    honest = [m for m in present if not run.all_reduce.is_liar(m)] or present
    return run.row([run.rule.model(state, honest) for state in run.states])


def _alone(run: OuterRun, rule: PerWorkerRule, reduction: Reduction) -> NoStep | None:
    """Has each worker that is left step by itself; returns why not, if none is or can."""
    deltas = {m: one.delta for m, one in reduction.own.items() if m not in reduction.gone}
    if not deltas:
        return NoStep("all workers went offline during the all-reduce")
    log.warning(
        "the all-reduce after step %d was given up: %d workers step by their own outer gradients, "
        "and part",
        *(reduction.step, len(deltas)),
    )
    p = reduction.fragment
    return _step(run, p, partial(rule.alone, run.states[p], deltas))


def _step(run: OuterRun, p: int, step: Callable[[], Any]) -> NoStep | None:
    """Makes what `step` returns the state of fragment p; returns why not, if it cannot."""
    why_not = None
    try:
        run.states[p] = step()
    except NoStep as error:
        why_not = error
    run.all_reduce.ended(stepped=why_not is None)
    return why_not
