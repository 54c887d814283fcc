"""What goes with what: links, clients and attacks that a strategy can work with.

A part by itself refuses arguments that make no sense; here two parts that make none together are
refused, parts that belong together are joined, and it is said which arguments of one part do not
count beside another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fl.attacks import Attack
from fl.checks import read_if
from fl.clients import AdamW, Downlink, Gradient, MicroAdam, Rule, Sgd, TrainingApp, Uplink
from fl.clients.replica import trained_shapes
from fl.compression import Channel, Compressor, Shapes, check_broadcast
from fl.errors import ConfigError
from fl.strategies import (
    Compressed,
    Decentralized,
    Forging,
    Gossip,
    GradientTracking,
    OuterSteps,
    Replicas,
    Rounds,
)
from fl.strategies.drivers.events import EventDriven
from fl.vectors.layout import Layout

read_if(
    lambda a: a["fraction_evaluate"] > 0,
    "min_evaluate_nodes",
    only="clients evaluate only with {at}fraction_evaluate above 0",
)(flower.FedAvg)


@dataclass(frozen=True)
class Links:
    """How models are compressed on their way.

    Attributes:
        ends: uplink and downlink of the clients' app; None sends models as they are.
        uplink: channel that the server's end of the uplink decodes; None if the strategy does it.
        downlink: channel that the server's end of the downlink encodes; likewise.
    """

    ends: tuple[Any, Any]
    uplink: Channel | None = None
    downlink: Channel | None = None

    def around(self, strategy: Strategy, num_clients: int, seed: int, layout: Layout) -> Strategy:
        """Returns the strategy with the server's ends of the links.

        Args:
            strategy: sends and gets ordinary messages.
            num_clients: clients there are.
            seed: of the downlink.
            layout: of the clients' model.
        """
        if self.uplink is None and self.downlink is None:
            return strategy
        return Compressed(
            strategy,
            self.uplink,
            self.downlink,
            num_clients=num_clients,
            seed=seed,
            layout=layout,
        )


def links_of(strategy: Strategy, uplink: Channel | None, downlink: Channel | None) -> Links:
    """Returns the links of a strategy; one that compresses by itself is given the channel.

    Raises:
        ConfigError: the strategy cannot work with the channels.
    """
    if isinstance(strategy, Replicas):
        if uplink is not None or downlink is not None:
            raise ConfigError(
                "this strategy compresses both ways itself: leave compressor and downlink out"
            )
        return Links((strategy.worker, strategy.worker))
    if isinstance(strategy, Decentralized) and (uplink is not None or downlink is not None):
        raise ConfigError(
            f"compressor or downlink is set, but with {type(strategy).__name__} nodes send to each "
            "other, not to a server: use strategy=choco compressor@strategy.compressor=..., or "
            "leave them out"
        )
    if isinstance(strategy, OuterSteps):
        if downlink is not None:
            raise ConfigError(
                "this strategy's workers meet in an all-reduce, with the same bytes both ways: "
                "choose compressor=..., which quantises outer gradients, and leave downlink out"
            )
        if uplink is not None and not isinstance(uplink, Compressor):
            raise ConfigError(
                f"compressor is {type(uplink).__name__}, which keeps a state at the receiver; "
                "outer gradients take one without memory: bf16, fp8_e4m3, e3m0, int8"
            )
        strategy.quantiser = uplink
        return Links((strategy.worker, strategy.worker))
    ends = uplink and Uplink(uplink), downlink and Downlink(downlink)
    return Links(ends, uplink, downlink)


def check_clients(strategy: Strategy, app: TrainingApp, links: Links) -> None:
    """Checks that a strategy can work with what its clients do.

    Raises:
        ConfigError: it cannot.
    """
    stepping = isinstance(strategy, Replicas | GradientTracking) or (
        isinstance(strategy, OuterSteps) and strategy.sends_gradients
    )
    if isinstance(app.rule, Gradient) != stepping:
        raise ConfigError(
            "client=gradient sends gradients, and strategy=onebit_adam, demo, just_one_byte, "
            "gradient_tracking or data_parallel steps by them: use one with the other"
        )
    _check_vectors(strategy, app)
    if stepping or (isinstance(strategy, Decentralized) and strategy.needs):
        trained_shapes(app.layout)
    if isinstance(strategy, OuterSteps):
        strategy.cut(app.layout)
        _check_memory(app.optimizer)
    if links.downlink is not None:
        check_broadcast(links.downlink, Shapes.of(app.layout))


_TOLD_BY_FLOWER: Mapping[type, Mapping[str, str]] = {
    flower.FedProx: {"proximal-mu": "proximal_mu"},
}


def name_of(strategy: Strategy) -> str:
    """Returns what a strategy is called in messages: by its rule, if it drives one."""
    return str(getattr(strategy, "name", type(strategy).__name__))


def told_by(strategy: Strategy) -> dict[str, tuple[str, Any]]:
    """Returns what a strategy writes into the configuration of every `train` message.

    Ours say so in their attribute `tells`, from the key of the message to the strategy's argument
    or to a constant; those driven by events also in `EventDriven.config`.

    Returns:
        Key of the message to (argument, value); the argument of a constant is "". An argument that
        is None tells nothing.
    """
    tells: dict[str, Any] = dict(getattr(strategy, "tells", {}))
    for kind, more in _TOLD_BY_FLOWER.items():
        if isinstance(strategy, kind):
            tells |= more
    told = {
        key: (source, attrgetter(source)(strategy)) if isinstance(source, str) else ("", source)
        for key, source in tells.items()
    }
    told = {key: (argument, value) for key, (argument, value) in told.items() if value is not None}
    if isinstance(strategy, EventDriven):
        told |= {key: ("", value) for key, value in strategy.config().items() if key not in told}
    return told


def check_told(
    strategy: Strategy, app: TrainingApp, train_config: Mapping[str, Any]
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
    alone = {**dict.fromkeys(app.rule.requires, 1.0), **train_config}
    for teller, config in (("train_config", alone), (name_of(strategy), told)):
        try:
            app.check_config(config)
        except ConfigError as error:
            raise ConfigError(f"{teller} tells clients what they refuse: {error}") from error
    return told


def unread_of_clients(
    strategy: Strategy, app: TrainingApp, train_config: Mapping[str, Any]
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


def unread_of_server(strategy: Strategy) -> dict[str, str]:
    """Returns the keys of a strategy that its other parts make ineffective, and why."""
    unread: dict[str, str] = {}
    if isinstance(strategy, Rounds):
        name = strategy.aggregator.name
        if not strategy.wants_own_update:
            unread["strategy.root_examples"] = f"{name} does without an own update"
        if not strategy.aggregator.has_f:
            unread["strategy.f"] = f"{name} has no number of Byzantine clients"
    return unread


def asks_clients_to_evaluate(strategy: Strategy) -> bool:
    """Returns whether a strategy sends `evaluate` messages."""
    known = getattr(strategy, "evaluates_on_clients", None)
    return bool(getattr(strategy, "fraction_evaluate", 0.0)) if known is None else bool(known)


def _check_vectors(strategy: Strategy, app: TrainingApp) -> None:
    """Refuses server and clients that do not send each other the vectors that they need."""
    if not isinstance(strategy, EventDriven | Decentralized | OuterSteps | Replicas):
        return  # anybody's strategy may send what it likes
    kind, rule = name_of(strategy), app.rule
    part = "correction" if app.correction else "rule"
    client = type(app.correction or rule).__name__
    sends: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    if isinstance(strategy, EventDriven):
        sends, needs = strategy.carries, strategy.needs
    if lacking := set(rule.needs) - set(sends):
        raise ConfigError(
            f"client.{part} is {client}, which needs the vector {min(lacking)!r} from the server, "
            f"and {kind} does not send it: leave it out, or use strategy=scaffold"
        )
    if lacking := set(needs) - set(rule.uploads):
        raise ConfigError(
            f"{kind} needs the vector {min(lacking)!r} from clients, and client.{part} is "
            f"{client}, which does not send it: set client/correction=control_variates"
        )


def _check_memory(rule: Rule) -> None:
    """Refuses rules that forget between the tasks that a phase of inner steps is made of."""
    remedy = None
    if isinstance(rule, AdamW) and rule.keep_moments is False:
        remedy = "leave client.rule.keep_moments at null"
    if isinstance(rule, MicroAdam) and rule.keep_state is False:
        remedy = "leave client.rule.keep_state at null"
    if isinstance(rule, Sgd) and rule.momentum:
        remedy = "use client=momentum, whose momentum is kept, or set client.rule.momentum=0"
    if remedy is not None:
        raise ConfigError(
            f"client is {type(rule).__name__}, which forgets its moments after every task, and "
            f"workers of this strategy go on from where they were: {remedy}"
        )


def join_attack(
    strategy: Strategy,
    attack: Attack | None,
    byzantine: Sequence[int],
    links: Links,
    *,
    num_clients: int,
    seed: int,
    layout: Layout,
) -> None:
    """Tells a strategy which of its clients forge what they send.

    Args:
        strategy: is told who is Byzantine where it measures honest clients only.
        attack: None forges nothing.
        byzantine: indices of the Byzantine clients.
        links: of the strategy.
        num_clients: clients there are.
        seed: of the attack.
        layout: of the clients' model.

    Raises:
        ConfigError: there is nothing in this strategy that the attack could forge.
    """
    if isinstance(strategy, Decentralized):
        strategy.byzantine = frozenset(byzantine)
    if attack is None:
        return
    if isinstance(strategy, Gossip):
        strategy.attacked_by(attack, byzantine)
        return
    if isinstance(strategy, EventDriven):
        if attack.knowledge == "aggregation" and not isinstance(strategy, Rounds):
            raise ConfigError(
                f"{type(attack).__name__} searches against the server's aggregator, and "
                f"{name_of(strategy)} has none: use a strategy with rounds, or an attack "
                "that does not know the aggregator"
            )
        uplink = links.uplink if links.ends[0] is not None else None
        strategy.forging = Forging(
            attack, byzantine, seed=seed, uplink=uplink, num_clients=num_clients, layout=layout
        )
        return
    if isinstance(strategy, Decentralized):
        raise ConfigError(
            f"attack is set, but {type(strategy).__name__} has no rounds whose models could be "
            "forged: use strategy=monna, dfedavg or dpsgd, or an attack on data (label_flip, "
            "backdoor)"
        )
    if isinstance(strategy, OuterSteps):
        raise ConfigError(
            "attack is set, and this strategy has no server that collects updates for it to "
            "forge: leave it out, or use an attack on data (label_flip, backdoor)"
        )
    raise ConfigError(
        f"attack is set, and {type(strategy).__name__} gives nobody a way to its updates: use a "
        "strategy of fl, or an attack on data (label_flip, backdoor)"
    )
