"""The driver of strategies that act when something happens, not in rounds.

A method says what to do when an update arrives, when its timer is due, and when slots are free. The
driver does the rest once for all of them: messages, waiting, slots, staleness, versions,
evaluation. It runs on any Flower grid; on the simulator, waiting is a jump in virtual time.

Order within an instant: every update that has arrived is received, then a due timer fires, then
new tasks are sent. Equalities such as "FedBuff with a full buffer at equal speeds is FedAvg" hold
only with this order.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.aggregation import check_result, weight_of
from fl.checks import at_least, positive
from fl.errors import ConfigError, NoStep, NotFinite, SimulationError
from fl.flower.carried import carried, median_carried
from fl.flower.grid_view import Control, GridView
from fl.flower.records import from_record, layout_of, record_vector, to_record, vector_record
from fl.randomness import generator
from fl.selection import sample
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.forging import Forging
from fl.strategies.drivers.tasks import TTL_S, Failures, Task, Tasks
from fl.vectors.rows import Row, as_tensor, mean

log = logging.getLogger("fl")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_WEIGHT_KEY = "num-examples"


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What a task began with.

    Attributes:
        version: of the server's model.
        w: the model that was sent, shape (d,), float32.
        config: what the message said beside the model.
    """

    version: int
    w: Row
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A client's answer.

    Attributes:
        task: what was asked.
        x: the model the client made, shape (d,), float32, read-only.
        metrics: what it reported.
        received_s: when the answer arrived, s.
        statistics: entries of the model that are not in the row.
        extras: vectors that came beside the model, shape (p,) each, by name.
    """

    task: Task[Sent]
    x: Row
    metrics: Mapping[str, Any]
    received_s: float
    statistics: Mapping[str, Array]
    extras: Mapping[str, Row] = field(default_factory=dict)

    @property
    def node(self) -> int:
        """Flower id of the client."""
        return self.task.node

    @property
    def version(self) -> int:
        """Version of the server's model that the client began with."""
        return self.task.memo.version

    @property
    def config(self) -> Mapping[str, Any]:
        """What the message said beside the model."""
        return self.task.memo.config

    @property
    def seconds(self) -> float:
        """From sending the message to receiving the answer, s."""
        return self.received_s - self.task.sent_s

    @property
    def sent_s(self) -> float:
        """When the client was sent the model, s."""
        return self.task.sent_s

    @property
    def delta(self) -> Row:
        """The client's change: x minus the model that was sent, shape (d,)."""
        with np.errstate(over="ignore"):  # seen in what is made of it
            return np.asarray(self.x - self.task.memo.w)


