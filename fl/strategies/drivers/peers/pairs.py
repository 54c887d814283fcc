"""The driver of asynchronous gossip in pairs: every node at its own pace, and nobody waits.

The rule is `fl.strategies.gossip_rule.PairRule`; this says who exchanges with whom, and when.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.attacks import Scene
from fl.checks import read_if
from fl.errors import ConfigError, SimulationError
from fl.randomness import generator
from fl.strategies.drivers.peers.decentralized import Decentralized
from fl.strategies.drivers.peers.edges import Edges, moved
from fl.strategies.drivers.peers.swarm import Answer, Swarm
from fl.strategies.gossip_rule import PairRule
from fl.vectors.rows import Row, is_finite


@dataclass
class NodeLoop:
    """Where a node is in its loop.

    Attributes:
        iteration: k, how many it has begun.
        iterating: whether it is in one.
        changes: how often others have changed its model.
        snapshots: `changes` when a gradient was asked for, by iteration, until there is an answer.
        task_id: message id of its last task.
        busy: whether it is in an exchange.
        asked: whether its own exchange of this iteration has been asked for.
        exchanged: whether that is over.
        answered: whether its task is.
        answer: what came of the task; None if it failed.
        late: answers of tasks that were taken to be lost.
    """

    iteration: int = -1
    iterating: bool = False
    changes: int = 0
    snapshots: dict[int, int] = field(default_factory=dict)
    task_id: str = ""
    busy: bool = False
    asked: bool = False
    exchanged: bool = False
    answered: bool = False
    answer: Answer | None = None
    late: list[Answer] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the step may be taken; not while the model is being exchanged."""
        return self.answered and self.asked and self.exchanged and not self.busy


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """An exchange that is under way.

    Attributes:
        i, j: the pair; i has asked for it.
        rows: what the two have sent, shape (m,) each; None if nothing can be made of it.
        arrived: whether both have got what the other sent.
    """

    i: int
    j: int
    rows: tuple[Row | None, Row | None]
    arrived: bool


