"""The driver of methods whose peers gather the gradients of one large batch before they meet.

The rule is `fl.strategies.dedloc`; schedule, membership and all-reduces are those of `OuterSteps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from fl.checks import at_least
from fl.clients.app.batches import covered_examples
from fl.clients.app.island import Island
from fl.collectives import Collective, LoadBalancedAllReduce
from fl.compression import Channel, PayloadError
from fl.errors import ConfigError, SimulationError
from fl.strategies.dedloc import DeDLOC, Report, Speed
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.outer.all_reduce import adds
from fl.strategies.drivers.outer.outer import OuterSteps, examples_of
from fl.strategies.drivers.outer.reduction import ReceivedOuterGradient, Reduction
from fl.strategies.drivers.outer.run import OuterRun, Participant, Segment
from fl.strategies.drivers.tasks import Task
from fl.strategies.outer_optimizers import Vector


@dataclass(slots=True, eq=False)
class OwnBatch:
    """What a peer has added up for the next step.

    Attributes:
        total: G_i, sum of the gradients of its samples, shape (d,), float64; None before the first.
        samples: n_i.
        replies: those that it is made of, by message id, with what each reported.
        told_s: when the others heard of it, s.
        micro_batch: samples of its last one.
        silent: whether the others have waited for it in vain since.
        speed: of the peer, in all that it has done.
    """

    told_s: float
    total: Vector | None = None
    samples: int = 0
    replies: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    micro_batch: int = 0
    silent: bool = False
    speed: Speed = field(default_factory=Speed)

    def add(self, mean: Vector, samples: int, now: float, took_s: float) -> None:
        """Adds the mean gradient of a micro-batch of so many samples, which took so long."""
        own = samples * mean
        self.total = own if self.total is None else self.total + own
        self.samples += samples
        self.micro_batch, self.told_s, self.silent = samples, now, False
        self.speed = self.speed.measured(samples, took_s)

    def report(self, *, computes: bool) -> Report:
        """Returns what the others know of it."""
        rate = self.speed.rate if computes else 0.0
        return Report(self.samples, rate, self.told_s, self.micro_batch)


class CollaborationRun(OuterRun):
    """What a run consists of.

    Attributes:
        gathered: what every peer has added up, by Flower id.
        epoch: all-reduces that have begun.
        empty: peers that have no examples, by Flower id.
        helpers: the auxiliary peers, likewise.
        joins: how often a peer has entered since the first ones.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.gathered: dict[int, OwnBatch] = {}
        self.epoch = 0
        self.empty: set[int] = set()
        self.helpers: frozenset[int] = frozenset()
        self.joins = 0

    def samples_at(self, reduction: Reduction) -> int:
        """Returns how many samples those have gathered who are at an all-reduce."""
        there = (m for m, worker in self.workers.items() if worker.step >= reduction.step)
        return sum(self.gathered[m].samples for m in there)

    def again(self, reduction: Reduction) -> None:
        """Has those who are at an all-reduce add up more before they meet there."""
        for worker in self.workers.values():
            if worker.step >= reduction.step:
                worker.step = worker.passed
                worker.ready_s = self.tasks.now()
                for nodes in (self.blocked, self.arrived):
                    nodes.discard(worker.node)
                self.ready.add(worker.node)
        del self.reductions[reduction.fragment, reduction.step, reduction.site]


