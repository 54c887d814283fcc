"""From a Hydra configuration to a run: what `fl key=value ...` does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fl.attacks import Attack, Backdoor, Combined, Poisoning, byzantine_clients, poisoned
from fl.clients import TaskApp, TrainingApp
from fl.compression import Channel
from fl.data import Examples, FederatedData, Partitions, federate
from fl.errors import ConfigError, Diverged
from fl.execution import Executor, RayExecutor
from fl.execution.executor import load_app
from fl.execution.virtual_time import TaskClock, answering, virtual_time
from fl.flower.carried import carried, carried_tensors
from fl.flower.grid_view import Clock, GridView
from fl.flower.identity import RUN_ID, assume_identity
from fl.flower.private import give_id
from fl.flower.records import from_record, not_finite
from fl.models import build as build_model
from fl.models import drop_weights, evaluate, global_objective, smallest_batch
from fl.randomness import SEED_KEY
from fl.reports import Target
from fl.reports.table import print_results
from fl.reports.target import final_value
from fl.runs.apps import FlowerApp, read_app
from fl.runs.choices import announce
from fl.runs.compatibility import (
    check_clients,
    check_exchange,
    check_told,
    unread_of_clients,
    unread_of_server,
)
from fl.runs.configuration import Given, Problems, blaming, make
from fl.runs.journal import Recovery, Start, source_sha256
from fl.runs.journal.command import command_of_job, foreign_parts
from fl.runs.recorder import Recorder
from fl.runs.simulator import SimulatedRun, epoch_of, simulate, simulate_app
from fl.runs.sweep import side_by_side
from fl.runs.transcript import shown_once
from fl.runs.trust import source_files
from fl.runs.unread import Unread, referred_to, unread_below, unread_groups
from fl.simulation.cost import CostModel
from fl.simulation.world.fleet import Fleet
from fl.strategies import (
    NODE_METRICS,
    Driver,
    Exchange,
    NodeModels,
    Rounds,
    TrustedUpdate,
    driver_of,
)
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor
from fl.vectors.threads import limit_threads

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
        ignored: keys of parts that have no effect beside the other parts, to what counts instead.
    """

    strategy: Driver
    fleet: Fleet
    executor: Executor
    tasks: Mapping[str, Learning] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)


_KINDS: Mapping[str, Any] = {  # what the member of a group makes
    "strategy": Strategy,
    "fleet": Fleet,
    "executor": Executor,
    "compressor": Channel,
    "downlink": Channel,
    "attack": Attack | Poisoning | Combined,
    "checkpoint": partial,
    "charge": CostModel,
}
_OURS = ("strategy", "fleet", "executor", "compressor", "downlink", "attack", "checkpoint")


class _Learnt(NamedTuple):
    """What is learnt, by itself: `make_app` waits for what comes between clients and server."""

    data: FederatedData
    model: partial[nn.Module]
    smallest_batch: int
    make_app: Callable[..., TrainingApp]


def build(config: DictConfig) -> Experiment:
    """Builds every part of an experiment; nothing is trained and no process is started.

    Raises:
        ConfigError: parts refuse their arguments, or do not fit together. What is wrong with parts
            by themselves is told of all of them, before what is wrong with them together.
    """
    problems = Problems()
    problems += unread_groups(config)
    problems += _wrong_numbers(config)
    problems += _wrong_counts(config)
    for check in (_train_config, target_of, _checked_recovery):
        with problems.noted():
            check(config)
    parts: dict[str, Any] = {}
    for name in _OURS:
        with problems.noted():
            parts[name] = _made(config, name)
    learnt = {}
    for task, place in _places(config).items():
        with problems.noted():
            learnt[task] = _learnt(place, config.seed)
    problems.stop()
    return _joined(config, parts, learnt)


def _places(config: DictConfig) -> dict[str, DictConfig]:
    """Returns where the groups data, partition, model and client are, by task; "" without tasks."""
    tasks = config.get("tasks")
    return {str(name): place for name, place in tasks.items()} if tasks else {"": config}


