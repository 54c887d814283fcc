"""The driver of synchronous gossip: every node trains, sends to its neighbours, and mixes.

A node goes on to its next round when its own work is done and what its neighbours sent in this
round has arrived. There is no other barrier: in virtual time a slow node holds back its neighbours
in the next round, theirs one round later, and so on. A neighbour's model of the same round is used,
also where the neighbour has gone on in the meantime.

All rows that are complete at one instant are mixed by one sparse product, X <- W X; where all nodes
are equally fast that is one product a round.

Who is away when its round begins, or fails in it, takes no part in the round: it keeps its model
and goes on when its neighbours do, without mixing; while nobody at all is there, all wait. What a
neighbour would have had from it, or from a payload that is lost, is given up: `Gossip.keeps` says
who takes the weight. On a symmetric W, whose absent nodes are missing on both sides, the matrix of
those present is doubly stochastic again; a payload lost on one side of an edge makes it
row-stochastic for that round.
"""

from __future__ import annotations

import heapq
import math
from abc import abstractmethod
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fl.attacks import Attack, Scene
from fl.errors import ConfigError, SimulationError
from fl.randomness import generator
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.exchange import Exchange as Between
from fl.strategies.drivers.swarm import Answer, Decentralized, Swarm
from fl.topologies import Stochasticity
from fl.topologies.mixing import mix_rows
from fl.vectors.rows import Row, is_finite

Keeps = Literal["rows", "columns"]


class Arrival(NamedTuple):
    """A payload that a node has received.

    Attributes:
        time_s: when it arrived.
        order: among those of the same time.
        source: the node it comes from.
    """

    time_s: float
    order: float
    source: int


class Edges(NamedTuple):
    """The edges of a matrix, without the diagonal.

    Attributes:
        W: the matrix.
        heard: for each node, whom it hears.
        hearers: for each node, who hears it.
    """

    W: csr_array
    heard: list[list[int]]
    hearers: list[list[int]]

    @classmethod
    def of(cls, W: csr_array) -> Edges:
        """Returns the edges of a matrix: W[i, j] is what i gives to j."""
        n = W.shape[0]
        heard: list[list[int]] = [[] for _ in range(n)]
        hearers: list[list[int]] = [[] for _ in range(n)]
        entries = W.tocoo()
        for i, j in zip(entries.row.tolist(), entries.col.tolist(), strict=True):
            if i != j:
                heard[i].append(j)
                hearers[j].append(i)
        return cls(W, heard, hearers)


class Exchange:
    """One step of gossip, in which every node sends to its neighbours once.

    Args:
        number: e, from 0; the step's matrix is W_e.
        edges: of that matrix.

    Attributes:
        rows: what each node has sent, for as long as somebody needs it.
        own: what a Byzantine node would have sent, for its own use.
        seen: what honest nodes have sent, for an attack.
        forged: whether Byzantine nodes have sent.
        posted: nodes that have something to send, or would have.
        arrived: what each node has received so far, in order.
        resolved: of how many senders each node knows whether something comes.
        latest_s: when it knew the last of them.
        absent: nodes that take no part.
        missing: pairs (i, j): what j would have sent to i does not come.
        waiting: nodes that have sent, or would have.
        done: nodes that have mixed, or would have.
    """

    def __init__(self, number: int, edges: Edges) -> None:
        self.number = number
        self.edges = edges
        self.rows: dict[int, Row] = {}
        self.own: dict[int, Row] = {}
        self.seen: dict[int, Row] = {}
        self.forged = False
        self.posted: set[int] = set()
        self.arrived: dict[int, list[Arrival]] = {}
        self.resolved: Counter[int] = Counter()
        self.latest_s: dict[int, float] = {}
        self.absent: set[int] = set()
        self.missing: set[tuple[int, int]] = set()
        self.waiting: set[int] = set()
        self.done: set[int] = set()
        self._users = {j: len(hearers) + 1 for j, hearers in enumerate(edges.hearers)}

    def finish(self, nodes: Iterable[int]) -> None:
        """Notes nodes that need nothing of this exchange any more, and lets go of what nobody does.

        The rows of one round in use are as many as there are nodes, for as many rounds as the
        fastest and the slowest node are apart.
        """
        for i in nodes:
            self.done.add(i)
            for j in (i, *self.edges.heard[i]):
                self._users[j] -= 1
                if not self._users[j]:
                    self.rows.pop(j, None)
                    self.own.pop(j, None)

    def weights(self, nodes: Sequence[int], keeps: Keeps) -> csr_array:
        """Returns the rows of W of some nodes, (len(nodes), n), without what does not come.

        Args:
            nodes: which rows.
            keeps: "rows": a receiver takes its own model for what it misses; "columns": a sender
                keeps what it cannot deliver, and a node that is absent keeps all.
        """
        W = self.edges.W[nodes]
        if not self.missing and not self.absent:
            return W
        W = csr_array(W, copy=True)
        of = self.edges.W
        for a, i in enumerate(nodes):
            place = slice(W.indptr[a], W.indptr[a + 1])
            columns, values = W.indices[place], W.data[place]  # views
            gone = np.array([(i, int(j)) in self.missing for j in columns])
            own = columns == i
            if keeps == "rows":
                values[own] += values[gone].sum()
            elif i in self.absent:
                values[own] = 1.0
            else:
                hearers = self.edges.hearers[i]
                values[own] += sum(of[k, i] for k in hearers if (k, i) in self.missing)
            values[gone] = 0.0
        W.eliminate_zeros()
        return W

    def mix(self, nodes: Sequence[int], keeps: Keeps) -> Row:
        """Returns what nodes make of what they have: rows of W X, shape (len(nodes), width)."""
        W = self.weights(nodes, keeps)
        used, place = np.unique(W.indices, return_inverse=True)
        compact = csr_array(
            (W.data.astype(np.float32), place, W.indptr), shape=(len(nodes), len(used))
        )
        own = self.own if nodes[0] in self.own else {}  # a Byzantine node, which is alone here
        X = [own[j] if j in own and j == nodes[0] else self.rows[j] for j in used.tolist()]
        mixed = mix_rows(compact, X, np.empty((len(nodes), X[0].size), np.float32))
        mixed.flags.writeable = False
        return mixed