class Collaboration(OuterSteps):
    """Steps by batches that volunteers gather together.

    A task is a micro-batch: `accumulate` batches of the client. After each, a peer tells the others
    what it has and how fast it is, and asks what they have; if the batch is complete by the rule's
    estimate it stops and looks for them, else it goes on. When all have stopped, or `waiting_s`
    after the first, their mean gradient is all-reduced, weighted by samples, if together they have
    the target batch indeed. If not, as somebody left or was slower than before, all go on. So no
    step is of fewer samples than the target.

    A peer that leaves loses what it has added up, if it was not all-reduced yet. So does one that
    comes too late; it then fetches the parameters from a peer, as does everyone who enters, at any
    time: a part of a step is enough to contribute. Whoever still fetches is not waited for, and
    begins again if the step is taken meanwhile. The state of the optimizer is fetched as well.

    Clients that cannot be reached (`fl.simulation.kernel.links.Links.reachable`) add up no part of
    the vector in an all-reduce of `LoadBalancedAllReduce`, and nobody fetches from them.

    On the simulator, progress is told and asked for at no cost, by all that are online or were
    until lately. On a deployment every micro-batch's gradient goes through the SuperLink, and is
    encoded by the process that runs the strategy.

    Args:
        rule: says when a batch is complete, and makes the step.
        auxiliary: of the clients, the last so many train nothing and help to average; they have a
            part of the vector and no gradient.
        batch_size: examples of a client's batch, which count as samples; None takes all it has.
        drop_last: whether clients leave out the last batch of an epoch if it is smaller.
        **driver: other arguments of `OuterSteps`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = DeDLOC
    example = "DeDLOC"
    runs: ClassVar[type[OuterRun]] = CollaborationRun
    default_allreduce: ClassVar[Collective] = LoadBalancedAllReduce()
    rule: DeDLOC

    def __init__(
        self,
        rule: DeDLOC,
        *,
        auxiliary: int = 0,
        batch_size: int | None = None,
        drop_last: bool = False,
        **driver: Any,
    ) -> None:
        super().__init__(rule, **driver)
        at_least("auxiliary", auxiliary, 0)
        if auxiliary and not self.allreduce.helpers:
            raise ConfigError(
                f"auxiliary is {auxiliary}, but in an allreduce of "
                f"{type(self.allreduce).__name__} all have a vector of their own: choose "
                "allreduce=load_balanced"
            )
        for name in ("buckets", "weighted_by_key", "sharding"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but peers all-reduce the sum of many "
                    "gradients, weighted by their samples: leave it out"
                )
        if self.stragglers is not None:
            raise ConfigError(
                f"stragglers is {self.stragglers}, but slow peers hold up nobody here: they do "
                "less of a batch. Leave it out"
            )
        if self.compress_mean:
            raise ConfigError(
                "compress_mean is true, but workers weigh by their samples here: leave it out"
            )
        self.auxiliary = auxiliary
        self.batch_size = batch_size
        self.drop_last = drop_last

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`."""
        if self.auxiliary and not adds(exchange.uplink, self.aggregator):
            of = type(exchange.uplink).__name__ if exchange.uplink else self.aggregator.name
            raise ConfigError(
                f"auxiliary is {self.auxiliary}, but what {of} needs cannot be added on its way, "
                "so that there is nothing to help with: leave auxiliary out"
            )
        return super().within(exchange)

    @property
    def sends_payloads(self) -> bool:
        """False: what is encoded is the sum of several replies."""
        return False

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if too few clients train."""
        if self.auxiliary >= num_clients:
            raise ConfigError(
                f"auxiliary is {self.auxiliary} of {num_clients} clients: somebody must train"
            )
        super().check_clients(num_clients - self.auxiliary)

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Any, Any]:
        """Returns the worker, which is both ends; it sends gradients as they are."""
        island = Island(1, "strided", None, *self.keys)
        return island, island

    def told_of(self, run: OuterRun, reduction: Reduction | None) -> Mapping[str, int]:
        """Returns the samples of a step, of how many peers they are, and who has come so far."""
        assert isinstance(run, CollaborationRun)
        if reduction is None:
            return {}
        samples = sum(map(_samples, reduction.own.values()))
        return {"samples": samples, "peers": len(reduction.own), "joins": run.joins}

    # ---- what peers add up -----------------------------------------------------------------------

    def _came(
        self,
        run: OuterRun,
        worker: Participant,
        task: Task[Segment],
        sent: Mapping[int, ReceivedOuterGradient],
        metrics: Mapping[str, Any],
    ) -> None:
        """Adds up a micro-batch; the peer goes on, or looks for the others."""
        assert isinstance(run, CollaborationRun)
        now, own, samples = run.tasks.now(), run.gathered[worker.node], _samples(sent[0])
        own.replies.append((task.message_id, metrics))
        if not samples:
            self._has_nothing(run, worker)
            return
        own.add(sent[0].delta, samples, now, now - worker.ready_s)
        if not self.rule.reached(self._reports(run), now):
            worker.ready_s = now
            run.ready.add(worker.node)
            return
        worker.step = task.memo.stop
        run.arrive(worker)
        reduction = run.reduction((0, worker.step, None))
        reduction.since_s = min(reduction.since_s, now)

    def _reports(self, run: CollaborationRun) -> list[Report]:
        """Returns what peers have told of the batch that is gathered."""
        return [
            own.report(computes=run.workers[m].step == run.epoch)
            for m, own in run.gathered.items()
            if not own.silent and run.workers[m].ready_s <= run.tasks.now()
        ]

    def _has_nothing(self, run: CollaborationRun, worker: Participant) -> None:
        """Does without a peer that has no examples, for good."""
        run.empty.add(worker.node)
        self._leave_out(run, worker, "it has no examples")
        if not any(self._trains(run, m) for m in run.tasks.peers.nodes()):
            raise SimulationError(
                f"{self.name}: no client has examples to train on; give them some, or lower "
                "auxiliary"
            )

    def _weight(self, run: OuterRun, worker: Participant, metrics: Mapping[str, Any]) -> float:
        """Returns the samples of a reply: those of the batches that it was told to take.

        Raises:
            ConfigError: it does not say how many examples its sender has.
        """
        examples = examples_of(metrics)
        return covered_examples(self.accumulate, examples, self.batch_size, self.drop_last)

    # ---- all-reduces -----------------------------------------------------------------------------

    def _complete(self, run: OuterRun, reduction: Reduction) -> bool:
        """Returns whether all are there, with a batch; without one, all go on."""
        assert isinstance(run, CollaborationRun)
        now = run.tasks.now()
        if any(w.step < reduction.step and w.ready_s <= now for w in run.workers.values()):
            return False
        if run.samples_at(reduction) >= self.rule.target_batch:
            return True
        run.again(reduction)
        return False

    def _waits_until(self, reduction: Reduction) -> float:
        """Returns when the peers at an all-reduce go on without the others, s."""
        return math.inf if reduction.begun else reduction.since_s + self.waiting_s

    def _give_up_waiting(self, run: OuterRun, reduction: Reduction) -> None:
        """Leaves out who is late, or has all go on if the others have no batch."""
        assert isinstance(run, CollaborationRun)
        if run.samples_at(reduction) >= self.rule.target_batch:
            super()._give_up_waiting(run, reduction)
        else:
            for m in run.present:
                run.gathered[m].silent = run.workers[m].step < reduction.step
            run.again(reduction)

    def _begin(self, run: OuterRun, reduction: Reduction) -> None:
        """Begins an all-reduce of what the peers at it have gathered."""
        assert isinstance(run, CollaborationRun)
        step = reduction.step
        for worker in [w for w in run.workers.values() if w.step < step]:
            self._leave_out(run, worker, "the step is taken before it has the parameters")
        for m in run.present:
            own = run.gathered[m]
            for message_id, metrics in own.replies:
                run.tasks.control.applied(message_id, 0, metrics)
            if own.total is not None:
                mean = own.total / own.samples
                name = own.replies[-1][0]
                try:
                    delta, size = run.all_reduce.passed(0, m, mean, step)
                except (PayloadError, ConfigError) as error:
                    run.tasks.control.rejected(name)
                    run.refused.setdefault((0, step, None), []).append(str(error))
                else:
                    reduction.own[m] = ReceivedOuterGradient(
                        np.asarray(delta), float(own.samples), size, name
                    )
            run.gathered[m] = OwnBatch(run.tasks.now(), speed=own.speed)
        run.epoch = step
        super()._begin(run, reduction)
        run.stirred = True

    def _go_on(self, run: OuterRun, worker: Participant) -> bool:
        """Lets a peer pass a step once its gradient is on its way."""
        assert isinstance(run, CollaborationRun)
        return worker.step <= run.epoch and super()._go_on(run, worker)

    # ---- membership ------------------------------------------------------------------------------

    def _receive(self, run: OuterRun) -> None:
        """Waits for replies; whoever is there by then enters."""
        assert isinstance(run, CollaborationRun)
        super()._receive(run)
        on_its_way = any(r.begun and not r.done for r in run.reductions.values())
        if run.workers and run.epoch < run.last_step and (self.rule.delayed or not on_its_way):
            self._admit(run, run.epoch)

    def _admit(self, run: OuterRun, step: int | None = None) -> None:
        """Takes in clients that are available and do not take part."""
        assert isinstance(run, CollaborationRun)
        before = set(run.workers)
        if before and self._source(run) is None:
            return
        super()._admit(run, step)
        for m, worker in run.workers.items():
            if m not in before:
                run.gathered[m] = OwnBatch(worker.ready_s)
                run.joins += bool(before)

    def _leave_out(self, run: OuterRun, worker: Participant, reason: str) -> None:
        """Does without a peer; what it has added up is lost."""
        assert isinstance(run, CollaborationRun)
        key = (0, run.epoch + 1, None)
        others_wait_at = run.reductions.get(key)
        super()._leave_out(run, worker, reason)
        if others_wait_at and any(w.step > run.epoch for w in run.workers.values()):
            run.reductions[key] = others_wait_at
        for message_id, _ in run.gathered.pop(worker.node).replies:
            run.tasks.control.discarded(message_id, 0)

    def _source(self, run: OuterRun) -> int | None:
        """Returns a peer that has the parameters, and can be reached if any can."""
        now = run.tasks.now()
        there = [m for m in run.present if run.workers[m].ready_s <= now]
        return min(there, key=lambda m: (not run.tasks.peers.reachable(m), m), default=None)

    def _helpers(self, run: OuterRun) -> Sequence[int]:
        """Returns the auxiliary peers that are online."""
        assert isinstance(run, CollaborationRun)
        return sorted(run.helpers.intersection(run.tasks.nodes()))

    def _trains(self, run: OuterRun, node: int) -> bool:
        """Returns whether a client adds up gradients."""
        assert isinstance(run, CollaborationRun)
        if self.auxiliary and not run.helpers and run.tasks.numbered:
            run.helpers = frozenset(run.tasks.peers.nodes()[-self.auxiliary :])
        return node not in run.helpers and node not in run.empty


def _samples(gradient: ReceivedOuterGradient) -> int:
    return round(gradient.weight)
