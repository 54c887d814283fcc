"""The process of a Ray actor.

The rest of the package is imported in the actor's constructor, once garbage collection is rare.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl.execution.garbage import quick_garbage_collection, seldom_garbage_collection

if TYPE_CHECKING:
    from fl.execution.contract import Payload, Request, Result


class Actor:
    """Runs clients: one `Worker`, and a cache of the latest broadcasts.

    Args:
        source: reference to the app's source and the run's information, in a list. They are
            unpickled only after the path is right.
        threads: of torch.
        path: of the process that has the clients' code.
    """

    def __init__(self, source: list[Any], threads: int, path: list[str]) -> None:
        self._importing = seldom_garbage_collection()  # for the life of the process: never left
        self._importing.__enter__()
        sys.path.extend(entry for entry in path if entry not in sys.path)
        import ray

        from fl.execution.executor import load_app
        from fl.execution.speech import hearing
        from fl.execution.virtual_time import virtual_time
        from fl.execution.worker import Worker

        self._threads = threads
        self._time = virtual_time()  # likewise
        self._time.__enter__()
        self._hearing = hearing()  # likewise
        self._hearing.__enter__()
        app, run = ray.get(source[0])
        self._worker = Worker(load_app(app, run.epoch), run)
        self._contents: dict[str, Payload] = {}
        self._garbage = quick_garbage_collection()  # likewise
        self._garbage.__enter__()

    def pid(self) -> int:
        """Returns the process's id."""
        return os.getpid()

    def execute(self, batch: list[Request], references: list[Any]) -> Parcel:
        """Runs a batch.

        Args:
            batch: without their contents.
            references: to the content of each.
        """
        import ray

        from fl.execution.contract import Payload
        from fl.vectors.threads import limit_threads

        payloads = {}
        for reference in references:
            name = reference.hex()
            if name not in self._contents:
                self._contents[name] = Payload(ray.get(reference), 0)
            payloads[name] = self._contents[name]
        self._contents = payloads
        whole = [
            replace(request, payload=payloads[reference.hex()])
            for request, reference in zip(batch, references, strict=True)
        ]
        with limit_threads(self._threads):
            return Parcel(self._worker.execute(whole))


class Parcel:
    """Results on their way: the models of one program travel as one matrix."""

    def __init__(self, results: list[Result]) -> None:
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        from fl.flower.records import Sharing

        return _opened, (Sharing(True), self.results, Sharing(False))


def _opened(_begin: bool, results: list[Result], _end: bool) -> Parcel:
    return Parcel(results)
