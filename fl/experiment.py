"""From a Hydra configuration to a run: what `fl key=value ...` does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from fl.apps import read_app
from fl.attacks import Attack, Backdoor, Combined, Poisoning, byzantine_clients, poisoned
from fl.choices import announce
from fl.clients import TaskApp, TrainingApp
from fl.clients.planned import PlannedApp
from fl.composition import check_clients, links_of, with_attack
from fl.compression import Channel
from fl.configuration import blaming, make
from fl.data import Examples, FederatedData, Partitions, federate
from fl.errors import ConfigError
from fl.execution import Executor, RayExecutor
from fl.execution.threads import limit_threads
from fl.metrics import Target
from fl.metrics.table import results
from fl.metrics.target import final_value
from fl.models import build as build_model
from fl.models import drop_weights, evaluate, global_objective
from fl.randomness import SEED_KEY
from fl.recorder import Recorder
from fl.recovery import Recovery, Start, source_sha256, unrepeatable, unseeded
from fl.recovery.command import command_of_job
from fl.simulation.clock import Clock, clock_of
from fl.simulation.fleet import Fleet
from fl.simulation.identity import RUN_ID, assume_identity
from fl.simulation.virtual_time import TaskClock, answering, virtual_time
from fl.simulator import SimulatedRun, epoch_of, simulate
from fl.strategies import (
    Aggregate,
    NodeModels,
    OuterSteps,
    TrustedUpdate,
)
from fl.sweep import side_by_side
from fl.transcript import shown_once

log = logging.getLogger("fl")


@dataclass(frozen=True)
class Learning:
    """What is learnt.

    Attributes:
        data: the data set, dealt to clients; clean, where the app's is poisoned.
        model: makes the model; equal seeds make equal models.
        app: what clients run.
        backdoored: held-out examples as an attacker wants them classified, for a backdoor.
    """

    data: FederatedData
    model: partial[nn.Module]
    app: TrainingApp
    backdoored: Examples | None = field(default=None, kw_only=True)

    def initial(self) -> ArrayRecord:
        """Returns the initial model."""
        return ArrayRecord(self.model().state_dict())


@dataclass(frozen=True)
class Experiment(Learning):
    """The parts of an experiment with our own ClientApp, built and checked.

    Attributes:
        strategy: the server's algorithm.
        fleet: the clients' devices, links, availability and faults.
        executor: where clients run.
        tasks: what is learnt, by name, if it is several models at once; the data, model and app
            above are then those of the first.
        byzantine: the clients that carry out an attack.
    """

    strategy: Strategy
    fleet: Fleet
    executor: Executor
    tasks: Mapping[str, Learning] = field(default_factory=dict)
    byzantine: tuple[int, ...] = ()


def build(config: DictConfig) -> Experiment:
    """Builds every part of an experiment; nothing is trained and no process is started.

    Raises:
        ConfigError: a part refuses its arguments, or two parts do not fit together.
    """
    _check_numbers(config)
    _check_combination(config)
    _train_config(config)  # refused here, not when the strategy starts
    fleet: Fleet = make(config, "fleet")
    strategy: Strategy = make(config, "strategy")
    _check_weight(config, plain=isinstance(strategy, OuterSteps))
    executor = _executor(config)
    uplink, downlink = make(config, "compressor"), make(config, "downlink")
    for name, end, kind in (
        ("compressor", uplink, Channel),
        ("downlink", downlink, Channel),
        ("strategy", strategy, Strategy),
        ("fleet", fleet, Fleet),
        ("executor", executor, Executor),
    ):
        if end is not None and not isinstance(end, kind):
            raise ConfigError(
                f"{name}._target_ is {config[name]._target_}, which makes a {type(end).__name__}; "
                f"it must make a {kind.__name__}"
            )
    links = links_of(strategy, uplink, downlink)
    poisoning, forging = _attack(config)
    byzantine: tuple[int, ...] = ()
    if poisoning or forging:
        byzantine = byzantine_clients(config.num_clients, config.num_byzantine, config.seed)
    tasks: dict[str, Learning] = {}
    if config.get("tasks"):
        if poisoning or forging:
            raise ConfigError("attack and tasks are both set: attacks know one model only")
        if uplink is not None or downlink is not None:
            raise ConfigError("compressor and tasks are both set: links compress one model only")
        tasks = {
            name: _learning(part, config.seed, links.ends) for name, part in config.tasks.items()
        }
        first = next(iter(tasks.values()))
    else:

        def poison(data: FederatedData) -> FederatedData:
            if poisoning is None:
                return data
            return poisoned(data, poisoning, byzantine, config.num_clients, config.seed)

        first = _learning(config, config.seed, links.ends, poison)
    if isinstance(poisoning, Backdoor):
        test = first.data.test
        first = replace(first, backdoored=Examples(*poisoning.test_set(test.x, test.y)))
    for learning in tasks.values() or [first]:
        check_clients(strategy, learning.app, links)
    if isinstance(strategy, Aggregate) and strategy.wants_own_update:
        strategy.trusted = TrustedUpdate(
            first.app, first.model, first.data, examples=strategy.root_examples, seed=config.seed
        )
    strategy = with_attack(strategy, forging, byzantine, links, config.seed)
    strategy = links.around(strategy, config.num_clients, config.seed)
    return Experiment(
        first.data,
        first.model,
        first.app,
        strategy,
        fleet,
        executor,
        tasks,
        byzantine,
        backdoored=first.backdoored,
    )


def _learning(
    config: DictConfig,
    seed: int,
    links: tuple[Any, Any],
    poison: Callable[[FederatedData], FederatedData] = lambda data: data,
) -> Learning:
    """Builds what is learnt from the groups data, partition, model and client."""
    make_app, make_model = make(config, "client"), make(config, "model")
    source, deal = make(config, "data"), make(config, "partition")
    with blaming("data"):
        loaded = source()
    with blaming("partition"):
        data = federate(lambda: loaded, deal)
    model = partial(build_model, make_model, data.input_shape, data.num_classes, seed)
    uplink, downlink = links
    with blaming("model"):
        model()
    with blaming("client"):
        app: TrainingApp = make_app(
            model=model, data=poison(data), uplink=uplink, downlink=downlink
        )
    for name in ("round_schedule", "step_schedule"):
        schedule = getattr(app.rule, name, None)
        if schedule is not None and not callable(schedule):
            raise ConfigError(
                f"client.rule.{name} is {schedule}; it must be null, or have a _target_ such as "
                "fl.clients.schedule.StepDecay"
            )
    return Learning(data, model, app)


def _attack(config: DictConfig) -> tuple[Poisoning | None, Attack | None]:
    """Returns the parts of the attack that change data, and what is sent."""
    attack: Attack | Poisoning | Combined | None = make(config, "attack")
    if attack is None:
        if config.num_byzantine:
            raise ConfigError(
                f"num_byzantine is {config.num_byzantine}, but there is no attack: choose one, for "
                "example attack=alie, or leave num_byzantine out"
            )
        return None, None
    if isinstance(attack, Combined):
        return attack.poisoning, attack.forging
    return (attack, None) if isinstance(attack, Poisoning) else (None, attack)


def run_experiment(config: DictConfig, *, resume: bool = False) -> float | None:
    """Runs a configuration to its end, prints results, and returns the target metric's value.

    Args:
        config: what `fl --cfg job` shows.
        resume: go on with the run that was started in Hydra's output directory.
    """
    with shown_once():  # from here on: apps are imported, and data read by its packages
        run = _run_app(config, resume) if config.app else _run_own(config, resume)
    return final_value(run.summary)


def app_of(experiment: Experiment) -> PlannedApp:
    """Returns what the clients of an experiment run."""
    tasks = experiment.tasks
    return TaskApp({name: t.app for name, t in tasks.items()}) if tasks else experiment.app


def serve(experiment: Experiment, config: DictConfig, grid: Grid, recorder: Recorder) -> None:
    """Runs an experiment's strategy on any grid, with its evaluations and its limit of time."""
    tasks = experiment.tasks
    evaluation = task_evaluation if tasks else central_evaluation
    schedule = Schedule(
        recorder.evaluating(evaluation(experiment, train=config.evaluate_train)),
        recorder,
        clock_of(grid),
        num_rounds=config.num_rounds,
        every=config.evaluate_every,
        every_s=config.evaluate_every_s,
        limit_s=config.time_limit_s,
    )
    try:
        result = experiment.strategy.start(
            grid=grid,
            initial_arrays=initial_of(tasks) if tasks else experiment.initial(),
            num_rounds=config.num_rounds,
            timeout=config.round_timeout_s,
            train_config=_train_config(config),
            evaluate_fn=schedule,
        )
    except TimeIsUp:
        recorder.final(schedule.close())
    else:
        recorder.final(result.arrays)