class Gossip(Decentralized):
    """Base of the methods of synchronous gossip.

    A method says what a node trains from, what it sends, and what it makes of what it gets; the
    driver does the rest. Round t has `exchanges` steps of gossip, which use the matrices
    W_{tQ}, ..., W_{tQ+Q-1} of the topology.

    Args:
        **decentralized: arguments of `Decentralized`.

    Attributes:
        exchanges: Q, steps of gossip in a round.

    Raises:
        ConfigError: an argument is out of its range, or the topology's weights are not of a kind
            that the method is for.
    """

    sends_first: ClassVar[bool] = False  # before it trains, so that both take place at once
    keeps: ClassVar[Keeps] = "rows"  # who takes the weight of what does not come
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly", "rows")
    exchanges_models: ClassVar[bool] = True  # so that an attack on models can replace what is sent
    shows_rule: ClassVar[bool] = False  # in `scene`, for attacks that search against it

    def __init__(self, **decentralized: Any) -> None:
        super().__init__(**decentralized)
        self.exchanges = 1
        kind = self.topology.stochasticity
        if kind not in self.weights:
            remedy = (
                "use strategy=sgp, which undoes the bias"
                if kind == "columns"
                else "use topology/weights=metropolis_hastings, or a regular graph"
            )
            raise ConfigError(
                f"{type(self).__name__}: the weights of {type(self.topology).__name__} are "
                f"{kind!r}, it needs one of {', '.join(self.weights)}: {remedy}"
            )

    # ---- the method ------------------------------------------------------------------------------

    def begin(self, swarm: Swarm) -> None:
        """Prepares the nodes' state; all begin at the initial model."""
        self.x: list[Row] = [swarm.w] * self.n
        self.model_bytes = swarm.model_bytes

    def point(self, i: int) -> Row:
        """Returns the model that node i trains from, shape (d,); also what it is evaluated by."""
        return self.x[i]

    @abstractmethod
    def learn(self, i: int, answer: Answer) -> None:
        """Takes in what node i has learnt from its own data."""

    def message(self, i: int) -> Row:
        """Returns what node i sends to all its neighbours, a vector of float32."""
        return self.x[i]

    def bytes_to(self, j: int, i: int) -> int:
        """Returns the size of what node j sends to node i, in bytes; called before each send."""
        return self.model_bytes

    @abstractmethod
    def mixed(self, i: int, row: Row) -> None:
        """Takes in the weighted sum of what node i and its neighbours have sent."""

    def lost(self, j: int, i: int) -> None:
        """Notes that what node j has for node i does not reach it."""

    def quorum(self, i: int, heard: int) -> int:
        """Returns of how many of its neighbours node i needs a payload to go on."""
        return heard

    def order(self, exchange: int, j: int, i: int) -> float:
        """Returns where the payload of j comes among those that reach i at the same time."""
        return 0.0

    def combine(self, exchange: Exchange, nodes: Sequence[int]) -> Sequence[Row]:
        """Returns what nodes make of what they have received, in one sparse product."""
        return list(exchange.mix(nodes, self.keeps))

    def scene(self, f: int, honest: Row, rng: np.random.Generator, memory: Any) -> Scene:
        """Returns what an attack may know of an exchange."""
        return Scene(f, rng, memory=memory)

    # ---- running ---------------------------------------------------------------------------------

    @property
    def attack(self) -> Attack | None:
        """What Byzantine nodes send, if there are any.

        They train and mix like others, and are charged for it; when all that honest nodes send in
        an exchange is there, the attack makes of it what the Byzantine ones send, the same to all
        neighbours. What is not finite is thrown away by who receives it.
        """
        return self.exchange.attack

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, forges=self.exchanges_models, aggregates=self.shows_rule)

    def within(self, exchange: Between) -> Self:
        """Returns a copy within an exchange, see `Driver.within`."""
        attack = exchange.attack
        if attack is None:
            return super().within(exchange)
        if not self.exchanges_models:
            raise ConfigError(
                f"{type(attack).__name__} forges models, and {type(self).__name__} exchanges "
                "something else: use strategy=monna, dfedavg or dpsgd, or an attack on data "
                "(label_flip, backdoor)"
            )
        if attack.knowledge == "aggregation" and not self.shows_rule:
            raise ConfigError(
                f"{type(attack).__name__} searches against the nodes' rule, and "
                f"{type(self).__name__} averages: use strategy=monna, or an attack that does not "
                "know the rule"
            )
        return super().within(exchange)

    def run(self, swarm: Swarm, num_rounds: int) -> None:
        """Runs all rounds of all nodes."""
        self.begin(swarm)
        Driver(self, swarm, num_rounds).run()

    def edges(self, exchange: int) -> Edges:
        """Returns the edges of an exchange; kept if the topology repeats itself."""
        period = self.topology.period
        if period is None:
            return Edges.of(self.topology.matrix(exchange))
        phase = exchange % period
        if phase not in self._edges:
            self._edges[phase] = Edges.of(self.topology.matrix(phase))
        return self._edges[phase]

    @cached_property
    def _edges(self) -> dict[int, Edges]:
        return {}