def _joined(
    config: DictConfig, parts: Mapping[str, Any], learnt: Mapping[str, _Learnt]
) -> Experiment:
    """Returns the experiment of parts that are right by themselves."""
    strategy = driver_of(parts["strategy"])
    problems = Problems()
    problems += _misfits(config, strategy)
    exchange = Exchange(
        parts["compressor"],
        parts["downlink"],
        num_clients=config.num_clients,
        seed=config.seed,
    )
    with problems.noted():
        poisoning, forging, byzantine = _attack(config, parts["attack"])
        exchange = replace(exchange, byzantine=frozenset(byzantine))
    problems.stop()
    check_exchange(strategy, exchange, forging)
    ends = strategy.ends(exchange.uplink, exchange.downlink)
    told = _train_config(config)
    learning = {}
    for task, place in _places(config).items():
        with problems.noted():
            data, model, least, make_app = learnt[task]
            if poisoning is not None:
                data = poisoned(data, poisoning, byzantine, config.num_clients, config.seed)
            app = _app(place, make_app, model, data, ends)
            check_clients(strategy, app, exchange)
            says = check_told(strategy, app, told)
            with blaming(place, "client"):
                app.check_batches(says, least)
            learning[task] = Learning(learnt[task].data, model, app)
    problems.stop()
    first = next(iter(learning.values()))
    backdoored = None
    if isinstance(poisoning, Backdoor):
        test = first.data.test
        backdoored = Examples(*poisoning.test_set(test.x, test.y))
    trusted = None
    if isinstance(strategy, Rounds) and strategy.wants_own_update:
        trusted = TrustedUpdate(
            first.app, first.model, first.data, examples=strategy.root_examples, seed=config.seed
        )
    layouts = {task: one.app.layout for task, one in learning.items()}
    exchange = replace(
        exchange,
        attack=forging,
        layout=layouts.get(""),
        layouts=layouts if config.get("tasks") else {},
        trusted=trusted,
    )
    experiment = Experiment(
        first.data,
        first.model,
        first.app,
        strategy.within(exchange),
        parts["fleet"],
        parts["executor"],
        learning if config.get("tasks") else {},
        backdoored=backdoored,
        ignored=_ignored(strategy, learning, told),
    )
    _check_target(config, experiment, parts["strategy"])
    return experiment


def _learnt(place: DictConfig, seed: int) -> _Learnt:
    """Returns what is learnt, from the groups data, partition, model and client.

    Raises:
        ConfigError: some of them refuse their arguments; or the examples, with this partition and
            model.
    """
    problems, made = Problems(), {}
    for name in ("data", "partition", "model", "client"):
        with problems.noted():
            made[name] = make(place, name)
    if "data" in made and "partition" in made:
        with problems.noted():
            with blaming(place, "data"):
                loaded = made["data"]()
            with blaming(place, "partition"):
                data = federate(lambda: loaded, made["partition"])
            if "model" in made:
                shape, classes = data.input_shape, data.num_classes
                model = partial(build_model, made["model"], shape, classes, seed)
                with blaming(place, "model"):
                    first = model()
                    _check_finite(first)
                    tokens = data.task == "next-token"
                    least = smallest_batch(first, shape, classes, tokens=tokens)
    problems.stop()
    return _Learnt(data, model, least, made["client"])


def _check_finite(model: nn.Module) -> None:
    endless = sorted(not_finite(ArrayRecord(model.state_dict())))
    if endless:
        raise ConfigError(
            f"the initial model is not finite in {endless[0]!r}: models are averaged, and an "
            "infinity less another is no number; leave constants such as masks out of the "
            "state dict with register_buffer(..., persistent=False)"
        )


