"""The ServerApp of a deployment: the experiment that `fl` simulates, in the time of the wall."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from omegaconf import OmegaConf
from rich.console import Console

from fl.deployment.calibrating import calibrate
from fl.deployment.grid import DeployedGrid
from fl.deployment.settings import Own, check_deployable, compose_experiment, read_settings
from fl.errors import ConfigError, DeploymentError, Diverged
from fl.execution.contract import Payload
from fl.randomness import global_generators
from fl.reports import Progress, RunWriter, Totals, units
from fl.reports.participation import participation
from fl.reports.run_writer import Status
from fl.reports.table import print_results
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.recorder import Recorder
from fl.runs.run import facts, serve
from fl.runs.settings import callbacks_of, saved_models, target_of

_WIDTH = 100  # of the table in the run's log, which is no terminal
_SOME_SPEED = 1e-9  # s per FLOP, to plan what clients are asked: the plan is refused or not used


class DeployedRecorder(Recorder):
    """Takes time and bytes from a deployment; energy is not known there, and stays 0.

    Args:
        writer: where rows go.
        grid: the deployment's.
        tell: print a line for every row.
        save_models: as of `Recorder`.
    """

    def __init__(
        self, writer: RunWriter, grid: DeployedGrid, *, tell: bool, save_models: Sequence[str]
    ) -> None:
        super().__init__(writer, Progress(enabled=False), save_models=save_models)
        self._deployed = grid
        self._tell = tell
        self._told = 0

    @property
    def _source(self) -> Any:
        return self._deployed

    def on_progress(self) -> None:
        """Prints the row that was written last."""
        rows = self.writer.history
        if self._tell and len(rows) > self._told:
            self._told = len(rows)
            print(_line(rows[-1]), flush=True)

    def totals(self) -> Totals:
        """Returns the run's cost so far; "virtual" time is the wall's."""
        grid, now = self._deployed, self._deployed.now
        return Totals(
            virtual_s=now,
            wall_s=now,
            bytes_down=grid.bytes_down,
            bytes_up=grid.bytes_up,
            client_updates=grid.client_updates,
            rounds=self._rounds.number,
        )


def deployed(own: Own | None = None) -> ServerApp:
    """Returns a ServerApp that runs the experiment which the run's configuration asks for.

    Args:
        own: parts of the app's own; None: there are none.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid, context, own)

    return made


def run(grid: Grid, context: Context, own: Own | None = None) -> dict[str, Any]:
    """Runs an experiment to its end, and returns the content of its summary.json.

    Args:
        grid: of the SuperLink.
        context: of the ServerApp; its run_config is read by `read_settings`.
        own: parts of the app's own; None: there are none.

    Raises:
        ConfigError: the configuration cannot be run here, or clients do not fit to it or do not
            come; then no message was sent but the questions to nodes who they are.
        Exception: whatever the strategy raises; the run's files are written first.
    """
    settings = read_settings(context.run_config)
    config = compose_experiment(settings.overrides, own)
    experiment = build(config)
    check_deployable(experiment)
    if settings.nodes > config.num_clients:
        raise ConfigError(
            f"the run's nodes is {settings.nodes}, and the experiment has num_clients="
            f"{config.num_clients}: no more can be awaited"
        )
    if settings.calibrate:
        asked = DeployedGrid(grid, config.num_clients)
        asked.await_clients(settings.nodes or config.num_clients, settings.wait_s)
        folder = Path(settings.directory or "conf").expanduser().absolute()
        calibrate(asked, settings.calibrate, folder)
        return {}
    about = {"run_id": str(context.run_id), "overrides": list(settings.overrides)}
    extra = {**facts(experiment, config), "deployment": about}
    client_app = app_of(experiment)
    deployed = DeployedGrid(
        grid,
        config.num_clients,
        on_sent=lambda *args, **kwargs: recorder.on_sent(*args, **kwargs),
        on_replies=lambda *args, **kwargs: recorder.on_replies(*args, **kwargs),
        on_applied=lambda *update: recorder.on_applied(*update),
        on_step=lambda why_not, model: recorder.on_step(why_not, model),
        on_measured=lambda metrics: recorder.on_measured(metrics),
        check=lambda content, kind, client: client_app.plan(
            Payload(content), kind, client, _SOME_SPEED
        ),
    )
    deployed.await_clients(settings.nodes or config.num_clients, settings.wait_s)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    directory = Path(settings.directory or f"outputs/{context.run_id}").expanduser().absolute()
    writer = RunWriter(
        directory,
        plain,
        config.seed,
        target_of(config),
        tensorboard=config.views,
        timeline=False,  # the server does not see when clients receive, compute and send
        plots=False,
        callbacks=callbacks_of(config),
    )
    recorder = DeployedRecorder(
        writer, deployed, tell=config.progress, save_models=saved_models(config)
    )
    status: Status = "completed"
    error: BaseException | None = None
    diverged: str | None = None
    deployed.begin()
    try:
        with global_generators(config.seed, "server"):
            serve(experiment, config, deployed, recorder)
        diverged = recorder.diverged()
        if diverged is None and (in_vain := recorder.nothing_learnt()) is not None:
            raise DeploymentError(in_vain)
    except Diverged as ended:  # a result, not a failure: what there is before it is kept
        diverged = str(ended)
    except BaseException as stopped:  # raised again below, after the files are written
        status = "failed" if isinstance(stopped, Exception) else "interrupted"
        error = stopped
    recorder.flush()
    summary = writer.finish(
        recorder.totals(),
        status=status if diverged is None else "diverged",
        trace=deployed.trace,
        participation=participation(
            deployed.trace, deployed.control.answers, deployed.were_available()
        ),
        model_sha256=recorder.model_sha256(),
        models=recorder.models(),
        error=diverged if error is None else error,
        extra={**recorder.report(), **extra},
    )
    if config.views and writer.history:
        from fl.reports import plots

        plots.metrics(
            writer.history, directory / "plots" / "metrics.png", target=writer.target, time="time"
        )
    print_results(summary, directory, Console(width=_WIDTH))
    if error is not None:
        raise error
    return summary


def _line(row: Mapping[str, float]) -> str:
    """Returns what a row says, for a log."""
    shown = [f"{k} {units.metric(v)}" for k, v in row.items() if "acc" in k or "loss" in k]
    moved = units.size(row["bytes_down"] + row["bytes_up"])
    at = f"{time.strftime('%H:%M:%S')} round {row['round']:g}"
    return " | ".join([at, units.duration(row["time_s"]), moved, *shown])


app = deployed()
