"""A run from its beginning to its end: simulated, of our own app or of a foreign one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fl.aggregation.tolerance import chance_of_more
from fl.data.drift import DRIFT_BEGINS
from fl.errors import ConfigError, Diverged, Enough
from fl.flower.grid_view import Clock, GridView
from fl.models import draws
from fl.models.metrics import CONFUSION
from fl.reports import Callback
from fl.reports.model_file import FROZEN
from fl.reports.table import print_results
from fl.reports.target import final_value
from fl.runs.averaging import LatestWeightAverage
from fl.runs.batch_statistics import completing
from fl.runs.beside import Beside
from fl.runs.build import prepare
from fl.runs.central import train_centrally
from fl.runs.choices import announce
from fl.runs.evaluation import (
    EvaluationSchedule,
    central_evaluation,
    confused,
    task_evaluation,
)
from fl.runs.experiment import Experiment, ForeignApp, app_of
from fl.runs.journal import RunStart, source_sha256
from fl.runs.journal.command import command_of_job, foreign_parts
from fl.runs.personal import PersonalEvaluation, with_lr_of
from fl.runs.recorder import Recorder, arrays_sha256
from fl.runs.settings import (
    callbacks_of,
    metrics_of,
    personal_of,
    recovery_of,
    saved_models,
    target_of,
    train_config_of,
)
from fl.runs.simulator import SimulatedRun, epoch_of, simulate, simulate_app
from fl.runs.sweep import side_by_side
from fl.runs.transcript import shown_once
from fl.runs.trust import source_files
from fl.runs.warm_start import frozen_sha256
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.strategies import Driver

log = logging.getLogger("fl")

_RARE = 0.05  # chance in a run below which nobody is told
_WORTH_FLOPS = 1e10  # of an evaluation, which then takes longer than to hand it to a thread


def run_experiment(config: DictConfig, **how: Any) -> float | None:
    """Runs a configuration to its end, prints results, and returns the target metric's value.

    Args:
        config: what `fl --cfg job` shows.
        how: keyword arguments of `run_to_end`.
    """
    return final_value(run_to_end(config, **how).summary)


def run_to_end(
    config: DictConfig,
    *,
    resume: bool = False,
    changed_code: bool = False,
    prepared: Experiment | ForeignApp | None = None,
) -> SimulatedRun:
    """Runs a configuration to its end, prints results, and returns the run.

    Args:
        config: what `fl --cfg job` shows.
        resume: go on with the run that was started in Hydra's output directory.
        changed_code: when resuming, go on although the app or the user's modules have changed.
        prepared: what `prepare` returned for it; None prepares it now.
    """
    prepared = prepare(config) if prepared is None else prepared
    place = Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else None
    run = run_prepared(config, prepared, place, resume=resume, changed_code=changed_code)
    print_results(run.summary, run.directory)
    return run


def run_prepared(
    config: DictConfig,
    prepared: Experiment | ForeignApp,
    directory: Path | None,
    *,
    resume: bool = False,
    changed_code: bool = False,
    callbacks: Sequence[Callback] = (),
) -> SimulatedRun:
    """Runs a configuration to its end, and returns the run.

    Args:
        config: what `fl --cfg job` shows.
        prepared: what `prepare` returned for it.
        directory: where its files go; None writes none.
        resume: go on with the run that was started there.
        changed_code: when resuming, go on although the app or the user's modules have changed.
        callbacks: who is told what is measured, beside those of the configuration.
    """
    start = replace(_start(config), resume=resume, changed_code=changed_code)
    with shown_once():
        if isinstance(prepared, Experiment):
            return _run_own(config, prepared, start, directory, callbacks)
        return _run_app(config, prepared, start, directory, callbacks)


def serve(experiment: Experiment, config: DictConfig, grid: Grid, recorder: Recorder) -> None:
    """Runs an experiment's strategy on any grid, with its evaluations and its limit of time."""
    tasks = experiment.tasks
    initial = experiment.initial()
    if experiment.app.learns:
        recorder.expect(initial, config.time_limit_s, experiment.strategy.may_stay)
    else:
        recorder.expect_no_training()
    clock = GridView(grid).clock
    evaluate = (
        task_evaluation(experiment, train=config.evaluate_train)
        if tasks
        else central_evaluation(experiment, train=config.evaluate_train, now=_date(config, clock))
    )
    k, every = config.lawa.k, config.lawa.every
    average = None if k is None else LatestWeightAverage(k, every)
    personal, complete = personal_of(config), completing(experiment)
    flops = float(
        sum(t.app.forward_flops * len(t.data.test) for t in (tasks or {"": experiment}).values())
    )
    serving = grid.serving if isinstance(grid, SimGrid) else None
    beside = None
    if isinstance(grid, SimGrid) and serving is None and flops >= _WORTH_FLOPS:
        beside = _beside(evaluate, experiment, config, recorder)
    evaluate = recorder.evaluating(evaluate if beside is None else beside)
    if serving is not None:  # which takes its time also where the journal has the metrics
        evaluate = _taking_time(evaluate, partial(serving.evaluates, flops))
    schedule = EvaluationSchedule(
        evaluate,
        recorder,
        clock,
        num_rounds=config.num_rounds,
        every=config.evaluate_every,
        every_s=config.evaluate_every_s,
        limit_s=config.time_limit_s,
        average=average,
        complete=complete,
        personal=None if personal.every is None else _asking(experiment, config, grid, recorder),
        beside=beside,
    )
    limited = None  # ends with its next model
    if isinstance(grid, SimGrid) and grid.fleet.job is None and not recorder.may_be_longer:
        limited = grid
    if limited is not None and config.time_limit_s is not None:
        limited.end_at(config.time_limit_s)
    if isinstance(grid, SimGrid) and average is None and personal.every is None:
        grid.snapshots = recorder.snapshots(grid, schedule)
    try:
        result = experiment.strategy.start(
            grid=grid,
            initial_arrays=initial,
            num_rounds=config.num_rounds,
            timeout=config.round_timeout_s,
            train_config=train_config_of(config),
            evaluate_fn=schedule,
        )
    except Enough as why:
        print(f"fl: the run ends, as {why}", flush=True)
        if limited is not None:
            limited.end_at(math.inf)
        recorder.final(schedule.close())
    except Diverged:
        recorder.final(schedule.close())
        raise
    else:
        # Flower's result has no model if no round has made one: then it is the first.
        final = result.arrays if len(result.arrays) else schedule.latest
        recorder.final(None if final is None else complete(final))
    if average is not None and schedule.latest is not None:
        recorder.averaged_arrays = complete(average.mean(schedule.latest))
    evaluated = recorder.averaged_arrays or recorder.final_arrays
    if CONFUSION in metrics_of(config) and evaluated is not None:
        recorder.confusion(confused(experiment, evaluated))


