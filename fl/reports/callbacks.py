"""Who else is told what a run measures, at the points where TensorBoard is written.

A callback of your own is a class with some of `Callback`'s methods. `WandB` and `MLflow` pass what
they are told on to these services; their packages are extras.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from fl.errors import ConfigError
from fl.extras import check_importable
from fl.reports.client_rows import ClientRow
from fl.reports.history import Row
from fl.reports.tensorboard_log import flattened

log = logging.getLogger("fl")

_MOST_AT_ONCE = 100  # parameters in a request to MLflow
_LONGEST = 500  # characters of one


class Callback:
    """Is told of a run while it goes on; does nothing with it.

    What is told cannot be changed, and nothing of a result depends on it. A run that is resumed
    tells all of its evaluations again, from the first.
    """

    def begin(self, directory: Path | None, config: Mapping[str, Any], seed: int) -> None:
        """Is called once, before anything is trained; what it raises ends the run.

        Args:
            directory: of the run; None if it has none.
            config: the resolved configuration, nested mappings of plain values.
            seed: of the run.
        """

    def evaluation(self, row: Row) -> None:
        """Is called after each evaluation.

        Args:
            row: a row of metrics.csv: round, time_s, wall_s, bytes_down, bytes_up, energy_j, and
                the metrics by name.
        """

    def clients(self, server_round: int, time_s: float, rows: Sequence[ClientRow]) -> None:
        """Is called with what each client has, where `personal.every` asks clients.

        Args:
            server_round: number of the round.
            time_s: virtual time, s.
            rows: one for each client.
        """

    def end(self, summary: Mapping[str, Any]) -> None:
        """Is called once at the end, however the run ended.

        Args:
            summary: what summary.json has; "status" says how it ended.
        """


class Told:
    """Tells several callbacks.

    One that raises after `begin` is told nothing more, and a warning says so: what a run has
    computed is not lost to whoever only listens.

    Args:
        callbacks: in the order in which they are told.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)

    def begin(self, directory: Path | None, config: Mapping[str, Any], seed: int) -> None:
        """As `Callback.begin`; what is raised says which callback raised it."""
        for callback in self._callbacks:
            try:
                callback.begin(directory, config, seed)
            except Exception as error:
                error.add_note(f"raised by the callback {type(callback).__name__}, in begin")
                raise

    def evaluation(self, row: Row) -> None:
        """As `Callback.evaluation`."""
        self._each(lambda callback: callback.evaluation(dict(row)))

    def clients(self, server_round: int, time_s: float, rows: Sequence[ClientRow]) -> None:
        """As `Callback.clients`."""
        self._each(lambda callback: callback.clients(server_round, time_s, list(rows)))

    def end(self, summary: Mapping[str, Any]) -> None:
        """As `Callback.end`."""
        self._each(lambda callback: callback.end(deepcopy(dict(summary))))

    def _each(self, tell: Callable[[Callback], None]) -> None:
        for callback in [*self._callbacks]:
            try:
                tell(callback)
            except Exception as error:  # whatever somebody's code or service raises
                self._callbacks.remove(callback)
                log.warning(
                    "the callback %s raised %s: %s; it is told nothing more of this run",
                    type(callback).__name__,
                    type(error).__name__,
                    error,
                )


class WandB(Callback):
    """Weights & Biases: metrics over virtual time, the configuration, and the summary.

    Args:
        project: of the service.
        name: of the run there; None: its directory's.
        mode: "online", or "offline", which writes to the run's directory, for `wandb sync`.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        name: str | None = None,
        mode: Literal["online", "offline"] = "offline",
    ) -> None:
        check_importable(type(self).__name__, "wandb")
        if mode not in ("online", "offline"):
            raise ConfigError(f"mode is {mode!r}; it must be online or offline")
        self.project, self.name, self.mode = project, name, mode

    def begin(self, directory: Path | None, config: Mapping[str, Any], seed: int) -> None:
        """Begins a run of the service."""
        self._run = import_module("wandb").init(
            project=self.project,
            name=self.name or (None if directory is None else directory.name),
            dir=None if directory is None else str(directory),
            config=flattened(config),
            mode=self.mode,
            reinit="create_new",  # another run of this process may be under way
        )
        self._run.define_metric("*", step_metric="time_s")

    def evaluation(self, row: Row) -> None:
        """Logs a row."""
        self._run.log(dict(row))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Logs the totals and ends the run there."""
        self._run.summary.update(flattened({"totals": summary["totals"]}))
        self._run.finish(exit_code=0 if summary["status"] == "completed" else 1)


class MLflow(Callback):
    """MLflow: metrics by round, whose timestamps are virtual; the configuration as parameters.

    Args:
        experiment: its name; made if there is none.
        name: of the run there; None: its directory's.
        uri: of the tracking server; None: what MLflow's environment says.

    Raises:
        ConfigError: mlflow is not installed.
    """

    def __init__(self, experiment: str, name: str | None = None, uri: str | None = None) -> None:
        check_importable(type(self).__name__, "mlflow")
        self.experiment, self.name, self.uri = experiment, name, uri

    def begin(self, directory: Path | None, config: Mapping[str, Any], seed: int) -> None:
        """Begins a run of the experiment."""
        # The client, and not the module's functions: they know one run of a process at a time.
        self._client = import_module("mlflow").MlflowClient(tracking_uri=self.uri)
        self._entities = import_module("mlflow.entities")
        found = self._client.get_experiment_by_name(self.experiment)
        number = (
            self._client.create_experiment(self.experiment)
            if found is None
            else found.experiment_id
        )
        name = self.name or (None if directory is None else directory.name)
        self._run_id = self._client.create_run(number, run_name=name).info.run_id
        given = [
            self._entities.Param(key, str(value)[:_LONGEST])
            for key, value in flattened(config).items()
        ]
        for first in range(0, len(given), _MOST_AT_ONCE):
            self._client.log_batch(self._run_id, params=given[first : first + _MOST_AT_ONCE])

    def evaluation(self, row: Row) -> None:
        """Logs a row."""
        at, step = int(1000 * row["time_s"]), int(row["round"])
        self._client.log_batch(
            self._run_id,
            metrics=[self._entities.Metric(key, value, at, step) for key, value in row.items()],
        )

    def end(self, summary: Mapping[str, Any]) -> None:
        """Ends the run there."""
        status = {"completed": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self._run_id, status.get(summary["status"], "FAILED"))
