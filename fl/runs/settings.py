"""The plain values of a run's configuration: numbers, counts, the target, what clients are told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from flwr.app import ConfigRecord
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fl.checks import share
from fl.errors import ConfigError
from fl.reports import Callback, Target
from fl.runs.journal import Recovery, RunStart
from fl.runs.making import blaming, make
from fl.runs.personal import FineTuning, Personal
from fl.simulation.world.power import CAP_KEY, asked_cap


def places_of(config: DictConfig) -> dict[str, DictConfig]:
    """Returns where data, partition, model and client are, by learning task; "" without tasks."""
    tasks = config.get("tasks")
    return {str(name): place for name, place in tasks.items()} if tasks else {"": config}


def target_of(config: DictConfig) -> Target | None:
    """Returns the metric value whose cost is reported, if there is one."""
    if config.target is None:
        return None
    with blaming(config, "target"):
        return Target(**config.target)


def metrics_of(config: DictConfig) -> list[str]:
    """Returns the metrics that are reported beside those that always are.

    Raises:
        ConfigError: it is no list of names.
    """
    which: Any = config.metrics
    which = OmegaConf.to_container(which) if OmegaConf.is_config(which) else which
    if not isinstance(which, list) or not all(isinstance(name, str) for name in which):
        raise ConfigError(f"metrics is {which!r}; it must be a list of names, as [f1,auc]")
    twice = [name for name in which if which.count(name) > 1]
    if twice:
        raise ConfigError(
            f"metrics is {which}; {twice[0]!r} is there more than once: leave one out"
        )
    return which


def callbacks_of(config: DictConfig) -> list[Callback]:
    """Returns who is told what the run measures.

    Raises:
        ConfigError: one cannot be made, or is no callback.
    """
    given: Any = config.callbacks
    if not OmegaConf.is_list(given):
        raise ConfigError(
            f"callbacks is {given!r}; it must be a list of what makes one, as "
            "[{_target_: mine.Callback}]"
        )
    made = []
    for i, each in enumerate(given):
        name = f"callbacks[{i}]"
        if not OmegaConf.is_dict(each) or "_target_" not in each:
            raise ConfigError(
                f"{name} is {each!r}, without _target_; it must be as {{_target_: mine.Callback}}"
            )
        with blaming(config, name):
            # Under its name, as Hydra tells the place of a list's entry wrongly.
            alone = OmegaConf.create({name: OmegaConf.to_container(each, resolve=True)})
            callback = instantiate(alone[name], _convert_="all")
            if not isinstance(callback, Callback):
                raise ConfigError(
                    f"_target_ is {each._target_}, which makes a {type(callback).__name__}; it "
                    "must make a fl.reports.Callback"
                )
        made.append(callback)
    return made


def saved_models(config: DictConfig) -> list[str]:
    """Returns which models the run keeps as files.

    Raises:
        ConfigError: a run has no such model, or nothing says which is best.
    """
    which: Any = config.save_models
    which = OmegaConf.to_container(which) if OmegaConf.is_config(which) else which
    known = ("final", "best")
    if not isinstance(which, list) or not all(name in known for name in which):
        raise ConfigError(
            f"save_models is {which!r}; it must be a list of {', '.join(known)}: [] keeps none"
        )
    if "best" in which and config.target is None:
        raise ConfigError(
            "save_models has 'best', and target is null: target.metric and target.mode say by what"
        )
    return which


def train_config_of(config: DictConfig) -> ConfigRecord:
    """Returns what the user has every `train` message say."""
    values: Any = OmegaConf.to_container(config.train_config, resolve=True)
    try:
        if CAP_KEY in values:
            asked_cap(values[CAP_KEY], f"train_config.{CAP_KEY}")
        return ConfigRecord(values)
    except TypeError as error:
        raise ConfigError(
            f"train_config is {values}; every value must be a number, text, or a list of one of "
            "these, as Flower sends no other"
        ) from error


def personal_of(config: DictConfig) -> Personal:
    """Returns which clients' models are evaluated, and when.

    Raises:
        ConfigError: a value is out of range, or keys are missing.
    """
    given: Any = OmegaConf.to_container(config.personal, resolve=True)
    with blaming(config, "personal"):
        try:
            return Personal(**{**given, "fine_tune": FineTuning(**given["fine_tune"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(
                "it must have its keys: personal.every=null evaluates nothing"
            ) from error


def recovery_of(config: DictConfig, start: RunStart) -> Recovery:
    """Returns what keeps the run's journal, if it has one."""
    with blaming(config, "checkpoint"):
        made = make(config, "checkpoint")
        if made is None:
            return Recovery.none(start)
        recovery = made(start=start)
        if not isinstance(recovery, Recovery):
            raise ConfigError(
                f"_target_ is {config.checkpoint._target_}, which makes a "
                f"{type(recovery).__name__}; it must make a Recovery"
            )
        return recovery


def wrong_numbers(config: DictConfig) -> Iterator[str]:
    """Yields what is wrong with the numbers of the root."""
    yield from not_whole(
        config, seed=0, num_clients=1, num_rounds=1, evaluate_every=1, central_epochs=0
    )
    if not OmegaConf.is_dict(config.lawa):
        yield f"lawa is {config.lawa}; it must have its keys: lawa.k=null averages nothing"
    else:
        given = ("every",) if config.lawa.k is None else ("k", "every")
        problems = list(not_whole(config.lawa, **dict.fromkeys(given, 1)))
        yield from (f"lawa.{problem}" for problem in problems)
        rounds, every = config.num_rounds, config.lawa.every
        if (
            config.lawa.k is not None
            and not problems
            and isinstance(rounds, int)
            and rounds < every
        ):
            yield (
                f"lawa.every is {every}, and num_rounds is {rounds}, so no model would count: set "
                f"lawa.every={rounds} or less, or leave lawa.k out"
            )
    try:
        personal_of(config)
    except ConfigError as error:
        yield str(error)
    timeout = config.round_timeout_s
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        yield f"round_timeout_s is {timeout}; it must be a positive, finite number of seconds"
    try:
        share("validation", config.validation)
    except ConfigError as error:
        yield str(error)
    for key in ("evaluate_every_s", "time_limit_s"):
        value = config[key]
        if value is not None and (not isinstance(value, int | float) or not value > 0):
            yield f"{key} is {value}; it must be a positive number of virtual seconds, or null"


_AT_MOST_ALL = ("min_train_nodes", "min_evaluate_nodes")


def wrong_counts(config: DictConfig) -> Iterator[str]:
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


def wrong_cohorts(config: DictConfig) -> Iterator[str]:
    """Yields what takes the clients to be fewer than there are."""
    there = config.num_clients
    for name in ("num_clients", "population"):
        n = OmegaConf.select(config, f"strategy.rule.{name}")
        if isinstance(n, int) and isinstance(there, int) and 0 < n < there:
            yield (
                f"strategy.rule.{name} is {n}, but there are {there} clients, num_clients: leave "
                "it out, or set it to as many or more"
            )
    nodes = OmegaConf.select(config, "topology.num_nodes")
    if isinstance(nodes, int) and isinstance(there, int) and 0 < nodes < there:
        yield (
            f"topology.num_nodes is {nodes}, but there are {there} clients, num_clients, so "
            f"{there - nodes} would have no part in the run: leave it out, or set "
            f"num_clients={nodes}"
        )


def not_whole(config: DictConfig, **least: int) -> Iterator[str]:
    """Yields which keys are no whole numbers of at least so much."""
    for key, bound in least.items():
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            yield f"{key} is {value}; it must be a whole number, at least {bound}"
