"""The driver of asynchronous rules: clients train at their own pace, and a rule takes what comes.

The rule is `fl.strategies.event_rule`; this says who is asked, sends, counts slots and intervals,
combines, and makes the versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Self, cast

from flwr.app import ArrayRecord

from fl.errors import ConfigError
from fl.strategies.contributions import Contributions
from fl.strategies.drivers.combining import Combining
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.server import GlobalModel, Sent, Server, Update
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.tasks import TTL_S, Task
from fl.strategies.event_rule import Arrival, Arrivals, Combine, Decision, EventRule


class Events(Combining):
    """An asynchronous server rule.

    Free slots are filled with idle clients, drawn uniformly, at the end of every instant; of a rule
    with a period, after each of its ticks only.

    Args:
        rule: makes the next model.
        **events: arguments of `Combining` and `EventDriven`; `concurrency` is the papers' C, and an
            aggregator is refused if the rule steps by single updates.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = EventRule
    example = "FedBuff"
    rule: EventRule

    def __init__(self, rule: EventRule, **events: Any) -> None:
        super().__init__(rule, **events)
        self.check_aggregator(self.most)

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        rule = self.rule
        return replace(
            super().traits,
            downlink=not rule.customises,
            clusters="mixture" if rule.customises else "",
            customises=rule.customises,
            proxies=rule.proxies,
        )

    @property
    def most(self) -> int:
        """The most updates that a step combines."""
        return self.rule.combines

    @property
    def tells(self) -> Mapping[str, str]:
        """What every message says beside the model, by the argument that it comes from."""
        return {key: f"rule.{name}" for key, name in self.rule.tells.items()}

    def config(self) -> Mapping[str, Any]:
        """Returns what every message says beside the model."""
        return self.rule.config()

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy that sends and receives through an exchange.

        Raises:
            ConfigError: the server is so busy with proxy sets that messages expire before it reads
                them.
        """
        made, proxy, speed = super().within(exchange), exchange.proxy, self.rule.server_flops
        if self.rule.proxies is not None and proxy is not None and speed is not None:
            most = max(1, min(filter(None, (self.concurrency, exchange.num_clients)), default=1))
            seconds = 2 * proxy.flops / speed
            if most * seconds > TTL_S:
                raise ConfigError(
                    f"rule.server_flops is {speed:g}, with which the server takes {seconds:.3g} s "
                    f"for each contact, and of {most} clients at once the last would be read after "
                    f"more than the {TTL_S:g} s that messages live: it must be at least "
                    f"{most * 2 * proxy.flops / TTL_S:.3g}, or null"
                )
        return made

    def model(self, arrays: ArrayRecord) -> GlobalModel:
        """Returns the server's model, version 0, and those of the clusters beside it."""
        model = super().model(arrays)
        if self.rule.customises:
            model.clusters = self.rule.clusters(self.rule.init(model.w, len(model.w)))
        return model

    def begin(self, server: Server) -> None:
        """Starts the rule, its timer and the count of contributions.

        Raises:
            ConfigError: it wants proxy sets, and the server has none.
        """
        if self.rule.proxies is not None and self.exchange.proxy is None:
            raise ConfigError(
                f"{self.name} wants losses on examples of the server's own, and it has none: run "
                "the strategy within an Exchange that has `proxy`, for example a "
                "fl.strategies.ProxyLosses"
            )
        super().begin(server)
        self.state = self.rule.init(server.w, len(server.w))
        self.statistics = [
            slice(entry.offset, entry.offset + entry.size)
            for entry in server.model.layout.statistics
        ]
        self.contributions = Contributions()
        self.answered: list[int] = []  # clients that have, in this instant
        self.began_s = server.now
        self.ticks = 0
        self.asks = True

    # ---- who is asked ----------------------------------------------------------------------------

    def free_slots(self, server: Server) -> int:
        """Returns how many more tasks may be in flight; none between ticks."""
        if not self.asks:
            return 0
        if self.concurrency is None:
            return len(self._free(server))
        return self.concurrency - len(server.tasks) - len(self.rule.holds(self.state))

    def dispatch(self, server: Server) -> None:
        """Sends the model to who has answered, if the rule wants it, and fills the free slots."""
        if self.asks and self.rule.measures:
            self.contributions.available(server.tasks.nodes(), self._time(server))
        answered, self.answered = self.answered, []
        if self.rule.returns:
            idle = set(server.tasks.idle())
            back = [node for node in answered if node in idle]
            self.ask(server, back[: max(0, self.free_slots(server))])
        free = self.free_slots(server)
        if free > 0:
            self.ask(server, server.sample(self._free(server), free))
        self.asks = self.rule.period is None

    def ask(self, server: Server, nodes: Iterable[int]) -> None:
        """Sends the model to clients, each with what the rule tells it."""
        told = []
        for node in nodes:
            self.state, config = self.rule.assign(self.state, node, server.now)
            told.append((node, config))
        if self.rule.customises:
            for node, config in told:
                own = server.model.layout.rounded(self.rule.model_for(self.state, node))
                server.send([node], config, old=(server.version, own))
            return
        for config, alike in groupby(told, key=lambda pair: pair[1]):
            server.send([node for node, _ in alike], config)

    def _free(self, server: Server) -> Sequence[int]:
        holds = self.rule.holds(self.state)
        idle = server.tasks.idle()
        return [node for node in idle if node not in holds] if holds else idle

    # ---- what happens ----------------------------------------------------------------------------

    def receive(self, server: Server, update: Update) -> None:
        """Lets the rule decide on an update."""
        self.answered.append(update.node)
        self._act(server, self.rule.receive(self.state, update, server.staleness(update)))

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Lets the rule decide on a client that has failed."""
        self._act(server, self.rule.failed(self.state, task.node))

    def timer(self, server: Server) -> float:
        """Returns the time of the next tick."""
        if self.rule.period is None:
            return self.rule.due(self.state)
        return self.began_s + (self.ticks + 1) * self.rule.period

    def tick(self, server: Server) -> None:
        """Lets the rule decide on what is due."""
        self.ticks += 1
        self.asks = True
        self._act(server, self.rule.tick(self.state, server.now))
        again = self.rule.period is None and self.rule.due(self.state) <= server.now
        if again and server.version < server.num_rounds:
            self.tick(server)

    def _act(self, server: Server, decision: Decision) -> None:
        self.state = decision.state
        for update in _updates(decision.discard):
            server.discard(update)
        if decision.apply is not None:
            self._step(server, _updates(decision.apply), decision.weights)
        self.ask(server, decision.ask)

    def _step(self, server: Server, updates: Sequence[Update], weights: Sequence[float]) -> None:
        if not updates and not server.tasks.any_open:
            return  # nobody is there: time passes, and the server does not count it
        if self.rule.measures:
            for update in updates:
                self.contributions.add(update.node, self._time(server))
        proxy = self.exchange.proxy if self.rule.proxies is not None else None
        if proxy is not None and self.rule.server_flops is not None:
            server.tasks.clock.sleep(2 * proxy.flops / self.rule.server_flops)
        names = [update.task.message_id for update in updates]
        weight_of = dict(zip(names, weights or [1.0] * len(names), strict=True))

        def make(usable: Sequence[Update], combine: Combine | None) -> Any:
            measured = self.contributions if self.rule.measures and usable else None
            arrivals = Arrivals(
                usable,
                [weight_of[update.task.message_id] for update in usable],
                [server.staleness(update) for update in usable],
                [measured.interval(update.node) for update in usable] if measured else (),
                measured.mean_interval() if measured else 0.0,
                self.concurrency,
                len(server.tasks.nodes()),
                combine,
                self.statistics,
                *(() if proxy is None else (proxy,)),
            )
            return self.rule.step(self.state, arrivals)

        state = self.advance(server, updates, make, clusters=self.rule.clusters)
        if state is not None:
            self.state = state._replace(w=server.w)

    def _time(self, server: Server) -> float:
        """Returns the time in which intervals are measured: s, or ticks of a rule that has them."""
        return server.now if self.rule.period is None else self.ticks


def _updates(arrivals: tuple[Arrival, ...]) -> tuple[Update, ...]:
    """Returns the updates that a rule was given, and gives back."""
    return cast("tuple[Update, ...]", arrivals)
