"""A run of Petals: which server holds what, and where each user's work is."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fl.errors import SimulationError
from fl.randomness import generator, uniform
from fl.stages import Ban, Held, Leg, random_route, server_throughput
from fl.stages.block_routing import holding
from fl.strategies.drivers.stages.peers import STALLED_S, StageJob, StagePeers
from fl.strategies.drivers.stages.timed import Ended
from fl.strategies.drivers.tasks import Failures, Task
from fl.strategies.drivers.timers import Timers

if TYPE_CHECKING:
    from fl.strategies.drivers.stages.petals import Petals

_PROBE = -1  # the user of work by which a server measures its speed


@dataclass(eq=False)
class UserWork:
    """A session, or a batch, on its way.

    Attributes:
        user: whose it is.
        number: of its draws of routes.
        legs: the servers it passes, in order; in a backward pass those that are left.
        has: of a session, the tokens that each leg's server has passed on and keeps; of a batch,
            1 if the user has the leg's input.
        at: the leg that is at work, or next.
        known: of a session, the blocks of whose inputs the user has all.
        passed: tokens of a session that have passed all blocks.
        total: those with the ones on their way.
        output: whether a batch's forward pass is done.
        began_s: when the last step began, s.
        steps_s: how long each step of a session took, s.
    """

    user: int
    number: int = 0
    legs: list[Leg] = field(default_factory=list)
    has: list[int] = field(default_factory=list)
    at: int = 0
    known: set[int] = field(default_factory=lambda: {0})
    passed: int = 0
    total: int = 0
    output: bool = False
    began_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)


class PetalsRun:
    """A run.

    Args:
        strategy: Petals.
        peers: users, then servers.
        ended: called with each round that has ended, from 1, and what was measured.

    Attributes:
        servers: those that serve, and what they hold.
        loading: those that load it.
        facts: what has happened in this round, by kind.
        routes: chains that were chosen, with the s that they should take; of sessions.
    """

    def __init__(
        self,
        strategy: Petals,
        peers: StagePeers,
        ended: Ended,
    ) -> None:
        self.strategy = strategy
        self.peers = peers
        self.servers: dict[int, Held] = {}
        self.loading: dict[int, Held] = {}
        self.facts: Counter[str] = Counter()
        self.routes: list[tuple[tuple[Leg, ...], float]] = []
        block = strategy.block
        self.token_flops = block.work.forward_flops / block.tokens
        self.token_bytes = -(-block.width * block.boundary_bits // 8)
        self._ended = ended
        self._failures = Failures("answer", None)
        self._bans: dict[int, Ban] = {}
        self._lives: Counter[int] = Counter()  # how often each has lost what it held
        self._rps: dict[int, float] = {}  # tokens per s through a block, one by one
        self._rtt: dict[tuple[int, int], float] = {}
        self._looks: Counter[int] = Counter()
        self._measuring: set[int] = set()
        self._timers = Timers()
        self._further_s = 0.0
        self._done: list[UserWork] = []

    # ---- the loop --------------------------------------------------------------------------------

    def run(self, num_rounds: int) -> None:
        """Runs until each user has done so many pieces of work.

        Raises:
            SimulationError: servers do nothing but fail, or too few come.
        """
        self.num_rounds = num_rounds
        self.round, self._began_s = 0, self.peers.now
        self._further_s = self.peers.now
        self._refresh()
        self._begin()
        while self.round < num_rounds:
            for task, reply, seconds in self.peers.receive(self._timers.first_s):
                self._answered(task, reply, seconds)
            while self.round < num_rounds and self._timers.act(self.peers.now):
                pass

    def _begin(self) -> None:
        self._done, self._began_s = [], self.peers.now
        for user in range(self.strategy.users):
            work = UserWork(user, number=self.round << 20, total=self.strategy.prompt)
            work.began_s = self.peers.now
            self._go(work)

    def _finish(self, work: UserWork) -> None:
        self._done.append(work)
        self._further_s = self.peers.now
        if len(self._done) < self.strategy.users:
            return
        self.round += 1
        strategy, seconds = self.strategy, self.peers.now - self._began_s
        held = self.servers
        measured = {
            "servers": float(len(held)),
            "weakest_block_tokens_per_s": float(strategy.placement.throughputs(held).min()),
            **{name: float(self.facts[name]) for name in ("replays", "failures", "moves", "joins")},
        }
        if strategy.work == "inference":
            steps = [s for each in self._done for s in each.steps_s[1:]]
            prompts = [each.steps_s[0] for each in self._done]
            measured["prompt_s"] = sum(prompts) / len(prompts)
            if steps:
                measured["steps_per_s"] = len(steps) / sum(steps)
        else:
            measured["tokens_per_s"] = strategy.users * strategy.batch * strategy.prompt / seconds
        self.facts.clear()
        self._ended(self.round, measured)
        if self.round < self.num_rounds:
            self._begin()

    # ---- a user's work ---------------------------------------------------------------------------

    def _go(self, work: UserWork) -> None:
        """Gives the next server of a user's work what it is to do."""
        if not work.legs and not work.output and not self._routed(work, 0, self._blocks, None):
            return
        backward = False
        if self.strategy.work == "tuning":
            backward = self._turn(work)
            if not work.legs:
                self._finish(work)
                return
        leg = work.legs[work.at]
        held = self.servers.get(leg.server)
        serves = held is not None and held.start <= leg.start and leg.end <= held.end
        if not serves or leg.server not in self.peers.there():
            self._replace(work, leg.server)
            return
        if self.strategy.work == "tuning":
            tokens = self.strategy.batch * self.strategy.prompt
            source, sent = work.user, tokens * (1 + backward)
        else:
            tokens = work.total - work.has[work.at]
            new = work.total - work.passed
            from_user = not work.at or (tokens > new and leg.start in work.known)
            source = work.user if from_user else work.legs[work.at - 1].server
            self.facts["replays"] += tokens > new
            sent = tokens
        arrival, came = self.peers.send(source, leg.server, sent * self.token_bytes)
        if not came:
            self._timers.at(arrival, self._go, work)
            return
        flops = (leg.end - leg.start) * self.token_flops * (1 + backward)
        ready = arrival + self.strategy.routing.overhead_s
        memo = (work, leg, self._lives[leg.server], tokens, backward)
        self.peers.give(leg.server, flops * max(tokens, self.strategy.least_tokens), ready, memo)

    @property
    def _blocks(self) -> int:
        return self.strategy.num_blocks

    def _turn(self, work: UserWork) -> bool:
        """Chooses the leg of a batch that is next; returns whether it is its backward pass.

        The last that is left, if the user has its input; else forward from the last input that
        there is.
        """
        last = len(work.legs) - 1
        if work.output and (last < 0 or work.has[last]):
            work.at = last
            return last >= 0
        work.at = max(k for k, known in enumerate(work.has) if known)
        return False

    def _passed(self, work: UserWork, leg: Leg, tokens: int, *, backward: bool) -> None:
        """A server has done its part: what comes of it goes on its way."""
        if self.strategy.work == "tuning":
            back, came = self.peers.send(leg.server, work.user, tokens * self.token_bytes)
            if came:
                if backward:
                    work.legs.pop()
                    work.has.pop()
                elif work.at + 1 < len(work.legs):
                    work.has[work.at + 1] = 1
                else:
                    work.output = True
            self._timers.at(back, self._go, work)
            return
        work.has[work.at] = work.total
        work.known.add(leg.end)
        back, _ = self.peers.send(leg.server, work.user, tokens * self.token_bytes)
        work.at += 1
        if work.at < len(work.legs):
            self._go(work)
        else:
            self._timers.at(back, self._stepped, work)

    def _stepped(self, work: UserWork) -> None:
        """A session's tokens have passed all blocks: the next one is known."""
        now = self._further_s = self.peers.now
        work.steps_s.append(now - work.began_s)
        work.began_s, work.at, work.passed = now, 0, work.total
        work.total += 1
        if len(work.steps_s) == self.strategy.tokens:
            self._finish(work)
        else:
            self._go(work)

    def _replace(self, work: UserWork, server: int) -> None:
        """Has others take over the blocks of the leg that is next."""
        leg = work.legs[work.at]
        if self._routed(work, leg.start, leg.end, leg):
            self._go(work)

    def _routed(self, work: UserWork, start: int, end: int, instead: Leg | None) -> bool:
        """Chooses servers for blocks; waits, and returns False, where none holds one of them."""
        strategy, now = self.strategy, self.peers.now
        there = self.peers.there()
        servers = {k: held for k, held in self.servers.items() if k in there}
        if any(not holding(servers, b) for b in range(start, end)):
            self._timers.at(now + strategy.refresh_s, self._go, work)
            return False
        servers = strategy.bans.allowed(self._bans, servers, strategy.num_blocks, now)
        work.number += 1
        if strategy.work == "tuning":
            rng = generator(strategy.seed, "route", work.user, work.number)
            legs = random_route(servers, start, end, rng)
        else:

            def rtt(i: int | None, j: int | None) -> float:
                return self._round_trip(
                    work.user if i is None else i, work.user if j is None else j
                )

            legs, seconds = strategy.routing.route(servers, start, end, rtt, self._rps)
            self.routes.append((legs, seconds))
        if instead is None:
            work.legs, work.at = list(legs), 0
            work.has = [1 if strategy.work == "tuning" else 0] + [0] * (len(legs) - 1)
        else:
            first = work.has[work.at] if strategy.work == "tuning" else 0
            work.legs[work.at : work.at + 1] = legs
            work.has[work.at : work.at + 1] = [first] + [0] * (len(legs) - 1)
            work.known &= {0, self._blocks, *(leg.start for leg in work.legs)}
        return True

    def _round_trip(self, i: int, j: int) -> float:
        """Returns what a message without content takes there and back, s; measured once."""
        pair = (min(i, j), max(i, j))
        if i != j and pair not in self._rtt:
            arrival, _ = self.peers.send(*pair, 0, beside=True)
            self._rtt[pair] = 2 * (arrival - self.peers.now)
        return self._rtt.get(pair, 0.0)

    def _answered(self, task: Task[StageJob], reply: Message, seconds: float) -> None:
        server = task.memo.peer
        work, leg, lives, tokens, backward = task.memo.memo
        failed = reply.has_error()
        if failed:
            self._failures.add(task, reply, self.peers.now, self.strategy.users + 1)
        else:
            self._failures.clear()
        if work.user == _PROBE:
            self._measuring.discard(server)
            if not failed and self._lives[server] == lives:
                self._rps[server] = 1 / seconds if seconds > 0 else math.inf
                self._choose(server)
            return
        if failed or self._lives[server] != lives:
            self.facts["failures"] += 1
            self._bans = self.strategy.bans.failed(self._bans, server, self.peers.now)
            if failed and reply.error.code != ErrorCode.MESSAGE_UNAVAILABLE:
                self._leave(server)  # with all caches; it comes again
            self._replace(work, server)
            return
        self._bans = self.strategy.bans.answered(self._bans, server)
        self._passed(work, leg, tokens, backward=backward)

    # ---- servers ---------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Notes who has left; who has come measures its speed."""
        strategy, now, there = self.strategy, self.peers.now, self.peers.there()
        for server in [k for k in (*self.servers, *self.loading) if k not in there]:
            self._leave(server)
        known = self.servers.keys() | self.loading.keys() | self._measuring
        for server in sorted(there - known - set(range(strategy.users))):
            self.facts["joins"] += 1
            self._measuring.add(server)
            probe = (UserWork(_PROBE), None, self._lives[server], 0, False)
            self.peers.give(server, self.token_flops * strategy.least_tokens, now, probe)
        if now - self._further_s > STALLED_S:
            raise SimulationError(
                f"no piece of work has come to its end for {now - self._further_s:.6g} s: servers "
                "do not come, leave before they have passed it on, or are too slow; have clients "
                "of the fleet stay longer (fleet/availability, battery) or be faster"
            )
        self._timers.at(now + strategy.refresh_s, self._refresh)

    def _leave(self, server: int) -> None:
        self._lives[server] += 1
        self.servers.pop(server, None)
        self.loading.pop(server, None)

    def _choose(self, server: int) -> None:
        """Has a server that knows its speed choose the blocks that are served worst."""
        strategy = self.strategy
        speed = server_throughput(
            self._rps[server] * strategy.least_tokens,
            strategy.network_bps,
            hidden=strategy.block.width,
            length=strategy.held,
        )
        start = strategy.placement.joins(self.servers | self.loading, strategy.held)
        self._load(server, Held(start, strategy.held, speed))
        self._watch(server)

    def _load(self, server: int, held: Held) -> None:
        self.loading[server] = held
        ready_s = self.peers.now + self.strategy.load_s
        self._timers.at(ready_s, self._loaded, server, self._lives[server])

    def _loaded(self, server: int, lives: int) -> None:
        if self._lives[server] == lives and server in self.loading:
            self.servers[server] = self.loading.pop(server)

    def _watch(self, server: int) -> None:
        """Has a server look again, after a time that is drawn, whether it is needed elsewhere."""
        strategy, k = self.strategy, self._looks[server]
        self._looks[server] += 1
        u = uniform(strategy.seed, "balance", server, k)
        wait_s = -math.log1p(-u) * strategy.balance_s
        self._timers.at(self.peers.now + wait_s, self._look, server, self._lives[server])

    def _look(self, server: int, lives: int) -> None:
        held = self.servers | self.loading
        if server not in held or self._lives[server] != lives:
            return
        if server in self.servers:
            rng = generator(self.strategy.seed, "order", server, self._looks[server])
            order = rng.permutation(sorted(held)).tolist()
            start = self.strategy.placement.moves(held, server, order)
            if start is not None:
                self.facts["moves"] += 1
                own = self.servers[server]
                self._leave(server)
                self._load(server, own._replace(start=start))
        self._watch(server)