class Driver:
    """Runs the rounds of a method's nodes, each at its own time.

    Args:
        method: the method, after `begin`.
        swarm: its nodes.
        num_rounds: T.
    """

    def __init__(self, method: Gossip, swarm: Swarm, num_rounds: int) -> None:
        self.method = method
        self.swarm = swarm
        self.num_rounds = num_rounds
        n = len(swarm)
        self.round = [0] * n  # t of each node
        self.exchange = [0] * n  # e of each node
        self.takes_part = [True] * n
        self.task_of = [""] * n  # message id of its last task
        self.exchanges: dict[int, Exchange] = {}
        self.due: list[tuple[float, int, int]] = []  # (time, e, node): may mix then
        self.again: list[tuple[float, int]] = []  # (time, node): looked for again then
        self.found_away: list[tuple[float, int]] = [(-math.inf, 0)] * n  # when, and how often then
        self.models: dict[int, dict[int, Row]] = {}  # after each round not yet done by all
        self.facts: dict[int, Counter[str]] = {}  # of the same rounds
        self.memory: Mapping[str, NDArray[Any]] = {}  # the attack's

    def run(self) -> None:
        """Runs until every node has done all rounds."""
        self._enter(range(len(self.swarm)))
        while min(self.round) < self.num_rounds:
            until = min(queue[0][0] if queue else math.inf for queue in (self.due, self.again))
            if math.isinf(until) and not len(self.swarm.tasks):
                raise SimulationError(
                    f"{type(self.method).__name__} waits for nothing at {self.swarm.now:g} s; "
                    f"nodes are in rounds {min(self.round)} to {max(self.round)}"
                )
            for i, answer in self.swarm.receive(until):
                self._answered(i, answer)
            self._advance()

    # ---- a node's round --------------------------------------------------------------------------

    def _enter(self, nodes: Iterable[int]) -> None:
        """Begins the next round of nodes, now."""
        available = set(self.swarm.available(range(len(self.swarm))))
        nodes = list(nodes)
        there = [i for i in nodes if i in available]
        for i in nodes:
            self.exchange[i] = self.round[i] * self.method.exchanges
            self.takes_part[i] = True
        points = [self.method.point(i) for i in there]
        tasks = self.swarm.train(there, points, [self.round[i] for i in there])
        for i, task in zip(there, tasks, strict=True):
            self.task_of[i] = task.message_id
        if self.method.sends_first:
            for i in there:
                self._post(i)
        for i in nodes:
            if i not in available:
                self._is_away(i, bool(available))

    def _is_away(self, i: int, others: bool) -> None:
        """Leaves a node out of the round that begins, or looks again later if nobody is there."""
        now = self.swarm.now
        at, times = self.found_away[i]
        times = times + 1 if at == now else 1
        self.found_away[i] = (now, times)
        # Its neighbours may all have done the last round before it was left out, so that a round
        # can be over at once; but a second one only if they are away as well. Then time must pass.
        if others and times <= 2 and self.method.edges(self.exchange[i]).heard[i]:
            self._leave_out(i)
        else:
            heapq.heappush(self.again, (now + self.method.retry_s, i))

    def _leave_out(self, i: int) -> None:
        """Has a node take no part in the rest of its round."""
        self.swarm.tasks.control.absent(self.swarm.ids[i], self.round[i] + 1)
        self._fact(self.round[i], "absent_nodes")
        self.takes_part[i] = False
        first, Q = self.exchange[i], self.method.exchanges
        for e in range(first, (self.round[i] + 1) * Q):
            exchange = self._exchange(e)
            exchange.absent.add(i)
            if i not in exchange.posted:  # else it has sent before it failed
                for k in exchange.edges.hearers[i]:
                    self._misses(exchange, k, i)
            self._forge(exchange)
        self._wait(self._exchange(first), i)

    def _answered(self, i: int, answer: Answer | None) -> None:
        if answer is None:
            self._leave_out(i)
            return
        self.swarm.applied(answer)
        self.method.learn(i, answer)
        if self.method.sends_first:
            self._wait(self._exchange(self.exchange[i]), i)
        else:
            self._post(i)

    # ---- an exchange -----------------------------------------------------------------------------

    def _exchange(self, number: int) -> Exchange:
        if number not in self.exchanges:
            self.exchanges[number] = Exchange(number, self.method.edges(number))
        return self.exchanges[number]

    def _post(self, i: int) -> None:
        """Sends what a node has for its present exchange, now."""
        exchange, method = self._exchange(self.exchange[i]), self.method
        row = method.message(i)
        exchange.posted.add(i)
        if method.attack is None:
            exchange.rows[i] = row
            self._deliver(exchange, i)
        elif i in method.byzantine:
            exchange.own[i] = row
            self._forge(exchange)
        else:
            exchange.rows[i] = row
            if is_finite(row):
                exchange.seen[i] = row
            self._deliver(exchange, i)
            self._forge(exchange)
        if not method.sends_first:
            self._wait(exchange, i)

    def _deliver(self, exchange: Exchange, j: int) -> None:
        heard, hearers = exchange.edges.heard, exchange.edges.hearers[j]
        if not is_finite(exchange.rows[j]):  # who receives it throws it away
            for k in hearers:
                self._misses(exchange, k, j)
            return
        targets = [k for k in hearers if k not in exchange.absent]
        for k in hearers:
            if k in exchange.absent:
                self.method.lost(j, k)
                self._misses(exchange, k, j)
                continue
            arrival, arrived = self.swarm.send(
                j,
                k,
                self.method.bytes_to(j, k),
                fanout=len(targets),
                fanin=len(heard[k]),
                index=exchange.number,
            )
            if arrived:
                order = self.method.order(exchange.number, j, k)
                insort(exchange.arrived.setdefault(k, []), Arrival(arrival, order, j))
                self._resolve(exchange, k, arrival)
            else:
                self._fact(exchange.number // self.method.exchanges, "lost_payloads")
                self.method.lost(j, k)
                self._misses(exchange, k, j, arrival)

    def _misses(self, exchange: Exchange, k: int, j: int, at_s: float | None = None) -> None:
        """Notes that nothing comes to k from j, which k knows at a time, or now."""
        exchange.missing.add((k, j))
        self._resolve(exchange, k, self.swarm.now if at_s is None else at_s)

    def _resolve(self, exchange: Exchange, k: int, at_s: float) -> None:
        exchange.resolved[k] += 1
        exchange.latest_s[k] = max(at_s, exchange.latest_s.get(k, -math.inf))
        self._check(exchange, k)

    def _wait(self, exchange: Exchange, i: int) -> None:
        """Has a node wait for what its neighbours send."""
        exchange.waiting.add(i)
        self._check(exchange, i)

    def _check(self, exchange: Exchange, i: int) -> None:
        """Finds out when a node that waits has enough to go on, if that is known."""
        if i not in exchange.waiting or i in exchange.done:
            return
        heard = len(exchange.edges.heard[i])
        arrived = exchange.arrived.get(i, [])
        needed = self.method.quorum(i, heard)
        if len(arrived) >= needed:
            at_s = arrived[needed - 1].time_s if needed else -math.inf
        elif exchange.resolved[i] == heard:
            at_s = exchange.latest_s[i]
        else:
            return
        heapq.heappush(self.due, (max(at_s, self.swarm.now), exchange.number, i))

    def _forge(self, exchange: Exchange) -> None:
        """Lets Byzantine nodes send, once they know what all others send."""
        attack, method = self.method.attack, self.method
        everybody = len(exchange.posted | exchange.absent) == len(self.swarm)
        if attack is None or exchange.forged or not everybody:
            return
        exchange.forged = True
        own, honest = sorted(exchange.own.items()), sorted(exchange.seen.items())
        exchange.seen = {}
        if not own:
            return
        truth = np.stack([row for _, row in own])
        rows = truth
        if honest or attack.knowledge == "own":
            seen = np.stack([row for _, row in honest]) if honest else truth[:0]
            rng = generator(method.seed, "attack", exchange.number)
            scene = method.scene(len(own), seen, rng, self.memory)
            with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
                rows, self.memory = attack(seen, truth, scene)
                rows = rows.astype(np.float32)
        for (i, _), row in zip(own, rows, strict=True):
            self.swarm.tasks.control.forged(self.task_of[i])
            exchange.rows[i] = row
            self._deliver(exchange, i)

    # ---- time ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Does all that is due now."""
        now = self.swarm.now
        while (self.due and self.due[0][0] <= now) or (self.again and self.again[0][0] <= now):
            ready: dict[int, set[int]] = {}
            while self.due and self.due[0][0] <= now:
                _, e, i = heapq.heappop(self.due)
                if e in self.exchanges and i not in self.exchanges[e].done:
                    ready.setdefault(e, set()).add(i)
            entering = []
            while self.again and self.again[0][0] <= now:
                entering.append(heapq.heappop(self.again)[1])
            for e in sorted(ready):
                entering += self._complete(self.exchanges[e], sorted(ready[e]))
            self._enter(entering)

    def _complete(self, exchange: Exchange, nodes: Sequence[int]) -> list[int]:
        """Has nodes mix what they have; returns those whose next round begins."""
        method, e = self.method, exchange.number
        mixing = [i for i in nodes if self.takes_part[i]]
        if method.keeps == "columns":  # what reached an absent node is its own from now on
            for i in set(nodes).difference(mixing):
                exchange.rows[i] = method.message(i)
            mixing = list(nodes)
        together = [i for i in mixing if i not in exchange.own]
        for group in [together, *([i] for i in mixing if i in exchange.own)]:
            if group:
                for i, row in zip(group, method.combine(exchange, group), strict=True):
                    if is_finite(row):  # else it goes on from what it has
                        method.mixed(i, row)
        exchange.finish(nodes)
        if len(exchange.done) == len(self.swarm):
            del self.exchanges[e]
        if (e + 1) % method.exchanges == 0:
            return [i for i in nodes if self._ends_round(i)]
        for i in nodes:
            self.exchange[i] = e + 1
            if self.takes_part[i]:
                self._post(i)
            else:
                self._wait(self._exchange(e + 1), i)
        return []

    def _ends_round(self, i: int) -> bool:
        """Notes that a node has done its round; returns whether it has another to do."""
        t = self.round[i]
        models = self.models.setdefault(t, {})
        models[i] = self.method.point(i)
        self.round[i] = t + 1
        n = len(self.swarm)
        if len(models) == n:
            del self.models[t]
            facts = self.facts.pop(t, Counter())
            named = {name: float(facts[name]) for name in ("absent_nodes", "lost_payloads")}
            self.method.evaluate(t + 1, [models[k] for k in range(n)], named)
        return t + 1 < self.num_rounds

    def _fact(self, t: int, name: str) -> None:
        self.facts.setdefault(t, Counter())[name] += 1
