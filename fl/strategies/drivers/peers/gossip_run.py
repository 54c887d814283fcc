"""The rounds of synchronous gossip on their way, each node's at its own time."""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import Aggregator, Mean
from fl.attacks import Scene
from fl.errors import ConfigError, NoStep, SimulationError
from fl.randomness import generator, uniform
from fl.strategies.drivers.peers.edges import moved
from fl.strategies.drivers.peers.gossip_step import ReceivedPayload, Step
from fl.strategies.drivers.peers.swarm import Answer, Swarm
from fl.strategies.gossip_rule import MergingRule, TreeRule
from fl.vectors.rows import Row, is_finite

if TYPE_CHECKING:
    from fl.strategies.drivers.peers.gossip import Gossip


class GossipRun:
    """Runs the rounds of a strategy's nodes, each at its own time.

    Args:
        strategy: with the nodes' states.
        swarm: its nodes.
        num_rounds: T.
    """

    def __init__(self, strategy: Gossip, swarm: Swarm, num_rounds: int) -> None:
        self.strategy = strategy
        self.rule = strategy.rule
        self.states = strategy.states
        self.swarm = swarm
        self.num_rounds = num_rounds
        self.messages, self.gamma = strategy.messages_of(swarm, self.states)
        self.attack = strategy.exchange.attack
        n = len(swarm)
        self.round = [0] * n  # t of each node
        self.step = [0] * n  # e of each node
        self.takes_part = [True] * n
        self.task_of = [""] * n  # message id of its last task
        self.steps: dict[int, Step] = {}
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
                    f"{self.strategy.name} waits for nothing at {self.swarm.now:g} s; "
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
            self.step[i] = self.round[i] * self.rule.gossip_steps
            self.takes_part[i] = True
        models = [self.rule.model(self.states[i]) for i in there]
        rounds = [self.round[i] for i in there]
        told, merging = {}, None
        if isinstance(self.rule, MergingRule):
            told = {t: self.rule.told(t) for t in rounds}
            merging = [self.rule.merging(self.states[i]) for i in there]
        tasks = self.swarm.train(there, models, rounds, told, merging)
        for i, task in zip(there, tasks, strict=True):
            self.task_of[i] = task.message_id
        if self.rule.sends_first:
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
        if others and times <= 2 and self.strategy.edges(self.step[i]).heard[i]:
            self._leave_out(i)
        else:
            heapq.heappush(self.again, (now + self.strategy.retry_s, i))

    def _leave_out(self, i: int) -> None:
        """Has a node take no part in the rest of its round."""
        self.swarm.tasks.control.absent(self.swarm.ids[i], self.round[i] + 1)
        self._fact(self.round[i], "absent_nodes")
        self.takes_part[i] = False
        for e in range(self.step[i], (self.round[i] + 1) * self.rule.gossip_steps):
            step = self._step(e)
            step.absent.add(i)
            if i not in step.posted:  # else it has sent before it failed
                for k in step.edges.hearers[i]:
                    self._misses(step, k, i)
            self._forge(step)
        self._wait(self._step(self.step[i]), i)

    def _answered(self, i: int, answer: Answer | None) -> None:
        if answer is None:
            self._leave_out(i)
            return
        self.swarm.applied(answer)
        self.states[i] = self.rule.adapt(self.states[i], answer.progress)
        if self.rule.sends_first:
            self._wait(self._step(self.step[i]), i)
        else:
            self._post(i)

    # ---- a step of gossip ------------------------------------------------------------------------

    def _step(self, number: int) -> Step:
        if number not in self.steps:
            self.steps[number] = Step(number, self.strategy.edges(number))
        return self.steps[number]

    def _post(self, i: int) -> None:
        """Sends what a node has for its present step, now."""
        step = self._step(self.step[i])
        message = self.rule.message(self.states[i])
        step.posted.add(i)
        if isinstance(self.rule, TreeRule):
            step.posted_by[i] = self.states[i]
        if self.attack is not None and i in self.strategy.byzantine:
            step.own[i] = message
        else:
            self._send(step, i, message)
        self._forge(step)
        if not self.rule.sends_first:
            self._wait(step, i)

    def _send(self, step: Step, j: int, message: Row) -> None:
        """Sends a message of a node to all that hear it."""
        row = self.messages.send(j, message)
        step.rows[j] = self.messages.copy(j, message) if row is None else row
        if row is None:
            for k in step.edges.hearers[j]:
                self._misses(step, k, j)
            return
        if self.attack is not None and j not in step.own:
            step.seen[j] = self.rule.model_in(row)
        heard, hearers = step.edges.heard, step.edges.hearers[j]
        targets = [k for k in hearers if k not in step.absent]
        for k in hearers:
            if k in step.absent or not self._completes(step, j, k, row):
                self._misses(step, k, j)
                continue
            arrival, arrived = self.swarm.send(
                j,
                k,
                self.messages.bytes_to(j, k),
                fanout=len(targets),
                fanin=len(heard[k]),
                index=step.number,
            )
            if arrived:
                self.messages.arrived(j, k)
                place = ReceivedPayload(arrival, self._order(step.number, j, k), j)
                insort(step.arrived.setdefault(k, []), place)
                self._resolve(step, k, arrival)
            else:
                self._fact(step.number // self.rule.gossip_steps, "lost_payloads")
                self._misses(step, k, j, arrival)

    def _completes(self, step: Step, j: int, k: int, row: Row) -> bool:
        """Notes what j sends to k, if that is not what it sends to all; returns whether it can."""
        if isinstance(self.rule, TreeRule):
            step.sent[k, j] = self.rule.to(step.posted_by[j], row, k)
            return is_finite(step.sent[k, j])
        return True

    def _order(self, e: int, j: int, i: int) -> float:
        """Returns where the payload of j comes among those that reach i at the same time."""
        if self.strategy.aggregator is None:
            return 0.0
        if j in self.strategy.byzantine:
            return -1.0
        return uniform(self.strategy.seed, "arrival", i * len(self.swarm) + j, e)

    def _misses(self, step: Step, k: int, j: int, at_s: float | None = None) -> None:
        """Notes that nothing comes to k from j, which k knows at a time, or now."""
        step.missing.add((k, j))
        self._resolve(step, k, self.swarm.now if at_s is None else at_s)

    def _resolve(self, step: Step, k: int, at_s: float) -> None:
        step.resolved[k] += 1
        step.latest_s[k] = max(at_s, step.latest_s.get(k, -math.inf))
        self._check(step, k)

    def _wait(self, step: Step, i: int) -> None:
        """Has a node wait for what its neighbours send."""
        step.waiting.add(i)
        self._check(step, i)

    def _check(self, step: Step, i: int) -> None:
        """Finds out when a node that waits has enough to go on, if that is known."""
        if i not in step.waiting or i in step.done:
            return
        heard = len(step.edges.heard[i])
        arrived = step.arrived.get(i, [])
        needed = self.rule.waits_for(heard)
        if len(arrived) >= needed:
            at_s = arrived[needed - 1].time_s if needed else -math.inf
        elif step.resolved[i] == heard:
            at_s = step.latest_s[i]
        else:
            return
        heapq.heappush(self.due, (max(at_s, self.swarm.now), step.number, i))

    def _forge(self, step: Step) -> None:
        """Lets Byzantine nodes send, once they know what all others send."""
        attack, rule = self.attack, self.rule
        everybody = len(step.posted | step.absent) == len(self.swarm)
        if attack is None or step.forged or not everybody:
            return
        step.forged = True
        own, honest = sorted(step.own.items()), sorted(step.seen.items())
        step.seen = {}
        if not own:
            return
        truth = np.stack([rule.model_in(message) for _, message in own])
        models = truth
        if honest or attack.knowledge == "own":
            seen = np.stack([x for _, x in honest]) if honest else truth[:0]
            rng = generator(self.strategy.seed, "attack", step.number)
            centre = seen.mean(axis=0) if honest else None  # from where the rule is seen
            F = self.strategy.aggregator or Mean()
            scene = Scene(len(own), rng, F, rng, centre, self.memory)
            models, self.memory = self.strategy.forged(attack, seen, truth, scene)
        for (i, message), x in zip(own, models, strict=True):
            self.swarm.tasks.control.forged(self.task_of[i])
            self._send(step, i, rule.with_model(message, x))

    # ---- time ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Does all that is due now."""
        now = self.swarm.now
        while (self.due and self.due[0][0] <= now) or (self.again and self.again[0][0] <= now):
            ready: dict[int, set[int]] = {}
            while self.due and self.due[0][0] <= now:
                _, e, i = heapq.heappop(self.due)
                if e in self.steps and i not in self.steps[e].done:
                    ready.setdefault(e, set()).add(i)
            entering = []
            while self.again and self.again[0][0] <= now:
                entering.append(heapq.heappop(self.again)[1])
            for e in sorted(ready):
                entering += self._complete(self.steps[e], sorted(ready[e]))
            self._enter(entering)

    def _complete(self, step: Step, nodes: Sequence[int]) -> list[int]:
        """Has nodes mix what they have; returns those whose next round begins."""
        e, Q = step.number, self.rule.gossip_steps
        mixing = [i for i in nodes if self.takes_part[i]]
        if self.rule.keeps == "columns":  # what reached an absent node is its own from now on
            for i in set(nodes).difference(mixing):
                step.rows[i] = self.messages.copy(i, self.rule.message(self.states[i]))
            mixing = list(nodes)
        together = [i for i in mixing if i not in step.own]
        for group in [together, *([i] for i in mixing if i in step.own)]:
            if group:
                self._mix(step, group)
        step.finish(nodes)
        if len(step.done) == len(self.swarm):
            del self.steps[e]
        if (e + 1) % Q == 0:
            return [i for i in nodes if self._ends_round(i)]
        for i in nodes:
            self.step[i] = e + 1
            if self.takes_part[i]:
                self._post(i)
            else:
                self._wait(self._step(e + 1), i)
        return []

    def _mix(self, step: Step, nodes: Sequence[int]) -> None:
        if isinstance(self.rule, MergingRule):
            self._gather(self.rule, step, nodes)
            return
        if isinstance(self.rule, TreeRule):
            rows: Sequence[Row] = [self._relayed(self.rule, step, i) for i in nodes]
        elif self.strategy.aggregator is None:
            rows = list(step.mix(nodes, self.rule.keeps))
        else:
            rows = [self._aggregate(self.strategy.aggregator, step, i) for i in nodes]
        for i, mixed in zip(nodes, rows, strict=True):
            row, copy = mixed, step.copy(i)
            if self.gamma != 1.0 or not self.messages.exact:
                message = step.own.get(i, self.rule.message(self.states[i]))
                row = moved(message, mixed, copy, self.gamma)
            if is_finite(row):  # else it goes on from what it has
                self.states[i] = self.rule.combine(self.states[i], row)

    def _gather(self, rule: MergingRule, step: Step, nodes: Sequence[int]) -> None:
        """Gives nodes what they have heard, to merge it when their next task begins."""
        W = step.weights(nodes, rule.keeps)
        for a, i in enumerate(nodes):
            place = slice(W.indptr[a], W.indptr[a + 1])
            weight = dict(zip(W.indices[place].tolist(), W.data[place].tolist(), strict=True))
            shares = [weight.pop(i, 0.0), *weight.values()]
            others = [step.rows[j] for j in weight]
            self.states[i] = rule.gather(self.states[i], others, shares)

    def _relayed(self, rule: TreeRule, step: Step, i: int) -> Row:
        """Returns what node i makes of what its neighbours have sent to it alone."""
        sources = [arrival.source for arrival in step.arrived.get(i, [])]
        self.states[i] = rule.hear(self.states[i], {j: step.sent.pop((i, j)) for j in sources})
        return rule.mixed(self.states[i], len(self.swarm))

    def _aggregate(self, F: Aggregator, step: Step, i: int) -> Row:
        """Returns F of what node i has heard, or its own row if F can make nothing of it."""
        own = step.copy(i)
        rows, weights = step.heard(i, self.rule.waits_for(len(step.edges.heard[i])))
        rng = generator(self.strategy.seed, "aggregation", step.number, i)
        try:
            F.check(len(rows))
            return np.asarray(F(rows, weights, rng, own))
        except (ConfigError, NoStep):
            return own

    def _ends_round(self, i: int) -> bool:
        """Notes that a node has done its round; returns whether it has another to do."""
        t = self.round[i]
        models = self.models.setdefault(t, {})
        models[i] = self.rule.model(self.states[i])
        self.round[i] = t + 1
        n = len(self.swarm)
        if len(models) == n:
            del self.models[t]
            facts = self.facts.pop(t, Counter())
            named = {name: float(facts[name]) for name in ("absent_nodes", "lost_payloads")}
            self.strategy.evaluate(t + 1, [models[k] for k in range(n)], named)
        return t + 1 < self.num_rounds

    def _fact(self, t: int, name: str) -> None:
        self.facts.setdefault(t, Counter())[name] += 1
