"""From a configuration to a run's parts: built, checked by themselves and together.

Nothing is trained and no process is started. What is wrong is told together, as far as it can be
seen at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from fl.clients import Descent, Direction, PartialApp, StageApp, TrainingApp
from fl.clients.app.merging import By
from fl.clients.app.replica import trained_shapes
from fl.compression import Channel, chained
from fl.data import FederatedData
from fl.data.loading import loading_once
from fl.errors import ConfigError
from fl.runs.apps import read_app
from fl.runs.attacked import Attackers, attackers, poisoned_data
from fl.runs.combination import Combination
from fl.runs.compatibility import check_model, refusals
from fl.runs.configuration import Given
from fl.runs.experiment import Experiment, ForeignApp, Learning, app_of
from fl.runs.ignored import (
    ignored,
    ignored_average,
    ignored_personal,
    ignored_servers,
    ignored_turns,
)
from fl.runs.journal import RunStart
from fl.runs.kinds import blamed, equipped, expected, of_another_kind, part_made
from fl.runs.learnt import Learnt, held_out_share, learnt_at
from fl.runs.making import OF_EVERY_RUN, OF_OUR_RUNS, Problems, absent, blaming, referable
from fl.runs.partly import partly
from fl.runs.personal import check_personal
from fl.runs.reported import (
    check_confusion,
    check_ends_itself,
    check_target,
    no_average,
    unreported,
)
from fl.runs.settings import (
    callbacks_of,
    metrics_of,
    not_whole,
    personal_of,
    places_of,
    recovery_of,
    saved_models,
    target_of,
    train_config_of,
    wrong_cohorts,
    wrong_counts,
    wrong_numbers,
)
from fl.runs.simulator import epoch_of
from fl.runs.staged import staged
from fl.runs.told import check_told, misjudged
from fl.runs.transcript import shown_once
from fl.runs.unread import (
    OF_A_TASK,
    Unread,
    referred_to,
    scalar_references,
    unread_below,
    unread_groups,
)
from fl.runs.warm_start import warm_experiment
from fl.strategies import (
    Driver,
    Exchange,
    Pipeline,
    ProxyLosses,
    Rounds,
    ServerExamples,
    TrustedUpdate,
    driver_of,
)
from fl.submodels import Units

_OURS = (
    "strategy",
    "fleet",
    "hierarchy",
    "runtime",
    "executor",
    "compressor",
    "then",
    "feedback",
    "downlink",
    "attack",
)


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
    for place in places_of(config).values():
        problems += absent(place, [name for name in OF_A_TASK if name != "adapter"])
    problems.stop()
    problems += unread_groups(config)
    problems += Unread(config).of_no_task()
    problems += wrong_numbers(config)
    problems += wrong_counts(config)
    problems += wrong_cohorts(config)
    places = {"": config, **places_of(config)}.values()
    if wrong := [message for place in places for message in of_another_kind(place)]:
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
            parts[name] = part_made(config, name)
    with problems.noted():
        parts |= equipped(config, parts)
    if parts.get("hierarchy") is not None and parts.get("fleet") is not None:
        with problems.noted(), blaming(config, "hierarchy"):
            parts["hierarchy"].attached(parts["fleet"])
    if {"compressor", "then", "feedback"} <= parts.keys():
        with problems.noted():
            feedback = parts["feedback"] and blamed(config, "feedback", parts["feedback"])
            uplink = chained(parts["compressor"], parts["then"], feedback)
            parts["compressor"] = uplink and expected(config, "feedback", uplink, Channel)
    learnt = {}
    for task, place in places_of(config).items():
        with problems.noted():
            held_out = 0.0 if task else held_out_share(config)
            more = metrics_of(config)
            learnt[task] = learnt_at(place, config.seed, held_out, config.validation, more)
    attack = Attackers()
    with problems.noted():
        attack = attackers(config, parts.get("attack"))
    if "strategy" in parts:
        strategy = driver_of(parts["strategy"])
        choice = Combination(
            strategy,
            parts.get("compressor"),
            parts.get("downlink"),
            attack.forging,
            tasks=bool(config.get("tasks")),
            hierarchy=parts.get("hierarchy"),
            num_clients=config.num_clients,
        )
        problems += refusals(choice)
        problems += unreported(config, strategy)
        problems += no_average(config, strategy)
        with problems.noted(), blaming(config, "strategy"):
            strategy.check_clients(config.num_clients)
        with problems.noted(), blaming(config, "strategy"):
            strategy.check_rounds(config.num_rounds)
        if "runtime" in parts:
            with problems.noted(), blaming(config, "strategy"):
                strategy.check_answers(parts["runtime"].answer_s)
        for made in learnt.values():  # the client's rule, where it is known before the client
            given = getattr(made.make_app, "keywords", {})
            rule, correction = given.get("rule"), given.get("correction")
            problems += refusals(replace(choice, rule=rule, correction=correction))
    problems.stop()
    return _joined(config, choice, attack, parts, learnt)


def _joined(
    config: DictConfig,
    choice: Combination,
    attack: Attackers,
    parts: Mapping[str, Any],
    learnt: Mapping[str, Learnt],
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
    for task, place in places_of(config).items():
        with problems.noted():
            clean, model, least, _, make_app = learnt[task]
            data, backdoored = poisoned_data(clean, attack, config, task)
            with blaming(place, "client"):
                app = _app(make_app, model, data, strategy, ends)
            here = replace(
                choice,
                rule=app.optimizer,
                correction=app.correction,
                estimator=app.estimator,
                layout=app.layout,
                keeps=app.home.keeps,
                adapted=place.get("adapter") is not None,
                contacts=app.contact is not None,
            )
            problems += refusals(here)
            if here.steps_by_gradients:
                with blaming(place, "model"):
                    trained_shapes(app.layout)
            with blaming(config, "compressor" if choice.uplink else "downlink"):
                check_model(here, exchange)
            says = check_told(strategy, app, told)
            problems += misjudged(strategy, app, told)
            if isinstance(strategy, Rounds) and strategy.rule.prunes and not app.learns:
                problems += [
                    f"client.train is false, and how much is sent with {strategy.name} hangs on "
                    "what is learnt: leave it out, or choose another strategy"
                ]
            if app.learns and not strategy.traits.learns:
                problems += [
                    f"client.train is true, but {strategy.name} trains nothing, and passes the "
                    "time of stages that its configuration declares: set client.train=false"
                ]
            selection = strategy.selection if isinstance(strategy, Rounds) else None
            if selection is not None and selection.by_accuracy and data.task == "regression":
                problems += [
                    f"selection._target_ is {config.selection._target_}, which goes by clients' "
                    f"accuracy, and {data.name!r} is for regression: choose another selection"
                ]
            if selection is not None and selection.by_charge and parts["fleet"].battery is None:
                problems += [
                    f"selection._target_ is {config.selection._target_}, which goes by the charge "
                    "of clients' batteries, and there are none: set battery=phone, for example, or "
                    "choose another selection"
                ]
            with problems.noted(), blaming(place, "partition"):
                strategy.check_partitions(data.partitions)
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
    if strategy.traits.merges:
        with blaming(config, "model"):
            exchange = replace(exchange, units=_matched(first.app, strategy.traits.merges))
    parts_app: PartialApp | StageApp | None = None
    if isinstance(strategy, Rounds) and strategy.sub_models is not None:
        with blaming(config, "strategy.sub_models"):
            ways = learnt[""].make_app, ends
            parts_app, exchange = partly(
                strategy.sub_models, first, *ways, parts["fleet"], exchange
            )
    if isinstance(strategy, Pipeline):
        with blaming(config, "strategy"):
            parts_app, exchange = staged(strategy, first, told, parts["fleet"], exchange)
    with blaming(config, "strategy"):
        proxy = _proxy(strategy, first, config.seed)
        exchange = replace(exchange, proxy=proxy, public=_public(strategy, first, config.seed))
    with blaming(config, "strategy"):
        within = strategy.within(exchange)
    fleet, runtime = parts["fleet"], parts["runtime"]
    if strategy.traits.regional and not (runtime and runtime.relayed):
        with blaming(config, "network"):
            fleet = fleet.with_servers_at_sites()
    experiment = Experiment(
        first.data,
        first.model,
        first.app,
        first.backdoored,
        strategy=within,
        fleet=fleet,
        executor=parts["executor"],
        runtime=parts["runtime"],
        hierarchy=parts["hierarchy"],
        tasks=tasks,
        parts=parts_app,
        ignored={
            **ignored(
                strategy,
                learning,
                told,
                asked=config.personal.every is not None,
                powered=fleet.power is not None,
            ),
            **ignored_average(config),
            **ignored_turns(config),
            **ignored_servers(strategy),
            **ignored_personal(config, any(one.holds_out for one in learnt.values())),
        },
    )
    check_target(config, experiment, parts["strategy"])
    check_confusion(config, experiment)
    check_personal(personal_of(config), experiment, config.get("client", {}).get("evaluate_on"))
    if config.initial_model is None:
        return experiment
    return replace(experiment, warm=warm_experiment(experiment, config.initial_model))


def _matched(app: TrainingApp, by: By) -> Sequence[Units]:
    """Returns the units that clients match when they merge models; none if they match none.

    Raises:
        ConfigError: those of the model cannot be matched so.
    """
    app.merger.check(by)
    return app.merger.units if by != "order" else ()


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


def _foreign(config: DictConfig) -> ForeignApp:
    problems = Problems()
    problems += absent(config, OF_EVERY_RUN)
    problems.stop()
    problems += not_whole(config, seed=0, num_clients=1, num_partitions=1)
    parts: dict[str, Any] = {"cost_model": None}
    for name in ("fleet", "runtime", "executor", "cost_model"):
        with problems.noted():
            parts[name] = part_made(config, name)
    with problems.noted():
        parts |= equipped(config, parts)
    for check in (
        check_ends_itself,
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
