"""Who takes part in outer steps: who enters, from whom it has the model, who is left out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl.checks import at_least, is_a
from fl.collectives import SlowLinks, Stragglers
from fl.errors import ConfigError
from fl.strategies.drivers.driver import RuleDriver
from fl.strategies.drivers.outer.reduction import ReceivedOuterGradient, Reduction
from fl.strategies.drivers.outer.run import OuterRun, Participant
from fl.strategies.outer_rule import OuterRule

log = logging.getLogger("fl")


class OuterMembership(RuleDriver):
    """Who the workers are.

    All clients that are available at the beginning. A worker whose task fails or is late
    (`patience`) is left out of the all-reduces that have not begun, whose mean is then over the
    survivors. One that comes back, or comes late, fetches the outer parameters from a peer, and
    enters at the next step at which others go on; what it has done alone is not used, and its
    compressor starts over. If all fail, all enter again where the outer parameters are, at no cost.

    Args:
        rule: makes new outer parameters.
        joiners: what a worker does that comes while the others are on their way to an all-reduce:
            "train", from the next step at which these go on; or "zero", as in PRIME
            (arXiv:2412.01152): it does no inner steps in this phase, and takes part in the
            all-reduce with an outer gradient of 0, by which the mean is divided as well. The others
            wait for it to have the checkpoint, as they do for anybody.
        workers: how many take part at a time; others that are there are spares, who take the place
            of those that are left out. None has all take part.
        stragglers: by what workers are found slow, whose places spares take as long as there are
            some; None leaves them. Who was found slow does not take part again.
        slow_links: by what links are found slow, around which a ring passes then. Workers of which
            all links are so are replaced as stragglers are. None leaves them.
        **driver: other arguments of `RuleDriver`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = OuterRule
    example = "DiLoCo"
    rule: OuterRule

    def __init__(
        self,
        rule: OuterRule,
        *,
        joiners: str = "train",
        workers: int | None = None,
        stragglers: Stragglers | None = None,
        slow_links: SlowLinks | None = None,
        **driver: Any,
    ) -> None:
        super().__init__(rule, **driver)
        if joiners not in ("train", "zero"):
            raise ConfigError(f"joiners is {joiners!r}; it must be train or zero")
        self.joiners = joiners
        if workers is not None:
            at_least("workers", workers, 1)
        self.workers = math.inf if workers is None else workers
        if stragglers is not None:
            is_a("stragglers", stragglers, Stragglers)
            if workers is None:
                raise ConfigError(
                    f"stragglers is {stragglers}, but workers is null, so that there are no "
                    "spares: set workers to less than num_clients"
                )
        self.stragglers = stragglers
        if slow_links is not None:
            is_a("slow_links", slow_links, SlowLinks)
        self.slow_links = slow_links

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there are too few clients for those that are to take part."""
        taking_part = min(num_clients, self.workers)
        if num_clients < self.workers < math.inf:
            raise ConfigError(
                f"workers is {self.workers}, and there are {num_clients} clients: set it to fewer, "
                "which leaves the others as spares, or leave it out"
            )
        if self.stragglers is not None and taking_part == num_clients:
            raise ConfigError(
                f"workers is {self.workers}, and there are no more clients ({num_clients}) who "
                "could take the place of stragglers: set it to less than that"
            )

    def _admit(self, run: OuterRun, step: int | None = None) -> None:
        """Takes in clients that are available and do not take part.

        Args:
            run: the run.
            step: at which they enter; None if nobody takes part.
        """
        source = self._source(run)
        for node in self._spares(run):
            if len(run.workers) >= self.workers:
                break
            now = ready_s = run.tasks.now()
            if source is not None:
                size = self._entry_bytes(run)
                run.transfers += 1
                ready_s, arrives = run.tasks.peers.transfer(
                    source, node, size, now, index=run.transfers
                )
                if not arrives:
                    continue
            present = run.present
            for p, state in enumerate(run.states):
                run.states[p] = run.rule.entered(state, node, present)
                run.all_reduce.forget(node, p)
            worker = Participant(node, run.entry if step is None else step, [], ready_s)
            worker.passed = worker.step
            worker.held = [run.rule.theta(state, node) for state in run.states]
            run.enter(worker)
            if source is not None and step is not None and self.joiners == "zero":
                self._bring_nothing(run, worker, ready_s)
            log.info("node %d takes part from step %d, at %g s", node, worker.step, ready_s)

    def _spares(self, run: OuterRun) -> list[int]:
        """Returns the clients that are there, and could take part."""
        return [
            node
            for node in sorted(run.tasks.idle())
            if node not in run.workers and node not in run.slow and self._trains(run, node)
        ]

    def _trains(self, run: OuterRun, node: int) -> bool:
        """Returns whether a client is to be a worker."""
        return True

    def _source(self, run: OuterRun) -> int | None:
        """Returns the worker that those who enter have the outer parameters from, if any."""
        return min(run.workers, default=None)

    def _entry_bytes(self, run: OuterRun) -> int:
        """Returns the bytes that a worker fetches when it enters."""
        numbers = run.layout.size + sum(map(run.rule.beside, run.states))
        return 4 * numbers + int(run.all_reduce.memory_bytes)

    def _bring_nothing(self, run: OuterRun, worker: Participant, ready_s: float) -> None:
        """Has a worker take part in the next all-reduce by 0, when it has the checkpoint."""
        worker.step = run.schedule.next_stop(worker.step, run.last_step)
        run.arrive(worker)
        run.fetching[worker.node] = ready_s
        zero, size = np.zeros(run.layout.size), 4 * run.layout.size
        own = run.reduction((0, worker.step, None)).own
        own[worker.node] = ReceivedOuterGradient(zero, 1.0, size, "")

    def _isolate(self, run: OuterRun, stragglers: Stragglers, reduction: Reduction) -> None:
        """Takes out those that are found slow, if there are spares; their last part counts."""
        takers = [run.workers[m] for m in sorted(reduction.own) if m in run.workers]
        arrivals = {w.node: (w.last_step[0], w.last_step[0] - w.began_s) for w in takers}
        run.lateness, slow = stragglers.step(run.lateness, arrivals)
        self._replace(run, slow, "it is slow")

    def _go_around(self, run: OuterRun, slow_links: SlowLinks, reduction: Reduction) -> None:
        """Has later rings pass around links that are found slow; takes out whose links all are."""
        delays = run.tasks.peers.ring_delays(reduction.order)
        run.slowness, slow = slow_links.step(run.slowness, delays)
        for edge in slow.links:
            if edge not in run.all_reduce.avoided:
                log.info("the link from node %d to node %d is slow, and avoided", *edge)
                run.all_reduce.avoided.add(edge)
        ends = sorted({*slow.senders, *slow.receivers}.intersection(run.workers))
        self._replace(run, ends, "its links are slow")

    def _replace(self, run: OuterRun, slow: Sequence[int], why: str) -> None:
        """Has spares take the places of workers, of the first ones if there are too few."""
        for node in slow[: len(self._spares(run))]:
            run.slow.add(node)
            run.tasks.control.absent(node, run.version + 1)
            self._leave_out(run, run.workers[node], why)

    def _leave_out(self, run: OuterRun, worker: Participant, reason: str) -> None:
        """Does without a worker that failed, or is late."""
        log.info("node %d is left out after step %d: %s", worker.node, worker.step, reason)
        run.leave(worker)
        for key, reduction in list(run.reductions.items()):
            if not reduction.begun:
                reduction.own.pop(worker.node, None)
                reduction.lost.discard(worker.node)
                if not reduction.own and not reduction.lost:
                    del run.reductions[key]
