"""What it takes to have clients' requests answered somewhere.

The grid submits waves of requests that may be answered now; the executor forms batches from a wave
(`fl.execution.batches`), and keeps their results until they are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

from flwr.clientapp import ClientApp

from fl.errors import ConfigError
from fl.execution.contract import Request, Result, RunInfo
from fl.execution.virtual_time import EPOCH, TaskClock, answering


class Executor(ABC):
    """Has requests answered and keeps their results until they are asked for.

    Attributes:
        max_batch: most clients that train together; 1 if none do.
    """

    max_batch = 1

    @abstractmethod
    def start(self, app: AppSource, run: RunInfo) -> None:
        """Gets ready to run `app`'s clients."""

    @abstractmethod
    def submit(self, wave: Sequence[Request]) -> None:
        """Accepts requests that may be answered now, in any order; no two of one client."""

    @abstractmethod
    def result(self, request: Request) -> Result:
        """Returns the result of a submitted request, once; blocks until it is there."""

    @abstractmethod
    def discard(self, request: Request) -> None:
        """Forgets a submitted request whose result nobody will need."""

    def ready(self) -> list[Request]:
        """Returns requests whose results are there, so that `result` does not wait for them."""
        return []

    def aside(self, requests: Sequence[Request]) -> list[Result]:
        """Returns the results of requests that are no part of the run, so that nobody keeps them.

        Args:
            requests: no two of one client, and none that the run itself makes.
        """
        self.submit(requests)
        return [self.result(request) for request in requests]

    @abstractmethod
    def close(self) -> None:
        """Releases what `start` took; also if it failed, or was never called."""

    def shared_by(self, runs: int) -> Self:
        """Returns the executor as one of so many runs that work here at the same time."""
        return self

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary."""
        return {}


AppSource = ClientApp | Callable[[], ClientApp]
"""A ClientApp, or a function that makes one (called once in every worker process)."""


def load_app(source: AppSource, epoch: int = EPOCH) -> ClientApp:
    """Returns the ClientApp of a source.

    Args:
        source: of the app.
        epoch: the date that whoever looks at a clock meanwhile sees, s since 1970.

    Raises:
        ConfigError: the source gives something that is not a ClientApp.
    """
    with answering(TaskClock(), epoch):
        app = source if isinstance(source, ClientApp) else source()
    if not isinstance(app, ClientApp):
        raise ConfigError(
            f"client_app makes {type(app).__name__}: a function in its place must return a "
            "flwr.clientapp.ClientApp"
        )
    return app


def check_counts(**counts: object) -> None:
    """Checks that an executor's arguments are whole numbers of at least 1.

    Raises:
        ConfigError: one is not; the message names it as a key of the configuration.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least 1")
