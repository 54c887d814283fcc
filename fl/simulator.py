"""One call that runs any Flower ServerApp and ClientApp on a simulated fleet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fl.clients import TrainingApp
from fl.clients.batching import Choice
from fl.clients.planned import PlannedApp
from fl.errors import ConfigError, SimulationError
from fl.execution import AppSource, Executor, RayExecutor, SerialExecutor
from fl.execution.executor import Assignment, RunInfo, load_app
from fl.execution.garbage import quick_garbage_collection
from fl.execution.threads import limit_blas, limit_threads
from fl.metrics import Progress, Run, RunWriter, Target
from fl.metrics.run_writer import Status, config_digest, installed, plain
from fl.randomness import global_generators
from fl.recorder import Recorder
from fl.recovery import Recovery
from fl.simulation.fleet import Fleet
from fl.simulation.grid import SimGrid
from fl.simulation.identity import RUN_ID
from fl.simulation.legacy import concurrent_rounds
from fl.simulation.trace import Trace
from fl.simulation.virtual_sleep import virtual_sleep, whole_time
from fl.simulation.work import Charge, Plan, Planner

log = logging.getLogger("fl")

ServerMain = Callable[[Grid, Context, Recorder], None]


@dataclass(frozen=True)
class SimulatedRun(Run):
    """What a simulation gave: what its files hold, and what only lives in memory.

    Attributes:
        trace: every event; `run.trace.table()` is an Arrow table.
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
    executor: Executor | Literal["ray", "serial"] = "ray",
    charge: Charge | None = None,
    directory: Path | str | None = None,
    target: Target | None = None,
    views: bool = True,
    num_rounds: int | None = None,
    progress: bool = True,
    fail_fast: bool = False,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    recovery: Recovery | None = None,
) -> SimulatedRun:
    """Runs an app to its end, with real training and simulated time.

    >>> from fl import simulate
    >>> from fl.simulation.fleets import uniform
    >>> run = simulate(server_app, client_app, uniform(num_clients=10), seed=1)  # doctest: +SKIP

    Args:
        server_app: Flower's ServerApp, ours or anybody's; or a function of (grid, context,
            recorder).
        client_app: Flower's ClientApp, or a function that makes one in each worker process.
        fleet: the clients' devices, links, availability and faults.
        seed: root of every random draw of the run. A fleet has a seed of its own.
        run_config: what `context.run_config` shows to both apps; "seed" is added.
        num_partitions: number of data partitions; client i holds partition i modulo this. Default:
            one per client.
        executor: where clients run.
        charge: what the work of a foreign ClientApp costs; ours plans its own.
        directory: where the run's files go; None writes none.
        target: metric value whose cost is reported.
        views: also write what can be drawn from the data: tb/, timeline.json and plots/.
        num_rounds: length of the progress bar.
        progress: show progress on standard error.
        fail_fast: stop at the first exception in a ClientApp.
        config: configuration to store with the results; default: the arguments above.
        extra: more facts for the summary; "data_sha256" must not change before a run is resumed.
        recovery: keeps a journal in the directory, from which the run can be resumed after its
            process was killed; None keeps none.

    Raises:
        ConfigError: something in the arguments cannot be.
        SimulationError: clients were asked to train, and nothing was learnt.
        Exception: whatever the ServerApp raises; the run's files are written first.
    """
    if isinstance(executor, str):
        if executor not in ("ray", "serial"):
            raise ConfigError(f"executor is '{executor}'; it must be 'ray' or 'serial'")
        executor = RayExecutor() if executor == "ray" else SerialExecutor()
    partitions = len(fleet) if num_partitions is None else num_partitions
    if not partitions >= 1:
        raise ConfigError(f"num_partitions is {partitions}; it must be at least 1")
    settings = {**(run_config or {}), "seed": seed}
    stored = config if config is not None else {"run_config": settings, "fleet": fleet.name}
    recovery = Recovery.none() if recovery is None else recovery
    place = None if directory is None else Path(directory)
    with recovery.keeping(place, _identity(stored, seed, extra or {})):
        writer = RunWriter(
            place, stored, seed, target, tensorboard=views, timeline=views, plots=views
        )
        display = Progress(total_rounds=num_rounds, enabled=progress)
        recorder = Recorder(writer, display, recovery)
        trace = Trace()
        status: Status = "completed"
        error: BaseException | None = None
        in_vain: str | None = None
        report: dict[str, Any] = {}
        batching: dict[str, Any] = {}
        try:
            run = RunInfo(seed, partitions, settings)
            with display, virtual_sleep(), quick_garbage_collection(), limit_blas(1):
                planner = _planner(client_app, fleet, partitions)
                batching = _choose_batching(client_app, recovery)
                executor = recovery.executor(executor)
                try:
                    executor.start(client_app, run)
                    grid = SimGrid(
                        fleet,
                        executor,
                        planner=planner,
                        charge=charge,
                        trace=trace,
                        on_round=recorder.on_round,
                        on_progress=recorder.on_progress,
                        on_applied=recorder.on_applied,
                        fail_fast=fail_fast,
                    )
                    recorder.attach(grid)
                    # A copy of the settings: what the ServerApp changes, clients do not see.
                    context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(settings))
                    origin = recovery.remember("clock", [], whole_time)
                    with (
                        global_generators(seed, "server"),
                        grid.answering(origin),
                        concurrent_rounds(grid),
                        recorder.observing_strategies(),
                    ):
                        if isinstance(server_app, ServerApp):
                            server_app(grid, context)
                        else:
                            server_app(grid, context, recorder)
                finally:
                    recorder.flush()
                    report = executor.report()
                    executor.close()
        except BaseException as stopped:  # raised again below, after the files are written
            status = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "failed"
            error = stopped
        else:
            in_vain = recorder.nothing_learnt()
            if in_vain is not None:
                status = "failed"
        summary = writer.finish(
            recorder.totals(),
            status=status,
            trace=trace,
            model_sha256=recorder.model_sha256(),
            error=error or in_vain,
            extra={**report, **batching, **recovery.report(), **(extra or {})},
        )
        if error is not None:
            raise error
    if in_vain is not None:  # it came to its end, so that there is nothing to resume
        raise SimulationError(in_vain)
    return SimulatedRun(writer.directory, summary, writer.history, trace, recorder.final_arrays)


