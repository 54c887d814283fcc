"""Runs any Flower ServerApp and ClientApp, or app directory, on a simulated fleet in one call."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fl.clients import TrainingApp
from fl.clients.app.batching import Batching
from fl.errors import ConfigError, Diverged, SimulationError
from fl.execution import AppSource, Executor, RayExecutor, SerialExecutor, auto
from fl.execution.contract import ForeseenApp, PlannedApp, Request, RunInfo, Workload
from fl.execution.executor import load_app
from fl.execution.garbage import quick_garbage_collection
from fl.execution.virtual_time import EPOCH, TaskClock, answering, host_date, virtual_time
from fl.flower.identity import RUN_ID
from fl.randomness import SEED_KEY, global_generators
from fl.reports import Callback, Progress, Run, RunWriter, Target
from fl.reports.participation import participation
from fl.reports.run_writer import Status, config_digest, installed, plain
from fl.reports.time_shares import time_shares
from fl.runs.apps import FlowerApp, read_app
from fl.runs.journal import Recovery, source_sha256, unrepeatable, unseeded
from fl.runs.recorder import Recorder
from fl.runs.transcript import Transcript
from fl.simulation.client_errors import ClientErrors
from fl.simulation.cost import CostModel, Planner
from fl.simulation.grid import SimGrid, trace_of
from fl.simulation.kernel.trace import Trace
from fl.simulation.legacy import concurrent_rounds
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies import Hierarchy
from fl.simulation.world.runtime import Runtime
from fl.strategies.drivers.guarded import guarding
from fl.vectors.threads import limit_blas, limit_threads

log = logging.getLogger("fl")

ServerMain = Callable[[Grid, Context, Recorder], None]


@dataclass(frozen=True, repr=False)
class SimulatedRun(Run):
    """What a simulation gave: what its files hold, and what only lives in memory.

    Attributes:
        trace: every event; `run.trace.table()` is an Arrow table, with `to_pandas()`.
        arrays: the final model, None if the app kept it to itself.
    """

    trace: Trace
    arrays: ArrayRecord | None


def simulate(
    server_app: ServerApp | ServerMain,
    client_app: AppSource,
    fleet: Fleet,
    *,
    seed: int = 0,
    run_config: Mapping[str, Any] | None = None,
    num_partitions: int | None = None,
    executor: Executor | Literal["auto", "ray", "serial"] = "auto",
    cost_model: CostModel | None = None,
    runtime: Runtime | None = None,
    hierarchy: Hierarchy | None = None,
    directory: Path | str | None = None,
    target: Target | None = None,
    save_models: Sequence[str] = ("final",),
    views: bool = True,
    num_rounds: int | None = None,
    progress: bool = True,
    fail_fast: bool = False,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    recovery: Recovery | None = None,
    date: str | None = None,
    client_rows: bool = False,
    callbacks: Sequence[Callback] = (),
) -> SimulatedRun:
    """Runs an app to its end, with real training and simulated time.

    >>> from fl import simulate
    >>> from fl.simulation.world.fleets import uniform
    >>> run = simulate(server_app, client_app, uniform(10, seed=0), seed=1)  # doctest: +SKIP

    Args:
        server_app: Flower's ServerApp, ours or anybody's; or a function of (grid, context,
            recorder).
        client_app: Flower's ClientApp, or a function that makes one in each worker process.
        fleet: the clients' devices, links, availability and faults.
        seed: root of every random draw of the run. A fleet has a seed of its own.
        run_config: what `context.run_config` shows to both apps; "fl.seed" is added.
        num_partitions: number of data partitions; client i holds partition i modulo this. Default:
            one per client.
        executor: where clients run; "auto" is this process, and Ray once there is enough to do.
        cost_model: what the work of a foreign ClientApp costs; ours plans its own.
        runtime: what the software on the way takes; None is nothing.
        hierarchy: machines that add updates up on their way to the server; None has none.
        directory: where the run's files go; None writes none.
        target: metric value whose cost is reported.
        save_models: which models go into the directory as well: "final", "best" by the target.
        views: also write what can be drawn from the data: tb/, timeline.json.gz and plots/.
        num_rounds: length of the progress bar.
        progress: show progress on standard error.
        fail_fast: stop at the first exception in a ClientApp.
        config: configuration to store with the results; default: the arguments above.
        extra: more facts for the summary; "data_sha256" and
            "initial_model_sha256" must not change before a run is resumed.
        recovery: keeps a journal in the directory, from which the run can be resumed after its
            process was killed; None keeps none.
        date: what the apps' clocks show at virtual time 0, in ISO 8601, UTC if it names no zone;
            "now" is the host's, by which no two runs are alike. None is 2025-01-01.
        client_rows: write what each client has to personal.csv, where that is evaluated.
        callbacks: who is told what is measured while the run goes on.

    Raises:
        ConfigError: something in the arguments cannot be.
        SimulationError: clients were asked to train, and nothing was learnt.
        Exception: whatever the ServerApp raises; the run's files are written first.
    """
    _check_apps(server_app, client_app)
    if isinstance(executor, str):
        executor = _executor(executor)
    partitions = len(fleet) if num_partitions is None else num_partitions
    if not partitions >= 1:
        raise ConfigError(f"num_partitions is {partitions}; it must be at least 1")
    epoch = epoch_of(date)
    cost_model = CostModel() if cost_model is None else cost_model
    settings = {**(run_config or {}), SEED_KEY: seed}
    stored = config if config is not None else {"run_config": settings, "fleet": fleet.name}
    recovery = Recovery.none() if recovery is None else recovery
    place = None if directory is None else Path(directory)
    facts = {**_identity(stored, seed, extra or {}), "date": date}

    def shorter(before: Mapping[str, Any]) -> dict[str, Any]:
        return {**_identity({**stored, **before}, seed, extra or {}), "date": date}

    with recovery.keeping(place, facts, None if num_rounds is None else shorter):
        writer = RunWriter(
            place,
            stored,
            seed,
            target,
            tensorboard=views,
            timeline=views,
            plots=views,
            client_rows=client_rows,
            callbacks=callbacks,
        )
        display = Progress(total_rounds=num_rounds, enabled=progress)
        recorder = Recorder(writer, display, recovery, save_models)
        trace = trace_of(fleet, place)
        status: Status = "completed"
        error: BaseException | None = None
        grid: SimGrid | None = None
        in_vain: str | None = None
        diverged: str | None = None
        report: dict[str, Any] = {}
        errors = ClientErrors(fail_fast=fail_fast)
        transcript = Transcript(place)
        batching: dict[str, Any] = {}
        try:
            with (
                display,
                virtual_time(),
                quick_garbage_collection(),
                limit_blas(1),
                transcript.hearing(),
            ):
                if date == "now":
                    epoch = recovery.remember("clock", [], host_date)
                run = RunInfo(seed, partitions, settings, epoch, host_time=cost_model.measured > 0)
                app = load_app(client_app, epoch)
                planner = _planner(app, fleet, partitions)
                batching = _choose_batching(app, recovery, shared=app is client_app)
                executor = recovery.executor(executor, keeps_errors=not fail_fast)
                try:
                    executor.start(client_app, run)
                    grid = SimGrid(
                        fleet,
                        executor,
                        planner=planner,
                        foreseen=(app, run) if isinstance(app, ForeseenApp) else None,
                        cost_model=cost_model,
                        runtime=runtime,
                        hierarchy=hierarchy,
                        trace=trace,
                        on_sent=recorder.on_sent,
                        on_replies=recorder.on_replies,
                        on_progress=recorder.on_progress,
                        on_applied=recorder.on_applied,
                        on_used=recorder.on_used,
                        on_step=recorder.on_step,
                        on_measured=recorder.on_measured,
                        on_said=transcript.said,
                        errors=errors,
                        epoch=epoch,
                    )
                    recorder.attach(grid)
                    transcript.now = grid.clock.now
                    # A copy of the settings: what the ServerApp changes, clients do not see.
                    context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(settings))
                    with (
                        global_generators(seed, "server"),
                        grid.answering(None if date == "now" else cache(_tell_date)),
                        concurrent_rounds(grid),
                        recorder.observing_strategies(),
                        guarding(),
                    ):
                        if isinstance(server_app, ServerApp):
                            server_app(grid, context)
                        else:
                            server_app(grid, context, recorder)
                    diverged = recorder.diverged()
                except BaseException:
                    recovery.stop()
                    raise
                finally:
                    recorder.flush()
                    errors.conclude()
                    report = executor.report()
                    executor.close()
        except Diverged as ended:  # a result, not a failure: what there is before it is kept
            diverged = str(ended)
        except BaseException as stopped:  # raised again below, after the files are written
            status = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "failed"
            error = stopped
        else:
            if diverged is None:
                in_vain = recorder.nothing_learnt()
            if in_vain is not None:
                status = "failed"
            elif diverged is None and (worse := recorder.worse()) is not None:
                log.warning("%s", worse)
        summary = writer.finish(
            recorder.totals(),
            status=status if diverged is None else "diverged",
            trace=trace,
            participation=None
            if grid is None
            else participation(trace, grid.control.answers, grid.were_available()),
            model_sha256=recorder.model_sha256(),
            models=recorder.models(),
            error=error or diverged or in_vain,
            extra={
                **report,
                **batching,
                **recovery.report(),
                **recorder.report(),
                **({} if grid is None else grid.report()),
                **({} if runtime is None or runtime.ideal else {"time_shares": time_shares(trace)}),
                **errors.report(),
                **(extra or {}),
            },
        )
        if error is not None:
            raise error
    if in_vain is not None:  # it came to its end, so that there is nothing to resume
        raise SimulationError(in_vain)
    return SimulatedRun(writer.directory, summary, writer.history, trace, recorder.final_arrays)


def simulate_app(
    app: FlowerApp | Path | str,
    fleet: Fleet,
    *,
    run_config: Mapping[str, Any] | None = None,
    recovery: Recovery | None = None,
    date: str | None = None,
    **settings: Any,
) -> SimulatedRun:
    """Runs a Flower app directory to its end, as `fl app=DIR` does.

    >>> from fl import simulate_app
    >>> from fl.simulation.world.fleets import uniform
    >>> app, fleet = "examples/fedbuff_app", uniform(10, seed=0)
    >>> run = simulate_app(app, fleet, run_config={"versions": 5})  # doctest: +SKIP

    Args:
        app: the directory, with the pyproject.toml that `flwr run` reads.
        fleet: the clients' devices, links, availability and faults.
        run_config: keys of `[tool.flwr.app.config]` to replace, nested or flattened with dots.
        recovery: as of `simulate`; the app's code is noted in it.
        date: as of `simulate`.
        settings: the other keyword arguments of `simulate`.

    Raises:
        ConfigError: the directory is no Flower app; run_config has keys that the app does not
            have, or values of another kind than its own; or something else cannot be.
        SimulationError: clients were asked to train, and nothing was learnt.
        Exception: whatever the app raises.
    """
    if not isinstance(app, FlowerApp):
        app = read_app(app)
    config = app.run_config(run_config or {})
    server_files, client_files = app.files(app.serverapp), app.files(app.clientapp)
    if (unlike := unseeded(client_files)) is not None:
        log.warning("%s", unlike)
    sources = {*server_files, *client_files, app.directory / "pyproject.toml"}
    recovery = (Recovery.none() if recovery is None else recovery).of_app(
        source_sha256(sources), unrepeatable(server_files)
    )
    with virtual_time(), answering(TaskClock(), epoch_of(date)):
        server = app.server()  # its modules may look at a clock when they are imported
    return simulate(
        server, app.client(), fleet, run_config=config, recovery=recovery, date=date, **settings
    )


_EXECUTORS: Mapping[str, Callable[[], Executor]] = {
    "auto": auto,
    "ray": RayExecutor,
    "serial": SerialExecutor,
}


def _executor(name: str) -> Executor:
    if name not in _EXECUTORS:
        raise ConfigError(f"executor is '{name}'; it must be one of {', '.join(_EXECUTORS)}")
    return _EXECUTORS[name]()


def _check_apps(server_app: object, client_app: object) -> None:
    for name, app, kind, other, made in (
        ("server_app", server_app, ServerApp, ClientApp, "a function of (grid, context, recorder)"),
        ("client_app", client_app, ClientApp, ServerApp, "a function that makes one"),
    ):
        if callable(app) and not isinstance(app, other) and app is not kind:
            continue
        is_class = f"the class {app.__name__}" if isinstance(app, type) else type(app).__name__
        raise ConfigError(f"{name} is {is_class}; it must be a {kind.__name__}, or {made}")


def epoch_of(date: str | None) -> int:
    """Returns a date in whole s since 1970.

    Args:
        date: in ISO 8601, or "now" for the host's; None is 2025-01-01.

    Raises:
        ConfigError: it is neither.
    """
    if date is None:
        return EPOCH
    if date == "now":
        return host_date()
    try:
        moment = datetime.fromisoformat(date)
        return math.floor(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"date is {date!r}; it must be a date such as 2025-01-01 or 2025-01-01T12:00:00, or now"
        ) from error


def _tell_date() -> None:
    log.warning(
        "the ServerApp asks for the date, which begins with `date` in every run: if it names files "
        "by it, they replace those of an earlier run; date=now gives it the host's"
    )


def _identity(config: Mapping[str, Any], seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must not change before a run is resumed."""
    facts = {"configuration": config_digest(config), "seed": seed, **installed()}
    facts["data"] = plain(extra.get("data_sha256"))
    if "initial_model_sha256" in extra:
        facts["initial_model_sha256"] = extra["initial_model_sha256"]
    return facts


def _choose_batching(app: ClientApp, recovery: Recovery, *, shared: bool) -> dict[str, Any]:
    """Returns what the summary says on batching, after the choice was made for all processes."""
    if not isinstance(app, TrainingApp):
        return {}
    if not shared and app.batching == "measured":
        raise ConfigError(
            "batching is 'measured', but every worker process makes its own ClientApp, and two "
            "could choose differently: pass the app itself, or choose 'on' or 'off'"
        )
    with limit_threads(1):  # as clients train
        choice = recovery.remember("batching", [], lambda: asdict(app.choose_batching()))
    app.take_batching(Batching(**choice))
    return {"batching": Batching(**choice).summary()}


def _planner(app: ClientApp, fleet: Fleet, num_partitions: int) -> Planner | None:
    """Returns the planner of our own ClientApp, after checking that its work fits the devices."""
    if not isinstance(app, PlannedApp):
        return None
    fleet.check_memory(app.memory_bytes())

    def plan(request: Request, seconds_per_flop: float) -> Workload:
        partition = request.client % num_partitions
        return app.plan(request.payload, request.message_type, partition, seconds_per_flop)

    return plan
