"""The driver of samples without a server: who trains, who averages, and how they find each other.

The rule is `fl.strategies.sample_rule.SampleRule`, which every node follows by what it knows
itself; this says what is sent when, and what becomes of it where nodes are away or fail.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.attacks import Scene
from fl.checks import at_least, positive
from fl.errors import ConfigError, SimulationError
from fl.randomness import generator
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.peers.decentralized import Decentralized
from fl.strategies.drivers.peers.node_models import mean_of
from fl.strategies.drivers.peers.swarm import Answer, Swarm
from fl.strategies.drivers.tasks import Task
from fl.strategies.drivers.timers import Timers
from fl.strategies.sample_rule import SampleRule
from fl.topologies import Complete
from fl.vectors.rows import Row, is_finite

SHORT_BYTES = 187
"""Size of a message without a model: a public key, three numbers, a signature, as the authors'."""

_USUAL_SAMPLE = 13  # nodes, the authors'
_USUAL_FEWEST = 3  # models
_HOPELESS_S = 2 * 86400.0  # of silence: longer than any behaviour that repeats itself daily
_HOPELESS_COMINGS = 5000  # in silence, of nodes that stay for too short to do anything,
_COMINGS_EACH = 50  # if every node has come back so often
_ADVERTISED = 10  # times the sample size, nodes that are told of somebody who comes


@dataclass(eq=False)
class SampledNode:
    """A node.

    Attributes:
        view: what it knows of all nodes.
        joined: how often it has come back.
        pending: of others who have come, round and number, that it applies after its next model.
        round: of the model that it has been sent last; 0 is none.
        model: that model, shape (d,).
        trained: what it has made of it, until somebody has averaged that.
        task: its local training, while that is under way.
        sums: what it has to average, by round, and by who has sent it.
        averaged: rounds that it has averaged.
    """

    view: Any
    joined: int = 0
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)
    round: int = 0
    model: Row | None = None
    trained: Row | None = None
    task: Task[Any] | None = None
    sums: dict[int, dict[int, Row]] = field(default_factory=dict)
    averaged: set[int] = field(default_factory=set)


@dataclass(eq=False)
class PeerSearch:
    """A node's search for others that are there.

    Attributes:
        i: the node.
        k: the round that it is for.
        order: whom it asks, one after the other.
        count: how many it needs.
        then: what it does with those that it has found.
        found: those, in the order of their answers.
        asked: how many it has asked.
        silent: whom it waits for.
        over: whether it has ended.
    """

    i: int
    k: int
    order: Sequence[int]
    count: int
    then: Callable[[list[int]], None]
    found: list[int] = field(default_factory=list)
    asked: int = 0
    silent: set[int] = field(default_factory=set)
    over: bool = False