class GlobalModel:
    """The server's model, in versions.

    Args:
        arrays: the initial model, version 0.

    Attributes:
        layout: of the model.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        self.layout = layout_of(arrays)
        self._w: Row = from_record(self.layout, arrays)
        self._version = 0
        self._carried = carried(self.layout, arrays)

    @property
    def w(self) -> Row:
        """The model, shape (d,), float32, read-only; a new array for every version."""
        return self._w

    @property
    def version(self) -> int:
        """How often the model has changed."""
        return self._version

    def record(self) -> ArrayRecord:
        """Returns the model for a message."""
        return self.record_of(self.w)

    def record_of(self, w: Row) -> ArrayRecord:
        """Returns a model of the same form for a message, shape (d,)."""
        return to_record(self.layout, w, self._carried)

    def read(
        self,
        task: Task[Sent],
        reply: Message,
        key: str,
        now: float,
        needs: Sequence[str] = (),
        p: int = 0,
    ) -> Update:
        """Returns the update in a reply.

        A model's record without arrays says that the model is the one that was sent, a vector's
        that it is 0: neither travels.

        Args:
            task: what was asked.
            reply: with content.
            key: name of the model's record.
            now: time in s.
            needs: names of records with a vector beside the model.
            p: length of those vectors.

        Raises:
            ConfigError: the reply holds no finite model of the right form, or lacks a vector.
        """
        record = reply.content.get(key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(f"the reply has no ArrayRecord '{key}', only {sorted(reply.content)}")
        metrics: Mapping[str, Any] = next(iter(reply.content.metric_records.values()), {})
        extras = {name: _vector(reply, name, p) for name in needs}
        if not len(record):
            return Update(task, task.memo.w, metrics, now, self._carried, extras)
        row = from_record(self.layout, record)
        return Update(task, row, metrics, now, carried(self.layout, record), extras)

    def staleness(self, task: Task[Sent]) -> int:
        """Returns the versions since the one that a task began with."""
        return self.version - task.memo.version

    def become(
        self, w: Row, contributors: Sequence[Update], *, of_one_version: bool = False
    ) -> None:
        """Makes `w` the next version.

        Statistics of normalisation layers are no directions: where contributors began with
        different versions, they become the plain mean of theirs, however stale. Entries outside the
        row become the median of theirs.

        Args:
            w: shape (d,).
            contributors: of what it was made.
            of_one_version: they all began with the present version, so that the statistics in `w`
                are what the method made of theirs.

        Raises:
            NotFinite: the model would not be finite; then nothing has changed.
        """
        w = np.ascontiguousarray(w, dtype=np.float32)
        if contributors and self.layout.statistics and not of_one_version:
            w = w.copy()
            for entry in self.layout.statistics:
                place = slice(entry.offset, entry.offset + entry.size)
                w[place] = mean(np.stack([u.x[place] for u in contributors]))
        w = self.layout.rounded(w)
        check_result("the server", w)
        if contributors and self.layout.carried:
            self._carried = median_carried(self.layout, [u.statistics for u in contributors])
        self._w = w
        self._version += 1

    def stay(self) -> None:
        """Makes the model as it is the next version."""
        self._version += 1


class Server:
    """What a method sees and may do: the model, the clients, messages.

    Args:
        model: the model.
        tasks: what is in flight.
        config: sent with every message.
        seed: root of the draws.
        keys: names of the records with the model and the configuration.
        exchange: what comes between.
        name: of the model, where there are several.

    Attributes:
        num_rounds: versions of the model after which the run ends.
        forging: forges updates of this model; None if nobody does.
    """

    def __init__(
        self,
        model: GlobalModel,
        tasks: Tasks[Sent],
        config: Mapping[str, Any],
        seed: int,
        keys: tuple[str, str],
        exchange: Exchange,
        name: str = "",
    ) -> None:
        self.name = name
        self.exchange = exchange
        self.forging: Forging | None = exchange.forging(name)
        self.model = model
        self.tasks = tasks
        self.seed = seed
        self.num_rounds = 0
        self.evaluate: Callable[[], MetricRecord | None] = lambda: None
        self._config = dict(config)
        self._keys = keys
        self._draws = 0
        self._contents: dict[Any, RecordDict] = {}
        self._contents_of = -1

    @property
    def w(self) -> Row:
        """The model, shape (d,), float32, read-only."""
        return self.model.w

    @property
    def version(self) -> int:
        """How often the model has changed."""
        return self.model.version

    @property
    def control(self) -> Control:
        """Of the grid."""
        return self.tasks.control

    @property
    def now(self) -> float:
        """Time in s."""
        return self.tasks.now()

    @property
    def config(self) -> Mapping[str, Any]:
        """What every message says beside the model."""
        return self._config

    def of(self, model: GlobalModel, name: str) -> Server:
        """Returns a server of another model, with the same clients, tasks and configuration."""
        return Server(model, self.tasks, self._config, self.seed, self._keys, self.exchange, name)

    def staleness(self, update: Update) -> int:
        """Returns the server versions since the one the update began with."""
        return self.model.staleness(update.task)

    def rng(self) -> np.random.Generator:
        """Returns a generator of (seed, "clients", how many times it was asked for before)."""
        self._draws += 1
        return generator(self.seed, "clients", self._draws - 1)

    def sample(self, nodes: Sequence[int], k: int, *, replace: bool = False) -> list[int]:
        """Returns k of the nodes, uniformly; without replacement all of them if there are fewer.

        The generator is that of `rng`.
        """
        if replace:
            return [nodes[i] for i in self.rng().choice(len(nodes), size=k).tolist()]
        return sample(self.rng(), nodes, k)

    def send(
        self,
        nodes: Sequence[int],
        config: Mapping[str, Any] | None = None,
        *,
        old: tuple[int, Row] | None = None,
        kind: str = "",
        extras: Mapping[str, Row] | None = None,
    ) -> list[Task[Sent]]:
        """Sends a model to clients, and returns their tasks.

        Args:
            nodes: Flower ids.
            config: what the messages say beside the model, added to the run's configuration.
            old: version and values of another model to send than the current one.
            kind: what sort of work it is, if there are several that take different times.
            extras: vectors that the messages carry beside the model, shape (p,) each, by name.
        """
        if not nodes:
            return []
        version, w = (self.version, self.w) if old is None else old
        sent = Sent(version, w, dict(config or {}))
        return self.tasks.send(self._content(sent, extras or {}), list(nodes), sent, kind)

    def step(
        self,
        w: Row,
        contributors: Sequence[Update],
        *,
        of_one_version: bool = False,
        polled: bool = False,
    ) -> bool:
        """Makes `w` the next version of the model, or what there is if `w` is not finite.

        Args:
            w: shape (d,).
            contributors: the updates it was made of; their staleness is counted and reported now.
            of_one_version: see `GlobalModel.become`.
            polled: whether the server asked for the updates; then it is no staleness, see
                `fl.flower.grid_view.Control.applied`.

        Returns:
            Whether the step was taken. If not, what a method has made of it for later, as a
            momentum, is to be forgotten.
        """
        stale = [self.staleness(update) for update in contributors]
        try:
            self.model.become(w, contributors, of_one_version=of_one_version)
        except NoStep as error:
            for update in contributors:
                self.discard(update)
            self.stay(error)
            return False
        for update, age in zip(contributors, stale, strict=True):
            self.control.applied(update.task.message_id, age, update.metrics, polled=polled)
        self.control.stepped(self.version, model=self.name)
        self.evaluate()
        return True

    def stay(self, why: NoStep) -> None:
        """Makes the model as it is the next version, and reports why."""
        self.model.stay()
        self.control.stepped(self.version, why, model=self.name)
        self.evaluate()

    def reject(self, update: Update) -> None:
        """Reports that an update is none that can be used: a fault."""
        self.control.rejected(update.task.message_id)

    def discard(self, update: Update) -> None:
        """Reports that an update will not be used."""
        self.control.discarded(update.task.message_id, self.staleness(update))

    def _content(self, sent: Sent, extras: Mapping[str, Row]) -> RecordDict:
        """Returns the message's content; the same object for equal ones, so it is shared."""
        if self._contents_of != self.version:
            self._contents, self._contents_of = {}, self.version
        told = tuple(sorted(sent.config.items()))
        key = (id(sent.w), sent.version, told, *((name, id(x)) for name, x in extras.items()))
        content = self._contents.get(key)
        if content is None:
            arrays_key, config_key = self._keys
            arrays = self.model.record_of(sent.w)
            config = {**self._config, **sent.config, "server-round": sent.version + 1}
            beside = {name: vector_record(as_tensor(x)) for name, x in extras.items()}
            records: dict[str, Any] = {arrays_key: arrays, config_key: ConfigRecord(config)}
            content = RecordDict({**records, **beside})
            self._contents[key] = content
        return content