def facts(experiment: Experiment, config: DictConfig) -> dict[str, Any]:
    """Returns what the summary says of an experiment beside its results.

    That is the data's fingerprint, the Byzantine clients, and the metrics of training on all data
    in one place if `central_epochs` asks for it, which is done here.
    """
    tasks = experiment.tasks
    told: dict[str, Any] = {"data_sha256": experiment.data.fingerprint()}
    if tasks:
        told = {"data_sha256": {name: task.data.fingerprint() for name, task in tasks.items()}}
    if experiment.byzantine:
        told["byzantine"] = list(experiment.byzantine)
    if config.central_epochs:
        told["central"] = {
            f"{metric}/{name}" if name else metric: value
            for name, task in (tasks or {"": experiment}).items()
            for metric, value in train_centrally(task, config.central_epochs, config.seed).items()
        }
    return told


def _run_own(config: DictConfig, resume: bool) -> SimulatedRun:
    experiment = build(config)
    announce()
    extra = facts(experiment, config)
    tasks = experiment.tasks

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        serve(experiment, config, grid, recorder)

    run = simulate(
        server,
        app_of(experiment),
        experiment.fleet,
        run_config={},
        num_partitions=max(t.data.num_partitions for t in (tasks or {"": experiment}).values()),
        executor=experiment.executor,
        num_rounds=config.num_rounds,
        extra=extra,
        recovery=_recovery(config, Start(command_of_job(), resume=resume)),
        **_common(config),
    )
    Console().print(results(run.summary, run.directory, extra.get("central")))
    return run


