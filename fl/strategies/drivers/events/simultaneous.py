"""The drivers of several models that are trained at once over one pool of clients.

The rules are `fl.strategies.simultaneous_rule`; this says who is asked for which model, and when a
model has learnt enough.

A *learning task* is a model with its data and its goal. Its arrays are named "task/array" in the
initial arrays and in the result; its messages carry the plain names, and "task" in their
configuration, by which `fl.clients.TaskApp` finds the part of the ClientApp that learns it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from flwr.app import ArrayRecord, MetricRecord

from fl.aggregation import weight_of
from fl.checks import at_least, positive, read_if
from fl.clients.app.task_app import TASK_KEY
from fl.errors import ConfigError, NoStep
from fl.strategies.drivers.combining import Combining
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.learning_tasks import Models, TaskRun, apportion
from fl.strategies.drivers.events.server import GlobalModel, Sent, Server, Update
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.tasks import Task
from fl.strategies.event_rule import Arrivals, Combine
from fl.strategies.fedavg import Model
from fl.strategies.simultaneous_rule import SimultaneousRule


@read_if(lambda a: a["targets"], "metric", only="{at}targets are values of it, and there are none")
@read_if(
    lambda a: not a["one_after_another"],
    "shares",
    only="with {at}one_after_another, one task has all requests",
)
class Simultaneous(Combining):
    """Base of the drivers that train several models at once.

    A task is done when an evaluation shows its target, or after `rounds_per_task` versions. Then
    its requests are cancelled, its buffer is discarded, and its R goes to the others in proportion
    to theirs. The run ends when all tasks are done, or after `num_rounds` versions of all models
    together.

    Every model has links and forged updates of its own: what compressors and attacks remember of
    one task, they do not know in another.

    Args:
        rule: makes the next models.
        concurrency: sum of all R.
        shares: relative R of each task at the start; None for equal shares.
        targets: value of "<metric>/<task>" at which a task is done; tasks left out have none.
        metric: whose larger values are better.
        rounds_per_task: versions of a model after which its task is done; None for no bound.
        one_after_another: give all of R to the first task that is not done, in the order of the
            arrays. This is no simultaneous training, but what to compare it with.
        **events: other arguments of `Combining`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = SimultaneousRule
    example = "FedAST"
    rule: SimultaneousRule

    def __init__(
        self,
        rule: SimultaneousRule,
        *,
        concurrency: int,
        shares: Mapping[str, float] | None = None,
        targets: Mapping[str, float] | None = None,
        metric: str = "accuracy",
        rounds_per_task: int | None = None,
        one_after_another: bool = False,
        **events: Any,
    ) -> None:
        at_least("concurrency", concurrency, 1)
        super().__init__(rule, concurrency=concurrency, **events)
        if rounds_per_task is not None:
            at_least("rounds_per_task", rounds_per_task, 1)
        for name, share in (shares or {}).items():
            positive(f"shares.{name}", share)
        if rule.reallocates and one_after_another:
            raise ConfigError(
                "rule.allocation is 'dynamic' and one_after_another true: one task at a time "
                "leaves nothing to allocate"
            )
        self.total_requests = concurrency
        self.shares = dict(shares or {})
        self.targets = dict(targets or {})
        self.metric = metric
        self.rounds_per_task = rounds_per_task
        self.one_after_another = one_after_another

    # ---- the driver's hooks ----------------------------------------------------------------------

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, several_models=True)

    @property
    def most(self) -> float:
        """The most updates that a step combines."""
        return self.combines(self.total_requests)

    @abstractmethod
    def combines(self, requests: int) -> int:
        """Returns the most updates that make a version of a task with so many requests."""

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`."""
        if exchange.layouts:
            self.dealt(list(exchange.layouts))
        return super().within(exchange)

    def dealt(self, names: Sequence[str]) -> dict[str, int]:
        """Returns R of each task at the start.

        Raises:
            ConfigError: an argument names other tasks than there are, R does not suffice for all,
                or F cannot work with as few updates as a version of some task is made of.
        """
        for key, given in (("targets", self.targets), ("shares", self.shares)):
            unknown = sorted(set(given) - set(names))
            if unknown:
                raise ConfigError(
                    f"strategy.{key} names {', '.join(unknown)}; the tasks are {', '.join(names)}"
                )
        if self.shares and set(self.shares) != set(names):
            missing = sorted(set(names) - set(self.shares))
            raise ConfigError(f"strategy.shares leaves out {', '.join(missing)}")
        if self.total_requests < len(names):
            raise ConfigError(
                f"strategy.concurrency is {self.total_requests}; it must be at least the number of "
                f"tasks, {len(names)}"
            )
        # Nobody starts with nothing: a task that is never asked for would never end.
        weights = self.shares or dict.fromkeys(names, 1.0)
        dealt = apportion(self.total_requests - len(names), weights)
        requests = {name: 1 + dealt[name] for name in names}
        fewest = self.total_requests if self.one_after_another else min(requests.values())
        self.check_aggregator(self.combines(fewest))
        return requests

    def model(self, arrays: ArrayRecord) -> GlobalModel:
        """Returns all tasks' models."""
        return Models(arrays)

    def as_sent(self, server: Server, update: Update) -> Update | None:
        """Returns an update as it reaches its task's server."""
        return super().as_sent(self.learning(update.task).server, update)

    def begin(self, server: Server) -> None:
        """Makes a server for each task, and deals out R."""
        super().begin(server)
        if not isinstance(server.model, Models):
            raise TypeError(f"expected Models, got {type(server.model).__name__}")
        self.tasks = {
            name: TaskRun(name, server.of(model, name))
            for name, model in server.model.by_task.items()
        }
        self._metrics: MetricRecord | None = None

        def evaluate() -> MetricRecord | None:
            self._metrics = server.evaluate()
            return self._metrics

        for learning in self.tasks.values():
            learning.server.evaluate = evaluate
        self.allot(self.dealt(list(self.tasks)))

    def finished(self, server: Server) -> bool:
        """Returns whether all tasks are done."""
        return not self.live()

    # ---- what the methods use --------------------------------------------------------------------

    def live(self) -> list[TaskRun]:
        """Returns the tasks that are not done."""
        return [learning for learning in self.tasks.values() if not learning.done]

    def learning(self, task: Task[Sent]) -> TaskRun:
        """Returns the learning task that a request belongs to."""
        return self.tasks[task.memo.config[TASK_KEY]]

    def allot(self, requests: Mapping[str, int]) -> None:
        """Sets R of every task."""
        if self.one_after_another:
            first = self.live()[0].name
            requests = {name: self.total_requests * (name == first) for name in self.tasks}
        for name, learning in self.tasks.items():
            learning.requests = requests.get(name, 0)

    def request(self, server: Server, learning: TaskRun, nodes: Sequence[int]) -> None:
        """Sends a task's model to clients."""
        learning.server.send(nodes, {TASK_KEY: learning.name}, kind=learning.name)

    def flush(self, server: Server, learning: TaskRun) -> None:
        """Applies a task's buffer, and sees whether it is done."""
        updates, learning.buffer = learning.buffer, []
        own = learning.server

        def make(usable: Sequence[Update], combine: Combine | None) -> Model:
            staleness = [own.staleness(update) for update in usable]
            arrivals = Arrivals(usable, staleness=staleness, combine=combine)
            return Model(self.with_statistics(own, self.rule.step(Model(own.w), arrivals).w))

        self._metrics = None
        self.advance(own, updates, make)
        self._end_those_done()

    def model_of(self, task: Task[Sent]) -> str:
        """Returns the name of the learning task that a request belongs to."""
        return str(task.memo.config[TASK_KEY])

    def stay(self, server: Server, task: Task[Sent], why: NoStep) -> None:
        """Makes the model of the task's learning task, as it is, its next version."""
        self._metrics = None
        self.learning(task).server.stay(why)
        self._end_those_done()

    def _end_those_done(self) -> None:
        for other in self.live():
            reached = self._reached(other)
            if reached or other.server.version == self.rounds_per_task:
                self.end(other.server, other)

    def end(self, server: Server, learning: TaskRun) -> None:
        """Ends a task, and gives its R to the others in proportion to theirs."""
        learning.done = True
        for task in server.tasks.open():
            if self.learning(task) is learning:
                server.tasks.cancel(task)
        for update in learning.buffer:
            learning.server.discard(update)
        learning.buffer = []
        live = self.live()
        if live:
            freed = apportion(learning.requests, {other.name: other.requests for other in live})
            self.allot({other.name: other.requests + freed[other.name] for other in live})

    def _reached(self, learning: TaskRun) -> bool:
        if self._metrics is None or learning.name not in self.targets:
            return False
        name = f"{self.metric}/{learning.name}"
        value = self._metrics.get(name)
        if not isinstance(value, int | float):
            raise ConfigError(
                f"strategy.targets has {learning.name}, but the evaluation has no {name!r}, only "
                f"{sorted(self._metrics)}"
            )
        return value >= self.targets[learning.name]


class SimultaneousEvents(Simultaneous):
    """Several models at once, asynchronously, as FedAST trains them.

    Of task m, R_m requests are in flight; each goes to a client drawn uniformly from all available
    ones, busy or not, but for those with a request that is late: requests wait for their clients.
    When as many updates of the task are there as the rule wants, and as F needs, they make its next
    version.

    Args:
        rule: makes the next models.
        **events: other arguments of `Simultaneous`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def combines(self, requests: int) -> int:
        """Returns b of a task with so many requests in flight."""
        return self.rule.buffer(requests)

    def begin(self, server: Server) -> None:
        """Deals out R, and starts the rule."""
        super().begin(server)
        self.state = self.rule.init(list(self.tasks), self.total_requests)
        self.least = self.fewest(self.total_requests)
        self.b = {name: max(self.rule.buffer(0), self.least) for name in self.tasks}

    def dispatch(self, server: Server) -> None:
        """Issues every task's missing requests."""
        nodes = server.tasks.prompt()
        if not nodes:
            return
        active = Counter(self.model_of(task) for task in server.tasks)
        for learning in self.live():
            # One that has lost requests to another waits until enough of its own have ended.
            free = self.total_requests - len(server.tasks)
            missing = min(learning.requests - active[learning.name], free)
            if missing > 0:
                self.request(server, learning, server.sample(nodes, missing, replace=True))
                active[learning.name] += missing
            self.b[learning.name] = max(self.rule.buffer(active[learning.name]), self.least)

    def receive(self, server: Server, update: Update) -> None:
        """Buffers the update, and steps its model when the buffer is full."""
        learning = self.learning(update.task)
        if learning.done:  # by an update of the same instant
            learning.server.discard(update)
            return
        if self.rule.reallocates:
            self._observe(learning, update)
        learning.buffer.append(update)
        if len(learning.buffer) >= self.b[learning.name]:
            self.flush(server, learning)

    def _observe(self, learning: TaskRun, update: Update) -> None:
        delta = update.delta[learning.weights]
        steps = weight_of(update.metrics.get("steps")) or 1.0
        self.state = self.rule.observe(self.state, learning.name, delta, steps)
        versions = {other.name: other.server.version for other in self.live()}
        self.state, requests = self.rule.realloc(self.state, self.total_requests, versions)
        if requests is not None:
            self.allot(requests)


class SimultaneousRounds(Simultaneous):
    """Several models at once, in rounds in which disjoint groups of clients train them.

    A round's clients are drawn without replacement, as many as there are requests (`concurrency`)
    or available clients, and dealt to the tasks in proportion to their R. When every task has its
    updates, they make the next versions of all of them. A task takes all updates of its clients
    that do not fail, or the first few, whose number is `first`; then its other clients are told to
    stop.

    Args:
        rule: makes the next models.
        first: most updates of a task in a round; None takes all.
        **simultaneous: arguments of `Simultaneous` but `patience`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True

    def __init__(
        self, rule: SimultaneousRule, *, first: int | None = None, **simultaneous: Any
    ) -> None:
        if first is not None:
            at_least("first", first, 1)
        self.first = first
        super().__init__(rule, patience=None, **simultaneous)

    def combines(self, requests: int) -> int:
        """Returns how many updates of a round a task takes, of so many."""
        return min(requests, self.first or requests)

    def begin(self, server: Server) -> None:
        """Deals out R; no round has begun."""
        super().begin(server)
        self.awaited = dict.fromkeys(self.tasks, 0)

    def free_slots(self, server: Server) -> int:
        """Returns how many clients the next round may have; none during a round."""
        return 0 if any(self.awaited.values()) else self.total_requests

    def dispatch(self, server: Server) -> None:
        """Begins a round when the last one has ended."""
        idle = server.tasks.idle()
        if not idle or not self.free_slots(server):
            return
        nodes = server.sample(idle, self.total_requests)
        dealt = apportion(len(nodes), {x.name: x.requests for x in self.live()})
        for learning in self.live():
            own, nodes = nodes[: dealt[learning.name]], nodes[dealt[learning.name] :]
            self.awaited[learning.name] = len(own)
            self.request(server, learning, own)

    def receive(self, server: Server, update: Update) -> None:
        """Keeps the update for the end of the round."""
        learning = self.learning(update.task)
        if not self.awaited[learning.name]:  # it came in the instant in which it was called off
            learning.server.discard(update)
            return
        learning.buffer.append(update)
        self.awaited[learning.name] -= 1
        if len(learning.buffer) == self.first:
            self.call_off(server, learning)
        self.end_round(server)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Does without the client."""
        learning = self.learning(task)
        if self.awaited[learning.name]:
            self.awaited[learning.name] -= 1
            self.end_round(server)

    def call_off(self, server: Server, learning: TaskRun) -> None:
        """Tells the clients of a task to stop."""
        self.awaited[learning.name] = 0
        for task in server.tasks:
            if self.model_of(task) == learning.name:
                server.tasks.cancel(task)

    def end_round(self, server: Server) -> None:
        """Steps all models once nobody is awaited."""
        if any(self.awaited.values()):
            return
        for learning in self.live():
            if learning.buffer and not learning.done:
                self.flush(server, learning)
