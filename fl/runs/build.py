"""From a configuration to a run's parts: built, checked by themselves and together.

Nothing is trained and no process is started. What is wrong is told together, as far as it can be
seen at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy
from hydra._internal.utils import _locate  # what `_target_` stands for, without a line in the log
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fl.aggregation import Aggregator, PreAggregation
from fl.attacks import Attack, Backdoor, Combined, Poisoning, byzantine_clients, poisoned
from fl.clients import Correction, Descent, Direction, LocalLayers, Rule, TrainingApp
from fl.clients.app.outbox import METRICS
from fl.collectives import Collective
from fl.compression import Channel, Compressor, chained
from fl.data import Examples, FederatedData, Source, Split, federate
from fl.data.held_out import validated
from fl.data.loading import deal, load, loading_once
from fl.data.partition import hold_out
from fl.errors import ConfigError
from fl.execution import Executor
from fl.flower.records import not_finite
from fl.models import Adapter, Measures, smallest_batch
from fl.models import build as build_model
from fl.models.metrics import CONFUSION
from fl.runs.apps import read_app
from fl.runs.cluster_evaluation import CLUSTER_METRICS
from fl.runs.combination import Combination
from fl.runs.compatibility import (
    check_model,
    check_told,
    misjudged,
    refusals,
    unread_of_clients,
)
from fl.runs.configuration import Given
from fl.runs.experiment import Experiment, ForeignApp, Learning, app_of
from fl.runs.journal import RunStart
from fl.runs.making import OF_EVERY_RUN, OF_OUR_RUNS, Problems, absent, blaming, make, referable
from fl.runs.partly import partly
from fl.runs.personal import check_personal, personal_metrics
from fl.runs.settings import (
    callbacks_of,
    metrics_of,
    not_whole,
    personal_of,
    recovery_of,
    saved_models,
    target_of,
    train_config_of,
    wrong_cohorts,
    wrong_counts,
    wrong_numbers,
)
from fl.runs.simulator import epoch_of
from fl.runs.transcript import shown_once
from fl.runs.unread import (
    OF_A_TASK,
    Unread,
    canonical,
    referred_to,
    scalar_references,
    unread_below,
    unread_groups,
)
from fl.runs.warm_start import warm_experiment
from fl.selection import Selection
from fl.simulation.cost import CostModel
from fl.simulation.world.checkpointing import Checkpointing
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.networks import NetworkModel
from fl.simulation.world.runtime import Runtime
from fl.simulation.world.slowdowns import Distribution
from fl.strategies import (
    NODE_METRICS,
    Driver,
    Exchange,
    ProxyLosses,
    Rounds,
    ServerExamples,
    TrustedUpdate,
    driver_of,
)
from fl.strategies.round_rule import RoundRule
from fl.strategies.staleness import StalenessWeight
from fl.topologies import Topology, Weights

_KINDS: Mapping[str, Any] = {  # what the member of a group makes
    "strategy": Strategy,
    "fleet": Fleet,
    "executor": Executor,
    "runtime": Runtime,
    "compressor": Channel,
    "then": Compressor,
    "feedback": partial,
    "downlink": Channel,
    "attack": Attack | Poisoning | Combined,
    "cost_model": CostModel,
    "adapter": Adapter,
    "network": NetworkModel,
}
_INSIDE: Mapping[str, type] = {  # what is made for a part of these, if its key names a class
    "aggregator": Aggregator,
    "allreduce": Collective,
    "client.correction": Correction,
    "client.local_layers": LocalLayers,
    "client.rule": Rule,
    "fleet.checkpointing": Checkpointing,
    "fleet.client_slowdown": Distribution,
    "fleet.task_slowdown": Distribution,
    "selection": Selection,
    "strategy.rule.server_optimizer": RoundRule,
    "strategy.rule.staleness": StalenessWeight,
    "topology": Topology,
    "topology.weights": Weights,
}
_OURS = (
    "strategy",
    "fleet",
    "runtime",
    "executor",
    "compressor",
    "then",
    "feedback",
    "downlink",
    "attack",
)
_OF_CLIENTS = ("train_", "client_", "staleness")  # how names of metrics begin that updates bring


class _Learnt(NamedTuple):
    """What is learnt, by itself: `make_app` waits for what comes between clients and server.

    `holds_out` says whether data or partition have held-out examples of clients by themselves.
    """

    data: FederatedData
    model: partial[nn.Module]
    smallest_batch: int
    holds_out: bool
    make_app: Callable[..., TrainingApp]


class _Attack(NamedTuple):
    """Who attacks, and how.

    Attributes:
        byzantine: the clients that do.
        poisoning: of data, by the key that it is from; of a learning task, its own or that of all.
        forging: of what is sent.
    """

    byzantine: tuple[int, ...] = ()
    poisoning: Mapping[str, tuple[str, Poisoning]] = {}
    forging: Attack | None = None


def prepare(config: DictConfig, given: Given | None = None) -> Experiment | ForeignApp:
    """Builds what a configuration asks for.

    Args:
        config: what `fl --cfg job` shows.
        given: what the command line sets, all of which must be read; None if there is none.

    Raises:
        ConfigError: the configuration cannot mean anything sensible, or sets what nothing reads.
    """
    with shown_once(), loading_once():
        prepared = build(config) if config.app is None else _foreign(config)
    if isinstance(prepared, Experiment) and prepared.parts is None:
        prepared.fleet.check_memory(app_of(prepared).memory_bytes())
    if given is not None:
        unread = dict(Unread(config).arguments())
        if isinstance(prepared, Experiment):
            unread |= prepared.ignored
        problems = Problems()
        problems += unread_below(given.set, unread, referred_to(config), in_sweep=given.in_sweep)
        problems.stop()
    return prepared


def build(config: DictConfig) -> Experiment:
    """Builds every part of an experiment with our own ClientApp.

    Raises:
        ConfigError: parts refuse their arguments, or do not fit together.
    """
    config = referable(config)
    problems = Problems(scalar_references(config))
    problems += absent(config, OF_OUR_RUNS)
    for place in _places(config).values():
        problems += absent(place, [name for name in OF_A_TASK if name != "adapter"])
    problems.stop()
    problems += unread_groups(config)
    problems += Unread(config).of_no_task()
    problems += wrong_numbers(config)
    problems += wrong_counts(config)
    problems += wrong_cohorts(config)
    places = {"": config, **_places(config)}.values()
    if wrong := [message for place in places for message in _of_another_kind(place)]:
        problems += wrong
        problems.stop()  # what is made of them would complain of the same
    for check in (
        train_config_of,
        target_of,
        saved_models,
        callbacks_of,
        lambda c: recovery_of(c, RunStart()),
    ):
        with problems.noted():
            check(config)
    parts: dict[str, Any] = {}
    for name in _OURS:
        with problems.noted():
            parts[name] = _made(config, name)
    with problems.noted():
        parts |= _networked(config, parts)
    if {"compressor", "then", "feedback"} <= parts.keys():
        with problems.noted():
            feedback = parts["feedback"] and _blamed(config, "feedback", parts["feedback"])
            uplink = chained(parts["compressor"], parts["then"], feedback)
            parts["compressor"] = uplink and _expected(config, "feedback", uplink, Channel)
    learnt = {}
    for task, place in _places(config).items():
        with problems.noted():
            held_out = 0.0 if task else _held_out(config)
            more = metrics_of(config)
            learnt[task] = _learnt(place, config.seed, held_out, config.validation, more)
    attack = _Attack()
    with problems.noted():
        attack = _attack(config, parts.get("attack"))
    if "strategy" in parts:
        strategy = driver_of(parts["strategy"])
        choice = Combination(
            strategy,
            parts.get("compressor"),
            parts.get("downlink"),
            attack.forging,
            tasks=bool(config.get("tasks")),
            num_clients=config.num_clients,
        )
        problems += refusals(choice)
        problems += _unreported(config, strategy)
        problems += _no_average(config, strategy)
        with problems.noted(), blaming(config, "strategy"):
            strategy.check_clients(config.num_clients)
        with problems.noted(), blaming(config, "strategy"):
            strategy.check_rounds(config.num_rounds)
        for made in learnt.values():  # the client's rule, where it is known before the client
            given = getattr(made.make_app, "keywords", {})
            rule, correction = given.get("rule"), given.get("correction")
            problems += refusals(replace(choice, rule=rule, correction=correction))
    problems.stop()
    return _joined(config, choice, attack, parts, learnt)


def _joined(
    config: DictConfig,
    choice: Combination,
    attack: _Attack,
    parts: Mapping[str, Any],
    learnt: Mapping[str, _Learnt],
) -> Experiment:
    """Returns the experiment of parts that are right by themselves."""
    strategy, told = choice.strategy, train_config_of(config)
    exchange = Exchange(
        choice.uplink,
        choice.downlink,
        byzantine=frozenset(attack.byzantine),
        num_clients=config.num_clients,
        seed=config.seed,
    )
    problems = Problems()
    ends = strategy.ends(choice.uplink, choice.downlink)
    learning = {}
    for task, place in _places(config).items():
        with problems.noted():
            clean, model, least, _, make_app = learnt[task]
            data, backdoored = _poisoned(clean, attack, config, task)
            with blaming(place, "client"):
                app = _app(make_app, model, data, strategy, ends)
            here = replace(
                choice,
                rule=app.optimizer,
                correction=app.correction,
                layout=app.layout,
                keeps=app.home.keeps,
                adapted=place.get("adapter") is not None,
                contacts=app.contact is not None,
            )
            problems += refusals(here)
            with blaming(config, "compressor" if choice.uplink else "downlink"):
                check_model(here, exchange)
            says = check_told(strategy, app, told)
            problems += misjudged(strategy, app, told)
            selection = strategy.selection if isinstance(strategy, Rounds) else None
            if selection is not None and selection.by_accuracy and data.task == "regression":
                problems += [
                    f"selection._target_ is {config.selection._target_}, which goes by clients' "
                    f"accuracy, and {data.name!r} is for regression: choose another selection"
                ]
            with blaming(place, "client"):
                app.check_batches(says, least)
                app.check_steps(says)
            learning[task] = Learning(clean, model, app, backdoored)
    problems.stop()
    layouts = {task: one.app.layout for task, one in learning.items()}
    tasks = learning if config.get("tasks") else {}
    first = next(iter(learning.values()))
    exchange = replace(
        exchange,
        attack=attack.forging,
        layout=layouts.get(""),
        layouts={task: layouts[task] for task in tasks},
        trusted=_trusted(strategy, first, config.seed),
        initial=first.drawn,
    )
    parts_app = None
    if isinstance(strategy, Rounds) and strategy.sub_models is not None:
        with blaming(config, "strategy.sub_models"):
            ways = learnt[""].make_app, ends
            parts_app, exchange = partly(
                strategy.sub_models, first, *ways, parts["fleet"], exchange
            )
    with blaming(config, "strategy"):
        proxy = _proxy(strategy, first, config.seed)
        exchange = replace(exchange, proxy=proxy, public=_public(strategy, first, config.seed))
    with blaming(config, "strategy"):
        within = strategy.within(exchange)
    experiment = Experiment(
        first.data,
        first.model,
        first.app,
        first.backdoored,
        strategy=within,
        fleet=parts["fleet"],
        executor=parts["executor"],
        runtime=parts["runtime"],
        tasks=tasks,
        parts=parts_app,
        ignored={
            **_ignored(strategy, learning, told, asked=config.personal.every is not None),
            **_ignored_average(config),
            **_ignored_turns(config),
            **_ignored_personal(config, any(one.holds_out for one in learnt.values())),
        },
    )
    _check_target(config, experiment, parts["strategy"])
    _check_confusion(config, experiment)
    check_personal(personal_of(config), experiment, config.get("client", {}).get("evaluate_on"))
    if config.initial_model is None:
        return experiment
    return replace(experiment, warm=warm_experiment(experiment, config.initial_model))


def _blamed(config: DictConfig, name: str, make: Callable[..., Any]) -> Any:
    """Returns a function whose errors have the full keys of the part that it makes."""

    def made(*args: Any) -> Any:
        with blaming(config, name):
            return make(*args)

    return made


def _places(config: DictConfig) -> dict[str, DictConfig]:
    """Returns where data, partition, model and client are, by learning task; "" without tasks."""
    tasks = config.get("tasks")
    return {str(name): place for name, place in tasks.items()} if tasks else {"": config}


def _poisoned(
    data: FederatedData, attack: _Attack, config: DictConfig, task: str
) -> tuple[FederatedData, Examples | None]:
    """Returns what clients train on, and held-out examples as a backdoor wants them classified.

    Raises:
        ConfigError: the data cannot be poisoned in this way.
    """
    if task not in attack.poisoning:
        return data, None
    key, poisoning = attack.poisoning[task]
    clients, seed = config.num_clients, config.seed
    try:
        with blaming(config, key):
            dirty = poisoned(data, poisoning, attack.byzantine, clients, seed)
    except ConfigError as error:
        if not task or key.startswith("tasks."):
            raise
        raise ConfigError(
            f"{error} (tasks.{task}). To poison the data of some tasks, or each in its own way, "
            f"choose attack@tasks.NAME.attack=... in the place of attack"
        ) from error
    backdoored = None
    if isinstance(poisoning, Backdoor):
        backdoored = Examples(*poisoning.test_set(data.test.x, data.test.y))
    return dirty, backdoored


def _trusted(strategy: Driver, learning: Learning, seed: int) -> TrustedUpdate | None:
    """Returns what makes the server's own update, for a strategy that wants it."""
    examples = strategy.traits.root_examples
    if examples is None:
        return None
    return TrustedUpdate(learning.app, learning.model, learning.data, examples=examples, seed=seed)


