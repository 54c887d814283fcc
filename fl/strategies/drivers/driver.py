"""What the strategies of this project have in common: what they are, and what they run within."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Literal, Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.checks import at_least, is_a, positive
from fl.clients import Downlink, Rule, Uplink
from fl.compression import Channel
from fl.data import Partitions
from fl.errors import ConfigError
from fl.strategies.drivers.exchange import Exchange

log = logging.getLogger("fl")


@dataclass(frozen=True)
class Traits:
    """What a strategy is, for whoever decides what goes with it.

    Attributes:
        meets: whom a client exchanges with: a server, its neighbours, all others in a ring, or the
            machines of the stages before and after its own.
        sends: what a client sends: a model it has trained, a gradient of the loss, or the payload
            of a method that compresses by itself.
        combinations: whether what a client sends is a linear combination that only the server can
            undo, together with those of others.
        compressors: whether any of them carries what clients send, or none.
        downlink: whether a compressor carries what they receive.
        topology: whether there is one.
        several_models: whether it trains several at once.
        clusters: whether it has a model for each of several clusters of clients, and a client uses
            "one" of them or a "mixture"; "" if not.
        interrupts: whether the server ends a client's local work when it likes.
        customises: whether clients contact it one by one, and each is sent a model of its own.
        regional: whether each site has a server, which its clients meet, below a global one.
        continues: whether a client's tasks are one training, each going on where the last ended.
        root_examples: how many examples the server holds itself, for an aggregator that wants its
            update; None if it does not.
        proxies: sets of labelled examples that the server holds, one for each cluster, and how many
            are in each; None if it has none.
        public_examples: labelled examples that the server holds and learns from; 0 is none.
        carries: vectors beside the model in messages, by name.
        needs: vectors beside the model in replies.
        exact: those of both that are not compressed.
        partial: whether clients hold parts of the model: "" all of it, "stays" a part that is the
            same in all rounds, "changes" another from round to round.
        of_adapters: whether these are parts of adapters beside frozen weights.
        client_rule: that the server is for; None is any.
        sums: whether what is made of what clients send in a round is a weighted mean, which may be
            added up on the way.
        aggregator: name of what looks at each of the updates of a step by itself; "" is a mean.
        edges: edge servers that it is for, each with a model of its own between sums of all; 0 is
            none.
        alone: whether there is nobody to send to.
        merges: how clients match the units of models that they merge, as `fl.clients.app.merging`
            has it; "" if they merge none.
        learns: whether models are trained; without, it is time alone that passes.
        known: whether all this is known; anybody's strategy may send what it likes.
    """

    meets: Literal["server", "peers", "ring", "stages"] = "server"
    sends: Literal["model", "gradient", "payload"] = "model"
    combinations: bool = False
    compressors: Literal["none", "any"] = "any"
    downlink: bool = True
    topology: bool = False
    several_models: bool = False
    clusters: Literal["", "one", "mixture"] = ""
    interrupts: bool = False
    customises: bool = False
    regional: bool = False
    continues: bool = False
    root_examples: int | None = None
    proxies: tuple[int, int] | None = None
    public_examples: int = 0
    carries: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    partial: Literal["", "stays", "changes"] = ""
    of_adapters: bool = False
    client_rule: type[Rule] | None = None
    sums: bool = False
    aggregator: str = ""
    edges: int = 0
    alone: bool = False
    merges: Literal["", "activations", "weights", "order"] = ""
    learns: bool = True
    known: bool = True

    @property
    def compressed_carries(self) -> tuple[str, ...]:
        """Vectors beside the model that a downlink compresses."""
        return self._compressed(self.carries)

    @property
    def compressed_needs(self) -> tuple[str, ...]:
        """Vectors beside the model that an uplink compresses."""
        return self._compressed(self.needs)

    def _compressed(self, names: tuple[str, ...]) -> tuple[str, ...]:
        # What peers compute beside the model does not travel by itself.
        return tuple(n for n in names if n not in self.exact) if self.meets == "server" else ()


class Driver(Strategy):
    """A strategy of this project.

    Most have a `start` of their own; who drives one in rounds by Flower's methods instead is told.

    Attributes:
        reads_timeout: whether the `timeout` of `start` says how long a client may take. Methods in
            which clients answer at any time do not read it: see `fl.strategies.drivers.patience`.
        exchange: what comes between it and its clients.
    """

    reads_timeout: ClassVar[bool] = False
    exchange: Exchange = Exchange()

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return type(self).__name__

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits()

    @property
    def tells(self) -> Mapping[str, Any]:
        """Keys of every `train` message, to the argument that has the value, or to a constant."""
        return {}

    @property
    def readers(self) -> Mapping[str, Any]:
        """Its parts that read metrics of replies, which each names in `reads`, by argument."""
        return {}

    @property
    def metrics(self) -> Mapping[str, str]:
        """Metrics of replies that arguments of its own name, by argument."""
        return {}

    @property
    def assumes(self) -> Mapping[str, str]:
        """Keys of messages that would replace what it takes to be the clients', to its argument."""
        return {}

    @property
    def evaluates_on_clients(self) -> bool:
        """Whether it sends `evaluate` messages."""
        return False

    @property
    def unread(self) -> Mapping[str, str]:
        """Its arguments that its other parts make ineffective, to the reason."""
        return {}

    @property
    def may_stay(self) -> str:
        """Which rounds leave its model as it is, and the remedy, for a run that learnt nothing."""
        return ""

    def told(self) -> dict[str, tuple[str, Any]]:
        """Returns what it writes into the configuration of every `train` message.

        Returns:
            Key of the message to (argument, value); the argument of a constant is "". An argument
            that is None tells nothing.
        """
        return told_by(self, self.tells)

    def cohort(self, num_clients: int) -> int:
        """Returns how many clients it asks at the same time, at most; all, if it does not know."""
        return num_clients

    def tolerance(self, num_clients: int) -> tuple[int, int] | None:
        """Returns of how many clients, drawn uniformly, an aggregator bears how many Byzantine.

        None if there is none, or nobody is drawn like that.
        """
        return None

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if it can make nothing of so many clients."""

    def check_answers(self, seconds: float) -> None:
        """Raises ConfigError if answers that take so many s, however small, are not awaited."""

    def check_partitions(self, partitions: Partitions) -> None:
        """Raises ConfigError if it can make nothing of what clients hold."""

    def check_rounds(self, num_rounds: int) -> None:
        """Raises ConfigError if it can make nothing of so many rounds."""

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Any, Any]:
        """Returns the clients' ends of the links, arguments `uplink` and `downlink` of their app.

        Args:
            uplink: the channel of what clients send; None leaves it as it is.
            downlink: the channel of what they receive; likewise.
        """
        up, down = self.traits.compressed_needs, self.traits.compressed_carries
        return (
            uplink and Uplink(uplink, vectors=up),
            downlink and Downlink(downlink, vectors=down),
        )

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy of the strategy that sends and receives through an exchange.

        Raises:
            ConfigError: the method cannot work with a part of it.
        """
        made = copy(self)
        made.exchange = exchange
        return made

    # ---- Flower's Strategy -----------------------------------------------------------------------

    def summary(self) -> None:
        """Logs the strategy's arguments."""
        log.info("%s: %s", type(self).__name__, vars(self))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def _no_rounds(self) -> ConfigError:
        return ConfigError(
            f"{type(self).__name__} has no rounds: call its start(grid=..., initial_arrays=...), "
            "and do not wrap it in a strategy that works in rounds"
        )


