"""What a run of outer steps consists of: workers, the state of every fragment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl.clients.app.island import Fragments
from fl.collectives.slow_links import Slowness
from fl.collectives.stragglers import Lateness
from fl.strategies.drivers.outer.all_reduce import AllReduce
from fl.strategies.drivers.outer.apportioning import Apportioning
from fl.strategies.drivers.outer.reduction import Reduction
from fl.strategies.drivers.outer.schedule import FragmentSchedule
from fl.strategies.drivers.tasks import Failures, Task, Tasks
from fl.strategies.outer_rule import OuterRule
from fl.strategies.per_worker_rule import PerWorkerRule
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

Key = tuple[int, int, int | None]
"""Of an all-reduce: its fragment, the inner steps after which it is, and the site, None of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Inner steps that a worker does at a stretch: from `start` to `stop`."""

    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Participant:
    """A worker as the driver sees it.

    Attributes:
        node: Flower id.
        step: inner steps it has done; those of the segment it is at are not counted.
        held: fragments of outer parameters that its next outer gradients are measured against.
        ready_s: when it has what its next message says, s.
        reset: whether that message brings the whole model.
        merge: otherwise, the fragments it brings.
        missed: all-reduces, by `OuterRun.key`, that lost its outer gradient; it does not see their
            outcome either.
        afresh: fragments whose compressor starts over, as its last payload was lost.
        passed: the last step at which it went on.
        task: the segment that it is at, or was at last.
        last_step: when its last step ended, and how long that took, s.
        began_s: when the segment began that this step ended, s.
    """

    node: int
    step: int
    held: list[Row]
    ready_s: float
    reset: bool = True
    merge: dict[int, Row] = field(default_factory=dict)
    missed: set[Key] = field(default_factory=set)
    afresh: set[int] = field(default_factory=set)
    passed: int = -1
    task: Task[Segment] | None = None
    last_step: tuple[float, float] = (0.0, 0.0)
    began_s: float = 0.0


class OuterRun:
    """What a run consists of.

    Args:
        rule: of the outer steps.
        cut: the fragments.
        layout: of the model.
        w: the initial model, shape (d,).
        tasks: what is in flight.
        all_reduce: what outer gradients pass between the workers.
        num_rounds: rounds of H inner steps.
        config: what every message says.
        local_every: see `FragmentSchedule`.
        may_part: whether workers go on alone where an all-reduce is given up.

    Attributes:
        rule: of the outer steps.
        states: of every fragment, as the rule has it.
        workers: those that take part, by Flower id.
        reductions: by `key`; finished ones until nobody needs them any more.
        refused: why outer gradients of all-reduces that have not begun were none, likewise.
        version: rounds that have ended.
        last_step: inner steps after which the run ends.
        finished_rounds: all-reduces of fragment 0 that are finished.
        entry: inner steps after which a worker enters when nobody else is there.
        transfers: models that entering workers have fetched.
        fetching: workers that are at the next all-reduce once they have the checkpoint, and when
            that is, s.
        slow: clients that were found slow.
        lateness: by which they are.
        slowness: of the links between them.
        blocked: workers that have done their steps and cannot go on yet, by Flower id.
        arrived: those of them that have not been looked at.
        stirred: whether an all-reduce has ended, or a worker has gone, since all were looked at.
        ready: workers that may be sent on.
        apportioned: who takes how much of a batch and of the state; None if all take the same.
    """

    def __init__(
        self,
        rule: OuterRule,
        cut: Fragments,
        layout: Layout,
        w: Row,
        tasks: Tasks[Segment],
        all_reduce: AllReduce,
        num_rounds: int,
        config: Mapping[str, Any],
        local_every: int | None = None,
        may_part: bool = False,
    ) -> None:
        self.rule: OuterRule | PerWorkerRule = PerWorkerRule(rule) if may_part else rule
        self.cut = cut
        self.layout = layout
        self.schedule = FragmentSchedule(rule.inner_steps, len(cut), rule.overlap, local_every)
        shaped = rule.shaped([shapes.sizes for shapes in cut.shapes])
        first: OuterRule | PerWorkerRule = PerWorkerRule(shaped) if may_part else shaped
        self.states: list[Any] = [first.init(cut.take(w, p)) for p in range(len(cut))]
        self.tasks = tasks
        self.all_reduce = all_reduce
        self.workers: dict[int, Participant] = {}
        self.reductions: dict[Key, Reduction] = {}
        self.refused: dict[Key, list[str]] = {}
        self.version = 0
        self.last_step = num_rounds * rule.inner_steps
        self.finished_rounds = 0
        self.entry = 0
        self.failures = Failures("outer gradient", None)
        self.transfers = 0
        self.fetching: dict[int, float] = {}
        self.slow: set[int] = set()
        self.lateness: Lateness = {}
        self.slowness: Slowness = {}
        self.blocked: set[int] = set()
        self.arrived: set[int] = set()
        self.stirred = False
        self.ready: set[int] = set()
        self.config = config
        self.apportioned: Apportioning | None = None

    @property
    def present(self) -> list[int]:
        """The workers that take part, by their ids."""
        return sorted(self.workers)

    def row(self, fragments: Sequence[Row]) -> Row:
        """Returns the row that the fragments make up, shape (d,), read-only."""
        row = np.empty(self.layout.size, dtype=np.float32)
        for p, fragment in enumerate(fragments):
            self.cut.put(row, p, fragment)
        row.flags.writeable = False
        return row

    def enter(self, worker: Participant) -> None:
        """Adds a worker that may be sent on."""
        self.workers[worker.node] = worker
        self.ready.add(worker.node)

    def arrive(self, worker: Participant) -> None:
        """Notes that a worker has done its steps."""
        self.blocked.add(worker.node)
        self.arrived.add(worker.node)

    def leave(self, worker: Participant) -> None:
        """Does without a worker."""
        del self.workers[worker.node]
        self.fetching.pop(worker.node, None)
        for nodes in (self.blocked, self.arrived, self.ready):
            nodes.discard(worker.node)
        self.stirred = True

    def have_fetched(self) -> None:
        """Notes which workers have their checkpoints by now."""
        if self.fetching:
            now = self.tasks.now()
            self.fetching = {node: s for node, s in self.fetching.items() if s > now}

    def unblock(self, goes_on: Callable[[Participant], bool]) -> list[Participant]:
        """Returns the workers that go on now, in the order of their ids.

        Where nothing was stirred, only those that have just arrived are asked: with many workers,
        most instants are of one that arrives and waits.
        """
        asked = sorted(self.blocked if self.stirred else self.arrived)
        self.arrived.clear()
        self.stirred = False
        passed = [self.workers[node] for node in asked if goes_on(self.workers[node])]
        for worker in passed:
            self.blocked.discard(worker.node)
            self.ready.add(worker.node)
        return passed

    def key(self, p: int, step: int, node: int) -> Key:
        """Returns the key of the all-reduce of a fragment in which a worker takes part."""
        site = self.tasks.peers.site(node) if self.schedule.is_local(step) else None
        return p, step, site

    def reduction(self, key: Key) -> Reduction:
        """Returns an all-reduce."""
        return self.reductions.setdefault(key, Reduction(*key))

    def takers(self, reduction: Reduction) -> list[Participant]:
        """Returns the workers that take part in an all-reduce, or will."""
        if reduction.site is None:
            return list(self.workers.values())
        site = self.tasks.peers.site
        return [worker for node, worker in self.workers.items() if site(node) == reduction.site]