def _app(
    place: DictConfig,
    make_app: Callable[..., TrainingApp],
    model: partial[nn.Module],
    data: FederatedData,
    ends: tuple[Any, Any],
) -> TrainingApp:
    """Returns what clients run."""
    uplink, downlink = ends
    with blaming(place, "client"):
        app = make_app(model=model, data=data, uplink=uplink, downlink=downlink)
        for name in ("round_schedule", "step_schedule"):
            schedule = getattr(app.rule, name, None)
            if schedule is not None and not callable(schedule):
                raise ConfigError(
                    f"rule.{name} is {schedule}; it must be null, or have a _target_ such as "
                    "fl.clients.StepDecay"
                )
    return app


def _made(config: DictConfig, name: str) -> Any:
    made, kind = make(config, name), _KINDS[name]
    if made is not None and not isinstance(made, kind):
        kinds = " or ".join(k.__name__ for k in getattr(kind, "__args__", [kind]))
        raise ConfigError(
            f"{name}._target_ is {config[name]._target_}, which makes a {type(made).__name__}; "
            f"it must make a {kinds}"
        )
    return made


def _ignored(
    strategy: Driver, learning: Mapping[str, Learning], told: ConfigRecord
) -> dict[str, str]:
    """Returns keys that have no effect beside the other parts, to what counts instead."""
    ignored = unread_of_server(strategy)
    for key in told:
        if not any(learnt.app.reads(key) for learnt in learning.values()):
            ignored[f"train_config.{key}"] = "clients of this kind do not read it"
    for task, learnt in learning.items():
        place = f"tasks.{task}.client" if task else "client"
        for name, why in unread_of_clients(strategy, learnt.app, told).items():
            ignored[f"{place}.{name}"] = why
    return ignored


def _attack(
    config: DictConfig, attack: Attack | Poisoning | Combined | None
) -> tuple[Poisoning | None, Attack | None, tuple[int, ...]]:
    """Returns the parts of the attack that change data and what is sent, and who carries it out."""
    if attack is None:
        if config.num_byzantine:
            raise ConfigError(
                f"num_byzantine is {config.num_byzantine}, but there is no attack: choose one, for "
                "example attack=alie, or leave num_byzantine out"
            )
        return None, None, ()
    if config.get("tasks"):
        raise ConfigError("attack and tasks are both set: attacks know one model only")
    byzantine = byzantine_clients(config.num_clients, config.num_byzantine, config.seed)
    if isinstance(attack, Combined):
        return attack.poisoning, attack.forging, byzantine
    if isinstance(attack, Poisoning):
        return attack, None, byzantine
    return None, attack, byzantine


@dataclass(frozen=True)
class ForeignApp:
    """A Flower app directory, and the parts of the run that it is given.

    Attributes:
        app: the directory; nothing of it is imported yet.
        run_config: keys of its configuration to replace.
        fleet: the clients' devices, links, availability and faults.
        executor: where clients run.
        charge: what the work of its ClientApp costs.
        checkpoint: makes the recovery.
        epoch: the date at virtual time 0, s since 1970.
    """

    app: FlowerApp
    run_config: Mapping[str, Any]
    fleet: Fleet
    executor: Executor
    charge: CostModel | None
    checkpoint: partial[Recovery] | None
    epoch: int

    def load(self) -> None:
        """Imports the app's code, so that what is wrong with it is known before anything starts."""
        with shown_once(), virtual_time(), answering(TaskClock(), self.epoch):
            self.app.server()  # its modules may look at a clock when they are imported
            load_app(self.app.client(), self.epoch)


def prepare(config: DictConfig, given: Given | None = None) -> Experiment | ForeignApp:
    """Builds what a configuration asks for; nothing is trained and no process is started.

    Args:
        config: what `fl --cfg job` shows.
        given: what the command line sets, all of which must be read; None if there is none.

    Raises:
        ConfigError: the configuration cannot mean anything sensible, or sets what nothing reads. It
            tells of all that can be seen at the same time.
    """
    with shown_once():
        prepared = build(config) if config.app is None else _foreign(config)
    if isinstance(prepared, Experiment):
        prepared.fleet.check_memory(app_of(prepared).memory_bytes())
    if given is not None:
        unread = dict(Unread(config).arguments())
        if isinstance(prepared, Experiment):
            unread |= prepared.ignored
        problems = Problems()
        problems += unread_below(given.set, unread, referred_to(config), in_sweep=given.in_sweep)
        problems.stop()
    return prepared