class RuleDriver(Driver):
    """A strategy that runs a rule.

    Attributes:
        rules: what it runs.
        example: one of them, for messages.

    Args:
        rule: what the method is.
        min_available_nodes: clients that must be available before the first message.
        retry_s: how long to wait before looking for clients again, s.
        patience: a client is late after so many times the longest of its tasks, see
            `fl.strategies.drivers.patience`; None waits for ever.
        seed: of what is drawn.
        arrayrecord_key, configrecord_key: names of the records in messages.

    Raises:
        ConfigError: an argument is out of its range, or the rule is of another kind.
    """

    rules: ClassVar[type]
    example: ClassVar[str]

    def __init__(
        self,
        rule: Any,
        *,
        min_available_nodes: int = 1,
        retry_s: float = 10.0,
        patience: float | None = None,
        seed: int = 0,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
    ) -> None:
        is_a("rule", rule, self.rules, such_as=f"{self.example}()")
        at_least("min_available_nodes", min_available_nodes, 1)
        positive("retry_s", retry_s)
        if patience is not None:
            positive("patience", patience)
        self.rule = rule
        self.min_available_nodes = min_available_nodes
        self.retry_s = retry_s
        self.patience = patience
        self.seed = seed
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key

    @property
    def name(self) -> str:
        """Of the rule, for messages."""
        return type(self.rule).__name__

    @property
    def keys(self) -> tuple[str, str]:
        """Names of the records with the model and the configuration."""
        return self.arrayrecord_key, self.configrecord_key


def told_by(strategy: Strategy, tells: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Returns what a strategy tells, by what it says of that; see `Driver.told`."""
    told = {
        key: (source, attrgetter(source)(strategy)) if isinstance(source, str) else ("", source)
        for key, source in tells.items()
    }
    return {key: (argument, value) for key, (argument, value) in told.items() if value is not None}
