"""The driver of rounds that end before everybody has answered.

A method says whom to select, and looks at a round that has ended. The driver does the rest: it
closes a round when enough replies are there, at its deadline, or when no other can come.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fl.aggregation import Admitted, Aggregator, Dropped, Guard, Mean, check_result
from fl.errors import ConfigError, NoStep
from fl.randomness import generator
from fl.strategies.events import EventDriven, Sent, Server, Update, at_least, positive
from fl.strategies.tasks import Task
from fl.vectors.rows import Row

log = logging.getLogger("fl")


class EarlyRounds(EventDriven):
    """Base of synchronous strategies that do not wait for stragglers.

    A round selects floor(factor N) clients and ends with the first of

    - N replies: those are aggregated;
    - its deadline, or the moment when no further reply can come: the replies that are there are
      aggregated if they are at least the share `min_fraction` of N, or of those selected if these
      were fewer, and at least one; otherwise the round is abandoned and leaves the model as it is.

    Whoever has not answered by then is told to stop, or goes on and is discarded. What was sent to
    them, and what they send, counts. `num_rounds` counts rounds, abandoned ones included. If fewer
    clients are available than a round selects, it takes those there are, and N of them suffice.

    Args:
        clients: N, replies that a round waits for.
        over_selection: factor, at least 1.
        deadline_s: s after its beginning when a round ends at the latest; None waits for the
            messages' time to live.
        min_fraction: that share, in [0, 1]; by default a round needs half of the replies it waited
            for, so that no single client makes a model.
        abort: tell clients that are too late to stop; otherwise they go on, busy until they have
            finished.
        rule: combines the clients' models, see `fl.strategies.Aggregate`; None is the mean weighted
            by examples.
        eta: server learning rate, above 0.
        weighted_by_key: metric that weights the average.
        **events: arguments of `EventDriven` but `concurrency` and `patience`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True

    def __init__(
        self,
        *,
        clients: int = 10,
        over_selection: float = 1.0,
        deadline_s: float | None = None,
        min_fraction: float = 0.5,
        abort: bool = True,
        rule: Aggregator | None = None,
        eta: float = 1.0,
        weighted_by_key: str = "num-examples",
        **events: Any,
    ) -> None:
        super().__init__(patience=None, **events)
        at_least("clients", clients, 1)
        if not 1 <= over_selection < math.inf:
            raise ConfigError(f"over_selection is {over_selection}; it must be at least 1")
        if deadline_s is not None:
            positive("deadline_s", deadline_s)
        if not 0 <= min_fraction <= 1:
            raise ConfigError(f"min_fraction is {min_fraction}; it must lie in [0, 1]")
        self.clients = clients
        self.over_selection = over_selection
        self.deadline_s = deadline_s
        self.min_fraction = min_fraction
        self.abort = abort
        positive("eta", eta)
        self.rule = Mean() if rule is None else rule
        self.eta = eta
        self.weighted_by_key = weighted_by_key

    # ---- the method ------------------------------------------------------------------------------

    @abstractmethod
    def select(self, server: Server, idle: Sequence[int], count: int) -> list[int]:
        """Returns the clients of a new round.

        Args:
            server: what the method sees.
            idle: available clients without a task, at least one.
            count: how many to select; fewer if there are not so many, but at least one.
        """

    def ended(self, server: Server, replies: Sequence[Update], missed: Sequence[int]) -> None:
        """Looks at a round that has ended, before its aggregation.

        Args:
            server: what the method sees.
            replies: in the order of their arrival.
            missed: the clients that were too late.
        """

    def late(self, server: Server, update: Update) -> None:
        """Looks at an update that came after its round, before it is discarded."""

    # ---- the driver ------------------------------------------------------------------------------

    takes_empty = True  # their weight is 0, and the rule's business

    def begin(self, server: Server) -> None:
        """Prepares for the first round."""
        self.awaited: dict[str, Task[Sent]] = {}
        self.replies: list[Update] = []
        self.selected = 0  # how many clients, in the last round
        self.round_began = math.nan  # of the open round; NaN between rounds
        self.aggregate = np.zeros_like(server.w)  # the last, for rules that continue from it

    @property
    def is_open(self) -> bool:
        """Whether a round is going on."""
        return not math.isnan(self.round_began)

    def free_slots(self, server: Server) -> int:
        """Returns how many clients could be selected now: none during a round."""
        return 0 if self.is_open else len(server.tasks.idle())

    def dispatch(self, server: Server) -> None:
        """Begins a round if none is going on and a client is idle."""
        idle = server.tasks.idle()
        if self.is_open or not idle:
            return
        count = min(int(self.over_selection * self.clients + 1e-9), len(idle))
        self.open(server, self.select(server, idle, count))

    def open(self, server: Server, nodes: Sequence[int]) -> None:
        """Begins a round with these clients."""
        self.awaited = {task.message_id: task for task in server.send(nodes)}
        self.replies, self.selected = [], len(nodes)
        self.round_began = server.now

    def receive(self, server: Server, update: Update) -> None:
        """Takes a reply, and ends the round if it was the last one needed."""
        if self.awaited.pop(update.task.message_id, None) is None:
            self.late(server, update)
            server.discard(update)
            return
        self.replies.append(update)
        if len(self.replies) >= self.goal() or not self.awaited:
            self.close(server)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Ends the round if nobody else is awaited."""
        if self.awaited.pop(task.message_id, None) is not None and not self.awaited:
            self.close(server)

    def timer(self, server: Server) -> float:
        """Returns the deadline of the round that is going on."""
        if self.deadline_s is None or not self.is_open:
            return math.inf
        return self.round_began + self.deadline_s

    def tick(self, server: Server) -> None:
        """Ends the round at its deadline."""
        self.close(server)

    def goal(self) -> int:
        """Returns how many replies end the round."""
        return self.clients

    def close(self, server: Server) -> None:
        """Ends the round: clients that are late are told so, and what has come is aggregated."""
        missed = [task.node for task in self.awaited.values()]
        if self.abort:
            for task in server.tasks:  # not those that have arrived at this very instant
                if task.message_id in self.awaited:
                    server.tasks.cancel(task)
        replies, self.replies, self.awaited = self.replies, [], {}
        self.ended(server, replies, missed)
        self.round_began = math.nan
        self.finish(server, replies)

    def finish(self, server: Server, replies: Sequence[Update]) -> None:
        """Makes the next version of the replies, or of nothing if they are too few."""
        goal = min(self.clients, self.selected)
        if len(replies) < max(1, math.ceil(self.min_fraction * goal - 1e-9)):
            self._abandon(server, replies, f"{len(replies)} replies are too few")
            return
        rows = np.stack([update.x for update in replies])
        weights = [update.metrics.get(self.weighted_by_key) for update in replies]
        usable = list(replies)

        def leave_out(dropped: Sequence[Dropped]) -> None:
            for one in dropped:
                server.reject(replies[one.index])
                usable.remove(replies[one.index])

        try:
            admitted = Guard(f=self.rule.tolerates(len(replies)))(
                rows, rows.shape[1], weights, left_out=leave_out
            )
            w = self.combine(server, admitted)
        except ConfigError as error:
            if len(replies) >= self.clients and not isinstance(error, NoStep):
                raise  # the rule cannot work with what it is given
            self._abandon(server, usable, str(error), type(error))
            return
        server.step(w, usable, of_one_version=True)

    def combine(self, server: Server, admitted: Admitted) -> Row:
        """Returns w + eta F(w_1 - w, ..., w_n - w), shape (d,)."""
        rng = generator(self.seed, "aggregation", server.version + 1)
        rule = self.rule.tolerating(admitted.f)
        with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
            aggregate = rule(admitted.x - server.w, admitted.weights, rng, self.aggregate)
        w = server.model.layout.step(server.w, self.eta, aggregate)
        check_result("the server", w)
        self.aggregate = aggregate
        return w

    def _abandon(
        self,
        server: Server,
        replies: Sequence[Update],
        reason: str,
        kind: type[ConfigError] = NoStep,
    ) -> None:
        for update in replies:
            server.discard(update)
        if not replies and self.diverged[""]:
            server.stay(self.why_in_vain())
        else:
            server.stay(kind(reason) if issubclass(kind, NoStep) else NoStep(reason))

    def at_once(self, server: Server) -> int:
        """Returns N, or how many clients there are."""
        return min(self.clients, super().at_once(server))

    def stay(self, server: Server, task: Task[Sent], why: NoStep) -> None:
        """Does nothing: a round ends in any case, and then the model stays as it is."""