def _run_app(config: DictConfig, resume: bool) -> SimulatedRun:
    _check_whole(config, seed=0, num_clients=1, num_partitions=1)
    app = read_app(config.app)
    overrides: Any = OmegaConf.to_container(config.run_config, resolve=True)
    server_files, client_files = app.files(app.serverapp), app.files(app.clientapp)
    if (unlike := unseeded(client_files)) is not None:
        log.warning("%s", unlike)
    sources = {*server_files, *client_files, app.directory / "pyproject.toml"}
    start = Start(
        command_of_job(),
        facts={"app": source_sha256(sources)},
        obstacle=unrepeatable(server_files),
        resume=resume,
    )
    with virtual_time(), answering(TaskClock(), epoch_of(config.date)):
        server = app.server()  # its modules may look at a clock when they are imported
    run = simulate(
        server,
        app.client(),
        make(config, "fleet"),
        run_config=app.run_config(overrides),
        num_partitions=config.num_partitions,
        executor=_executor(config),
        charge=make(config, "charge"),
        recovery=_recovery(config, start),
        **_common(config),
    )
    Console().print(results(run.summary, run.directory))
    return run


def _recovery(config: DictConfig, start: Start) -> Recovery:
    made: partial[Recovery] | None = make(config, "checkpoint")
    return Recovery.none(start) if made is None else made(start=start)


