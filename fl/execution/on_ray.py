"""Clients run on Ray actors, on this machine or on a cluster.

An actor holds the app, hence the model and the data, for the whole run; many clients share it. A
message that goes to many clients is put into the object store once. Results do not depend on the
number of actors, on which of them runs what, or on one of them dying: its batches run again
elsewhere.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flwr.common.constant import ErrorCode

from fl.errors import ConfigError, SimulationError
from fl.execution.executor import (
    AppSource,
    Assignment,
    Executor,
    Outcome,
    Payload,
    RunInfo,
    Worker,
    form_batches,
    load_app,
)

log = logging.getLogger("fl")

_ATTEMPTS = 3  # how often a batch may take its actor down before the client is blamed
_AHEAD = 2  # batches an actor may hold: one running, one on its way
_NO_CONTENT = Payload(None, 0)  # type: ignore[arg-type]  # stands for content sent by reference


class _Actor:
    """The process that runs clients; one `Worker` and a cache of the latest broadcasts."""

    def __init__(self, app: list[Any], run: RunInfo, threads: int, path: list[str]) -> None:
        import ray
        import torch

        from fl.simulation.virtual_sleep import virtual_sleep

        sys.path.extend(entry for entry in path if entry not in sys.path)
        torch.set_num_threads(threads)
        virtual_sleep().__enter__()  # for the life of the process
        # The app comes by reference, so that it is unpickled only after the path is right.
        self._worker = Worker(load_app(ray.get(app[0])), run)
        self._contents: dict[str, Payload] = {}

    def pid(self) -> int:
        return os.getpid()

    def execute(self, batch: list[Assignment], references: list[Any]) -> list[Outcome]:
        import ray

        payloads = {}
        for reference in references:
            name = reference.hex()
            if name not in self._contents:
                self._contents[name] = Payload(ray.get(reference), 0)
            payloads[name] = self._contents[name]
        self._contents = payloads
        whole = [
            replace(assignment, payload=payloads[reference.hex()])
            for assignment, reference in zip(batch, references, strict=True)
        ]
        return self._worker.execute(whole)


class _Batch:
    __slots__ = ("actor", "attempts", "members")

    def __init__(self, members: list[Assignment], attempts: int = 0) -> None:
        self.members = members
        self.attempts = attempts
        self.actor = -1


class RayExecutor(Executor):
    """Runs batches on a pool of Ray actors.

    Attaches to a Ray that is already running in this process (and leaves it running), or starts
    one; with `address` it joins a cluster.

    Args:
        num_actors: processes; None takes one per CPU that Ray has.
        cpus_per_actor, gpus_per_actor: resources Ray reserves for each.
        max_batch: most clients that train together as one program; 1 switches batching off.
        threads: torch threads in each actor. More than 1 may change the last bits of results.
        address: of a Ray cluster, as in `ray.init(address=...)`; None starts Ray here.
        task_timeout_s: host seconds a batch may take before its actor is killed and the client is
            treated as crashed; None waits for ever. A guard against code that hangs, not a
            simulated fault.

    Raises:
        ConfigError: a count is smaller than 1, or the cluster cannot hold the actors.
    """

    def __init__(
        self,
        num_actors: int | None = None,
        cpus_per_actor: float = 1.0,
        gpus_per_actor: float = 0.0,
        max_batch: int = 64,
        threads: int = 1,
        address: str | None = None,
        task_timeout_s: float | None = None,
    ) -> None:
        for name, value in (
            ("num_actors", num_actors),
            ("max_batch", max_batch),
            ("threads", threads),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"executor.{name} is {value}; it must be at least 1")
        if task_timeout_s is not None and not task_timeout_s > 0:
            raise ConfigError(
                f"executor.task_timeout_s is {task_timeout_s}; it must be positive, or null"
            )
        self.num_actors = num_actors
        self.cpus_per_actor = cpus_per_actor
        self.gpus_per_actor = gpus_per_actor
        self.max_batch = max_batch
        self.threads = threads
        self.address = address
        self.task_timeout_s = task_timeout_s
        self._owns_ray = False
        self._actors: list[Any] = []
        self._load: list[int] = []
        self._queue: deque[_Batch] = deque()
        self._running: dict[Any, _Batch] = {}
        self._batch_of: dict[Assignment, _Batch] = {}
        self._outcomes: dict[Assignment, Outcome] = {}
        self._references: dict[Payload, Any] = {}
        self._uses: Counter[Payload] = Counter()
        self._batches = 0
        self._deaths = 0

    # ---- actors ------------------------------------------------------------------------------

    def start(self, app: AppSource, run: RunInfo) -> None:
        """Connects to Ray, puts the app into the object store and starts the actors."""
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not ray.is_initialized():
            cpus = None
            if self.address is None and self.num_actors is not None:
                cpus = max(self.num_actors * self.cpus_per_actor, os.cpu_count() or 1)
            ray.init(
                address=self.address,
                num_cpus=cpus,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
            )
            self._owns_ray = True
        available = ray.cluster_resources().get("CPU", 0.0)
        count = self.num_actors or max(1, int(available // self.cpus_per_actor))
        if count * self.cpus_per_actor > available:
            raise ConfigError(
                f"executor.num_actors is {count} with {self.cpus_per_actor} CPUs each, but Ray has "
                f"{available:g} CPUs: lower num_actors or cpus_per_actor, or add nodes"
            )
        self._run = run
        self._app = load_app(app)
        self._app_reference = ray.put(app)
        self._remote = ray.remote(_Actor).options(
            num_cpus=self.cpus_per_actor, num_gpus=self.gpus_per_actor
        )
        self._actors = [self._new_actor() for _ in range(count)]
        self._load = [0] * count

    def _new_actor(self) -> Any:
        return self._remote.remote([self._app_reference], self._run, self.threads, sys.path)

    def close(self) -> None:
        """Stops the actors, and Ray if this executor started it."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._references.clear()
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False

    def actor_pids(self) -> list[int]:
        """Returns the process ids of the actors."""
        import ray

        return list(ray.get([actor.pid.remote() for actor in self._actors]))

    # ---- work --------------------------------------------------------------------------------

    def submit(self, wave: Sequence[Assignment]) -> None:
        """Forms the wave's batches and hands out as many as the actors can hold."""
        for members in form_batches(self._app, self._run, wave, self.max_batch):
            self._uses.update(member.payload for member in members)
            self._enqueue(_Batch(members))
        self._pump()

    def _enqueue(self, batch: _Batch, *, first: bool = False) -> None:
        for assignment in batch.members:
            if not first or assignment in self._batch_of:  # on a retry, some may be discarded
                self._batch_of[assignment] = batch
        if first:
            self._queue.appendleft(batch)
        else:
            self._queue.append(batch)

    def _pump(self) -> None:
        while self._queue:
            actor = min(range(len(self._load)), key=self._load.__getitem__)
            if self._load[actor] >= _AHEAD:
                return
            batch = self._queue.popleft()
            references = [self._reference(member.payload) for member in batch.members]
            light = [replace(member, payload=_NO_CONTENT) for member in batch.members]
            batch.actor = actor
            self._load[actor] += 1
            future = self._actors[actor].execute.remote(light, references)
            self._running[future] = batch

    def _reference(self, payload: Payload) -> Any:
        import ray

        if payload not in self._references:
            self._references[payload] = ray.put(payload.content)
        return self._references[payload]

    def result(self, assignment: Assignment) -> Outcome:
        """Waits until the assignment's batch has run, and returns its outcome."""
        import ray

        while assignment not in self._outcomes:
            batch = self._batch_of[assignment]
            if batch in self._queue and self._queue[0] is not batch:
                self._queue.remove(batch)
                self._queue.appendleft(batch)
            self._pump()
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=self.task_timeout_s)
            if ready:
                self._collect(ready[0])
            else:
                self._kill_hanging(assignment)
        return self._outcomes.pop(assignment)

    def _collect(self, future: Any) -> None:
        import ray

        batch = self._running.pop(future)
        try:
            outcomes = ray.get(future)
        except ray.exceptions.RayActorError:
            self._actor_died(batch)
            return
        self._load[batch.actor] -= 1
        self._finish(batch, outcomes)

    def _finish(self, batch: _Batch, outcomes: list[Outcome]) -> None:
        self._batches += 1
        for member, outcome in zip(batch.members, outcomes, strict=True):
            if self._batch_of.pop(member, None) is not None:
                self._outcomes[member] = outcome
            self._uses[member.payload] -= 1
            if not self._uses[member.payload]:
                del self._uses[member.payload]
                self._references.pop(member.payload, None)

    def _kill_hanging(self, assignment: Assignment) -> None:
        import ray

        batch = self._batch_of[assignment]
        log.warning(
            "client %d has been running for more than %g host seconds; its actor is killed",
            assignment.client,
            self.task_timeout_s,
        )
        batch.attempts = _ATTEMPTS
        ray.kill(self._actors[batch.actor])

    def _actor_died(self, batch: _Batch) -> None:
        """Replaces the actor that ran `batch` and runs again what it held."""
        actor = batch.actor
        self._deaths += 1
        log.warning(
            "Ray actor %d of %d died; a new one takes over (death %d of this run)",
            actor,
            len(self._actors),
            self._deaths,
        )
        if self._deaths > 100 * len(self._actors):
            raise SimulationError(
                f"Ray actors died {self._deaths} times; the machine may be out of memory: "
                "lower executor.num_actors or executor.max_batch"
            )
        held = [batch]
        for future in [f for f, other in self._running.items() if other.actor == actor]:
            held.append(self._running.pop(future))
        self._actors[actor] = self._new_actor()
        self._load[actor] = 0
        batch.attempts += 1
        for again in reversed(held):
            if again.attempts < _ATTEMPTS:
                self._enqueue(again, first=True)
            elif len(again.members) > 1:
                # One member takes the process down; alone, the others get through.
                for member in reversed(again.members):
                    self._enqueue(_Batch([member], _ATTEMPTS - 1), first=True)
            else:
                error = (ErrorCode.CLIENT_APP_CRASHED, "the client's process died")
                self._finish(again, [Outcome(error=error)])
        self._pump()

    def discard(self, assignment: Assignment) -> None:
        """Forgets the outcome; the batch keeps its composition."""
        self._batch_of.pop(assignment, None)
        self._outcomes.pop(assignment, None)

    def report(self) -> dict[str, Any]:
        """Returns the pool's size, the batches run and the actors that died."""
        return {
            "executor": "ray",
            "actors": len(self._actors),
            "batches": self._batches,
            "max_batch": self.max_batch,
            "actor_deaths": self._deaths,
        }