def _foreign(config: DictConfig) -> ForeignApp:
    problems = Problems()
    problems += _not_whole(config, seed=0, num_clients=1, num_partitions=1)
    parts: dict[str, Any] = {"charge": None}
    for name in ("fleet", "executor", "charge", "checkpoint"):
        with problems.noted():
            parts[name] = _made(config, name)
    for check in (target_of, _checked_recovery):
        with problems.noted():
            check(config)
    with problems.noted():
        epoch = epoch_of(config.date)
    with problems.noted():
        app = read_app(config.app)
        run_config: Any = OmegaConf.to_container(config.run_config, resolve=True)
        app.run_config(run_config)
    problems.stop()
    return ForeignApp(app, run_config, epoch=epoch, **parts)


def run_experiment(
    config: DictConfig,
    *,
    resume: bool = False,
    changed_code: bool = False,
    prepared: Experiment | ForeignApp | None = None,
) -> float | None:
    """Runs a configuration to its end, prints results, and returns the target metric's value.

    Args:
        config: what `fl --cfg job` shows.
        resume: go on with the run that was started in Hydra's output directory.
        changed_code: when resuming, go on although the app or the user's modules have changed.
        prepared: what `prepare` returned for it; None prepares it now.
    """
    prepared = prepare(config) if prepared is None else prepared
    start = replace(_start(config), resume=resume, changed_code=changed_code)
    with shown_once():
        if isinstance(prepared, Experiment):
            run = _run_own(config, prepared, start)
        else:
            run = _run_app(config, prepared, start)
    return final_value(run.summary)


def app_of(experiment: Experiment) -> TrainingApp | TaskApp:
    """Returns what the clients of an experiment run."""
    tasks = experiment.tasks
    return TaskApp({name: t.app for name, t in tasks.items()}) if tasks else experiment.app


def serve(experiment: Experiment, config: DictConfig, grid: Grid, recorder: Recorder) -> None:
    """Runs an experiment's strategy on any grid, with its evaluations and its limit of time."""
    tasks = experiment.tasks
    initial = initial_of(tasks) if tasks else experiment.initial()
    recorder.expect(initial, config.time_limit_s)
    evaluation = task_evaluation if tasks else central_evaluation
    schedule = Schedule(
        recorder.evaluating(evaluation(experiment, train=config.evaluate_train)),
        recorder,
        GridView(grid).clock,
        num_rounds=config.num_rounds,
        every=config.evaluate_every,
        every_s=config.evaluate_every_s,
        limit_s=config.time_limit_s,
    )
    try:
        result = experiment.strategy.start(
            grid=grid,
            initial_arrays=initial,
            num_rounds=config.num_rounds,
            timeout=config.round_timeout_s,
            train_config=_train_config(config),
            evaluate_fn=schedule,
        )
    except TimeIsUp:
        recorder.final(schedule.close())
    except Diverged:
        recorder.final(schedule.close())
        raise
    else:
        # Flower's result has no model if no round has made one: then it is the first.
        recorder.final(result.arrays if len(result.arrays) else schedule.latest)


def facts(experiment: Experiment, config: DictConfig) -> dict[str, Any]:
    """Returns what the summary says of an experiment beside its results.

    That is the data's fingerprint, the Byzantine clients, and the metrics of training on all data
    in one place if `central_epochs` asks for it, which is done here.
    """
    tasks = experiment.tasks
    told: dict[str, Any] = {"data_sha256": experiment.data.fingerprint()}
    if tasks:
        told = {"data_sha256": {name: task.data.fingerprint() for name, task in tasks.items()}}
    if byzantine := experiment.strategy.exchange.byzantine:
        told["byzantine"] = sorted(byzantine)
    if config.central_epochs:
        told["central"] = {
            f"{metric}/{name}" if name else metric: value
            for name, task in (tasks or {"": experiment}).items()
            for metric, value in train_centrally(task, config.central_epochs, config.seed).items()
        }
    return told