def _executor(config: DictConfig) -> Executor:
    executor: Executor = make(config, "executor")
    if isinstance(executor, RayExecutor):
        executor.sharers = side_by_side()
    return executor


def _common(config: DictConfig) -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return {
        "seed": config.seed,
        "directory": Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.initialized()
        else None,
        "target": target_of(config),
        "views": config.views,
        "progress": config.progress and side_by_side() == 1,  # displays would mix
        "fail_fast": config.fail_fast,
        "date": config.date,
        "config": resolved,
    }


def target_of(config: DictConfig) -> Target | None:
    """Returns the metric value whose cost is reported, if there is one."""
    return None if config.target is None else Target(**config.target)


def _train_config(config: DictConfig) -> ConfigRecord:
    values: Any = OmegaConf.to_container(config.train_config, resolve=True)
    try:
        return ConfigRecord(values)
    except TypeError as error:
        raise ConfigError(
            f"train_config is {values}; every value must be a number, text, or a list of one of "
            "these, as Flower sends no other"
        ) from error


def _check_whole(config: DictConfig, **least: int) -> None:
    for key, bound in least.items():
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ConfigError(f"{key} is {value}; it must be a whole number, at least {bound}")


def _check_numbers(config: DictConfig) -> None:
    _check_whole(config, seed=0, num_clients=1, num_rounds=1, evaluate_every=1, central_epochs=0)
    if not isinstance(config.round_timeout_s, int | float) or not config.round_timeout_s > 0:
        raise ConfigError(
            f"round_timeout_s is {config.round_timeout_s}; it must be a positive number of "
            "virtual seconds"
        )
    for key in ("evaluate_every_s", "time_limit_s"):
        value = config[key]
        if value is not None and (not isinstance(value, int | float) or not value > 0):
            raise ConfigError(
                f"{key} is {value}; it must be a positive number of virtual seconds, or null"
            )


_WEIGHTS = ("num-examples", "train-loss", "steps")  # metrics of our clients' replies


def _check_weight(config: DictConfig, *, plain: bool) -> None:
    """Refuses a weight that clients do not report, or none where a strategy needs one."""
    weight = config.strategy.get("weighted_by_key", _WEIGHTS[0])
    if weight not in _WEIGHTS and not (weight is None and plain):
        raise ConfigError(
            f"strategy.weighted_by_key is {weight!r}; clients report {', '.join(_WEIGHTS)}"
        )


def _check_combination(config: DictConfig) -> None:
    for name in ("fraction_train", "fraction_evaluate"):
        share = config.strategy.get(name)
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"strategy.{name} is {share}; it is a share, between 0 and 1")
    for name in (
        "min_train_nodes",
        "min_available_nodes",
        "min_evaluate_nodes",
        "num_malicious_nodes",
    ):
        least = config.strategy.get(name, 0)
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            raise ConfigError(f"strategy.{name} is {least}; it must be a whole number, at least 0")
        unused = name == "min_evaluate_nodes" and not config.strategy.get("fraction_evaluate")
        if least > config.num_clients and not unused:
            raise ConfigError(
                f"strategy.{name} is {least}, but there are {config.num_clients} clients: the "
                f"strategy would wait for ever. Set strategy.{name}={config.num_clients} or less"
            )
    if config.get("tasks") and "one_after_another" not in config.strategy:
        raise ConfigError(
            "tasks is set, but this strategy trains one model: use strategy=fedast or "
            "strategy=sync_st, or leave tasks out"
        )
    if config.get("tasks") and config.get("compressor") is not None:
        raise ConfigError(
            "compressor is set, but what clients send is not compressed where several tasks are "
            "learnt: leave compressor or tasks out"
        )
    if config.get("topology") is not None and "topology" not in config.strategy:
        raise ConfigError(
            "topology is set, but this strategy has a server, to which all clients send: use a "
            "strategy without one, such as strategy=dpsgd, or leave topology out"
        )
    if config.get("aggregator") is not None and "rule" not in config.strategy:
        raise ConfigError(
            "aggregator is set, but this strategy combines updates in its own way: use "
            "strategy=aggregate, or leave aggregator out"
        )


