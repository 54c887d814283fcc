"""Clients run on Ray actors, on this machine or on a cluster.

An actor holds the app, hence the model and the data, for the whole run; many clients share it. A
message that goes to many clients is put into the object store once. Results do not depend on the
number of actors, on which of them runs what, or on one of them dying: its batches run again
elsewhere.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Self

from flwr.common.constant import ErrorCode

from fl.errors import ConfigError, SimulationError
from fl.execution.actor import Actor, Parcel
from fl.execution.batches import form_batches
from fl.execution.cluster import connect, disconnect
from fl.execution.contract import Payload, Request, Result, RunInfo
from fl.execution.executor import AppSource, Executor, check_counts, load_app
from fl.execution.worker import names_of
from fl.extras import check_importable, check_installed

log = logging.getLogger("fl")

_ATTEMPTS = 3  # how often a batch may take its actor down before the client is blamed
_AHEAD = 2  # batches an actor may hold: one running, one on its way
_PATIENCE_S = 30.0  # host seconds after which the user is told what the run waits for
_DEATHS = 100  # so many for each actor, and something is wrong with the machine
_NO_CONTENT = Payload(None, 0)  # type: ignore[arg-type]  # stands for content sent by reference


class _Batch:
    __slots__ = ("attempts", "members", "payloads")

    def __init__(self, members: list[Request], attempts: int = 0) -> None:
        self.members = members
        self.payloads = [member.payload for member in members]
        self.attempts = attempts


@dataclass(eq=False)
class _Slot:
    """An actor, and the batches it holds in the order in which it runs them."""

    number: int
    actor: Any
    pid: int = 0
    held: deque[tuple[Any, _Batch]] = field(default_factory=deque)
    since: float = 0.0  # host time at which it began the first of them, or a little later


class RayExecutor(Executor):
    """Runs batches on a pool of Ray actors.

    Attaches to a Ray that this process is connected to already, and leaves it running. Otherwise
    joins the cluster at `address` or at the environment's RAY_ADDRESS, or starts Ray here.

    Args:
        num_actors: processes; None takes one per CPU that Ray has.
        cpus_per_actor: CPUs that Ray reserves for each.
        gpus_per_actor: GPUs that Ray reserves for each.
        max_batch: most clients that train together as one program; 1 switches batching off.
        threads: torch threads in each actor. More than 1 may change the last bits of results.
        address: of a Ray cluster, as in `ray.init(address=...)`; None joins RAY_ADDRESS if the
            environment has one, and starts Ray here otherwise.
        task_timeout_s: host seconds a batch may take before its actor is killed and the client gets
            an error reply; None waits for ever. A guard against code that hangs, not a simulated
            fault.

    Raises:
        ConfigError: an argument is out of range, or Ray is not installed.
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
        check_installed("executor=ray", "ray")
        check_counts(max_batch=max_batch, threads=threads)
        if num_actors is not None:
            check_counts(num_actors=num_actors)
        if not (cpus_per_actor > 0 and math.isfinite(cpus_per_actor)):
            raise ConfigError(f"cpus_per_actor is {cpus_per_actor}; it must be positive")
        if not (gpus_per_actor >= 0 and math.isfinite(gpus_per_actor)):
            raise ConfigError(f"gpus_per_actor is {gpus_per_actor}; it must be at least 0")
        if task_timeout_s is not None and not task_timeout_s > 0:
            raise ConfigError(f"task_timeout_s is {task_timeout_s}; it must be positive, or null")
        if address is not None and not (isinstance(address, str) and address):
            raise ConfigError(f"address is {address!r}; it must be auto, HOST:PORT, or null")
        self.num_actors = num_actors
        self.cpus_per_actor = cpus_per_actor
        self.gpus_per_actor = gpus_per_actor
        self.max_batch = max_batch
        self.threads = threads
        self.address = address
        self.task_timeout_s = task_timeout_s
        self._sharers = 1
        self._owns_ray = False
        self._size = 0
        self._slots: list[_Slot] = []
        self._queue: deque[_Batch] = deque()
        self._batch_of: dict[Request, _Batch] = {}  # of those somebody may still ask for
        self._results: dict[Request, Result] = {}
        self._references: dict[Payload, Any] = {}
        self._uses: Counter[Payload] = Counter()
        self._batches = 0
        self._deaths = 0

    def shared_by(self, runs: int) -> Self:
        """Returns one with its share of the actors, so that no run waits for another to end."""
        made = copy(self)
        made._sharers = runs
        return made

    # ---- actors ------------------------------------------------------------------------------

    def start(self, app: AppSource, run: RunInfo) -> None:
        """Connects to Ray, puts the app into the object store and has the actors started.

        Raises:
            ConfigError: there is no cluster at the address, or it cannot hold the actors; or Ray is
                broken.
        """
        check_importable("executor=ray", "ray")
        import ray

        self._app, self._run = load_app(app, run.epoch), run
        self._owns_ray = connect(self.address, self.num_actors, self.cpus_per_actor)
        self._size = self._count()
        self._source = ray.put((app, run))
        self._remote = ray.remote(Actor).options(
            num_cpus=self.cpus_per_actor, num_gpus=self.gpus_per_actor
        )
        # They get ready while this process prepares the first round.
        self._slots = [_Slot(number, self._new_actor()) for number in range(self._size)]

    def _count(self) -> int:
        """Returns the number of actors, after checking that Ray can hold them."""
        import ray

        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        count = self.num_actors or max(1, int(cpus // self.cpus_per_actor) // self._sharers)
        for name, each, there in (
            ("CPU", self.cpus_per_actor, cpus),
            ("GPU", self.gpus_per_actor, gpus),
        ):
            if self._sharers * count * each > there:
                # Runs that wait for each other's actors would wait for ever.
                runs = f" in each of {self._sharers} runs side by side" * (self._sharers > 1)
                fewer = ", run fewer side by side" * (self._sharers > 1)
                raise ConfigError(
                    f"executor.num_actors is {count} with {each:g} {name}s each{runs}, but Ray has "
                    f"{there:g}: lower num_actors or {name.lower()}s_per_actor{fewer}, or add nodes"
                )
        return count

    def _new_actor(self) -> Any:
        return self._remote.remote([self._source], self.threads, sys.path)

    def await_actors(self) -> None:
        """Waits until all actors are up.

        Raises:
            SimulationError: the ClientApp cannot be made in a worker process.
        """
        for slot in self._slots:
            if not slot.pid:
                self._await_start(slot)

    def _await_start(self, slot: _Slot) -> None:
        """Waits until the slot's actor is up; the app is made by then."""
        import ray

        for attempt in range(_ATTEMPTS):
            if attempt:
                slot.actor = self._new_actor()
            future = slot.actor.pid.remote()
            while not ray.wait([future], timeout=_PATIENCE_S)[0]:
                free = ray.available_resources()  # type: ignore[no-untyped-call]
                log.warning(
                    "still waiting for Ray to start actor %d of %d; %g CPUs are free of %g",
                    slot.number,
                    self._size,
                    free.get("CPU", 0.0),
                    ray.cluster_resources().get("CPU", 0.0),  # type: ignore[no-untyped-call]
                )
            try:
                slot.pid = ray.get(future)
                return
            except ray.exceptions.RayActorError as error:
                cause = error
                if error.actor_init_failed:  # and would fail again
                    break
        last = str(cause).strip().splitlines()[-1]
        raise SimulationError(f"the ClientApp does not start in a Ray actor: {last}") from cause

    def close(self) -> None:
        """Stops the actors, and Ray if this executor started it."""
        if self._slots:
            import ray

            for slot in self._slots:
                ray.kill(slot.actor)
        self._slots = []
        self._queue.clear()
        self._batch_of.clear()
        self._results.clear()
        self._references.clear()
        if self._owns_ray:
            disconnect()
            self._owns_ray = False

    def actor_pids(self) -> list[int]:
        """Returns the process ids of the actors."""
        self.await_actors()
        return [slot.pid for slot in self._slots]

    # ---- work --------------------------------------------------------------------------------

    def submit(self, wave: Sequence[Request]) -> None:
        """Forms the wave's batches and hands out as many as the actors can hold.

        Raises:
            SimulationError: the ClientApp cannot be made in a worker process.
        """
        self.await_actors()
        for members in form_batches(self._app, self._run, wave, self.max_batch):
            batch = _Batch(members)
            self._uses.update(batch.payloads)
            self._batch_of.update(dict.fromkeys(members, batch))
            self._queue.append(batch)
        self._pump()

    def result(self, request: Request) -> Result:
        """Waits until the request's batch has run, and returns its result."""
        while request not in self._results:
            batch = self._batch_of[request]
            if batch in self._queue:
                self._queue.remove(batch)
                self._queue.appendleft(batch)
            self._pump()
            self._wait()
        return self._results.pop(request)

    def discard(self, request: Request) -> None:
        """Forgets the result; the batch keeps its composition, so the others do not change."""
        self._batch_of.pop(request, None)
        self._results.pop(request, None)

    def ready(self) -> list[Request]:
        """Returns the other requests of batches that have come back."""
        return list(self._results)

    def _pump(self) -> None:
        """Hands out batches until every actor has enough."""
        while self._queue:
            slot = min(self._slots, key=_load)
            # What may have taken an actor down runs alone, so that it is clear who does it.
            if _load(slot) >= (1 if self._queue[0].attempts else _AHEAD):
                return
            batch = self._queue.popleft()
            if not any(member in self._batch_of for member in batch.members):
                self._release(batch)  # all discarded
                continue
            references = [self._reference(payload) for payload in batch.payloads]
            light = [replace(member, payload=_NO_CONTENT) for member in batch.members]
            if not slot.held:
                slot.since = time.monotonic()
            slot.held.append((slot.actor.execute.remote(light, references), batch))

    def _reference(self, payload: Payload) -> Any:
        import ray

        if payload not in self._references:
            self._references[payload] = ray.put(payload.content)
        return self._references[payload]

    def _release(self, batch: _Batch) -> None:
        """Lets go of contents that no batch needs any more."""
        for payload in batch.payloads:
            self._uses[payload] -= 1
            if not self._uses[payload]:
                del self._uses[payload]
                self._references.pop(payload, None)

    def _wait(self) -> None:
        """Waits until an actor has finished a batch, or has taken too long for one."""
        import ray

        busy = {slot.held[0][0]: slot for slot in self._slots if slot.held}
        patience = None
        if self.task_timeout_s is not None:
            oldest = min(slot.since for slot in busy.values())
            patience = max(0.0, oldest + self.task_timeout_s - time.monotonic())
        # An actor runs its batches in order, so only the first of each can be ready.
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=patience)
        if ready:
            self._collect(busy[ready[0]])
            return
        for slot in busy.values():
            if time.monotonic() >= slot.since + (self.task_timeout_s or math.inf):
                self._stop_hanging(slot)

    def _collect(self, slot: _Slot) -> None:
        import ray

        future, batch = slot.held[0]
        try:
            parcel: Parcel = ray.get(future)
        except ray.exceptions.TaskCancelledError as error:
            raise KeyboardInterrupt from error  # that is what Ray makes of one in the actor
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
            self._replace(slot, "died")
            return
        slot.held.popleft()
        slot.since = time.monotonic()
        self._finish(batch, parcel.results)

    def _finish(self, batch: _Batch, results: list[Result]) -> None:
        self._batches += 1
        for member, result in zip(batch.members, results, strict=True):
            if self._batch_of.pop(member, None) is not None:
                self._results[member] = result
        self._release(batch)

    # ---- actors that die ---------------------------------------------------------------------

    def _stop_hanging(self, slot: _Slot) -> None:
        batch = slot.held[0][1]
        batch.attempts = _ATTEMPTS
        self._replace(slot, f"has been running for more than {self.task_timeout_s:g} s, is killed")

    def _replace(self, slot: _Slot, what: str) -> None:
        """Starts a new actor, and runs again what the old one held."""
        import ray

        self._deaths += 1
        batches = [batch for _, batch in slot.held]
        log.warning(
            "Ray actor %d of %d (process %d), running %s, %s; a new one takes over (no. %d of this "
            "run)",
            slot.number,
            self._size,
            slot.pid,
            names_of(batches[0].members),
            what,
            self._deaths,
        )
        if self._deaths > _DEATHS * self._size:
            raise SimulationError(
                f"Ray actors died {self._deaths} times; the machine may be out of memory: lower "
                "executor.num_actors or executor.max_batch"
            )
        ray.kill(slot.actor)
        slot.held.clear()
        slot.actor = self._new_actor()
        self._await_start(slot)
        # Only the first can have done it: an actor runs its batches in order.
        self._queue.extendleft(reversed([*self._again(batches[0]), *batches[1:]]))
        self._pump()

    def _again(self, batch: _Batch) -> list[_Batch]:
        """Returns what to run in the place of a batch that took its actor down."""
        batch.attempts += 1
        if batch.attempts < _ATTEMPTS:
            return [batch]
        if len(batch.members) == 1:
            error = (ErrorCode.CLIENT_APP_CRASHED, "the client's process died or was killed")
            self._finish(batch, [Result(error=error, state=batch.members[0].state)])
            return []
        # One member takes the process down; alone, the others get through.
        singles = []
        for member, payload in zip(batch.members, batch.payloads, strict=True):
            single = _Batch([member], _ATTEMPTS - 1)
            single.payloads = [payload]
            if member in self._batch_of:
                self._batch_of[member] = single
            singles.append(single)
        return singles

    def report(self) -> dict[str, Any]:
        """Returns the pool's size, the batches run and the actors that died."""
        return {
            "executor": "ray",
            "actors": self._size,
            "batches": self._batches,
            "max_batch": self.max_batch,
            "actor_deaths": self._deaths,
        }


def _load(slot: _Slot) -> int:
    """Returns how many batches a slot holds; a suspect one counts as all that it can."""
    return _AHEAD if slot.held and slot.held[0][1].attempts else len(slot.held)