def _start(config: DictConfig) -> Start:
    uses = foreign_parts(config)
    files = source_files(value for key, value in uses.items() if key.endswith("_target_"))
    code = {"modules": source_sha256(files)} if files else {}
    command = command_of_job()
    places = [*command.get("config_dirs", ()), *command.get("searchpath", ())]
    return Start(command, code=code, foreign=[*uses.values(), *places])


def _run_own(config: DictConfig, experiment: Experiment, start: Start) -> SimulatedRun:
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
        executor=_sharing(experiment.executor),
        num_rounds=config.num_rounds,
        extra=extra,
        recovery=_recovery(make(config, "checkpoint"), start),
        **_common(config),
    )
    print_results(run.summary, run.directory, extra.get("central"))
    return run


def _run_app(config: DictConfig, foreign: ForeignApp, start: Start) -> SimulatedRun:
    run = simulate_app(
        foreign.app,
        foreign.fleet,
        run_config=foreign.run_config,
        num_partitions=config.num_partitions,
        executor=_sharing(foreign.executor),
        charge=foreign.charge,
        recovery=_recovery(foreign.checkpoint, start),
        **_common(config),
    )
    print_results(run.summary, run.directory)
    return run


def _recovery(made: partial[Recovery] | None, start: Start) -> Recovery:
    return Recovery.none(start) if made is None else made(start=start)


def _checked_recovery(config: DictConfig) -> None:
    with blaming(config, "checkpoint"):
        _recovery(make(config, "checkpoint"), Start())


def _sharing(executor: Executor) -> Executor:
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
    if config.target is None:
        return None
    with blaming(config, "target"):
        return Target(**config.target)


def _train_config(config: DictConfig) -> ConfigRecord:
    values: Any = OmegaConf.to_container(config.train_config, resolve=True)
    try:
        return ConfigRecord(values)
    except TypeError as error:
        raise ConfigError(
            f"train_config is {values}; every value must be a number, text, or a list of one of "
            "these, as Flower sends no other"
        ) from error


def _wrong_numbers(config: DictConfig) -> Iterator[str]:
    yield from _not_whole(
        config, seed=0, num_clients=1, num_rounds=1, evaluate_every=1, central_epochs=0
    )
    if not isinstance(config.round_timeout_s, int | float) or not config.round_timeout_s > 0:
        yield (
            f"round_timeout_s is {config.round_timeout_s}; it must be a positive number of "
            "virtual seconds"
        )
    for key in ("evaluate_every_s", "time_limit_s"):
        value = config[key]
        if value is not None and (not isinstance(value, int | float) or not value > 0):
            yield f"{key} is {value}; it must be a positive number of virtual seconds, or null"


_AT_MOST_ALL = ("min_train_nodes", "min_evaluate_nodes")


def _wrong_counts(config: DictConfig) -> Iterator[str]:
    """Yields what is wrong with the numbers of Flower's strategies, which do not check them."""
    given = config.strategy
    ours = "clients" in given  # a round of ours takes those that are there
    for name in ("fraction_train", "fraction_evaluate"):
        share = given.get(name)
        if share is not None and not 0 <= share <= 1:
            yield f"strategy.{name} is {share}; it is a share, between 0 and 1"
    if given.get("fraction_train") == 0:  # Flower takes it to mean that nobody is to train
        yield "strategy.fraction_train is 0, so no client would train; it must be above 0"
    for name in (
        "min_train_nodes",
        "min_available_nodes",
        "min_evaluate_nodes",
        "num_malicious_nodes",
    ):
        least = given.get(name, 0)
        unused = name == "min_evaluate_nodes" and not given.get("fraction_evaluate")
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            if "fraction_train" not in given:
                continue  # ours check their own
            yield f"strategy.{name} is {least}; it must be a whole number, at least 0"
        elif least > config.num_clients and not (unused or (ours and name in _AT_MOST_ALL)):
            yield (
                f"strategy.{name} is {least}, but there are {config.num_clients} clients: the "
                f"strategy would wait for ever. Set strategy.{name}={config.num_clients} or less"
            )


