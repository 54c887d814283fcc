"""The driver of walks: tokens that carry a model from node to node, which trains it.

The rule is `fl.strategies.walk_rule.WalkRule`; this says who holds a token, and what becomes of it
where nodes are away, fail, or lose a message.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.attacks import Scene
from fl.checks import at_least
from fl.errors import ConfigError, SimulationError
from fl.randomness import generator
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.peers.decentralized import Decentralized
from fl.strategies.drivers.peers.swarm import Answer, Swarm
from fl.strategies.walk_rule import WalkRule
from fl.topologies import Isolated
from fl.vectors.layout import FLOAT_BYTES
from fl.vectors.rows import Row, is_finite

_AGAIN = -1  # a token is to be sent on by who holds it


@dataclass(eq=False)
class Token:
    """A token.

    Attributes:
        state: as the rule has it.
        at: the node that holds it, and keeps it until the next has done its step.
        draws: how often it has been drawn where it goes.
    """

    state: Any
    at: int
    draws: int = 0


class Walks(Decentralized):
    """Tokens that carry a model each from node to node; who is reached trains it, and hands it on.

    Where a token goes is drawn by its rule from the neighbours that are there, and the node itself
    if W_ii is above 0: then it trains again, and nothing is sent. A node has one token at a time;
    others that reach it wait, in order. All other nodes are idle: with one token the method is
    sequential, with R it takes R steps at a time, of walks that know nothing of each other, as in
    the Multi-Walk of arXiv:2504.09792 (by its abstract and reviews; no code was found). The model
    is the tokens' mean; what is said of nodes is of tokens.

    A node keeps the token that it has handed on until the next has done its step. So where a
    payload is lost, or the next has gone away or fails, it draws again; while no neighbour is there
    it looks again `retry_s` later.

    A Byzantine node hands on what its attack makes of the model that it has trained; the attack
    knows what honest nodes have last handed on. What is not finite is thrown away, and the sender
    draws again.

    A round is n steps of all tokens together.

    Args:
        rule: what a token does.
        walkers: R, how many there are.
        **decentralized: arguments of `Decentralized` but `patience` and `gamma`; the topology is an
            undirected graph that stays, with symmetric weights.

    Attributes:
        tokens: of the last run.

    Raises:
        ConfigError: an argument is out of its range, or the topology is not of that kind.
    """

    rules = WalkRule
    example = "SASRRW"
    rule: WalkRule

    def __init__(self, rule: WalkRule, *, walkers: int = 1, **decentralized: Any) -> None:
        super().__init__(rule, patience=None, gamma=None, **decentralized)
        at_least("walkers", walkers, 1)
        self.walkers = walkers
        kind, topology = type(self.topology).__name__, self.topology
        if topology.period != 1 or topology.stochasticity != "symmetric":
            raise ConfigError(
                f"topology is {kind}, and {self.name} needs an undirected graph that stays, with "
                "symmetric weights, or some nodes count more than others: use topology=ring, torus "
                "or random_regular, with topology/weights=metropolis_hastings"
            )
        if isinstance(topology, Isolated):
            raise ConfigError(
                f"topology is {kind}, on which {self.name} can go nowhere: use topology=ring"
            )

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, compressors="none")

    def run(self, swarm: Swarm, num_rounds: int) -> None:
        """Runs until n num_rounds steps have been taken."""
        self.swarm = swarm
        n = self.n
        self.W = self.topology.matrix(0)
        starts = generator(self.seed, "tokens").integers(n, size=self.walkers).tolist()
        self.tokens = [Token(self.rule.init(swarm.w, n), at) for at in starts]
        self.token_bytes = swarm.model_bytes + FLOAT_BYTES * self.rule.message_floats(n)
        self.moves: list[tuple[float, int, int]] = []  # (time, token, node or one of those below)
        self.holds: dict[int, tuple[int, str]] = {}  # node: its token and message id, in training
        self.queues: list[deque[int]] = [deque() for _ in range(n)]  # tokens that wait for a node
        self.transfers: Counter[tuple[int, int]] = Counter()
        self.facts: Counter[str] = Counter()
        self.handed: dict[int, Row] = {}  # models that honest nodes have last handed on
        self.memory: Mapping[str, NDArray[Any]] = {}  # the attack's
        self.steps, self.num_steps = 0, num_rounds * n
        for r in range(self.walkers):
            self._leave(r)
        self._advance()
        while self.steps < self.num_steps:
            until = self.moves[0][0] if self.moves else math.inf
            if math.isinf(until) and not swarm.tasks.any_open:
                raise SimulationError(f"{self.name} waits for nothing at {swarm.now:g} s")
            for j, answer in swarm.receive(until):
                self._answered(j, answer)
            self._advance()

    # ---- a token's step --------------------------------------------------------------------------

    def _leave(self, r: int) -> None:
        """Sends a token on, or looks again later if nobody is there."""
        token = self.tokens[r]
        P = self.W[[token.at]].toarray()[0]
        there = self.swarm.available(np.flatnonzero(P).tolist())
        if not there:
            self._absent(token.at)
            heapq.heappush(self.moves, (self.swarm.now + self.retry_s, r, _AGAIN))
            return
        chances = np.zeros_like(P)
        chances[there] = P[there]
        rng = generator(self.seed, "walk", r, token.draws)
        token.draws += 1
        j = int(rng.choice(self.n, p=self.rule.leaves(token.state, chances)))
        token.state = self.rule.goes(token.state, j)
        arrival, arrived = self.swarm.now, True
        if j != token.at:
            edge = (token.at, j)
            arrival, arrived = self.swarm.send(*edge, self.token_bytes, index=self.transfers[edge])
            self.transfers[edge] += 1
        self.facts["lost_payloads"] += not arrived
        heapq.heappush(self.moves, (arrival, r, j if arrived else _AGAIN))

    def _advance(self) -> None:
        """Does all that is due now."""
        while self.moves and self.moves[0][0] <= self.swarm.now and self.steps < self.num_steps:
            _, r, j = heapq.heappop(self.moves)
            if j == _AGAIN:
                self._leave(r)
            else:
                self.queues[j].append(r)
                self._begin(j)

    def _begin(self, j: int) -> None:
        """Has a node train the token that has waited longest for it, if it can."""
        while self.queues[j] and j not in self.holds:
            r = self.queues[j].popleft()
            if self.swarm.available([j]):
                model = self.rule.model(self.tokens[r].state)
                (task,) = self.swarm.train([j], [model], [self.steps // self.n])
                self.holds[j] = (r, task.message_id)
            else:
                self._absent(j)
                heapq.heappush(self.moves, (self.swarm.now, r, _AGAIN))

    def _answered(self, j: int, answer: Answer | None) -> None:
        r, task_id = self.holds.pop(j)
        if answer is None:
            self._absent(j)
        elif self.steps < self.num_steps:
            self._step(self.tokens[r], j, answer, task_id)
        heapq.heappush(self.moves, (self.swarm.now, r, _AGAIN))
        self._begin(j)

    def _step(self, token: Token, j: int, answer: Answer, task_id: str) -> None:
        """Has a token go on from what a node has made of its model."""
        self.swarm.applied(answer)
        state = self.rule.learns(token.state, answer.progress)
        if j in self.byzantine:
            state = self.rule.with_model(state, self._forged(j, self.rule.model(state), task_id))
        else:
            self.handed[j] = self.rule.model(state)
        if is_finite(self.rule.model(state)):  # else the last holder goes on from what it has
            token.state, token.at = state, j
        self.steps += 1
        if self.steps % self.n == 0:
            named = {name: float(self.facts[name]) for name in ("absent_nodes", "lost_payloads")}
            self.facts.clear()
            models = [self.rule.model(token.state) for token in self.tokens]
            at = [token.at for token in self.tokens]
            self.evaluate(self.steps // self.n, models, named, at)

    def _forged(self, j: int, x: Row, task_id: str) -> Row:
        """Returns what a Byzantine node hands on in the place of a model."""
        attack = self.exchange.attack
        honest = [row for _, row in sorted(self.handed.items())]
        if attack is None or not (honest or attack.knowledge == "own"):
            return x
        rng = generator(self.seed, "attack", self.steps)
        seen = np.stack(honest) if honest else x[None][:0]
        rows, self.memory = self.forged(attack, seen, x[None], Scene(1, rng, memory=self.memory))
        self.swarm.tasks.control.forged(task_id)
        forged: Row = rows[0]
        return forged

    def _absent(self, j: int) -> None:
        self.swarm.tasks.control.absent(self.swarm.ids[j], self.steps // self.n + 1)
        self.facts["absent_nodes"] += 1
