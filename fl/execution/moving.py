"""Where clients run, if nobody says: in this process, and on Ray once there is enough to do.

Ray takes some seconds to start, in which a small run ends. How much a run has to do is not known
before it, so training begins here at once; when it has taken about as long as Ray takes to start,
Ray is started, and the rest is its actors'. Then a run is never much longer than twice what the
better choice would have taken. Results do not depend on where a client trains, nor on when this
moves.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Self

from fl.checks import not_negative, read_if
from fl.errors import ConfigError, SimulationError
from fl.execution.contract import Request, Result, RunInfo
from fl.execution.executor import AppSource, Executor
from fl.execution.on_ray import RayExecutor
from fl.execution.serial import SerialExecutor
from fl.extras import installed
from fl.vectors.threads import cores

log = logging.getLogger("fl.execution")

_OF_RAY = {
    name: one.default
    for name, one in inspect.signature(RayExecutor).parameters.items()
    if name not in inspect.signature(SerialExecutor).parameters
}
"""What says how Ray is to be used, with what it is if nobody does."""


def _asks_for_ray(given: Mapping[str, Any]) -> bool:
    return any(given[name] != usual for name, usual in _OF_RAY.items())


@read_if(lambda a: not _asks_for_ray(a), "after_s", only="Ray is used from the start")
def auto(
    num_actors: int | None = None,
    cpus_per_actor: float = 1.0,
    gpus_per_actor: float = 0.0,
    max_batch: int = 64,
    threads: int = 1,
    address: str | None = None,
    task_timeout_s: float | None = None,
    after_s: float = 5.0,
) -> Executor:
    """Returns the executor that a run has if none is chosen.

    Ray, if an argument says how it is to be used, or if there is one already. This process alone,
    if there is one core, or Ray is not installed. Otherwise both, see `MovingExecutor`.

    Args:
        num_actors: as of `RayExecutor`.
        cpus_per_actor: likewise.
        gpus_per_actor: likewise.
        max_batch: as of both.
        threads: likewise.
        address: as of `RayExecutor`.
        task_timeout_s: likewise.
        after_s: host seconds of training in this process after which Ray is started.

    Raises:
        ConfigError: an argument is out of range, or Ray is asked for and not installed.
    """
    not_negative("after_s", after_s)
    given = {
        "num_actors": num_actors,
        "cpus_per_actor": cpus_per_actor,
        "gpus_per_actor": gpus_per_actor,
        "address": address,
        "task_timeout_s": task_timeout_s,
    }
    asked = _asks_for_ray(given)
    serial = SerialExecutor(max_batch, threads)
    if not asked and not (installed("ray") and (cores() > 1 or _has_ray())):
        return serial
    on_ray = RayExecutor(
        num_actors, cpus_per_actor, gpus_per_actor, max_batch, threads, address, task_timeout_s
    )
    return on_ray if asked or _has_ray() else MovingExecutor(serial, on_ray, after_s)


def _has_ray() -> bool:
    """Returns whether a Ray runs that this process uses, or is told to."""
    return "RAY_ADDRESS" in os.environ or ("ray" in sys.modules and _is_connected())


def _is_connected() -> bool:
    import ray

    return bool(ray.is_initialized())


class MovingExecutor(Executor):
    """Runs batches in this process at first, and on Ray once that has taken some time.

    What was submitted before stays where it is. If Ray does not start, or does not take the app,
    everything goes on in this process, with a warning.

    Args:
        here: where training begins.
        there: where it goes on.
        after_s: host seconds of training after which it does.
    """

    def __init__(self, here: SerialExecutor, there: RayExecutor, after_s: float) -> None:
        self._here, self._there = here, there
        self.max_batch = here.max_batch
        self._after_s = after_s
        self._spent_s = 0.0
        self._may_move = True
        self._moved = False
        self._holders: dict[Request, Executor] = {}

    def shared_by(self, runs: int) -> Self:
        """Returns one that stays in this process where the runs have a core each, and no more."""
        made = copy(self)
        made._there = self._there.shared_by(runs)
        made._may_move = cores() // runs > 1
        return made

    def start(self, app: AppSource, run: RunInfo) -> None:
        """Makes the app in this process."""
        self._source = app, run
        self._holders = {}
        self._here.start(app, run)

    def submit(self, wave: Sequence[Request]) -> None:
        """Accepts a wave where training is now."""
        if self._may_move and self._spent_s >= self._after_s:
            self._move()
        holder: Executor = self._there if self._moved else self._here
        self._holders.update(dict.fromkeys(wave, holder))
        holder.submit(wave)

    def _move(self) -> None:
        self._may_move = False
        log.info(
            "training has taken %.0f s in this process: from here on Ray does it, with the same "
            "results (executor=serial does without, executor=ray starts with it)",
            self._spent_s,
        )
        try:
            self._there.start(*self._source)
            self._there.await_actors()
        except (ConfigError, SimulationError, ImportError, TypeError, AttributeError) as error:
            # Ray that is broken; the last two are of an app that cannot be sent elsewhere.
            self._there.close()
            why = str(error).splitlines()[0]
            log.warning("training goes on in this process, as Ray cannot take it: %s", why)
            return
        self._moved = True

    def result(self, request: Request) -> Result:
        """Returns the result of a request, from where it is."""
        holder = self._holders.pop(request)
        if holder is self._there:
            return self._there.result(request)
        began = time.monotonic()
        try:
            return self._here.result(request)
        finally:
            self._spent_s += time.monotonic() - began

    def discard(self, request: Request) -> None:
        """Forgets a request."""
        holder = self._holders.pop(request, None)
        if holder is not None:
            holder.discard(request)

    def ready(self) -> list[Request]:
        """Returns what is ready, in this process or on Ray."""
        return [*self._here.ready(), *(self._there.ready() if self._moved else ())]

    def close(self) -> None:
        """Closes both."""
        self._holders.clear()
        self._here.close()
        if self._moved:
            self._there.close()
            self._moved = False

    def report(self) -> dict[str, Any]:
        """Returns the facts of where training ended; batches of both."""
        here = self._here.report()
        if not self._moved:
            return here
        there = self._there.report()
        return {**there, "batches": here["batches"] + there["batches"], "moved": True}
