"""What goes with what: links, clients and attacks that a strategy can work with.

A part by itself refuses arguments that make no sense; here two parts that make none together are
refused, parts that belong together are joined, and it is said which arguments of one part do not
count beside another.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from flwr.serverapp import strategy as flower

from fl.attacks import Attack
from fl.checks import read_if
from fl.clients import AdamW, Gradient, Rule, Sgd, TrainingApp
from fl.clients.replica import trained_shapes
from fl.compression import Shapes, check_broadcast
from fl.errors import ConfigError
from fl.strategies import Driver, Exchange, Foreign, Rounds
from fl.strategies.drivers.events import EventDriven

read_if(
    lambda a: a["fraction_evaluate"] > 0,
    "min_evaluate_nodes",
    only="clients evaluate only with {at}fraction_evaluate above 0",
)(flower.FedAvg)


def check_exchange(strategy: Driver, exchange: Exchange, attack: Attack | None) -> None:
    """Checks that a strategy can work with what comes between it and its clients.

    Raises:
        ConfigError: it cannot.
    """
    traits = strategy.traits
    uplink, downlink = exchange.uplink, exchange.downlink
    if traits.sends == "payload" and (uplink is not None or downlink is not None):
        raise ConfigError(
            "this strategy compresses both ways itself: leave compressor and downlink out"
        )
    if traits.meets == "peers" and (
        downlink is not None or (uplink is not None and traits.compressors == "none")
    ):
        raise ConfigError(
            f"compressor or downlink is set, but with {type(strategy).__name__} nodes send to each "
            "other, not to a server: use strategy=choco compressor@strategy.compressor=..., or "
            "leave them out"
        )
    if traits.meets == "ring" and downlink is not None:
        raise ConfigError(
            "this strategy's workers meet in an all-reduce, with the same bytes both ways: "
            "choose compressor=..., which quantises outer gradients, and leave downlink out"
        )
    if attack is None:
        return
    if not traits.forges:
        raise ConfigError(
            _NOT_FORGED[traits.meets if traits.known else "unknown"].format(name=name_of(strategy))
        )
    if attack.knowledge == "aggregation" and not traits.aggregates and traits.meets == "server":
        raise ConfigError(
            f"{type(attack).__name__} searches against the server's aggregator, and "
            f"{name_of(strategy)} has none: use a strategy with rounds, or an attack "
            "that does not know the aggregator"
        )


_NOT_FORGED = {
    "peers": (
        "attack is set, but {name} has no rounds whose models could be forged: use strategy=monna, "
        "dfedavg or dpsgd, or an attack on data (label_flip, backdoor)"
    ),
    "ring": (
        "attack is set, and this strategy has no server that collects updates for it to forge: "
        "leave it out, or use an attack on data (label_flip, backdoor)"
    ),
    "server": (
        "attack is set, and {name} gives nobody a way to its updates: use another strategy, or an "
        "attack on data (label_flip, backdoor)"
    ),
    "unknown": (
        "attack is set, and {name} gives nobody a way to its updates: use a strategy of fl, or an "
        "attack on data (label_flip, backdoor)"
    ),
}


def check_clients(strategy: Driver, app: TrainingApp, exchange: Exchange) -> None:
    """Checks that a strategy can work with what its clients do.

    Raises:
        ConfigError: it cannot.
    """
    traits = strategy.traits
    stepping = traits.sends == "gradient" or traits.sends == "payload"
    if isinstance(app.rule, Gradient) != stepping:
        raise ConfigError(
            "client=gradient sends gradients, and strategy=onebit_adam, demo, just_one_byte, "
            "gradient_tracking or data_parallel steps by them: use one with the other"
        )
    _check_vectors(strategy, app.rule)
    if stepping:
        trained_shapes(app.layout)
    if traits.continues:
        _check_memory(app.rule)
    if exchange.downlink is not None:
        check_broadcast(exchange.downlink, Shapes.of(app.layout))


_TOLD_BY_FLOWER: Mapping[type, Mapping[str, str]] = {
    flower.FedProx: {"proximal-mu": "proximal_mu"},
}


def name_of(strategy: Driver) -> str:
    """Returns what a strategy is called in messages: by its rule, if it drives one."""
    inner = strategy.inner if isinstance(strategy, Foreign) else strategy
    return str(getattr(inner, "name", type(inner).__name__))


def told_by(strategy: Driver) -> dict[str, tuple[str, Any]]:
    """Returns what a strategy writes into the configuration of every `train` message.

    Ours say so in their attribute `tells`, from the key of the message to the strategy's argument
    or to a constant; those driven by events also in `EventDriven.config`.

    Returns:
        Key of the message to (argument, value); the argument of a constant is "". An argument that
        is None tells nothing.
    """
    inner = strategy.inner if isinstance(strategy, Foreign) else strategy
    tells: dict[str, Any] = dict(getattr(inner, "tells", {}))
    for kind, more in _TOLD_BY_FLOWER.items():
        if isinstance(inner, kind):
            tells |= more
    told = {
        key: (source, attrgetter(source)(inner)) if isinstance(source, str) else ("", source)
        for key, source in tells.items()
    }
    told = {key: (argument, value) for key, (argument, value) in told.items() if value is not None}
    if isinstance(strategy, EventDriven):
        told |= {key: ("", value) for key, value in strategy.config().items() if key not in told}
    return told


def check_told(
    strategy: Driver, app: TrainingApp, train_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Checks that clients can do what the messages are going to tell them, and returns that.

    Args:
        strategy: what it adds to the messages is known from `told_by`.
        app: the clients' app.
        train_config: what the user has every message say.

    Raises:
        ConfigError: they cannot.
    """
    told = {key: value for key, (_, value) in told_by(strategy).items()}
    told = {**train_config, **told}
    for teller, config in (("train_config", train_config), (name_of(strategy), told)):
        try:
            app.check_config(config)
        except ConfigError as error:
            raise ConfigError(f"{teller} tells clients what they refuse: {error}") from error
    return told


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
    kind = name_of(strategy)
    for key, (argument, value) in told_by(strategy).items():
        for name in app.replaced_by(key):
            if argument:
                unread[name] = f"with {kind}, strategy.{argument} counts instead"
            else:
                unread[name] = f"{kind} tells clients {key} {value}"
    if not asks_clients_to_evaluate(strategy):
        unread["evaluate_on"] = f"{kind}, as it is configured, does not have clients evaluate"
    return unread