def central_evaluation(
    experiment: Learning, *, train: bool = False
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Returns the function that evaluates the server's model on the pooled held-out examples.

    With a backdoor, "attack_success_rate" is the share of triggered examples of other classes that
    the model takes for the attacker's class.

    Where nodes learn without a server, the model is the mean of theirs; "node_accuracy" and
    "node_loss" are means over nodes of what each one's own model has on the same examples,
    "node_accuracy_min" and "node_accuracy_max" the extremes, and the other metrics those of
    `NodeModels.facts`.

    Args:
        experiment: its model and data are used.
        train: add "train_objective" and "dissimilarity" of all clients' training examples; see
            `fl.models.GlobalObjective`.
    """
    model = drop_weights(experiment.model())
    dtypes = {name: value.dtype for name, value in model.state_dict().items()}
    data = experiment.data
    examples = data.test_set()
    triggered = None
    if experiment.backdoored is not None:
        triggered = data.tensors(experiment.backdoored, slice(None))
    clients = [data.client(p) for p in range(data.num_partitions)] if train else []

    def load(arrays: ArrayRecord) -> None:
        state = arrays.to_torch_state_dict()
        # Some of Flower's strategies return float64.
        model.load_state_dict({k: x.to(dtypes[k]) for k, x in state.items()}, assign=True)

    def spread(arrays: NodeModels) -> dict[str, float]:
        losses, accuracies = [], []
        for own in arrays.evaluated():
            load(own)
            loss, accuracy = evaluate(model, examples)
            losses.append(loss)
            accuracies.append(accuracy)
        means = {"node_accuracy": mean(accuracies), "node_loss": mean(losses)}
        extremes = {"node_accuracy_min": min(accuracies), "node_accuracy_max": max(accuracies)}
        return {**means, **extremes, **arrays.facts}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        load(arrays)
        loss, accuracy = evaluate(model, examples)
        metrics: dict[str, Any] = {"accuracy": accuracy, "loss": loss}
        if triggered is not None:
            metrics["attack_success_rate"] = evaluate(model, triggered)[1]
        if train:
            objective = global_objective(model, clients)
            metrics |= {
                "train_objective": objective.loss,
                "dissimilarity": objective.dissimilarity,
            }
        if isinstance(arrays, NodeModels):
            metrics |= spread(arrays)
        drop_weights(model)
        return MetricRecord(metrics)

    return evaluate_fn


def initial_of(tasks: Mapping[str, Learning]) -> ArrayRecord:
    """Returns the initial models of several tasks, their arrays named "task/array"."""
    initial = {name: task.initial() for name, task in tasks.items()}
    return ArrayRecord(
        {f"{t}/{name}": x for t, part in initial.items() for name, x in part.items()}
    )


def task_evaluation(
    experiment: Experiment, *, train: bool = False
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Returns the function that evaluates several models, each as `central_evaluation` does.

    Its metrics are called "accuracy/task" and so on; "accuracy" is the mean over tasks. A model
    whose arrays are the objects of the last time is not evaluated again.

    Args:
        experiment: its tasks are used.
        train: add metrics of the training examples.
    """
    functions = {
        name: central_evaluation(task, train=train) for name, task in experiment.tasks.items()
    }
    latest: dict[str, tuple[dict[str, Array], MetricRecord]] = {}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        metrics: dict[str, float] = {}
        for task, evaluate_task in functions.items():
            start = f"{task}/"
            own = {k.removeprefix(start): x for k, x in arrays.items() if k.startswith(start)}
            known = latest.get(task)
            if known is None or any(known[0][name] is not array for name, array in own.items()):
                latest[task] = (own, evaluate_task(1, ArrayRecord(own)))
            values: Mapping[str, Any] = latest[task][1]
            for name, value in values.items():
                metrics[f"{name}/{task}"] = value
                metrics[name] = metrics.get(name, 0.0) + value / len(functions)
        return MetricRecord(dict(metrics))

    return evaluate_fn


class TimeIsUp(Exception):
    """Raised to a strategy when virtual time has passed the limit."""


class Schedule:
    """Decides which models of a run are evaluated, and when a run has lasted long enough.

    Args:
        evaluate: called for the first model, the last, and those that are due.
        recorder: gets the results.
        clock: of the grid.
        num_rounds: number of the last model.
        every: rounds, or versions, between evaluations.
        every_s: s between evaluations instead: the first model after that time is evaluated.
        limit_s: time after which no model counts; None sets no limit.
    """

    recorded = True  # the recorder need not listen: it is told

    def __init__(
        self,
        evaluate: Callable[[int, ArrayRecord], MetricRecord],
        recorder: Recorder,
        clock: Clock,
        *,
        num_rounds: int,
        every: int = 1,
        every_s: float | None = None,
        limit_s: float | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._recorder = recorder
        self._clock = clock
        self._num_rounds = num_rounds
        self._every = every
        self._every_s = every_s
        self._limit_s = math.inf if limit_s is None else limit_s
        self._began_s = clock.now()
        self._due_s = 0.0
        self._last: tuple[int, ArrayRecord, dict[str, float]] | None = None
        self._evaluated = -1  # number of the last model evaluated

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Returns the metrics of a model that is due; None for others.

        Raises:
            TimeIsUp: the limit has passed.
        """
        elapsed = self._clock.now() - self._began_s
        if elapsed > self._limit_s and self._last is not None:
            raise TimeIsUp
        self._last = (server_round, arrays, self._recorder.costs(server_round))
        if server_round not in (0, self._num_rounds) and not self._is_due(server_round, elapsed):
            return None
        self._evaluated = server_round
        metrics = self._evaluate(server_round, arrays)
        self._recorder.evaluation(server_round, metrics)
        return metrics

    def close(self) -> ArrayRecord | None:
        """Returns the last model within the limit, after evaluating it if it has not been."""
        if self._last is None:
            return None
        server_round, arrays, costs = self._last
        if server_round != self._evaluated:
            self._recorder.late_evaluation(self._evaluate(server_round, arrays), costs)
        return arrays

    def _is_due(self, server_round: int, elapsed: float) -> bool:
        if self._every_s is None:
            return server_round % self._every == 0
        if elapsed < self._due_s:
            return False
        self._due_s = (elapsed // self._every_s + 1) * self._every_s
        return True


def train_centrally(experiment: Learning, epochs: int, seed: int) -> Mapping[str, float]:
    """Returns the metrics of the same model and client rule trained on all data in one place.

    Args:
        experiment: its model, client rule and data are used.
        epochs: passes over the pooled training examples.
        seed: of the order of the examples.
    """
    pooled = replace(
        experiment.data,
        partitions=Partitions.contiguous([len(experiment.data.train)]),
        test_partitions=None,
    )
    app = TrainingApp(
        experiment.model,
        pooled,
        experiment.app.rule,
        batch_size=experiment.app.batch_size,
        local_epochs=epochs,
    )
    assume_identity()
    arrays = experiment.initial()
    message = Message(
        RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})}),
        SUPERLINK_NODE_ID + 1,
        "train",
    )
    message.metadata.__dict__["_message_id"] = "central"
    node_config: Any = {"partition-id": 0, "num-partitions": 1}
    context = Context(RUN_ID, 0, node_config, RecordDict(), {SEED_KEY: seed})
    with limit_threads(1):
        reply = app(message, context)
    metrics: Any = central_evaluation(experiment)(1, reply.content.array_records["arrays"])
    return {name: float(value) for name, value in metrics.items()}