class EventDriven(RuleDriver):
    """Base of the strategies driven by events.

    A method implements `receive`, and where it needs them `begin`, `timer` with `tick`, `failed`
    and `dispatch`.

    A run ends after `num_rounds` versions of the model. A client that fails frees its slot. A reply
    that holds no finite model of the right form, or that the method cannot use (`unusable`), is
    reported and frees its slot as well.

    So does an update of a client that reports 0 examples: it has learnt nothing, and what it
    returns is an old version of the model. If as many in a row as may be in flight are such, or not
    finite, the model as it is becomes the next version: a fleet without data, or whose training has
    diverged, comes to an end.

    A client that takes unusually long, see `patience.Patience`, frees its slot when it is
    late, and is sent nothing else until its reply is there, which is received like any other. Only
    when it is so late that its task must be lost may it be sent another one; and even then the
    reply is received if it comes. Methods that read `timeout` do not have patience: there, a client
    that has not answered so many seconds after it was sent a message has failed.

    Attributes:
        takes_empty: whether the method is given such updates, because it weighs them itself.
        diverged: for each model, updates that were not finite since the last that was.

    Args:
        rule: what the method is.
        concurrency: C, most tasks in flight; None takes all available clients.
        patience: see `RuleDriver`; a late client's task is lost after three times as long.
        **driver: other arguments of `RuleDriver`. While slots are free it looks for clients after
            `retry_s`, up to 30 times as long while all that are there are busy and silent.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        rule: Any,
        *,
        concurrency: int | None = None,
        patience: float | None = 3.0,
        **driver: Any,
    ) -> None:
        super().__init__(rule, patience=patience, **driver)
        if concurrency is not None:
            at_least("concurrency", concurrency, 1)
        self.concurrency = concurrency

    # ---- the method ------------------------------------------------------------------------------

    takes_empty: ClassVar[bool] = False
    trained = 0  # p, length of the vectors that a method `needs`

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(carries=self.carries, needs=self.needs)

    @property
    def carries(self) -> tuple[str, ...]:
        """Records of the messages that hold a vector beside the model, shape (p,)."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Records of the replies that hold a vector beside the model, shape (p,)."""
        return ()

    def told(self) -> dict[str, tuple[str, Any]]:
        """Returns what every message says, see `Driver.told`: `config` as well."""
        return {**{key: ("", value) for key, value in self.config().items()}, **super().told()}

    def cohort(self, num_clients: int) -> int:
        """Returns 1: every client is asked when it is its turn."""
        return 1

    def unusable(self, update: Update) -> str | None:
        """Returns why the method cannot use an update, in words; None if it can."""
        return None

    def as_sent(self, server: Server, update: Update) -> Update | None:
        """Returns an update as its client has sent it, which may have forged it; None if not."""
        return update if server.forging is None else server.forging.forged_one(server, update)

    def begin(self, server: Server) -> None:
        """Prepares the method's state for a new run; called before anything is sent."""

    @abstractmethod
    def receive(self, server: Server, update: Update) -> None:
        """Acts on an update that has arrived."""

    def leave_out(self, server: Server, task: Task[Sent], why: str) -> None:
        """Reports that a reply is none, or none that the method can use; then its task failed."""
        log.warning("node %d left out: %s", task.node, why)
        server.control.rejected(task.message_id)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Acts on a task that ended without an update, or is taken to be lost.

        The update of a task that was taken to be lost may still come.
        """

    def timer(self, server: Server) -> float:
        """Returns when `tick` is due next, s; infinity for a method without a timer."""
        return math.inf

    def tick(self, server: Server) -> None:
        """Acts on the timer."""

    def dispatch(self, server: Server) -> None:
        """Sends new tasks at the end of an instant: fills the free slots with idle clients."""
        free = self.free_slots(server)
        if free > 0:
            server.send(server.sample(server.tasks.idle(), free), self.config())

    def config(self) -> Mapping[str, Any]:
        """Returns what `dispatch` tells clients beside the model."""
        return {}

    def evaluate_on_clients(self, server: Server) -> None:
        """Has clients evaluate a new version, if the method does that, before the server does."""

    def finished(self, server: Server) -> bool:
        """Returns whether there is nothing left to do, however few versions there were."""
        return False

    def model(self, arrays: ArrayRecord) -> GlobalModel:
        """Returns the server's model, version 0."""
        return GlobalModel(arrays)

    def free_slots(self, server: Server) -> int:
        """Returns how many more tasks may be in flight."""
        if self.concurrency is None:
            return len(server.tasks.idle())
        return self.concurrency - len(server.tasks)

    # ---- Flower's Strategy -----------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Runs the strategy until the model has changed `num_rounds` times.

        Args:
            grid: Flower's, simulated or real.
            initial_arrays: the initial model, version 0.
            num_rounds: versions of the server's model after which to stop.
            timeout: in methods that read it (`reads_timeout`), the time to live of every message,
                s: a client that has not answered by then has failed. Messages of the others live 30
                days.
            train_config: sent with every message; "server-round" is the version plus 1.
            evaluate_config: not used: clients do not evaluate here.
            evaluate_fn: called with version and model, for the first and every later version.

        Raises:
            ConfigError: an argument is out of its range, or clients report nothing that the method
                can use.
            SimulationError: clients do nothing but fail.
        """
        at_least("num_rounds", num_rounds, 1)
        positive("timeout", timeout)
        model = self.model(initial_arrays)
        self.exchange.check(grid)
        codec = self.exchange.codec(GridView(grid).control, *self.keys)
        ttl_s = timeout if self.reads_timeout else TTL_S
        tasks: Tasks[Sent] = Tasks(grid, ttl_s, self.patience, codec)
        server = Server(model, tasks, train_config or {}, self.seed, self.keys, self.exchange)
        result = Result()

        def evaluate() -> MetricRecord | None:
            if server.version:
                self.evaluate_on_clients(server)
            metrics = evaluate_fn(server.version, server.model.record()) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[server.version] = metrics
            return metrics

        def ended() -> bool:
            return server.version >= num_rounds or self.finished(server)

        evaluate()
        server.evaluate, server.num_rounds = evaluate, num_rounds
        wait_for_nodes(server.tasks, self.min_available_nodes, self.retry_s)
        self.begin(server)
        self.dispatch(server)
        failures = Failures("update", timeout if self.reads_timeout else None)
        vain: Counter[str] = Counter()
        self.diverged: Counter[str] = Counter()
        unusable: int | None = 0  # updates of a form that the method cannot use; None once it can
        while not ended():
            due = self.timer(server)
            until = due
            if self._looks_for_clients(server):
                until = min(due, server.now + tasks.pause_s(self.retry_s))
            for task, reply in tasks.receive(until):
                at_once = self.at_once(server)
                name = self.model_of(task)
                before = self.diverged[name]
                update, why = self._read(server, task, reply)
                if update is not None and (refusal := self.unusable(update)) is not None:
                    update, why = None, refusal
                    self.leave_out(server, task, refusal)
                    unusable = None if unusable is None else unusable + 1
                    if unusable == at_once:  # as many clients as that do not all lie
                        raise ConfigError(f"none of the first {unusable} updates is usable: {why}")
                if update is not None:
                    update, why = self.as_sent(server, update), "no payload holds what it forges"
                if update is None:
                    failures.add(task, reply, server.now, len(tasks), why=why)
                    vain[name] += self.diverged[name] - before
                    self.failed(server, task)
                elif ended():
                    server.discard(update)
                elif self._is_empty(update):
                    vain[name] += 1
                    server.discard(update)
                    self.failed(server, task)
                else:
                    failures.clear()
                    unusable, vain[name], self.diverged[name] = None, 0, 0
                    self.receive(server, update)
                if vain[name] >= at_once and not ended():
                    vain[name] = 0
                    failures.clear()  # the run goes on to its last version
                    self.stay(server, task, self.why_in_vain(name))
                del update  # or its model waits for the next client to train
            if server.now >= due and not ended():
                self.tick(server)
            if not ended():
                self.dispatch(server)
        result.arrays = server.model.record()
        return result

    def _looks_for_clients(self, server: Server) -> bool:
        """Returns whether it makes a difference that a client comes."""
        if server.tasks.any_open:
            everybody = self.concurrency is None and not self.reads_timeout
            return everybody or self.free_slots(server) > 0
        idle = len(server.tasks.idle())
        if idle and self.free_slots(server) > 0 and math.isinf(self.timer(server)):
            raise SimulationError(
                f"{type(self).__name__} waits for nothing at {server.now:g} s, with {idle} idle "
                "clients"
            )
        return True

    def at_once(self, server: Server) -> int:
        """Returns how many clients are asked at a time, of which not all lie."""
        return self.concurrency or max(1, len(server.tasks.nodes()))

    def model_of(self, task: Task[Sent]) -> str:
        """Returns the name of the model that a task began with, where there are several."""
        return ""

    def why_in_vain(self, name: str = "") -> NoStep:
        """Returns why the latest updates of a model are of no use."""
        if self.diverged[name]:
            return NotFinite(
                f"the last {self.diverged[name]} updates are not finite; training may have "
                "diverged: lower the learning rate"
            )
        return NoStep("no client has examples to learn from")

    def stay(self, server: Server, task: Task[Sent], why: NoStep) -> None:
        """Makes the model that a task began with, as it is now, the next version."""
        server.stay(why)

    def _is_empty(self, update: Update) -> bool:
        return not self.takes_empty and weight_of(update.metrics.get(_WEIGHT_KEY)) == 0

    def _read(self, server: Server, task: Task[Sent], reply: Message) -> tuple[Update | None, str]:
        """Returns the update in a reply, or why there is none."""
        if reply.has_error():
            log.debug("node %d: %s", task.node, reply.error.reason)
            return None, reply.error.reason or "an error without a reason"
        try:
            update = server.model.read(
                task, reply, self.arrayrecord_key, server.now, self.needs, self.trained
            )
            reply.content.pop(self.arrayrecord_key)  # or it waits with the others of its instant
            return update, ""
        except ConfigError as error:
            self.diverged[self.model_of(task)] += isinstance(error, NotFinite)
            self.leave_out(server, task, str(error))
            return None, str(error)


def _vector(reply: Message, name: str, p: int) -> Row:
    record = reply.content.get(name)
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"the reply has no record {name!r}, only {sorted(reply.content)}: use the client rule "
            "that sends it"
        )
    if not len(record):
        return np.zeros(p, np.float32)
    row: Row = record_vector(record, p, f"record {name!r}").numpy()
    return row


def wait_for_nodes(tasks: Tasks[Any], least: int, retry_s: float) -> None:
    """Waits until at least so many clients are available."""
    while len(tasks.nodes()) < least:
        tasks.clock.sleep(retry_s)
