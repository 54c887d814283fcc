"""Clients run one after another in this process: the debugger's backend and the test oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl.execution.executor import (
    AppSource,
    Assignment,
    Executor,
    Outcome,
    RunInfo,
    Worker,
    check_counts,
    form_batches,
    load_app,
)
from fl.execution.threads import limit_threads


class SerialExecutor(Executor):
    """Runs a wave when the first of its outcomes is needed, batch by batch.

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
        self._pending: dict[Assignment, list[Assignment]] = {}
        self._outcomes: dict[Assignment, Outcome] = {}
        self._batches = 0

    def start(self, app: AppSource, run: RunInfo) -> None:
        """Makes the app in this process."""
        self._run = run
        self._worker = Worker(load_app(app, run.epoch), run)

    def submit(self, wave: Sequence[Assignment]) -> None:
        """Forms the wave's batches; nothing runs yet."""
        for batch in form_batches(self._worker.app, self._run, wave, self.max_batch):
            for assignment in batch:
                self._pending[assignment] = batch

    def result(self, assignment: Assignment) -> Outcome:
        """Runs the assignment's batch if that has not happened, and returns its outcome."""
        if assignment in self._pending:
            batch = self._pending[assignment]
            self._batches += 1
            with limit_threads(self.threads):
                outcomes = self._worker.execute(batch)
            for member, outcome in zip(batch, outcomes, strict=True):
                if self._pending.pop(member, None) is not None:
                    self._outcomes[member] = outcome
        return self._outcomes.pop(assignment)

    def discard(self, assignment: Assignment) -> None:
        """Forgets the outcome. The batch keeps its composition, so the others do not change."""
        self._pending.pop(assignment, None)
        self._outcomes.pop(assignment, None)

    def close(self) -> None:
        """Forgets what nobody has asked for."""
        self._pending.clear()
        self._outcomes.clear()

    def report(self) -> dict[str, Any]:
        """Returns the executor's name and the number of batches run."""
        return {"executor": "serial", "batches": self._batches, "max_batch": self.max_batch}