def _proxy(strategy: Driver, learning: Learning, seed: int) -> ProxyLosses | None:
    """Returns the server's own examples of each cluster, for a strategy that wants them."""
    if strategy.traits.proxies is None:
        return None
    k, n = strategy.traits.proxies
    return ProxyLosses(learning.model, learning.data, clusters=k, examples=n, seed=seed)


def _public(strategy: Driver, learning: Learning, seed: int) -> ServerExamples | None:
    """Returns the examples that the server holds itself, for a strategy that learns from them."""
    n = strategy.traits.public_examples
    return ServerExamples(learning.model, learning.data, examples=n, seed=seed) if n else None


def _held_out(config: DictConfig) -> float:
    """Returns the share that clients without held-out examples keep; 0 if it is no share."""
    given = OmegaConf.select(config, "personal.held_out")
    return given if isinstance(given, int | float) and 0 < given < 1 else 0.0


def _learnt(
    place: DictConfig, seed: int, held_out: float, validation: float, metrics: Sequence[str]
) -> _Learnt:
    """Returns what is learnt, from the groups data, partition, model and client.

    Args:
        place: has the groups.
        seed: of the run.
        held_out: share of its examples that a client keeps if it has no held-out ones; 0 is none.
        validation: share of the training examples that takes the place of the test set.
        metrics: that are reported beside those that always are.

    Raises:
        ConfigError: some of them refuse their arguments; or the examples, with this partition and
            model.
    """
    problems, made = Problems(), {}
    for name in ("data", "partition", "model", "client"):
        with problems.noted():
            made[name] = make(place, name)
    with problems.noted():
        made["adapter"] = _made(place, "adapter")
    if "data" in made and "partition" in made:
        with problems.noted():
            with blaming(place, "data"):
                loaded = _expected(place, "data", load(made["data"]), Source)
            if validation:
                loaded = load(partial(_validated, made["data"], validation))
            with blaming(place, "partition"):
                split = _expected(place, "partition", deal(made["partition"], loaded), Split)
                holds_out = split.test is not None
                if not holds_out:
                    split = hold_out(split, held_out, seed)
                data = federate(lambda: loaded, lambda _: split)
            if "model" in made and "adapter" in made:
                shape, classes = data.input_shape, data.num_classes
                model = partial(
                    build_model, made["model"], shape, classes, seed, adapter=made["adapter"]
                )
                adapt = made["adapter"] and _blamed(place, "adapter", made["adapter"])
                with blaming(place, "model"):
                    first = _expected(place, "model", model(adapter=adapt), nn.Module)
                    _check_finite(first)
                    tokens = data.task == "next-token"
                    least = smallest_batch(first, shape, classes, tokens=tokens)
            asked = Measures(data.task, tuple(metrics))
    problems.stop()
    more = [name for name in asked.names if name in metrics]
    client = partial(made["client"], metrics=more) if more else made["client"]
    return _Learnt(data, model, least, holds_out, client)