def _not_whole(config: DictConfig, **least: int) -> Iterator[str]:
    for key, bound in least.items():
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            yield f"{key} is {value}; it must be a whole number, at least {bound}"


_WEIGHTS = ("num-examples", "train-loss", "steps")  # metrics of our clients' replies


def _misfits(config: DictConfig, strategy: Driver) -> Iterator[str]:
    """Yields what a strategy is given that it can make nothing of."""
    given = config.strategy
    weight = given.get("weighted_by_key", _WEIGHTS[0])
    if weight not in _WEIGHTS and not (weight is None and strategy.traits.meets == "ring"):
        yield f"strategy.weighted_by_key is {weight!r}; clients report {', '.join(_WEIGHTS)}"
    several = strategy.traits.several_models
    if config.get("tasks") and not several:
        yield (
            "tasks is set, but this strategy trains one model: use strategy=fedast or "
            "strategy=sync_st, or leave tasks out"
        )
    if several and not config.get("tasks"):
        yield "tasks is null, but this strategy trains several models: choose one, tasks=NAME"
    ends = [config.get(name) for name in ("compressor", "downlink")]
    if config.get("tasks") and ends != [None, None]:
        yield (
            "compressor or downlink is set, but what is sent is not compressed where several tasks "
            "are learnt: leave compressor or tasks out"
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
    model = experiment.model()
    layout = Layout.of(model)
    drop_weights(model)
    data = experiment.data
    examples = data.test_set()
    triggered = None
    if experiment.backdoored is not None:
        triggered = data.tensors(experiment.backdoored, slice(None))
    clients = [data.client(p) for p in range(data.num_partitions)] if train else []

    def load(arrays: ArrayRecord) -> None:
        row = as_tensor(from_record(layout, arrays, finite=False))
        layout.load(model, row, carried_tensors(carried(layout, arrays)))

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


def _check_target(config: DictConfig, experiment: Experiment, strategy: Strategy) -> None:
    """Refuses a target that no evaluation will report.

    Strategies and clients of others may report what they like.
    """
    target = target_of(config)
    parts = (strategy, experiment.app.rule)
    if target is None or not all(type(p).__module__.startswith(("fl.", "flwr.")) for p in parts):
        return
    names = ["accuracy", "loss"]
    if experiment.backdoored is not None:
        names.append("attack_success_rate")
    if config.evaluate_train:
        names += ["train_objective", "dissimilarity"]
    if experiment.strategy.traits.meets == "peers":
        names += NODE_METRICS
    names += [f"{name}/{task}" for task in experiment.tasks for name in names]
    if target.metric not in names and not target.metric.startswith(_OF_CLIENTS):
        near = get_close_matches(target.metric, names, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"target.metric is {target.metric!r}, which no evaluation of this run reports; {meant}"
            f"There are: {', '.join(names)}, and what clients report as train_... and client_..."
        )


_OF_CLIENTS = ("train_", "client_", "staleness")  # how names begin that come with updates


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

    @property
    def latest(self) -> ArrayRecord | None:
        """The last model there was."""
        return None if self._last is None else self._last[1]

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
        drop_last=experiment.app.drop_last,
        local_epochs=epochs,
    )
    assume_identity()
    arrays = experiment.initial()
    message = Message(
        RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})}),
        SUPERLINK_NODE_ID + 1,
        "train",
    )
    give_id(message, "central")
    node_config: Any = {"partition-id": 0, "num-partitions": 1}
    context = Context(RUN_ID, 0, node_config, RecordDict(), {SEED_KEY: seed})
    with limit_threads(1):
        reply = app(message, context)
    metrics: Any = central_evaluation(experiment)(1, reply.content.array_records["arrays"])
    return {name: float(value) for name, value in metrics.items()}
