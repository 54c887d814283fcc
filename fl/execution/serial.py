"""Clients run one after another in this process: the debugger's backend and the test oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl.execution.batches import form_batches
from fl.execution.contract import Request, Result, RunInfo
from fl.execution.executor import AppSource, Executor, check_counts, load_app
from fl.execution.worker import Worker
from fl.vectors.threads import limit_threads


class SerialExecutor(Executor):
    """Runs a wave when the first of its results is needed, batch by batch.

    Args:
        max_batch: most clients that train together as one program; 1 switches batching off.
        threads: torch threads while clients train. More than 1 may change the last bits of results.

    Raises:
        ConfigError: an argument is not a whole number of at least 1.
    """

    def __init__(self, max_batch: int = 64, threads: int = 1) -> None:
        check_counts(max_batch=max_batch, threads=threads)
        self.max_batch = max_batch
        self.threads = threads
        self._pending: dict[Request, list[Request]] = {}
        self._results: dict[Request, Result] = {}
        self._batches = 0

    def start(self, app: AppSource, run: RunInfo) -> None:
        """Makes the app in this process."""
        self._app, self._run = load_app(app, run.epoch), run
        self._worker = Worker(self._app, run)

    def submit(self, wave: Sequence[Request]) -> None:
        """Forms the wave's batches; nothing runs yet."""
        for batch in form_batches(self._app, self._run, wave, self.max_batch):
            for request in batch:
                self._pending[request] = batch

    def result(self, request: Request) -> Result:
        """Runs the request's batch if that has not happened, and returns its result."""
        if request in self._pending:
            batch = self._pending[request]
            self._batches += 1
            with limit_threads(self.threads):
                results = self._worker.execute(batch)
            for member, result in zip(batch, results, strict=True):
                if self._pending.pop(member, None) is not None:
                    self._results[member] = result
        return self._results.pop(request)

    def discard(self, request: Request) -> None:
        """Forgets the result. The batch keeps its composition, so the others do not change."""
        self._pending.pop(request, None)
        self._results.pop(request, None)

    def ready(self) -> list[Request]:
        """Returns the other requests of batches that have run."""
        return list(self._results)

    def close(self) -> None:
        """Forgets what nobody has asked for."""
        self._pending.clear()
        self._results.clear()

    def report(self) -> dict[str, Any]:
        """Returns the executor's name and the number of batches run."""
        return {"executor": "serial", "batches": self._batches, "max_batch": self.max_batch}
