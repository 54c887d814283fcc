"""What a strategy's messages tell clients: whether they can do it, and what then does not count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from fl.clients import Direction, TrainingApp
from fl.errors import ConfigError
from fl.strategies import Driver


def check_told(
    strategy: Driver, app: TrainingApp, train_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Checks that clients can do what the messages are going to tell them, and returns that.

    Args:
        strategy: what it adds to the messages is known from `Driver.told`.
        app: the clients' app.
        train_config: what the user has every message say.

    Raises:
        ConfigError: they cannot.
    """
    told = {key: value for key, (_, value) in strategy.told().items()}
    told = {**train_config, **told}
    alone = {**dict.fromkeys(app.rule.requires, 1.0), **train_config}
    for teller, config in (("train_config", alone), (strategy.name, told)):
        try:
            app.check_config(config)
        except ConfigError as error:
            raise ConfigError(f"{teller} tells clients what they refuse: {error}") from error
    return told


def misjudged(strategy: Driver, app: TrainingApp, train_config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a strategy takes to be the clients' and is not.

    Clients of others may have it under another name.
    """
    parts = {"rule": app.optimizer, "correction": app.correction}
    ours = all(p is None or type(p).__module__.startswith("fl.") for p in parts.values())
    for key, argument in strategy.assumes.items():
        believed = attrgetter(argument)(strategy)
        if key in train_config:
            actual, where = train_config[key], f"train_config.{key}"
        elif names := app.replaced_by(key):
            part, _, name = names[0].partition(".")
            actual, where = getattr(parts[part], name), f"client.{names[0]}"
        elif ours:
            actual, where = 0.0, ""
        else:
            continue
        if believed != actual:
            there = f"{where} is {actual}" if where else "the clients have no such term"
            yield (
                f"strategy.{argument} is {believed}, but {there}, and {strategy.name} steps by "
                f"what clients do: set strategy.{argument}={actual}"
            )


def unread_of_clients(
    strategy: Driver, app: TrainingApp, train_config: Mapping[str, Any]
) -> dict[str, str]:
    """Returns a client's arguments that do not count, as messages say otherwise, and what does.

    Args:
        strategy: the server's.
        app: the clients'; the names are those of its arguments, `rule.lr` of its rule's.
        train_config: what the user has every message say.
    """
    unread: dict[str, str] = {}
    for key in train_config:
        for name in app.replaced_by(key):
            unread[name] = f"train_config.{key} counts instead"
    for key, (argument, value) in strategy.told().items():
        for name in app.replaced_by(key):
            if argument:
                unread[name] = f"with {strategy.name}, strategy.{argument} counts instead"
            else:
                unread[name] = f"{strategy.name} tells clients {key} {value}"
    if strategy.traits.meets == "stages":
        for name in ("local_steps", "local_epochs", "drop_last", "batching"):
            unread[name] = f"with {strategy.name}, a step has strategy.micro_batches micro-batches"
        unread["rule.clip_norm"] = f"with {strategy.name}, strategy.rule.clip_norm clips stages"
    if isinstance(app.rule, Direction):
        for name in ("lr", "round_schedule", "step_schedule"):
            unread[f"rule.{name}"] = f"with {strategy.name}, clients take no steps"
    if not strategy.evaluates_on_clients:
        unread["evaluate_on"] = (
            f"{strategy.name}, as it is configured, does not have clients evaluate"
        )
    return unread