def _taking_time(
    evaluate: Callable[[int, ArrayRecord], MetricRecord], passes: Callable[[], None]
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Returns an evaluation that takes virtual time."""

    def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        metrics = evaluate(server_round, arrays)
        passes()
        return metrics

    return evaluated


def _date(config: DictConfig, clock: Clock) -> Callable[[], float] | None:
    """Returns what tells the time of drifting data, s; None on a deployment, or of no date."""
    if not clock.virtual or config.date == "now":
        return None
    began = epoch_of(config.date) - DRIFT_BEGINS
    return lambda: began + clock.now()


def _beside(
    evaluate: Callable[[int, ArrayRecord], MetricRecord],
    experiment: Experiment,
    config: DictConfig,
    recorder: Recorder,
) -> Beside | None:
    """Returns what evaluates while the next round goes on; None where that cannot be.

    Which of both does not depend on the machine: the journal has answers in the order of the run.
    """
    data, target = experiment.data, target_of(config)
    if target is not None and (target.stop or target.patience is not None):
        return None  # whether there is a next round is what it tells
    if recorder.may_be_longer or config.lawa.k is not None or config.evaluate_train:
        return None
    if not experiment.app.learns or experiment.app.home.keeps:
        return None  # there is nothing to evaluate
    if experiment.tasks or data.clusters is not None:
        return None
    if draws(experiment.model(), data.test_set()[0]):
        return None
    return Beside(evaluate, max(1, torch.get_num_threads() - 1))


def _asking(
    experiment: Experiment, config: DictConfig, grid: Grid, recorder: Recorder
) -> PersonalEvaluation:
    if not isinstance(grid, SimGrid):
        raise ConfigError(
            f"personal.every is {config.personal.every}, and clients of a deployment are asked by "
            "messages alone: set it to null, and strategy.fraction_evaluate above 0 with "
            "strategy.evaluate_model=personal"
        )
    told = {key: value for key, (_, value) in experiment.strategy.told().items()}
    return PersonalEvaluation(
        experiment,
        with_lr_of(personal_of(config), experiment),
        config.seed,
        {**train_config_of(config), **told},
        grid.aside,
        grid.control.answers,
        recorder.remember,
        recorder.clients,
    )


def facts(experiment: Experiment, config: DictConfig) -> dict[str, Any]:
    """Returns what the summary says of an experiment beside its results.

    That is the data's fingerprint, the Byzantine clients, and the metrics of training on all data
    in one place if `central_epochs` asks for it, which is done here.
    """
    tasks = experiment.tasks
    told: dict[str, Any] = {"data_sha256": experiment.data.fingerprint()}
    if tasks:
        told = {"data_sha256": {name: task.data.fingerprint() for name, task in tasks.items()}}
    if config.initial_model is not None:
        told["initial_model_sha256"] = arrays_sha256(experiment.initial())
    if frozen := frozen_sha256(experiment):
        told[FROZEN] = frozen
    if not experiment.app.learns:
        told["trained"] = False
    if byzantine := experiment.strategy.exchange.byzantine:
        told["byzantine"] = sorted(byzantine)
    if config.central_epochs:
        told["central"] = {
            f"{metric}/{name}" if name else metric: value
            for name, task in (tasks or {"": experiment}).items()
            for metric, value in train_centrally(task, config.central_epochs, config.seed).items()
        }
    return told


def outvoted(strategy: Driver, num_clients: int, num_rounds: int) -> str:
    """Returns in how many rounds more Byzantine clients are drawn than an aggregator bears.

    "" if that is to be expected in less than one run in twenty.
    """
    byzantine, known = len(strategy.exchange.byzantine), strategy.tolerance(num_clients)
    if not byzantine or strategy.exchange.attack is None or known is None:
        return ""
    m, f = known
    chance = chance_of_more(f, m, byzantine, num_clients)
    if 1 - (1 - chance) ** num_rounds < _RARE:
        return ""
    return (
        f"{byzantine} of {num_clients} clients are Byzantine, and in {100 * chance:.3g} % of "
        f"rounds more are among the {m} that are drawn than the {f} that the aggregator bears: "
        "draw more (strategy.fraction_train or strategy.clients), or raise its f if it has one"
    )


def _start(config: DictConfig) -> RunStart:
    uses = foreign_parts(config)
    files = source_files(value for key, value in uses.items() if key.endswith("_target_"))
    code = {"modules": source_sha256(files)} if files else {}
    command = command_of_job()
    places = [*command.get("config_dirs", ()), *command.get("searchpath", ())]
    foreign = [*uses.values(), *places]
    return RunStart({**command, "foreign": foreign} if command else {}, code=code, foreign=foreign)


def _run_own(
    config: DictConfig,
    experiment: Experiment,
    start: RunStart,
    directory: Path | None,
    callbacks: Sequence[Callback],
) -> SimulatedRun:
    announce()
    tasks, byzantine = experiment.tasks, experiment.strategy.exchange.byzantine

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        serve(experiment, config, grid, recorder)

    if said := outvoted(experiment.strategy, config.num_clients, config.num_rounds):
        log.warning("%s", said)
    run = simulate(
        server,
        app_of(experiment),
        experiment.fleet,
        run_config={},
        num_partitions=max(t.data.num_partitions for t in (tasks or {"": experiment}).values()),
        executor=experiment.executor.shared_by(side_by_side()),
        runtime=experiment.runtime,
        hierarchy=experiment.hierarchy,
        num_rounds=config.num_rounds,
        extra=facts(experiment, config),
        recovery=recovery_of(config, start),
        client_rows=config.personal.rows,
        **_common(config, directory, callbacks, learns=experiment.app.learns),
    )
    if byzantine:
        sent = (rows["client"][rows["kind"] == Event.DISPATCH] for rows in run.trace.parts())
        if all(byzantine.isdisjoint(clients.tolist()) for clients in sent):
            log.warning(
                "attack is set, and nothing was attacked: none of the %d Byzantine clients was "
                "asked to train; choose a fleet whose clients are there, as fleet=cross_silo, or "
                "more rounds",
                len(byzantine),
            )
    return run


def _run_app(
    config: DictConfig,
    foreign: ForeignApp,
    start: RunStart,
    directory: Path | None,
    callbacks: Sequence[Callback],
) -> SimulatedRun:
    return simulate_app(
        foreign.app,
        foreign.fleet,
        run_config=foreign.run_config,
        num_partitions=config.num_partitions,
        executor=foreign.executor.shared_by(side_by_side()),
        runtime=foreign.runtime,
        cost_model=foreign.cost_model,
        recovery=recovery_of(config, start),
        **_common(config, directory, callbacks),
    )


def _common(
    config: DictConfig,
    directory: Path | None,
    callbacks: Sequence[Callback],
    *,
    learns: bool = True,
) -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return {
        "seed": config.seed,
        "directory": directory,
        "target": target_of(config) if learns else None,
        "save_models": saved_models(config),
        "views": config.views,
        "callbacks": [*callbacks_of(config), *callbacks],
        "progress": config.progress and side_by_side() == 1,  # displays would mix
        "fail_fast": config.fail_fast,
        "date": config.date,
        "config": resolved,
    }