def unread_of_server(strategy: Driver) -> dict[str, str]:
    """Returns the keys of a strategy that its other parts make ineffective, and why."""
    unread: dict[str, str] = {}
    if isinstance(strategy, Rounds):
        name = strategy.aggregator.name
        if not strategy.wants_own_update:
            unread["strategy.root_examples"] = f"{name} does without an own update"
        if not strategy.aggregator.has_f:
            unread["strategy.f"] = f"{name} has no number of Byzantine clients"
    return unread


def asks_clients_to_evaluate(strategy: Driver) -> bool:
    """Returns whether a strategy sends `evaluate` messages."""
    inner = strategy.inner if isinstance(strategy, Foreign) else strategy
    known = getattr(inner, "evaluates_on_clients", None)
    return bool(getattr(inner, "fraction_evaluate", 0.0)) if known is None else bool(known)


def _check_vectors(strategy: Driver, rule: Rule) -> None:
    """Refuses server and clients that do not send each other the vectors that they need."""
    traits = strategy.traits
    if not traits.known:
        return
    kind, client = name_of(strategy), type(rule).__name__
    sends, needs = traits.carries, traits.needs
    if lacking := set(rule.needs) - set(sends):
        raise ConfigError(
            f"client.rule is {client}, which needs the vector {min(lacking)!r} from the server, "
            f"and {kind} does not send it: use strategy=scaffold, or another client"
        )
    if lacking := set(needs) - set(rule.uploads):
        raise ConfigError(
            f"{kind} needs the vector {min(lacking)!r} from clients, and client.rule is {client}, "
            "which does not send it: use client=scaffold, or another strategy"
        )


def _check_memory(rule: Rule) -> None:
    """Refuses rules that forget between the tasks that a phase of inner steps is made of."""
    remedy = None
    if isinstance(rule, AdamW) and not rule.keep_moments:
        remedy = "set client.rule.keep_moments=true, or use client=inner_adamw"
    if isinstance(rule, Sgd) and rule.momentum:
        remedy = "use client=momentum, whose momentum is kept, or set client.rule.momentum=0"
    if remedy is not None:
        raise ConfigError(
            f"client is {type(rule).__name__}, which forgets its moments after every task, and "
            f"workers of this strategy go on from where they were: {remedy}"
        )