def _identity(config: Mapping[str, Any], seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must not change before a run is resumed."""
    facts = {"configuration": config_digest(config), "seed": seed}
    return {**facts, **installed(), "data": plain(extra.get("data_sha256"))}


def _choose_batching(source: AppSource, recovery: Recovery) -> dict[str, Any]:
    """Returns what the summary says on batching, after the choice was made for all processes."""
    app = load_app(source)
    if not isinstance(app, TrainingApp):
        return {}
    if app is not source and app.batching == "measured":
        raise ConfigError(
            "batching is 'measured', but every worker process makes its own ClientApp, and two "
            "could choose differently: pass the app itself, or choose 'on' or 'off'"
        )
    with limit_threads(1):  # as clients train
        choice = recovery.remember("batching", [], lambda: asdict(app.choose_batching()))
    app.take_batching(Choice(**choice))
    return {"batching": Choice(**choice).summary()}


def _planner(source: AppSource, fleet: Fleet, num_partitions: int) -> Planner | None:
    """Returns the planner of our own ClientApp, after checking that its work fits the devices."""
    app = load_app(source)
    if not isinstance(app, PlannedApp):
        return None
    fleet.check_memory(app.memory_bytes())

    latest: list[Any] = [None, None]  # a payload, and its content as dictionaries

    def plan(assignment: Assignment, seconds_per_flop: float) -> Plan:
        if latest[0] is not assignment.payload:  # Flower's records are slow to search
            content = assignment.payload.content
            latest[:] = assignment.payload, {k: dict(r.items()) for k, r in content.items()}
        return app.plan(
            latest[1],
            assignment.message_type,
            assignment.client % num_partitions,
            seconds_per_flop,
        )

    return plan
