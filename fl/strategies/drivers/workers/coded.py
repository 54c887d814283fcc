"""The driver of coded work: gradients of all data, decoded from what enough workers send.

The scheme (`fl.strategies.coded_scheme`) says who computes what and whom a round can do without;
this sends, tells stragglers from others, waits, and steps the models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fl.checks import at_least, is_a, not_negative
from fl.clients import CodedGradient
from fl.clients.app.task_app import TASK_KEY
from fl.clients.coded_gradient import COEFFICIENTS_KEY
from fl.data import Partitions
from fl.errors import ConfigError, NoStep
from fl.flower.identity import client_of
from fl.strategies.coded_scheme import CodedScheme, Flags, Minitasks
from fl.strategies.coded_times import WaitOut
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.events import EventDriven
from fl.strategies.drivers.events.learning_tasks import Models
from fl.strategies.drivers.events.server import GlobalModel, Sent, Server, Update
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.tasks import Task
from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

_GRADIENT = "gradient"
_Place = tuple[int, int]  # worker, and minitask of the round


@dataclass(eq=False)
class _CodedRound:
    """A round that is going on.

    Attributes:
        work: its minitasks.
        began_s: when it began, s.
        deadline_s: when those that are missing are stragglers, s; infinity until the first is done.
        waited_out: whether there are more of them than the scheme admits.
        unasked: minitasks that have not been sent, in order.
        lost: those that have failed.
        asked: those in flight, by message.
        came: those that were answered.
    """

    work: Minitasks
    began_s: float
    deadline_s: float = math.inf
    waited_out: bool = False
    unasked: dict[_Place, None] = field(default_factory=dict)
    lost: dict[_Place, None] = field(default_factory=dict)
    asked: dict[str, _Place] = field(default_factory=dict)
    came: dict[_Place, Update] = field(default_factory=dict)

    @property
    def places(self) -> list[_Place]:
        """All minitasks of which there is something to be done, or done."""
        return [*self.unasked, *self.lost, *self.asked.values(), *self.came]

    def job(self, place: _Place) -> int:
        """Returns what a minitask is of."""
        return int(self.work.jobs[place])

    def to_ask(self) -> list[_Place]:
        """Returns what is to be sent: what has failed only when the round is waited out."""
        return [*self.unasked, *(self.lost if self.waited_out else ())]


class CodedRounds(EventDriven):
    """Rounds of a scheme of coded work.

    A round begins with one message to a worker for each of its minitasks: the model of the job,
    which of the worker's chunks, and the coefficients of their gradients. It replies with one
    vector. Workers hold what `fl.data.partition.coded` gives them, and run
    `fl.clients.CodedGradient`. With a batch size a job is of so many examples of each chunk, in
    turn, so that a step is along the mean gradient of num_chunks times as many; they come back in
    the same order.

    Workers that take longer than 1 + mu times the first are stragglers, as are those that fail or
    are not there. If the scheme admits them the round ends then, and they are told to stop;
    otherwise it is waited out, and those that have failed are asked again:

    - "all": the round ends when all have answered.
    - "enough": it ends as soon as those that are missing are admitted. With mu = 0 that is the rule
      of the first n - s workers.

    A job whose gradient can be decoded steps its model. `num_rounds` counts jobs. A scheme with a
    delay of T has T + 1 jobs in flight, of as many models: job t is of model t modulo their number,
    the learning tasks, of which there must be at least T + 1, so that no gradient is stale. If all
    workers' gradients are not finite, or a step is not, the model stays as it is for this job.

    Every minitask is a message of its own: on a fleet that knows the seconds of whole tasks only, a
    worker's round takes as many tasks as it has minitasks.

    Args:
        rule: the scheme.
        optimizer: steps each model along the mean gradient of all data; None is SGD of rate 0.1.
        batch_size: examples of a chunk that a job takes; None takes all.
        mu: tolerance of a round, at least 0.
        wait_out: see above.
        **events: arguments of `EventDriven` but `concurrency` and `patience`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True
    rules = CodedScheme
    example = "GradientCoding"
    rule: CodedScheme

    def __init__(
        self,
        rule: CodedScheme,
        *,
        optimizer: OuterOptimizer | None = None,
        batch_size: int | None = None,
        mu: float = 1.0,
        wait_out: WaitOut = "all",
        **events: Any,
    ) -> None:
        super().__init__(rule, concurrency=None, patience=None, **events)
        self.optimizer = OuterSgd(0.1, 0.0, False) if optimizer is None else optimizer
        is_a("optimizer", self.optimizer, OuterOptimizer)
        if batch_size is not None:
            at_least("batch_size", batch_size, 1)
        not_negative("mu", mu)
        if wait_out not in ("all", "enough"):
            raise ConfigError(f"wait_out is {wait_out!r}; it must be 'all' or 'enough'")
        self.batch_size = batch_size
        self.mu = mu
        self.wait_out = wait_out

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(
            super().traits,
            sends="gradient",
            combinations=True,
            several_models=self.rule.delay > 0,
            client_rule=CodedGradient,
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The combination."""
        return (_GRADIENT,)

    def config(self) -> Mapping[str, Any]:
        """Returns what messages say beside the model, of a part that is no combination."""
        return self._config(0, 0, 1.0)

    def _config(
        self, step: int, part: int, coefficients: float | tuple[float, ...]
    ) -> dict[str, Any]:
        pieces = self.rule.pieces
        config = {
            "local-steps": pieces,
            "chunks": self.rule.parts * pieces,
            "first-chunk": part * pieces,
            COEFFICIENTS_KEY: coefficients,
        }
        if self.batch_size is not None:
            config |= {"chunk-examples": self.batch_size, "chunk-begin": step * self.batch_size}
        return config

    def cohort(self, num_clients: int) -> int:
        """Returns how many are asked at a time: all."""
        return num_clients

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError unless every client is a worker."""
        if num_clients != self.rule.n:
            raise ConfigError(
                f"there are {num_clients} clients and {self.rule.n} workers: set strategy.rule.n="
                f"{num_clients}"
            )

    def check_partitions(self, partitions: Partitions) -> None:
        """Checks that workers hold the same examples where the scheme has them hold the same chunk.

        Raises:
            ConfigError: they do not.
        """
        wrong = len(partitions) != self.rule.n
        held = [self.rule.chunks(part) for part in range(self.rule.parts)]
        known: dict[int, Any] = {}
        for i in range(0 if wrong else self.rule.n):
            chunks = np.concatenate([of[i] for of in held])
            rows = partitions[i]
            if not len(rows) or len(rows) % len(chunks):
                wrong = True
                break
            for chunk, own in zip(chunks.tolist(), rows.reshape(len(chunks), -1), strict=True):
                wrong = wrong or not np.array_equal(known.setdefault(chunk, own), own)
        if wrong:
            raise ConfigError(
                f"{self.name} decodes what several workers make of the same chunks of examples, "
                "and this partition does not give them as its scheme says: use partition=coded, "
                "without held-out examples of clients"
            )

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`.

        Raises:
            ConfigError: there are fewer models than jobs in flight.
        """
        if exchange.layouts:
            self._check_models(len(exchange.layouts))
        return super().within(exchange)

    def _check_models(self, models: int) -> None:
        if models <= self.rule.delay:
            raise ConfigError(
                f"{self.name} has {self.rule.delay + 1} jobs in flight, and there are {models} "
                "models, so that some gradients would be of old ones: use tasks=... with as many "
                "learning tasks, or smaller rule.B and rule.W"
            )

    def model(self, arrays: ArrayRecord) -> GlobalModel:
        """Returns the model, or those of all learning tasks."""
        return Models(arrays) if self.rule.delay else GlobalModel(arrays)

    def model_of(self, task: Task[Sent]) -> str:
        """Returns the name of the model that a minitask is of; "" is the only one."""
        return str(task.memo.config.get(TASK_KEY, ""))

    def length_of(self, task: Task[Sent]) -> int:
        """Returns p of the model that a minitask is of."""
        return self.layouts[self.model_of(task)].num_trainable

    # ---- a run -----------------------------------------------------------------------------------

    def begin(self, server: Server) -> None:
        """Prepares the first round.

        Raises:
            ConfigError: there are fewer models than jobs in flight.
        """
        model = server.model
        self.servers = [server]
        if isinstance(model, Models):
            self.servers = [server.of(one, name) for name, one in model.by_task.items()]
            for own in self.servers:
                own.evaluate = server.evaluate
        self._check_models(len(self.servers))
        self.layouts: dict[str, Layout] = {
            own.name: self.exchange.layout_of(own.name) or own.model.layout for own in self.servers
        }
        self.optimizers = [
            self.optimizer.init(self.layouts[own.name].num_trainable) for own in self.servers
        ]
        self.steps = [0] * len(self.servers)
        self.jobs = server.num_rounds
        self.known = self.rule.init()
        self.stragglers = self.waited_out = 0  # of all rounds so far: workers, and rounds
        self.ended: set[int] = set()  # jobs that have stepped their model, or never will
        self.results: dict[int, dict[_Place, Update]] = {}  # by job, of worker and part
        self.workers: dict[int, int] = {}  # by node
        self.round = self._next_round(server)

    def free_slots(self, server: Server) -> int:
        """Returns how many idle workers could be asked for something."""
        waiting = {i for i, _ in self.round.to_ask()}
        return sum(self.workers.get(node, -1) in waiting for node in server.tasks.idle())

    def dispatch(self, server: Server) -> None:
        """Asks workers for what they have not been asked for yet."""
        self._meet(server)
        now, nodes = self.round, {self.workers[node]: node for node in server.tasks.nodes()}
        told: dict[tuple[int, int, float | tuple[float, ...]], list[_Place]] = {}
        for i, m in now.to_ask():
            if i not in nodes or (now.waited_out and server.tasks.busy(nodes[i])):
                continue
            job, part = now.job((i, m)), int(now.work.parts[i, m])
            told.setdefault((job, part, self._coefficients(i, part)), []).append((i, m))
        for (job, part, coefficients), places in told.items():
            own = self.servers[job % len(self.servers)]
            config = self._config(job // len(self.servers), part, coefficients)
            if own.name:
                config[TASK_KEY] = own.name
            sent = own.send([nodes[i] for i, _ in places], config, kind=own.name)
            for task, place in zip(sent, places, strict=True):
                now.asked[task.message_id] = place
                now.unasked.pop(place, None)
                now.lost.pop(place, None)

    def receive(self, server: Server, update: Update) -> None:
        """Takes what a worker sends for a minitask."""
        now = self.round
        place = now.asked.pop(update.task.message_id, None)
        if place is None:
            server.discard(update)
            return
        now.came[place] = update
        if math.isinf(now.deadline_s) and not self._missing()[place[0]]:
            now.deadline_s = now.began_s + (1 + self.mu) * (server.now - now.began_s)
        self._settle(server)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Counts the worker among the stragglers."""
        place = self.round.asked.pop(task.message_id, None)
        if place is not None:
            self.round.lost[place] = None
            self._settle(server)

    def timer(self, server: Server) -> float:
        """Returns when it is known who is a straggler."""
        return math.inf if self.round.waited_out else self.round.deadline_s

    def tick(self, server: Server) -> None:
        """Ends the round, or waits it out."""
        self._settle(server)

    def stay(self, server: Server, task: Task[Sent], why: NoStep) -> None:
        """Gives up the earliest job of the model that a task was of: it stays as it is.

        Of several that fail at one instant, the first ones may have had it given up already.
        """
        name, now = self.model_of(task), self.round
        of = next(j for j, own in enumerate(self.servers) if own.name == name)
        in_flight = {*self.known.received, *map(now.job, now.places)} - self.ended
        job = min((j for j in in_flight if j % len(self.servers) == of), default=None)
        if job is None:
            return
        for update in self._end(job).values():
            self.servers[of].discard(update)
        self.servers[of].stay(why)
        gone = {place for place in now.places if now.job(place) == job}
        self._cancel(server, gone)
        for waiting in (now.unasked, now.lost):
            for place in gone & waiting.keys():
                del waiting[place]
        self._settle(server)

    # ---- rounds ----------------------------------------------------------------------------------

    def _next_round(self, server: Server) -> _CodedRound:
        """Returns the next round in which somebody has something to do; empty after the last."""
        while True:
            now = _CodedRound(self.rule.assign(self.known, self.jobs), server.now)
            for m, i in np.argwhere(now.work.jobs.T >= 0).tolist():
                if now.job((i, m)) not in self.ended:
                    now.unasked[i, m] = None
            if now.unasked or len(self.ended) == self.jobs:
                return now
            self.known = self.rule.after(self.known, now.work, np.zeros(self.rule.n, np.bool_))

    def _missing(self) -> Flags:
        """Returns whose results would be lost if the round ended now, shape (n,)."""
        now, missing = self.round, np.zeros(self.rule.n, np.bool_)
        missing[[i for i, _ in (*now.unasked, *now.lost, *now.asked.values())]] = True
        return missing

    def _settle(self, server: Server) -> None:
        """Ends the round and opens the next, if it can end now, or decides to wait it out."""
        now, missing = self.round, self._missing()
        nothing_comes = not now.asked
        if missing.any():
            if server.now < now.deadline_s and not nothing_comes:
                return
            may_end = not now.waited_out or self.wait_out == "enough" or nothing_comes
            if not (may_end and self.rule.admits(self.known, now.work, missing)):
                now.waited_out = True
                return
        self._close(server, missing)
        self.round = self._next_round(server)

    def _close(self, server: Server, missing: Flags) -> None:
        now = self.round
        self._cancel(server, set(now.asked.values()))
        for place, update in now.came.items():
            job = now.job(place)
            if missing[place[0]] or job in self.ended:
                server.discard(update)
            else:
                self.results.setdefault(job, {})[place[0], int(now.work.parts[place])] = update
        self.stragglers += int(missing.sum())
        self.waited_out += now.waited_out
        server.control.measured(
            {"stragglers": float(self.stragglers), "waited_out": float(self.waited_out)}
        )
        self.known = self.rule.after(self.known, now.work, missing)
        for job in sorted(set(self.known.received) - self.ended):
            if self.rule.decodable(self.known, job):
                self._step(job)

    def _cancel(self, server: Server, places: Set[_Place]) -> None:
        """Tells workers to stop what they do for minitasks of the round.

        What has come at this instant, and is yet to be read, is of no minitask then.
        """
        asked = self.round.asked
        gone = {message_id for message_id, place in asked.items() if place in places}
        for message_id in gone:
            del asked[message_id]
        for task in server.tasks:
            if task.message_id in gone:
                server.tasks.cancel(task)

    def _step(self, job: int) -> None:
        """Steps a job's model along the gradient that is decoded."""
        j = job % len(self.servers)
        own, layout = self.servers[j], self.layouts[self.servers[j].name]
        updates = self._end(job)
        try:
            a = self.rule.decode(self.known, job)
        except NoStep as error:
            for update in updates.values():
                own.discard(update)
            own.stay(error)
            return
        used, g = [], np.zeros(layout.num_trainable)
        for place in sorted(updates):
            update = updates[place]
            if a[place]:
                g += a[place] * update.extras[_GRADIENT]
                used.append(update)
            else:
                own.discard(update)
        w = layout.select(as_tensor(own.w)).numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            trained, state = self.optimizer.step(
                w, g / self.rule.num_chunks, self.optimizers[j], self.steps[j]
            )
        if own.step(layout.with_trained(own.w, trained), used):
            self.optimizers[j], self.steps[j] = state, self.steps[j] + 1

    def _end(self, job: int) -> dict[_Place, Update]:
        """Returns what has come for a job, of which nothing more will be asked."""
        self.ended.add(job)
        return self.results.pop(job, {})

    def _coefficients(self, worker: int, part: int) -> float | tuple[float, ...]:
        own = self.rule.coefficients(part)[worker].tolist()
        return own[0] if len(set(own)) == 1 else tuple(own)

    def _meet(self, server: Server) -> None:
        """Finds out which worker each node is, by the partition that it holds."""
        new = [node for node in server.tasks.nodes() if node not in self.workers]
        if not new:
            return
        if server.tasks.numbered:
            self.workers.update({node: client_of(node) for node in new})
            return
        for reply in server.tasks.ask(RecordDict(), new, server.tasks.ttl_s, "query"):
            if not reply.has_content():
                continue
            metrics: Any = next(iter(reply.content.metric_records.values()), {})
            worker, node = metrics.get("partition-id"), reply.metadata.src_node_id
            if not isinstance(worker, int) or not 0 <= worker < self.rule.n:
                raise ConfigError(
                    f"node {node} holds partition {worker!r}; it must be one of the {self.rule.n} "
                    "workers': start every SuperNode with a partition-id below that"
                )
            if worker in self.workers.values():
                raise ConfigError(
                    f"node {node} holds partition {worker}, as another does: start one SuperNode "
                    "for each of them"
                )
            self.workers[node] = worker
