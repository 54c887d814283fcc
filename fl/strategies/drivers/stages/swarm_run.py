"""A run of SWARM's pipelines: who holds which stage, where micro-batches are, what happens next."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fl.errors import SimulationError
from fl.randomness import uniform
from fl.stages import Candidates, MicroBatch, Pass
from fl.strategies.drivers.stages.peers import STALLED_S, StageJob, StagePeers
from fl.strategies.drivers.stages.timed import Ended
from fl.strategies.drivers.tasks import Failures, Task
from fl.strategies.drivers.timers import Timers

if TYPE_CHECKING:
    from fl.strategies.drivers.stages.swarm_pipelines import SWARM

Place = tuple[int, int]
"""A micro-batch: the step, and its number in it."""


@dataclass(frozen=True, slots=True)
class GivenPass:
    """A pass that a peer was given.

    Attributes:
        place: of the micro-batch.
        work: the pass.
        lives: how often the peer had been banned then.
        sent_s: when it was given, s.
    """

    place: Place
    work: Pass
    lives: int
    sent_s: float


@dataclass(eq=False)
class SwarmStep:
    """A step on its way.

    Attributes:
        began_s: when its first micro-batch was sent, s.
        progress: of the micro-batches that were sent, by number.
        unsent: how many are left.
        lacking: numbers of those of which a stage lacks the gradient.
        passes: that were answered and counted.
        reducing: "" before the all-reduces, "fails" during those that somebody leaves with what
            nobody else has, "ends" during those that end the step.
    """

    began_s: float
    unsent: int
    progress: dict[int, MicroBatch] = field(default_factory=dict)
    lacking: set[int] = field(default_factory=set)
    passes: int = 0
    reducing: Literal["", "fails", "ends"] = ""


class SwarmRun:
    """A run.

    Args:
        strategy: SWARM.
        peers: the fleet's clients.
        stepped: called with each step that has ended, from 1, and what was measured.

    Attributes:
        stage_of: the stage that each peer holds, or downloads.
        wired: those that hold it, by stage, with what is known of them.
        lives: how often each peer has been banned.
        steps: that are on their way, by number from 0.
        ended: how many have ended.
        facts: what has happened since the last one ended, by kind.
    """

    def __init__(
        self,
        strategy: SWARM,
        peers: StagePeers,
        stepped: Ended,
    ) -> None:
        self.strategy = strategy
        self.peers = peers
        self.wiring = strategy.wiring
        self.work = strategy.stage.work
        self.num_stages = strategy.num_stages
        self.micro_batches = strategy.micro_batches or 4 * len(peers)
        self.stage_of: dict[int, int] = {}
        self.wired: list[Candidates] = [{} for _ in range(self.num_stages)]
        self.lives: Counter[int] = Counter()
        self.steps: dict[int, SwarmStep] = {}
        self.ended = 0
        self.facts: Counter[str] = Counter()
        self._stepped = stepped
        self._failures = Failures("pass", None)
        self._busy: set[Place] = set()  # passes given, or stuck
        self._stuck: list[deque[Place]] = [deque() for _ in range(self.num_stages)]
        self._again: deque[Place] = deque()
        self._timers = Timers()
        self._ties = count()
        self._last_ended_s = 0.0
        self._last_end_s = 0.0  # of all-reduces so far
        self._speeds: dict[int, tuple[float, float]] = {}  # FLOPs that each did, and in how many s
        self._computed_s = 0.0

    # ---- the loop --------------------------------------------------------------------------------

    def run(self, num_steps: int) -> None:
        """Runs until so many steps have ended.

        Raises:
            SimulationError: peers do nothing but fail, or none comes.
        """
        self.num_steps = num_steps
        self._last_ended_s = self.peers.now
        for peer in sorted(self.peers.there()):
            self._enter(peer, peer % self.num_stages)
        self._refresh()
        rebalancing = self.strategy.rebalancing
        if rebalancing is not None and math.isfinite(rebalancing.every_s):
            self._timers.at(self.peers.now + rebalancing.every_s, self._rebalance)
        self._begin()
        while self.ended < num_steps:
            self._advance()
            for task, reply, seconds in self.peers.receive(self._timers.first_s):
                self._answered(task, reply, seconds)
            while self._timers.act(self.peers.now):
                pass

    def _advance(self) -> None:
        """Does what can be done now: sends micro-batches on, begins others, ends steps."""
        while True:
            while self._again:
                self._next(self._again.popleft())
            if not self._more():
                break
        for k in sorted(self.steps):
            step = self.steps[k]
            if not step.reducing and not step.unsent and not step.lacking:
                self._reduce(k)
            if step.reducing != "ends":
                break  # the steps after it take their turn
        if self._again:
            self._advance()

    def _more(self) -> bool:
        """Begins another micro-batch, if there may be one more in flight; returns whether."""
        most = self.strategy.in_flight or 2 * len(self.peers)
        for k in sorted(self.steps):
            step = self.steps[k]
            if step.unsent and len(self._busy) < most:
                number = len(step.progress)
                step.unsent -= 1
                step.progress[number] = MicroBatch.begin(self.num_stages)
                step.lacking.add(number)
                self._again.append((k, number))
                return True
        return False

    def _begin(self) -> None:
        k = self.ended + len(self.steps)
        if k < self.num_steps:
            self.steps[k] = SwarmStep(self.peers.now, self.micro_batches)

    # ---- passes ----------------------------------------------------------------------------------

    def _next(self, place: Place) -> None:
        """Gives the next pass of a micro-batch to a peer of its stage."""
        k, number = place
        step = self.steps.get(k)
        if step is None or place in self._busy:
            return
        there = self.peers.there()
        while True:
            work = step.progress[number].next()
            if work is None:
                return
            gone = next((peer for peer in work.sources if peer not in there), None)
            if gone is not None:
                self._lose(gone)
                continue
            if not self.wired[work.stage]:
                self._busy.add(place)
                self._stuck[work.stage].append(place)
                return
            size = self.wiring.backward_size if work.backward else 1.0
            peer, self.wired[work.stage] = self.wiring.choose(
                self.wired[work.stage], size, uniform(self.strategy.seed, "tie", next(self._ties))
            )
            if peer in there:
                break
            self._lose(peer)
        self._busy.add(place)
        self._give(place, work, peer)

    def _give(self, place: Place, work: Pass, peer: int) -> None:
        ready, arrived = self.peers.now, True
        progress = self.steps[place[0]].progress[place[1]]
        kept = work.backward and progress.activations[work.stage] == peer
        for source in work.sources:
            its_input = work.stage > 0 and source == work.sources[0]
            if source == peer or (kept and its_input):
                continue
            at, came = self.peers.send(source, peer, self.work.boundary_bytes)
            ready, arrived = max(ready, at), arrived and came
        if not arrived:
            self.facts["lost_payloads"] += 1
            self._timers.at(ready, self._retry, place)
            return
        memo = GivenPass(place, work, self.lives[peer], self.peers.now)
        self.peers.give(peer, self._flops(work), ready, memo)

    def _flops(self, work: Pass) -> float:
        return self.work.backward_flops if work.backward else self.work.forward_flops

    def _retry(self, place: Place) -> None:
        self._busy.discard(place)
        self._again.append(place)

    def _answered(self, task: Task[StageJob], reply: Message, seconds: float) -> None:
        peer, memo = task.memo.peer, task.memo.memo
        place, work = memo.place, memo.work
        self._busy.discard(place)
        self._again.append(place)
        size = self.wiring.backward_size if work.backward else 1.0
        stage, took_s = self.wired[work.stage], self.peers.now - memo.sent_s
        if reply.has_error():
            self._failures.add(task, reply, self.peers.now, len(self._busy) + 1)
            if reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE:
                self.facts["timeouts"] += 1
                if self.lives[peer] == memo.lives:  # it takes at least so long
                    self.wired[work.stage] = self.wiring.measure(stage, peer, size, took_s)
            elif self.lives[peer] == memo.lives:
                self._lose(peer)
            return
        self._failures.clear()
        if self.lives[peer] != memo.lives:
            self.facts["void_passes"] += 1
            return
        self.wired[work.stage] = self.wiring.measure(stage, peer, size, took_s)
        flops, busy_s = self._speeds.get(peer, (0.0, 0.0))
        self._speeds[peer] = flops + self._flops(work), busy_s + seconds
        self._computed_s += seconds
        step = self.steps[place[0]]
        step.passes += 1
        progress = step.progress[place[1]] = step.progress[place[1]].done(work, peer)
        if progress.complete:
            step.lacking.discard(place[1])

    def _lose(self, peer: int) -> None:
        """Bans a peer, with all that it had of the steps on their way."""
        stage = self.stage_of.pop(peer, None)
        if stage is None:
            return
        self.facts["bans"] += 1
        self.peers.tasks.control.absent(self.peers.ids[peer], self.ended + 1)
        self.lives[peer] += 1
        self.wired[stage] = self.wiring.leave(self.wired[stage], peer)
        for k, step in self.steps.items():
            if step.reducing == "ends":
                continue  # all have what it had
            for number, progress in step.progress.items():
                left = progress.without(peer)
                if left is not progress:
                    step.progress[number] = left
                    if not left.complete:
                        step.lacking.add(number)
                        self._again.append((k, number))

    # ---- who is there ----------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Notes who has left, and lets join who has come, or was banned and is there."""
        there = self.peers.there()
        for peer in [peer for peer in self.stage_of if peer not in there]:
            self._lose(peer)
        for peer in sorted(there - self.stage_of.keys()):
            rebalancing = self.strategy.rebalancing
            stage = peer % self.num_stages
            if rebalancing is not None:
                stage = rebalancing.busiest(self._queues())
            self.facts["joins"] += 1
            self._download(peer, stage)
        now = self.peers.now
        if now - self._last_ended_s > STALLED_S:
            raise SimulationError(
                f"no step has ended for {now - self._last_ended_s:.6g} s: peers do not come, leave "
                "before their passes have ended, or are too slow; have clients of the fleet stay "
                "longer (fleet/availability, battery) or be faster, or lower strategy.micro_batches"
            )
        self._timers.at(now + self.strategy.refresh_s, self._refresh)

    def _queues(self) -> list[dict[int, float]]:
        """Returns the passes that wait at each peer, by stage; those who are on their way, too."""
        queues: list[dict[int, float]] = [{} for _ in range(self.num_stages)]
        for peer, stage in self.stage_of.items():
            queues[stage][peer] = float(self.peers.waiting[peer])
        return queues

    def _download(self, peer: int, stage: int) -> None:
        """Has a peer fetch a stage's weights and moments from the idlest one that has them."""
        self.stage_of[peer] = stage
        holders = [p for p in self.wired[stage] if p in self.peers.there()]
        if not holders:  # of what the last one had stored; that is not charged
            self._enter(peer, stage)
            return
        source = min(holders, key=lambda p: (self.peers.waiting[p], p))
        arrival, came = self.peers.send(source, peer, self.work.state_bytes, beside=True)
        self._timers.at(arrival, self._arrived, peer, stage, self.lives[peer], came)

    def _arrived(self, peer: int, stage: int, lives: int, came: bool) -> None:
        if self.lives[peer] != lives or self.stage_of.get(peer) != stage:
            return
        if not came:
            self.facts["lost_payloads"] += 1
            self._lose(peer)
        elif peer in self.peers.there():
            self._enter(peer, stage)
        else:
            self._lose(peer)

    def _enter(self, peer: int, stage: int) -> None:
        self.stage_of[peer] = stage
        tie = uniform(self.strategy.seed, "tie", next(self._ties))
        self.wired[stage] = self.wiring.join(self.wired[stage], peer, tie)
        stuck = self._stuck[stage]
        while stuck:
            self._retry(stuck.popleft())

    def _rebalance(self) -> None:
        """Has a peer change its stage, if the rule says so; what it has of the old one counts."""
        rebalancing = self.strategy.rebalancing
        assert rebalancing is not None
        queues = self._queues()
        speeds = {p: flops / s for p, (flops, s) in self._speeds.items() if s > 0}
        usual = sum(speeds.values()) / len(speeds) if speeds else 1.0
        rates = {peer: speeds.get(peer, usual) for peer in self.stage_of}
        move = rebalancing.move(queues, rates)
        if move is not None:
            self.facts["moves"] += 1
            self.wired[move.source] = self.wiring.leave(self.wired[move.source], move.peer)
            self._download(move.peer, move.target)
        self._timers.at(self.peers.now + rebalancing.every_s, self._rebalance)

    # ---- the end of a step -----------------------------------------------------------------------

    def _reduce(self, k: int) -> None:
        """Has the peers of each stage average a step's gradient, unless some have left with it."""
        step = self.steps[k]
        there = self.peers.there()
        holders = [
            {peer for each in step.progress.values() if (peer := each.gradients[s]) is not None}
            for s in range(self.num_stages)
        ]
        for peer in sorted(set().union(*holders) - there):
            self._lose(peer)
        if step.lacking:
            return
        step.reducing = "ends"
        finish_s, gone = self._last_end_s, set[int]()
        for s in range(self.num_stages):
            members = {p for p, stage in self.stage_of.items() if stage == s and p in there}
            found = self.peers.collect(
                sorted(holders[s] | members),
                self.work.gradient_bytes,
                self.strategy.allreduce,
                self.strategy.failure,
            )
            finish_s = max(finish_s, found.finish_s)
            gone |= set(found.gone)
            if not found.nodes or holders[s] & set(found.gone):
                step.reducing = "fails"
        if step.reducing == "fails":
            self.facts["failed_all_reduces"] += 1
            self._timers.at(finish_s, self._failed, k, gone)
            return
        self._last_end_s = finish_s
        self._timers.at(finish_s, self._end, k, gone)
        if self.strategy.delayed and len(self.steps) == 1:
            self._begin()

    def _failed(self, k: int, gone: set[int]) -> None:
        """Has what is lost done again; then the peers meet once more."""
        self.steps[k].reducing = ""
        for peer in sorted(gone):
            self._lose(peer)

    def _end(self, k: int, gone: set[int]) -> None:
        """Counts a step that all peers have taken but those that have gone meanwhile."""
        step = self.steps.pop(k)
        for peer in sorted(gone):
            self._lose(peer)
        self.ended += 1
        now = self.peers.now
        seconds = now - self._last_ended_s
        least = 2 * self.num_stages * self.micro_batches
        members = max(1, len(self.stage_of))
        self._last_ended_s = now
        computed_s, self._computed_s = self._computed_s, 0.0
        measured = {
            "micro_batches_per_s": self.micro_batches / seconds if seconds else math.inf,
            "utilisation": computed_s / (members * seconds) if seconds else 1.0,
            "peers": float(members),
            "repeated_passes": float(step.passes - least),
            **{name: float(self.facts[name]) for name in _COUNTED},
        }
        self.facts.clear()
        if not self.steps or (
            self.strategy.delayed and all(s.reducing == "ends" for s in self.steps.values())
        ):
            self._begin()
        self._stepped(self.ended, measured)


_COUNTED = (
    "bans",
    "timeouts",
    "void_passes",
    "lost_payloads",
    "joins",
    "moves",
    "failed_all_reduces",
)