def _validated(make: Callable[[], Source], share: float) -> Source:
    return validated(load(make), share)


def _check_finite(model: nn.Module) -> None:
    endless = sorted(not_finite(ArrayRecord(model.state_dict())))
    if endless:
        raise ConfigError(
            f"the initial model is not finite in {endless[0]!r}: models are averaged, and an "
            "infinity less another is no number; register_buffer constants such as masks as not "
            "persistent, and they stay out of the state dict"
        )


def _app(
    make_app: Callable[..., TrainingApp],
    model: partial[nn.Module],
    data: FederatedData,
    strategy: Driver,
    ends: tuple[Any, Any],
) -> TrainingApp:
    """Returns what clients run.

    Args:
        make_app: makes it of the rest.
        model: makes the clients' model.
        data: their examples.
        strategy: of the server; where it steps by gradients, clients send directions.
        ends: of their links.
    """
    uplink, downlink = ends
    rule = getattr(make_app, "keywords", {}).get("rule")
    if strategy.traits.sends != "model" and isinstance(rule, Descent):
        make_app = partial(make_app, rule=Direction(rule))
    app = make_app(model=model, data=data, uplink=uplink, downlink=downlink)
    for name in ("round_schedule", "step_schedule"):
        schedule = getattr(app.optimizer, name, None)
        if schedule is not None and not callable(schedule):
            raise ConfigError(
                f"rule.{name} is {schedule}; it must be null, or have a _target_ such as "
                "fl.clients.StepDecay"
            )
    return app