@read_if(lambda a: False, "topology.weights", only="AD-PSGD takes the graph of a topology alone")
class Pairs(Decentralized):
    """Averages of neighbours, two at a time, beside the nodes' own steps.

    The exchange with j runs while the gradient is computed, as in the system of AD-PSGD's authors,
    and j goes on computing; `overlap=False` begins it afterwards, as the lines of their algorithm
    stand. Both messages cross the edge at the same time, one each way. A node is in one exchange at
    a time: who wants one with a node that is busy waits, in order of asking, and a step waits for
    the exchange the node is in: so no model changes while it travels, and nobody waits for somebody
    who waits for him.

    The staleness of a gradient, which is recorded, is how often exchanges that others asked for
    have changed the model since the snapshot. Others are held back by nobody: a slow node steps
    less often, and counts less.

    A node that is away or fails is not asked, begins no iteration, and is looked for again
    `retry_s` later. One whose task must be lost begins another; if the gradient comes after all, it
    is a step like any other. An exchange of which a payload is lost does not happen; the step does.
    A round is n steps of all nodes together. Exchanges that are under way when the last step is
    taken are left out: they would move no mean.

    With a compressor both have copies of each other's messages, and

        x_i <- x_i + gamma ((xhat_i + xhat_j) / 2 - xhat_i)

    for both: the pair's matrix in `fl.strategies.choco`. A Byzantine node gives away what its
    attack makes of all nodes' present models; it averages its own model with what it gets.

    Args:
        rule: what a node does.
        overlap: exchange while computing.
        patience: a task is lost after three times so many times the longest that its node has
            taken, see `fl.strategies.drivers.patience`; None waits for ever.
        **decentralized: arguments of `Decentralized`; the topology is an undirected graph that
            stays, whose weights are not used.

    Raises:
        ConfigError: an argument is out of its range, or the graph is directed or changes.
    """

    rules = PairRule
    example = "ADPSGD"
    rule: PairRule
    reads_timeout: ClassVar[bool] = False  # nobody waits for a node's work

    def __init__(
        self,
        rule: PairRule,
        *,
        overlap: bool = True,
        patience: float | None = 3.0,
        **decentralized: Any,
    ) -> None:
        super().__init__(rule, patience=patience, **decentralized)
        if self.topology.directed or self.topology.period != 1:
            raise ConfigError(
                f"{self.name} needs an undirected graph that stays, not "
                f"{type(self.topology).__name__}: use topology=ring, torus, hypercube, complete or "
                "random_regular"
            )
        self.overlap = overlap

    def run(self, swarm: Swarm, num_rounds: int) -> None:
        """Runs until n num_rounds steps have been taken."""
        self.swarm = swarm
        self.states: list[Any] = [self.rule.init(swarm.w) for _ in range(self.n)]
        self.messages, self.step_size = self.messages_of(swarm, self.states)
        self.memory: Mapping[str, NDArray[Any]] = {}  # the attack's
        self.num_forged = 0
        self.neighbours = Edges.of(self.topology.matrix(0)).heard
        self.workers = [NodeLoop() for _ in range(self.n)]
        self.wanted: list[tuple[int, int]] = []  # exchanges that wait for a busy node
        self.crossings: list[tuple[float, int, Crossing]] = []  # (time, i, exchange)
        self.again: list[tuple[float, int]] = []  # (time, node): looked for again then
        self.transfers: Counter[tuple[int, int]] = Counter()
        self.facts: Counter[str] = Counter()
        self.steps = 0
        self.num_steps = num_rounds * self.n
        self._begin(list(range(self.n)))
        self._advance()
        while self.steps < self.num_steps:
            queues = (self.crossings, self.again)
            until = min(queue[0][0] if queue else math.inf for queue in queues)
            if math.isinf(until) and not swarm.tasks.any_open:
                raise SimulationError(f"{self.name} waits for nothing at {swarm.now:g} s")
            for i, answer in swarm.receive(until):
                self._answered(i, answer)
            self._advance()

    # ---- a node's loop ---------------------------------------------------------------------------

    def _begin(self, nodes: list[int]) -> None:
        """Begins the next iteration of nodes that are there."""
        available = set(self.swarm.available(range(self.n)))
        there = [i for i in nodes if i in available]
        for i in there:
            worker = self.workers[i]
            worker.iteration += 1
            worker.iterating = True
            worker.snapshots[worker.iteration] = worker.changes
            worker.asked = worker.exchanged = worker.answered = False
            worker.answer = None
        rounds = [self.workers[i].iteration for i in there]
        models = [self.rule.model(self.states[i]) for i in there]
        for i, task in zip(there, self.swarm.train(there, models, rounds), strict=True):
            self.workers[i].task_id = task.message_id
        for i in nodes:
            if i not in available:
                self._looks_again(i)
            elif self.overlap:
                self._ask(i)

    def _looks_again(self, i: int) -> None:
        self.swarm.tasks.control.absent(self.swarm.ids[i], self.workers[i].iteration + 2)
        self.facts["absent_nodes"] += 1
        heapq.heappush(self.again, (self.swarm.now + self.retry_s, i))

    def _answered(self, i: int, answer: Answer | None) -> None:
        worker = self.workers[i]
        if answer is not None and not (
            worker.iterating and answer.task.memo.round == worker.iteration
        ):
            worker.late.append(answer)
            return
        worker.answer, worker.answered = answer, True
        if not self.overlap:
            self._ask(i)

    def _ask(self, i: int) -> None:
        """Draws the neighbour to average with."""
        self.workers[i].asked = True
        there = self.swarm.available(self.neighbours[i])
        if there:
            rng = generator(self.seed, "neighbour", i, self.workers[i].iteration)
            self.wanted.append((i, there[int(rng.integers(len(there)))]))
        else:
            self.workers[i].exchanged = True

    # ---- exchanges -------------------------------------------------------------------------------

    def _pair(self) -> None:
        """Begins the exchanges that are wanted and whose nodes are both free, in order."""
        waiting, self.wanted = self.wanted, []
        for i, j in waiting:
            if self.workers[i].busy or self.workers[j].busy:
                self.wanted.append((i, j))
                continue
            self.workers[i].busy = self.workers[j].busy = True
            rows = (self._sent(i), self._sent(j))
            there, back = self._transfer(i, j), self._transfer(j, i)
            both = there[1] and back[1]
            self.facts["lost_payloads"] += (not there[1]) + (not back[1])
            heapq.heappush(self.crossings, (max(there[0], back[0]), i, Crossing(i, j, rows, both)))

    def _sent(self, i: int) -> Row | None:
        """Returns what the other makes of a node's message."""
        message = self.rule.message(self.states[i])
        attack = self.exchange.attack
        if attack is not None and i in self.byzantine:
            message = self._forged(i, message)
        return self.messages.send(i, message)

    def _forged(self, i: int, message: Row) -> Row:
        attack, rule = self.exchange.attack, self.rule
        if attack is None:
            return message
        own = sorted(self.byzantine)
        sent = [rule.model_in(rule.message(state)) for state in self.states]
        honest = [x for k, x in enumerate(sent) if k not in self.byzantine and is_finite(x)]
        if not honest and attack.knowledge != "own":
            return message
        rng = generator(self.seed, "attack", self.num_forged)
        self.num_forged += 1
        truth = np.stack([sent[k] for k in own])
        seen = np.stack(honest) if honest else truth[:0]
        models, self.memory = self.forged(
            attack, seen, truth, Scene(len(own), rng, memory=self.memory)
        )
        self.swarm.tasks.control.forged(self.workers[i].task_id)
        return rule.with_model(message, models[own.index(i)])

    def _transfer(self, source: int, target: int) -> tuple[float, bool]:
        index = self.transfers[source, target]
        self.transfers[source, target] += 1
        size = self.messages.bytes_to(source, target)
        arrival, arrived = self.swarm.send(source, target, size, index=index)
        if arrived:
            self.messages.arrived(source, target)
        return arrival, arrived

    def _average(self, crossing: Crossing) -> None:
        """Ends an exchange whose payloads have both arrived."""
        pair, rows = (crossing.i, crossing.j), crossing.rows
        for k, theirs, ours in zip(pair, reversed(rows), rows, strict=True):
            if theirs is None:
                continue
            message = self.rule.message(self.states[k])
            honest = self.exchange.attack is None or k not in self.byzantine
            copy = ours if honest and ours is not None else message
            mean = np.float32(0.5) * copy + np.float32(0.5) * theirs  # the sum could overflow
            row = mean
            if self.step_size != 1.0 or not self.messages.exact:
                row = moved(message, mean, copy, self.step_size)
            if is_finite(row):
                self.states[k] = self.rule.combine(self.states[k], row)
        self.workers[crossing.j].changes += 1

    # ---- time ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Does all that is due now; exchanges end before steps are taken, and then others begin."""
        now = self.swarm.now
        while True:
            self._pair()
            while self.crossings and self.crossings[0][0] <= now:
                _, i, crossing = heapq.heappop(self.crossings)
                self.workers[i].busy = self.workers[crossing.j].busy = False
                self.workers[i].exchanged = True
                if crossing.arrived:
                    self._average(crossing)
            for i, worker in enumerate(self.workers):
                while worker.late and not worker.busy and self.steps < self.num_steps:
                    self._step(i, worker.late.pop(0))
            ready = [i for i, worker in enumerate(self.workers) if worker.done]
            for i in ready:
                answer = self.workers[i].answer
                self.workers[i].answered = self.workers[i].iterating = False
                if answer is not None and self.steps < self.num_steps:
                    self._step(i, answer)
            if self.steps == self.num_steps:
                return
            while self.again and self.again[0][0] <= now:
                ready.append(heapq.heappop(self.again)[1])
            if ready:
                self._begin(ready)
            elif not (self.crossings and self.crossings[0][0] <= now) and not self._can_pair():
                return

    def _can_pair(self) -> bool:
        return any(not (self.workers[i].busy or self.workers[j].busy) for i, j in self.wanted)

    def _step(self, i: int, answer: Answer) -> None:
        """Moves a node's model along a gradient."""
        worker = self.workers[i]
        self.swarm.applied(answer, worker.changes - worker.snapshots.pop(answer.task.memo.round))
        self.states[i] = self.rule.adapt(self.states[i], answer.progress)
        self.steps += 1
        if self.steps % self.n == 0:
            named = {name: float(self.facts[name]) for name in ("absent_nodes", "lost_payloads")}
            self.facts.clear()
            models = [self.rule.model(state) for state in self.states]
            self.evaluate(self.steps // self.n, models, named)
