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
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.aggregation import weight_of
from fl.checks import at_least, positive
from fl.errors import ConfigError, NoStep, NotFinite, SimulationError
from fl.flower.grid_view import GridView
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.events.server import GlobalModel, Sent, Server, Update
from fl.strategies.drivers.replies import any_not_finite
from fl.strategies.drivers.tasks import TTL_S, Failures, Task, Tasks

log = logging.getLogger("fl")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_WEIGHT_KEY = "num-examples"


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

    def lasting_parts(self, server: Server) -> Mapping[str, object]:
        """Returns what lasts of a run, see `fl.flower.grid_view.Snapshots`: nothing is known."""
        return {}

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
        traits = self.traits
        codec = self.exchange.codec(
            GridView(grid).control,
            *self.keys,
            carries=traits.compressed_carries,
            needs=traits.compressed_needs,
        )
        ttl_s = timeout if self.reads_timeout else TTL_S
        tasks: Tasks[Sent] = Tasks(grid, ttl_s, self.patience, codec)
        server = Server(model, tasks, train_config or {}, self.seed, self.keys, self.exchange)
        result = Result()

        def evaluate() -> MetricRecord | None:
            if server.version:
                self.evaluate_on_clients(server)
            metrics = evaluate_fn(server.version, server.model.evaluated()) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[server.version] = metrics
            return metrics

        def ended() -> bool:
            return server.version >= num_rounds or self.finished(server)

        evaluate()
        server.evaluate, server.num_rounds = evaluate, num_rounds
        wait_for_nodes(server.tasks, self.min_available_nodes, self.retry_s)
        self.begin(server)
        self.failing = failures = Failures("update", timeout if self.reads_timeout else None)
        self.vain = vain = Counter[str]()
        self.diverged: Counter[str] = Counter()
        # Updates of a form that the method cannot use; None once it can.
        self.unusable_first: int | None = 0
        if tasks.snapshots is not None:
            tasks.snapshots.begin(self.lasting_parts(server))
        self.dispatch(server)
        while not ended():
            due = self.timer(server)
            until = due
            if self._looks_for_clients(server):
                until = min(due, server.now + tasks.pause_s(self.retry_s))
            received = tasks.receive(until)
            for task, reply in received:
                name = self.model_of(task)
                before = self.diverged[name]
                update, why = self._read(server, task, reply)
                if update is not None and (refusal := self.unusable(update)) is not None:
                    # A loss that is NaN, of a model that is huge and finite, say.
                    self.diverged[name] += any_not_finite(update.metrics)
                    update, why = None, refusal
                    self.leave_out(server, task, refusal)
                    if self.unusable_first is not None:
                        self.unusable_first += 1
                    # As many clients as that do not all lie.
                    if (n := self.unusable_first) == self.at_once(server):
                        raise ConfigError(f"none of the first {n} updates is usable: {why}")
                if update is not None:
                    update, why = self.as_sent(server, update), "no payload holds what it forges"
                empty = update is not None and self._is_empty(update)
                in_vain = update is None or empty
                most = self.at_once(server) if in_vain else 0  # not cheap with many clients
                if update is None:
                    # Of a round that is over, nothing is in flight any more.
                    flight = max(len(tasks), len(received))
                    failures.add(task, reply, server.now, flight, why=why)
                    vain[name] += self.diverged[name] - before
                    self.failed(server, task)
                elif ended():
                    server.discard(update)
                elif empty:
                    vain[name] += 1
                    server.discard(update)
                    self.failed(server, task)
                else:
                    failures.clear()
                    self.heard_well(name)
                    self.receive(server, update)
                if in_vain and vain[name] >= most and not ended():
                    vain[name] = 0
                    failures.clear()  # the run goes on to its last version
                    self.stay(server, task, self.why_in_vain(name))
                del update  # or its model waits for the next client to train
            if server.now >= due and not ended():
                self.tick(server)
            if not ended():
                self.dispatch(server)
        result.arrays = server.model.evaluated()
        return result

    def heard_well(self, name: str = "") -> None:
        """Notes that an update of a model is one that the method can use."""
        self.unusable_first, self.vain[name], self.diverged[name] = None, 0, 0

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

    def length_of(self, task: Task[Sent]) -> int:
        """Returns p, the length of the vectors that the method `needs` of a task."""
        return self.trained

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
                task,
                reply.content,
                self.arrayrecord_key,
                server.now,
                self.needs,
                self.length_of(task),
            )
            reply.content.pop(self.arrayrecord_key)  # or it waits with the others of its instant
            return update, ""
        except ConfigError as error:
            self.diverged[self.model_of(task)] += isinstance(error, NotFinite)
            self.leave_out(server, task, str(error))
            return None, str(error)


def wait_for_nodes(tasks: Tasks[Any], least: int, retry_s: float) -> None:
    """Waits until at least so many clients are available."""
    while len(tasks.nodes()) < least:
        tasks.clock.sleep(retry_s)