def _made(config: DictConfig, name: str) -> Any:
    made = make(config, name)
    return None if made is None else _expected(config, name, made, _KINDS[name])


def _networked(config: DictConfig, parts: Mapping[str, Any]) -> dict[str, Fleet]:
    """Returns the fleet with the network that is configured; nothing if there is none of the two.

    Raises:
        ConfigError: there is no such network, or not for these clients.
    """
    network, fleet = _made(config, "network"), parts.get("fleet")
    if network is None or fleet is None:
        return {}
    with blaming(config, "network"):
        return {"fleet": replace(fleet, network=network)}


def _expected(config: DictConfig, name: str, made: Any, kind: Any) -> Any:
    """Returns what a part's `_target_` has made.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(made, kind):
        key = config[name]._get_full_key("_target_")
        raise ConfigError(_wrong(key, config[name]._target_, type(made), kind))
    return made


def _of_another_kind(config: DictConfig) -> Iterator[str]:
    """Yields what is wrong with classes that the keys of parts inside of others name."""
    before = {f"preaggregation.{key}": PreAggregation for key in config.get("preaggregation") or ()}
    for key, kind in {**_INSIDE, **before}.items():
        node = OmegaConf.select(config, key)
        if not OmegaConf.is_dict(node) or not isinstance(target := node.get("_target_"), str):
            continue
        try:
            found = _locate(target)
        except Exception:  # told where the part is made
            continue
        if isinstance(found, type) and not issubclass(found, kind):
            yield _wrong(f"{node._get_full_key(None)}._target_", target, found, kind)


def _wrong(key: str, target: str, made: type, kind: Any) -> str:
    kinds = " or ".join(k.__name__ for k in getattr(kind, "__args__", [kind]))
    return f"{key} is {target}, which makes {made.__name__}; it must make {kinds}"


def _attack(config: DictConfig, attack: Attack | Poisoning | Combined | None) -> _Attack:
    """Returns who attacks, and how."""
    poisoning: dict[str, tuple[str, Poisoning]] = {}
    forging = attack if isinstance(attack, Attack) else None
    for task, place in _places(config).items():
        if isinstance(attack, Combined):
            forging = attack.forging
            poisoning[task] = ("attack.poisoning", attack.poisoning)
        elif isinstance(attack, Poisoning):
            poisoning[task] = ("attack", attack)
        if task and place.get("attack") is not None:
            own = make(place, "attack")
            if isinstance(own, Attack | Combined):
                raise ConfigError(
                    f"tasks.{task}.attack._target_ is {place.attack._target_}, which forges what "
                    "clients send, and they send updates of all tasks: choose it by attack=..., "
                    f"and for the data of one task attack@tasks.{task}.attack=label_flip or "
                    "backdoor"
                )
            own = _expected(place, "attack", own, Poisoning)
            poisoning[task] = (f"tasks.{task}.attack", own)
    if attack is None and not poisoning:
        if config.num_byzantine and config.get("attack") is None:
            raise ConfigError(
                f"num_byzantine is {config.num_byzantine}, but there is no attack: choose one, for "
                "example attack=alie, or leave num_byzantine out"
            )
        return _Attack()
    byzantine = byzantine_clients(config.num_clients, config.num_byzantine, config.seed)
    return _Attack(byzantine, poisoning, forging)


def _unreported(config: DictConfig, strategy: Driver) -> Iterator[str]:
    """Yields which metrics a strategy reads that no client of ours reports."""
    there = f"clients report {', '.join(METRICS)}"
    weight = config.strategy.get("weighted_by_key", METRICS[0])
    if weight not in METRICS and not (weight is None and strategy.traits.meets == "ring"):
        yield f"strategy.weighted_by_key is {weight!r}; {there}"
    for name, metric in strategy.metrics.items():
        if metric not in METRICS:
            near = get_close_matches(metric, METRICS, n=1)
            new = "" if name in config.strategy else "+"
            remedy = f": set {new}strategy.{name}={near[0]}" if near else ""
            yield f"strategy.{name} is {metric!r}; {there}{remedy}"
    for name, reader in strategy.readers.items():
        place = canonical(config, f"strategy.{name}")
        keys = OmegaConf.select(config, place) or {}
        for metric in reader.reads:
            if metric not in METRICS:
                said = next((key for key, value in keys.items() if value == metric), None)
                what = f".{said} is" if said else f": {type(reader).__name__} reads the metric"
                yield f"{place}{what} {metric!r}; {there}"


def _no_average(config: DictConfig, strategy: Driver) -> Iterator[str]:
    """Yields that a strategy has not one model, of which `lawa` could evaluate a mean."""
    if not OmegaConf.is_dict(config.lawa) or config.lawa.k is None:
        return
    if config.get("tasks"):
        yield f"lawa.k is {config.lawa.k}, and several tasks are learnt: leave it out, or tasks"
    elif strategy.traits.clusters:
        yield (
            f"lawa.k is {config.lawa.k}, and {strategy.name} has a model for each cluster of "
            "clients: leave it out, or use another strategy"
        )
    elif strategy.traits.meets == "peers":
        yield (
            f"lawa.k is {config.lawa.k}, and with {strategy.name} every node has a model of its "
            "own: leave it out, or use a strategy with a server or with outer steps"
        )


def _ignored(
    strategy: Driver, learning: Mapping[str, Learning], told: ConfigRecord, *, asked: bool
) -> dict[str, str]:
    """Returns keys that have no effect beside the other parts, to what counts instead.

    Args:
        strategy: the server's.
        learning: what is learnt, by task.
        told: what the user has every message say.
        asked: whether clients evaluate, whatever the strategy does.
    """
    ignored = {f"strategy.{name}": why for name, why in strategy.unread.items()}
    for key in told:
        if not any(learnt.app.reads(key) for learnt in learning.values()):
            ignored[f"train_config.{key}"] = "clients of this kind do not read it"
    for task, learnt in learning.items():
        place = f"tasks.{task}.client" if task else "client"
        for name, why in unread_of_clients(strategy, learnt.app, told).items():
            if not (asked and name == "evaluate_on"):
                ignored[f"{place}.{name}"] = why
    return ignored


def _ignored_turns(config: DictConfig) -> dict[str, str]:
    if config.strategy.get("compress_mean"):
        return {}
    return {"compressor*.alternating": "strategy.compress_mean=true reads it"}


def _ignored_average(config: DictConfig) -> dict[str, str]:
    return {} if config.lawa.k is not None else {"lawa.every": "only lawa.k reads it"}


def _ignored_personal(config: DictConfig, holds_out: bool) -> dict[str, str]:
    """Returns the keys of `personal` that others make ineffective.

    Args:
        config: of the run.
        holds_out: whether clients have held-out examples by themselves.
    """
    given, ignored = config.personal, {}
    if holds_out:
        ignored["personal.held_out"] = "clients have held-out examples by their data or partition"
    tuning = ("steps", "epochs", "lr", "lam")
    if given.every is None:
        own = ("clients", "local", "contacts", "rows")
        names = (*own, *(f"fine_tune.{name}" for name in tuning))
        return ignored | {f"personal.{name}": "only personal.every reads it" for name in names}
    if not (given.fine_tune.steps or given.fine_tune.epochs):
        for name in ("lr", "lam"):
            why = "only personal.fine_tune.steps or epochs reads it"
            ignored[f"personal.fine_tune.{name}"] = why
    return ignored


def _check_target(config: DictConfig, experiment: Experiment, strategy: Strategy) -> None:
    """Refuses a target that no evaluation will report.

    Strategies and clients of others may report what they like.
    """
    target = target_of(config)
    parts = (strategy, experiment.app.rule)
    if target is None or not all(type(p).__module__.startswith(("fl.", "flwr.")) for p in parts):
        return
    names: list[str] = []
    for task, learning in (experiment.tasks or {"": experiment}).items():
        if learning.app.home.keeps:
            continue  # nothing is evaluated without the clients' own layers
        own = list(learning.app.measures.names)
        if learning.data.task == "game":
            own = ["relative_error", "loss"]
        if learning.backdoored is not None:
            own.append("attack_success_rate")
        if config.evaluate_train:
            own += ["train_objective", "dissimilarity"]
        names += own + [f"{name}/{task}" for name in own if task]
    if experiment.strategy.traits.meets == "peers":
        score = experiment.app.measures.score
        game = experiment.data.task == "game"
        own = [name for name in NODE_METRICS if not (game and "accuracy" in name)]
        names += [name.replace("accuracy", score) for name in own]
    if experiment.data.clusters is not None:
        names += CLUSTER_METRICS[
            : {"": 1, "one": 2, "mixture": 3}[experiment.strategy.traits.clusters]
        ]
    if config.lawa.k is not None:
        names += [f"latest_{name}" for name in names]
    if config.personal.every is not None:
        names += personal_metrics(
            personal_of(config), experiment.app.measures.more, keeps=experiment.app.home.keeps
        )
    names = list(dict.fromkeys(names))
    if target.metric not in names and not target.metric.startswith(_OF_CLIENTS):
        if not names:
            raise ConfigError(
                f"target.metric is {target.metric!r}, which no evaluation of this run reports, as "
                "client.local_layers stay with the clients, who are not evaluated: choose "
                "goal=personal, which is target.metric=personal_accuracy and more, or target=null"
            )
        near = get_close_matches(target.metric, names, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"target.metric is {target.metric!r}, which no evaluation of this run reports: {meant}"
            f"choose one of {', '.join(names)}, or of what clients report as train_... and "
            "client_..., or target=null"
        )


def _check_confusion(config: DictConfig, experiment: Experiment) -> None:
    """Refuses a confusion matrix where no one model predicts one class of several."""
    if CONFUSION not in metrics_of(config):
        return
    if experiment.tasks or experiment.app.home.keeps:
        why = "several tasks are learnt" if experiment.tasks else "layers stay with the clients"
        raise ConfigError(
            f"metrics has {CONFUSION!r}, and {why}, so there is no one model to count for: leave "
            "it out"
        )


def _check_ends_itself(config: DictConfig) -> None:
    """Raises ConfigError if a target is wrong, or is to end a run that its own app ends."""
    target = target_of(config)
    for name in ("stop", "patience") if target is not None else ():
        if value := getattr(target, name):
            raise ConfigError(
                f"target.{name} is {value!r}, and the app itself says when its run ends: leave it "
                "out"
            )


def _foreign(config: DictConfig) -> ForeignApp:
    problems = Problems()
    problems += absent(config, OF_EVERY_RUN)
    problems.stop()
    problems += not_whole(config, seed=0, num_clients=1, num_partitions=1)
    parts: dict[str, Any] = {"cost_model": None}
    for name in ("fleet", "runtime", "executor", "cost_model"):
        with problems.noted():
            parts[name] = _made(config, name)
    with problems.noted():
        parts |= _networked(config, parts)
    for check in (
        _check_ends_itself,
        saved_models,
        callbacks_of,
        lambda c: recovery_of(c, RunStart()),
    ):
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
