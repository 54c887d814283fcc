"""TiFL: train clients of similar speed together, and slow tiers no more often than they need.

Chai, Ali, Zawad, Truex, Anwar, Baracaldo, Zhou, Ludwig, Yan, Cheng, "TiFL: A Tier-based Federated
Learning System", arXiv:2001.09249 (HPDC 2020), Algorithm 2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fl.aggregation import weight_of
from fl.errors import SimulationError
from fl.randomness import generator
from fl.strategies.drivers.events import Sent, Server, Update, at_least, positive
from fl.strategies.drivers.rounds import Rounds
from fl.strategies.drivers.tasks import Task

log = logging.getLogger("fl")


class TiFL(Rounds):
    """Adaptive tier selection, after profiling.

    Profiling: in each of `profiling_rounds` all available clients train the initial model. A client
    that has not answered after `profiling_s` counts with that time, and one that never answers is
    in no tier. The others are sorted by mean latency and split into T tiers of equal size. A client
    that was not there, or that failed, is timed when it is idle, with the current model and beside
    the rounds; then clients are sorted and split again. Clients without a tier are not trained; if
    there is no tier, because all are too slow, the run ends.

    Round r: a tier is drawn by the tiers' probabilities among those with credits and an idle
    client, loses a credit, and N of its clients train as in FedAvg. Probabilities are 1/T and
    credits `credits` at first. Every I rounds the tiers' accuracies are measured, on the clients'
    own data; if that of the tier just trained has not improved since the last time, the n tiers
    with credits get, from the least accurate to the most,

        p_j = (n - j) / (n (n + 1) / 2),    j = 0, ..., n - 1.

    When all credits are spent, every tier gets `credits` again. Profiling and measuring take time
    and bytes like everything else; profiling is before round 1 and makes no version of the model.

    Args:
        num_tiers: T.
        interval: I, rounds between two measurements of accuracy.
        credits: of each tier; None lets every tier train in ceil(num_rounds / T) rounds at most.
        profiling_rounds: how often every client is timed.
        profiling_s: Tmax, s.
        **rounds: arguments of `Rounds`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    evaluates_on_clients: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_tiers: int = 5,
        interval: int = 10,
        credits: int | None = None,
        profiling_rounds: int = 1,
        profiling_s: float = 120.0,
        **rounds: Any,
    ) -> None:
        super().__init__(**rounds)
        at_least("num_tiers", num_tiers, 1)
        at_least("interval", interval, 1)
        at_least("profiling_rounds", profiling_rounds, 1)
        positive("profiling_s", profiling_s)
        if credits is not None:
            at_least("credits", credits, 1)
        self.num_tiers = num_tiers
        self.interval = interval
        self.credits = credits
        self.profiling_rounds = profiling_rounds
        self.profiling_s = profiling_s

    def begin(self, server: Server) -> None:
        """Begins with profiling."""
        super().begin(server)
        self.profiled = 0
        self.latency_s: dict[int, list[float]] = {}
        self.timing: set[str] = set()  # messages to clients that are timed beside the rounds
        self.outdated = False  # whether clients have been timed since the tiers were formed
        self.tiers: list[list[int]] = []
        self.current: int | None = None
        self.accuracy: list[float] = []
        self.probabilities: list[float] = []
        self.left: list[int] = []

    # ---- profiling -------------------------------------------------------------------------------

    @property
    def profiling(self) -> bool:
        """Whether clients are still being timed."""
        return self.profiled < self.profiling_rounds

    def dispatch(self, server: Server) -> None:
        """Begins a round of profiling, or of training; before that, times who is new."""
        if self.is_open:
            return
        if self.profiling:
            if server.tasks.idle():
                idle = server.tasks.idle()
                self.open(server, idle, len(idle))
            return
        if self.outdated:
            self.form_tiers(server)
        new = [node for node in server.tasks.idle() if not self.is_timed(node)]
        self.timing.update(task.message_id for task in server.send(new))
        if any(self.idle_members(server)):
            super().dispatch(server)

    def free_slots(self, server: Server) -> int:
        """Returns how many clients could be selected or timed now: none during a round."""
        if self.profiling or self.is_open:
            return super().free_slots(server)
        new = [node for node in server.tasks.idle() if not self.is_timed(node)]
        return len(new) + sum(map(len, self.idle_members(server)))

    def is_timed(self, node: int) -> bool:
        """Returns whether a client has been timed as often as it should be."""
        return len(self.latency_s.get(node, ())) >= self.profiling_rounds

    def goal(self) -> int:
        """Returns how many replies end the round: when profiling, all."""
        return self.selected if self.profiling else super().goal()

    def timer(self, server: Server) -> float:
        """Returns the deadline of the round, which is Tmax when profiling."""
        if self.profiling and self.is_open:
            return self.round_began + self.profiling_s
        return super().timer(server)

    def ended(self, server: Server, replies: Sequence[Update], missed: Sequence[int]) -> None:
        """Notes the latencies of a round of profiling."""
        if not self.profiling:
            return
        for update in replies:
            self.note(update.node, update.seconds)
        for node in missed:
            self.note(node, self.profiling_s)

    def note(self, node: int, seconds: float) -> None:
        """Notes how long a client took when it was timed."""
        self.latency_s.setdefault(node, []).append(min(seconds, self.profiling_s))
        self.outdated = True

    def late(self, server: Server, update: Update) -> None:
        """Notes the latency of a client that was timed beside the rounds."""
        if update.task.message_id in self.timing:
            self.timing.discard(update.task.message_id)
            self.note(update.node, update.seconds)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Notes who did not answer in time; one that failed in another way is timed again."""
        timed = task.message_id in self.timing
        silent = server.now - task.sent_s >= min(self.profiling_s, server.tasks.ttl_s)
        self.timing.discard(task.message_id)
        if silent and (timed or (self.profiling and task.message_id in self.awaited)):
            self.note(task.node, self.profiling_s)
        super().failed(server, task)

    def finish(self, server: Server, replies: Sequence[Update]) -> None:
        """Ends a round: one of training with a new model, one of profiling without."""
        if not self.profiling:
            super().finish(server, replies)
            return
        for update in replies:
            server.discard(update)
        self.profiled += 1

    def form_tiers(self, server: Server) -> None:
        """Splits the clients by latency, the fastest first.

        Raises:
            SimulationError: clients were timed, and all of them are too slow.
        """
        self.outdated = False
        timed = [node for node in self.latency_s if self.is_timed(node)]
        mean = {node: sum(self.latency_s[node]) / self.profiling_rounds for node in timed}
        order = sorted((node for node in timed if mean[node] < self.profiling_s), key=mean.get)  # type: ignore[arg-type]
        if timed and not order:
            raise SimulationError(
                f"none of the {len(timed)} clients that were timed answered within "
                f"strategy.profiling_s, {self.profiling_s:g} s, so that none is in a tier: raise "
                "it, and round_timeout_s with it, or wait for faster ones with a larger "
                "strategy.min_available_nodes"
            )
        before = len(self.tiers)
        parts = np.array_split(np.array(order, dtype=np.uint64), self.num_tiers)
        self.tiers = [[int(node) for node in part] for part in parts if len(part)]
        log.info("tiers of %s clients", [len(tier) for tier in self.tiers])
        if len(self.tiers) != before:
            self.current, self.accuracy = None, []
            self.probabilities = [1 / len(self.tiers) for _ in self.tiers]
            self.refill(server)

    # ---- tiers -----------------------------------------------------------------------------------

    def refill(self, server: Server) -> None:
        """Gives every tier its credits."""
        credits = self.credits or math.ceil(server.num_rounds / max(len(self.tiers), 1))
        self.left = [credits for _ in self.tiers]

    def idle_members(self, server: Server) -> list[list[int]]:
        """Returns the idle clients of each tier."""
        idle = set(server.tasks.idle())
        return [[node for node in tier if node in idle] for tier in self.tiers]

    def select(self, server: Server, idle: Sequence[int], count: int) -> list[int]:
        """Returns clients of one tier."""
        members = self.idle_members(server)
        if server.version and server.version % self.interval == 0:
            self.measure(server)
        open_tiers = [j for j, tier in enumerate(members) if tier and self.left[j]]
        if not open_tiers:
            self.refill(server)
            open_tiers = [j for j, tier in enumerate(members) if tier]
        p = np.array([self.probabilities[j] for j in open_tiers])
        p = p / p.sum() if p.any() else np.full(len(p), 1 / len(p))
        rng = generator(self.seed, "tier", server.version)
        self.current = open_tiers[int(rng.choice(len(p), p=p))]
        self.left[self.current] -= 1
        return server.sample(members[self.current], min(count, len(members[self.current])))

    def measure(self, server: Server) -> None:
        """Measures the tiers' accuracies, and changes the probabilities if they call for it."""
        before, self.accuracy = self.accuracy, self.accuracies(server)
        j = self.current
        if j is not None and before and self.accuracy[j] > before[j]:
            return
        self.probabilities = change_probabilities(self.accuracy, self.left)

    def accuracies(self, server: Server) -> list[float]:
        """Returns each tier's accuracy, weighted by examples; 0 of a tier nobody answers for.

        The model is sent to all available clients of all tiers as `evaluate` messages.
        """
        here = set(server.tasks.nodes())
        tier_of = {node: j for j, tier in enumerate(self.tiers) for node in tier if node in here}
        config = ConfigRecord({"server-round": server.version})
        content = RecordDict(
            {self.arrayrecord_key: server.model.record(), self.configrecord_key: config}
        )
        hits, counts = np.zeros(len(self.tiers)), np.zeros(len(self.tiers))
        for reply in server.tasks.evaluate(content, list(tier_of), self.profiling_s):
            if reply.has_error():
                continue
            metrics: Any = next(iter(reply.content.metric_records.values()), {})
            examples, accuracy = metrics.get("num-examples"), metrics.get("accuracy")
            weight = weight_of(examples)
            if weight is None or not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
                log.warning(
                    "node %d left out of its tier's accuracy: it reports no 'num-examples' and "
                    "'accuracy' that are finite numbers",
                    reply.metadata.src_node_id,
                )
                server.tasks.control.rejected(reply.metadata.reply_to_message_id)
                continue
            j = tier_of[reply.metadata.src_node_id]
            hits[j] += weight * accuracy
            counts[j] += weight
        means = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
        return [float(mean) for mean in means]


def change_probabilities(accuracy: Sequence[float], left: Sequence[int]) -> list[float]:
    """Returns ChangeProbs of the paper: (n - j) / (n (n + 1) / 2) for the j-th worst tier.

    Args:
        accuracy: of each tier.
        left: credits of each tier; the n tiers with some share the probability.
    """
    with_credits = [j for j, credit in enumerate(left) if credit > 0]
    n = len(with_credits)
    probabilities = [0.0] * len(left)
    for rank, j in enumerate(sorted(with_credits, key=lambda j: (accuracy[j], j))):
        probabilities[j] = (n - rank) / (n * (n + 1) / 2)
    return probabilities