class Sampled(Decentralized):
    """Samples of nodes that train a model, and hand it to one that averages for the next sample.

    In round k a node of the sample trains, derives whom it takes for the sample of round k + 1, and
    asks them in order whether they are there: so many at a time as it needs aggregators, the next
    one when somebody has not answered within `ping_timeout_s`. It sends those its model, with its
    view. An aggregator waits for the rule's fraction of the sample, or for `aggregation_timeout_s`
    from the first model on, which is enough if there are `fewest`; it averages, finds the next
    sample by asking in the same way, sends it the mean, and tells those whose models are in it.
    Who is sent the model of a later round leaves what it is at.

    A node whose model nobody has averaged within one and a half `aggregation_timeout_s` looks for
    an aggregator again, and so does one that was away. A node whose training fails begins it again
    `retry_s` later. One that comes back tells ten times as many others as there are in a sample,
    drawn by itself, goes on with the round it was in, and has forgotten what it had to average.
    What is lost of a model is sent again, as the authors' transport does; a lost ping counts as no
    answer. That somebody has come or gone is seen when anything happens, and every `retry_s`.

    The authors' nodes ask twice within the timeout, take the aggregator of the highest bandwidth
    where it is known, and do not look for another if one falls silent without a word.

    A round is evaluated when somebody has averaged it first. What is said of nodes is of that one.
    A Byzantine node sends what its attack makes of the model that it has trained; the attack knows
    what honest nodes have sent in the round. Averages are true. What is not finite is thrown away.

    Args:
        rule: who is in a sample, and what is known of others.
        num_nodes: n, at least 2. A sample without a size of its own has 13 nodes, or all.
        ping_timeout_s: how long a node has to answer, s.
        aggregation_timeout_s: how long an aggregator waits for a sample, s.
        fewest: models that are enough then, at least 1, and no more than it waits for; None is 3,
            or as many as it waits for.
        **decentralized: arguments of `Decentralized` but `topology`, `patience` and `gamma`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = SampleRule
    example = "Plexus"
    rule: SampleRule

    def __init__(
        self,
        rule: SampleRule,
        *,
        num_nodes: int,
        ping_timeout_s: float = 5.0,
        aggregation_timeout_s: float = 300.0,
        fewest: int | None = None,
        **decentralized: Any,
    ) -> None:
        at_least("num_nodes", num_nodes, 2)
        super().__init__(
            rule, topology=Complete(num_nodes), patience=None, gamma=None, **decentralized
        )
        positive("ping_timeout_s", ping_timeout_s)
        positive("aggregation_timeout_s", aggregation_timeout_s)
        self.ping_timeout_s = ping_timeout_s
        self.aggregation_timeout_s = aggregation_timeout_s
        size = rule.sample_size
        self.s = min(_USUAL_SAMPLE, num_nodes) if size is None else size
        for name, count in (("sample_size", self.s), ("aggregators", rule.aggregators)):
            if count > num_nodes:
                raise ConfigError(
                    f"rule.{name} is {count}, and num_nodes is {num_nodes}: it must be at most "
                    "that many"
                )
        self.needed = max(1, math.floor(self.s * rule.success_fraction))
        self.fewest = min(_USUAL_FEWEST, self.needed) if fewest is None else fewest
        at_least("fewest", self.fewest, 1)
        if self.fewest > self.needed:
            raise ConfigError(
                f"fewest is {self.fewest}, and an aggregator waits for {self.needed} models of a "
                f"sample of {self.s}: it must be at most that many, or raise rule.sample_size or "
                "rule.success_fraction"
            )

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, topology=False, compressors="none")

    def run(self, swarm: Swarm, num_rounds: int) -> None:
        """Runs until so many rounds have been averaged.

        Raises:
            SimulationError: for days no model was trained, and none averaged; or nodes came and
                went thousands of times meanwhile.
        """
        self.swarm = swarm
        self.nodes = [SampledNode(self.rule.init(self.n)) for _ in range(self.n)]
        self.timers = Timers()
        self.present = set(swarm.available(range(self.n)))
        self.transfers: Counter[tuple[int, int]] = Counter()
        self.facts: Counter[str] = Counter()
        self.sent: dict[int, dict[int, Row]] = {}  # by round, what honest nodes have trained
        self.memory: Mapping[str, NDArray[Any]] = {}  # the attack's
        self.done, self.num_rounds, begun = 0, num_rounds, False
        self._moves()
        while self.done < num_rounds:
            self._look()
            begun = begun or self._begin()
            while self.done < num_rounds and self.timers.act(swarm.now):
                pass
            if self.done >= num_rounds:
                return
            self._check_wait()
            until = min(self.swarm.now + self.retry_s, self.timers.first_s)
            for i, answer in swarm.receive(until):
                self._answered(i, answer)

    def _begin(self) -> bool:
        """Has the first sample begin; returns whether anybody is there."""
        order = self.rule.order(1, range(self.n), self.seed)
        there = [i for i in order if i in self.present][: self.s]
        for i in there:
            self._takes(i, 1, self.swarm.w)
        return bool(there)

    def _moves(self) -> None:
        """Notes that a model has been trained or averaged."""
        self.moved_s = self.swarm.now
        self.comings = 0  # of nodes that were away, since then

    def _check_wait(self) -> None:
        """Raises SimulationError if for long too few nodes are there at once, or none stays."""
        silent_s = self.swarm.now - self.moved_s
        days = silent_s > _HOPELESS_S + 2 * self.aggregation_timeout_s
        restless = self.comings >= max(_HOPELESS_COMINGS, _COMINGS_EACH * self.n)
        if len(self.swarm.tasks) or not (days or restless):
            return
        said = f"no model was trained or averaged in {silent_s:g} s, after round {self.done}"
        if restless:
            raise SimulationError(
                f"{said}, in which nodes have come back {self.comings} times: none stays until its "
                "model has been averaged. Use a fleet whose clients stay for longer "
                "(fleet/availability)"
            )
        lower = "strategy.fewest lower, " if self.fewest > 1 else ""
        raise SimulationError(
            f"{said}: an aggregator waits for {self.fewest} models of a sample, and "
            f"{len(self.present)} of {self.n} nodes are there. Set {lower}num_clients higher, or a "
            "fleet whose clients are there (fleet/availability)"
        )

    # ---- who is there ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Notes who has come or gone."""
        there = set(self.swarm.available(range(self.n)))
        for i in sorted(self.present - there):
            self.nodes[i].sums.clear()
        come = sorted(there - self.present)
        self.comings += len(come)
        self.present = there
        for i in come:
            self._joins(i)

    def _joins(self, i: int) -> None:
        """Has a node tell others that it has come, and go on with what it was at."""
        node = self.nodes[i]
        node.joined += 1
        k = self.rule.latest(node.view)
        node.view = self.rule.heard(node.view, i, k, node.joined)
        rng = generator(self.seed, "joins", i, node.joined)
        others = [j for j in range(self.n) if j != i]
        told = rng.choice(others, min(_ADVERTISED * self.s, len(others)), replace=False)
        for j in told.tolist():
            self._send(i, j, SHORT_BYTES, partial(self._notes, j, i, k, node.joined))
        if node.trained is not None:
            self._forward(i, node.round)
        elif node.model is not None and node.task is None:
            self._train(i, node.round)

    def _notes(self, j: int, i: int, k: int, joined: int) -> None:
        """Has a node note that another has come, until it has sent its next model."""
        latest = max(k, self.rule.latest(self.nodes[j].view))
        self.nodes[j].pending[i] = (latest, joined)

    # ---- messages --------------------------------------------------------------------------------

    def _send(
        self,
        i: int,
        j: int,
        size: int,
        then: Callable[[], None],
        *,
        fanout: int = 1,
        fanin: int = 1,
        again: bool = False,
    ) -> None:
        """Sends something to another node, which reads it if it is there when it comes."""
        index = self.transfers[i, j]
        self.transfers[i, j] += 1
        at, arrived = self.swarm.send(i, j, size, fanout=fanout, fanin=fanin, index=index)

        def read() -> None:
            if j in self.present:
                then()

        def resend() -> None:
            if i in self.present and j in self.present:
                self._send(i, j, size, then, fanout=fanout, fanin=fanin, again=True)

        if arrived:
            self.timers.at(at, read)
        else:
            self.facts["lost_payloads"] += 1
            if again:
                self.timers.at(at, resend)

    def _send_model(
        self, i: int, to: Sequence[int], fanin: int, then: Callable[[int, Any], None]
    ) -> None:
        """Sends a model and the view to others, and applies then what the node has put off."""
        node = self.nodes[i]
        view, size = node.view, self.swarm.model_bytes + self.rule.view_bytes(self.n)
        others = [j for j in to if j != i]

        for j in others:
            read = partial(then, j, view)
            self._send(i, j, size, read, fanout=len(others), fanin=fanin, again=True)
        if i in to:
            self.timers.at(self.swarm.now, then, i, view)
        for j, (k, joined) in sorted(node.pending.items()):
            node.view = self.rule.heard(node.view, j, k, joined)
        node.pending.clear()

    def _find(self, i: int, k: int, count: int, then: Callable[[list[int]], None]) -> None:
        """Has a node look for others of round k's order that are there."""
        known = self.rule.candidates(self.nodes[i].view, k, i)
        search = PeerSearch(i, k, self.rule.order(k, known, self.seed), count, then)
        for _ in range(min(count, len(search.order))):
            self._ask(search)

    def _ask(self, search: PeerSearch) -> None:
        """Asks the next node whether it is there."""
        i, j = search.i, search.order[search.asked]
        search.asked += 1
        if i == j:
            self._found(search, i)
            return
        search.silent.add(j)
        said = self.rule.latest(self.nodes[i].view), self.nodes[i].joined

        def ping() -> None:
            self.nodes[j].view = self.rule.heard(self.nodes[j].view, i, *said)
            answer = self.rule.latest(self.nodes[j].view), self.nodes[j].joined

            def pong() -> None:
                self.nodes[i].view = self.rule.heard(self.nodes[i].view, j, *answer)
                if j in search.silent:
                    search.silent.remove(j)
                    self._found(search, j)

            self._send(j, i, SHORT_BYTES, pong)

        def over() -> None:
            if j not in search.silent:
                return
            search.silent.remove(j)
            self._absent(j, search.k)
            if search.asked < len(search.order) and not search.over:
                self._ask(search)
            self._ends(search)

        self._send(i, j, SHORT_BYTES, ping)
        self.timers.at(self.swarm.now + self.ping_timeout_s, over)

    def _found(self, search: PeerSearch, j: int) -> None:
        search.found.append(j)
        self._ends(search)

    def _ends(self, search: PeerSearch) -> None:
        """Ends a search that has found enough, or can find no more."""
        enough = len(search.found) >= search.count
        if search.over or not (enough or (search.asked == len(search.order) and not search.silent)):
            return
        search.over = True
        if search.i in self.present:
            search.then(search.found[: search.count])

    # ---- who trains ------------------------------------------------------------------------------

    def _takes(self, i: int, k: int, x: Row) -> None:
        """Has a node begin with the model of round k, unless it knows of that or a later one."""
        node = self.nodes[i]
        if k <= node.round:
            return
        if node.task is not None:
            self.swarm.tasks.cancel(node.task)
            node.task = None
        node.round, node.model, node.trained = k, x, None
        node.view = self.rule.heard(node.view, i, k, node.joined)
        self._train(i, k)

    def _train(self, i: int, k: int) -> None:
        node = self.nodes[i]
        stays = node.round == k and node.model is not None and node.trained is None
        if stays and node.task is None and i in self.present and node.model is not None:
            (node.task,) = self.swarm.train([i], [node.model], [k - 1])

    def _answered(self, i: int, answer: Answer | None) -> None:
        node = self.nodes[i]
        k, task, node.task = node.round, node.task, None
        if answer is None:
            self._absent(i, k)
            self.timers.at(self.swarm.now + self.retry_s, self._train, i, k)
            return
        self.swarm.applied(answer)
        self._moves()
        node.trained = answer.progress.x
        if i in self.byzantine and task is not None:
            node.trained = self._forged(k, node.trained, task.message_id)
        elif is_finite(node.trained):
            self.sent.setdefault(k, {})[i] = node.trained
        self._forward(i, k)

    def _forward(self, i: int, k: int) -> None:
        """Has a node look for aggregators of its model, until somebody has averaged it."""
        node = self.nodes[i]
        if node.round != k or node.trained is None or i not in self.present:
            return
        x = node.trained

        def send(found: list[int]) -> None:
            if node.round == k and node.trained is x:
                self._send_model(
                    i, found, self.s, lambda a, view: self._gathers(a, k + 1, i, x, view)
                )

        self._find(i, k + 1, self.rule.aggregators, send)
        joined = node.joined

        def again() -> None:
            if node.joined == joined:  # or else it has begun to look anew when it came back
                self._forward(i, k)

        self.timers.at(self.swarm.now + 1.5 * self.aggregation_timeout_s, again)

    # ---- who averages ----------------------------------------------------------------------------

    def _gathers(self, a: int, k: int, i: int, x: Row, view: Any) -> None:
        """Has an aggregator of round k take what node i has trained in the round before."""
        node = self.nodes[a]
        node.view = self.rule.heard(self.rule.merged(node.view, view), i, k - 1)
        if k in node.averaged:
            self._tells(a, [i], k - 1)
            return
        if not is_finite(x):
            return
        if k not in node.sums:
            node.sums[k] = {}
            self.timers.at(self.swarm.now + self.aggregation_timeout_s, self._waited_enough, a, k)
        node.sums[k][i] = x
        if len(node.sums[k]) >= self.needed:
            self._averages(a, k)

    def _waited_enough(self, a: int, k: int) -> None:
        """Has an aggregator average what it has, if that is enough, or forget it."""
        node = self.nodes[a]
        if k not in node.sums:
            return
        if len(node.sums[k]) >= self.fewest and k > max(node.averaged, default=0):
            self._averages(a, k)
        else:
            del node.sums[k]

    def _averages(self, a: int, k: int) -> None:
        node = self.nodes[a]
        rows = node.sums.pop(k)
        node.averaged.add(k)
        self._moves()
        x = self.swarm.layout.rounded(mean_of([row for _, row in sorted(rows.items())]))

        def send(found: list[int]) -> None:
            self._send_model(a, found, 1, lambda j, view: self._is_sent(j, a, k, x, view))
            self._tells(a, list(rows), k - 1)

        if k - 1 > self.done:
            self.done = k - 1
            named = {name: float(self.facts[name]) for name in ("absent_nodes", "lost_payloads")}
            self.facts.clear()
            for old in [t for t in self.sent if t < self.done]:
                del self.sent[old]
            self.evaluate(self.done, [x], named, [a])
        if self.done < self.num_rounds:
            self._find(a, k, self.s, send)

    def _is_sent(self, j: int, a: int, k: int, x: Row, view: Any) -> None:
        node = self.nodes[j]
        node.view = self.rule.heard(self.rule.merged(node.view, view), a, k)
        self._takes(j, k, x)

    def _tells(self, a: int, nodes: Sequence[int], k: int) -> None:
        """Has an aggregator tell nodes that their models of round k have been averaged."""
        for i in nodes:
            if i == a:
                self.timers.at(self.swarm.now, self._is_done, i, k)
            else:
                self._send(a, i, SHORT_BYTES, partial(self._is_done, i, k), again=True)

    def _is_done(self, i: int, k: int) -> None:
        if self.nodes[i].round == k:
            self.nodes[i].trained = self.nodes[i].model = None

    # ---- faults ----------------------------------------------------------------------------------

    def _absent(self, j: int, k: int) -> None:
        self.swarm.tasks.control.absent(self.swarm.ids[j], k)
        self.facts["absent_nodes"] += 1

    def _forged(self, k: int, x: Row, task_id: str) -> Row:
        """Returns what a Byzantine node sends in the place of a model."""
        attack = self.exchange.attack
        honest = [row for _, row in sorted(self.sent.get(k, {}).items())]
        if attack is None or not (honest or attack.knowledge == "own"):
            return x
        rng = generator(self.seed, "attack", k, task_id)
        seen = np.stack(honest) if honest else x[None][:0]
        rows, self.memory = self.forged(attack, seen, x[None], Scene(1, rng, memory=self.memory))
        self.swarm.tasks.control.forged(task_id)
        forged: Row = rows[0]
        return forged
